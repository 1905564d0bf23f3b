/* chaos: a daemon that advises at random, at once and sometimes wrongly, as fast as its clients' agents answer.
 *
 *  chaos SOCKET SEED [WRONG_PERMILLE]
 *
 * It waits for no page to settle, so that most transitions meet memory in use; it names slots of other content and
 * calls pages zero that are not. Whatever it says, no program may read a byte that differs: the agent verifies. Serves each
 * client on a thread of its own; prints what became of its advice when it is terminated. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "daemon/sys/segment.h"
#include "proto/channel.h"

#define SLOTS 16384U
#define TABLE 65536U /* contents seen; a power of two */
#define RANGES 4096U
#define ANSWER_MSEC 20000
#define PAUSE_USEC 150 /* between advice to one client: two CPUs are shared with the programs */
#define BLOCK_BYTES ((size_t) BLOCK_PAGES << KSM_PAGE_SHIFT)

/* Contents by hash: seen once, or with a slot from the second sight on. */
struct content {
        uint64_t hash;
        uint32_t slot; /* SLOTS: none yet */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct content table[TABLE];
static struct segment_file *segment;
static _Atomic uint32_t published; /* grows under the lock, read without */
static int device = -1;
static uint32_t wrong_permille;
static _Atomic uint64_t results[APPLY_RESTORE + 1][APPLY_STATUS_MAX_];
static _Atomic uint64_t wrong_accepted;

struct client {
        int fd, mem;
        uint64_t random, op;
        struct range_element ranges[RANGES];
        uint32_t n_ranges;
        struct channel_message message;
        _Alignas(8) uint8_t block[BLOCK_PAGES << KSM_PAGE_SHIFT];
};

static void die(const char *what) {
        fprintf(stderr, "chaos: %s: %s\n", what, strerror(errno));
        exit(1);
}

static uint64_t random_next(struct client *c) {
        c->random ^= c->random << 13;
        c->random ^= c->random >> 7;
        c->random ^= c->random << 17;
        return c->random * 0x2545f4914f6cdd1dULL >> 16;
}

static uint64_t hash_of(const uint8_t *page) {
        uint64_t h = 1469598103934665603ULL, v;
        for (size_t i = 0; i < KSM_PAGE_SIZE; i += 8) {
                memcpy(&v, page + i, 8);
                h = (h ^ v) * 1099511628211ULL;
                h ^= h >> 29;
        }
        return h | 1;
}

/* The slot of a content, SLOTS when it has none. */
static uint32_t slot_of(const uint8_t *page) {
        uint64_t h = hash_of(page);
        uint32_t slot = SLOTS;
        pthread_mutex_lock(&lock);
        for (uint32_t i = (uint32_t) h & (TABLE - 1), probes = 0; probes < 64; i = (i + 1) & (TABLE - 1), probes++) {
                if (!table[i].hash) {
                        table[i] = (struct content) { h, SLOTS };
                        break;
                }
                if (table[i].hash != h)
                        continue;
                if (table[i].slot == SLOTS && published < SLOTS) {
                        if (segment_file_fill(segment, published, page, 1) != 1)
                                die("slot");
                        table[i].slot = published++;
                }
                slot = table[i].slot;
                break;
        }
        pthread_mutex_unlock(&lock);
        return slot;
}

/* -- ranges of a client ---------------------------------------------------------------------------------------- */

static void range_remove(struct client *c, uint64_t start, uint64_t end) {
        for (uint32_t i = 0; i < c->n_ranges; i++) {
                struct range_element *r = &c->ranges[i];
                uint64_t r_end = r->start + r->length;
                if (!ranges_overlap(start, end, r->start, r_end))
                        continue;
                if (start > r->start && end < r_end && c->n_ranges < RANGES)
                        c->ranges[c->n_ranges++] = (struct range_element) { end, r_end - end };
                if (start > r->start)
                        r->length = start - r->start;
                else if (end < r_end)
                        *r = (struct range_element) { end, r_end - end };
                else
                        c->ranges[i--] = c->ranges[--c->n_ranges];
        }
}

static void on_frame(struct client *c, const struct frame *f) {
        const struct range_element *e = f->elements;
        if (f->type != MSG_RANGE_ADD && f->type != MSG_RANGE_DEL)
                return; /* GONE, STATS, MERGE_REQUEST: chaos does not care */
        for (uint32_t i = 0; i < f->count; i++) {
                range_remove(c, e[i].start, e[i].start + e[i].length);
                if (f->type == MSG_RANGE_ADD && c->n_ranges < RANGES)
                        c->ranges[c->n_ranges++] = e[i];
        }
}

/* Frames until APPLIED when waiting for one, else those that are there. 1 = APPLIED, 0 = nothing more, -1 = the end. */
static int receive(struct client *c, bool wait, struct msg_applied *ret) {
        for (;;) {
                struct pollfd p = { c->fd, POLLIN, 0 };
                int n = poll(&p, 1, wait ? ANSWER_MSEC : 0);
                if (n == 0 && wait) {
                        fprintf(stderr, "chaos: an agent did not answer within %d ms\n", ANSWER_MSEC);
                        return -1;
                }
                if (n <= 0)
                        return n;
                enum codec_error error;
                if (channel_receive(c->fd, ROLE_AGENT, &c->message, &error) != 1)
                        return -1;
                bool applied = c->message.frame.type == MSG_APPLIED;
                if (applied)
                        *ret = *(const struct msg_applied *) c->message.frame.body;
                else
                        on_frame(c, &c->message.frame);
                channel_message_done(&c->message);
                if (applied)
                        return 1;
        }
}

/* -- advice ---------------------------------------------------------------------------------------------------- */

struct advice {
        struct msg_apply apply;
        struct extent_element extents[BLOCK_PAGES];
        uint32_t n;
        uint64_t wrong; /* pages for which the advice is false as far as chaos knows */
};

static void add_page(struct advice *a, uint64_t page, uint32_t slot) {
        struct extent_element *last = a->n ? &a->extents[a->n - 1] : NULL;
        bool merge = a->apply.kind == APPLY_MERGE;
        if (last && last->page + last->n_pages == page && (!merge || last->slot + last->n_pages == slot)) {
                last->n_pages++;
                return;
        }
        a->extents[a->n++] = (struct extent_element) {
                .page = page, .n_pages = 1, .segment = merge ? 1 : 0, .slot = merge ? slot : 0,
        };
}

static void advise_page(struct client *c, struct advice *a, uint64_t page, const uint8_t *bytes, bool readable) {
        static const uint8_t zeros[KSM_PAGE_SIZE];
        bool wrong = random_next(c) % 1000 < wrong_permille;
        switch (a->apply.kind) {
        case APPLY_MERGE: {
                uint32_t slot = readable ? slot_of(bytes) : SLOTS;
                if (wrong && published) {
                        uint32_t other = (uint32_t) (random_next(c) % published);
                        a->wrong |= (uint64_t) (other != slot) << (page % BLOCK_PAGES);
                        slot = other;
                }
                if (slot != SLOTS)
                        add_page(a, page, slot);
                break;
        }
        case APPLY_ZERO: {
                bool zero = readable && memcmp(bytes, zeros, KSM_PAGE_SIZE) == 0;
                if (zero || wrong)
                        add_page(a, page, 0);
                a->wrong |= (uint64_t) (wrong && !zero) << (page % BLOCK_PAGES);
                break;
        }
        default:
                add_page(a, page, 0);
        }
}

static int advise(struct client *c) {
        if (!c->n_ranges)
                return 0;
        struct range_element r = c->ranges[random_next(c) % c->n_ranges];
        uint64_t first = r.start >> KSM_PAGE_SHIFT, end = (r.start + r.length) >> KSM_PAGE_SHIFT;
        uint64_t page = first + random_next(c) % (end - first);
        uint64_t block = page & ~(uint64_t) (BLOCK_PAGES - 1);
        first = MAX(first, block);
        end = MIN(end, block + BLOCK_PAGES);
        static const uint8_t kinds[] = { APPLY_MERGE, APPLY_MERGE, APPLY_MERGE, APPLY_MERGE, APPLY_MERGE,
                                         APPLY_MERGE, APPLY_ZERO,  APPLY_ZERO,  APPLY_RESTORE };
        struct advice a = { .apply = { .op = ++c->op, .kind = kinds[random_next(c) % sizeof(kinds)] } };
        if (random_next(c) % 4 == 0) { /* a part of the block */
                first += random_next(c) % (end - first);
                end = first + 1 + random_next(c) % (end - first);
        }
        ssize_t got = pread(c->mem, c->block, (end - first) << KSM_PAGE_SHIFT, (off_t) (first << KSM_PAGE_SHIFT));
        for (uint64_t i = first; i < end; i++)
                advise_page(c, &a, i, c->block + ((i - first) << KSM_PAGE_SHIFT),
                            got >= (ssize_t) ((i - first + 1) << KSM_PAGE_SHIFT));
        if (!a.n)
                return 0;
        struct msg_applied applied;
        if (channel_send(c->fd, MSG_APPLY, &a.apply, a.extents, a.n, NULL, 0) < 0 || receive(c, true, &applied) != 1)
                return -1;
        if (applied.op != a.apply.op) {
                fprintf(stderr, "chaos: an agent answered another request\n");
                return -1;
        }
        for (uint32_t i = 0; i < BLOCK_PAGES; i++) {
                results[a.apply.kind][applied.status[i]]++;
                wrong_accepted += (a.wrong >> i & 1) && applied.status[i] == APPLY_OK;
        }
        return 0;
}

static void *client_main(void *arg) {
        struct client *c = arg;
        enum codec_error error;
        struct msg_applied unasked; /* no answer is due then: ends the connection */
        struct msg_welcome welcome = { .client = 1 };
        struct msg_segment hello = { .segment = 1, .n_slots = SLOTS };
        if (channel_receive(c->fd, ROLE_AGENT, &c->message, &error) == 1 && c->message.frame.type == MSG_HELLO) {
                int pagemap = channel_take_fd(&c->message, 0);
                c->mem = channel_take_fd(&c->message, 1);
                close(pagemap);
                channel_message_done(&c->message);
                if (channel_send(c->fd, MSG_WELCOME, &welcome, NULL, 0, &device, 1) == 0 &&
                    channel_send(c->fd, MSG_SEGMENT, &hello, NULL, 0, &segment->client_fd, 1) == 0)
                        while (receive(c, false, &unasked) == 0 && advise(c) == 0)
                                usleep(PAUSE_USEC);
                close_fd(c->mem);
        }
        close_fd(c->fd);
        free(c);
        return NULL;
}

static void *print_at_end(void *arg) {
        static const char *const kinds[] = { "", "merge", "zero", "restore" };
        static const char *const statuses[] = { "", "ok", "changed", "pinned_or_forked", "vma_gone", "budget", "busy", "error", "later" };
        int number;
        sigwait(arg, &number);
        for (unsigned k = APPLY_MERGE; k <= APPLY_RESTORE; k++) {
                printf("chaos: %s:", kinds[k]);
                for (unsigned s = APPLY_OK; s < APPLY_STATUS_MAX_; s++)
                        printf(" %s %llu", statuses[s], (unsigned long long) results[k][s]);
                printf("\n");
        }
        /* Such a page had changed, between chaos's look and the agent's, into what was advised. */
        printf("chaos: wrong advice that had become right: %llu\n", (unsigned long long) wrong_accepted);
        exit(0);
}

int main(int argc, char **argv) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        if (argc < 3 || strlen(argv[1]) >= sizeof(address.sun_path))
                return 64;
        uint64_t seed = strtoull(argv[2], NULL, 0);
        wrong_permille = argc > 3 ? (uint32_t) strtoul(argv[3], NULL, 0) : 20;
        static sigset_t end;
        sigemptyset(&end);
        sigaddset(&end, SIGTERM);
        pthread_sigmask(SIG_BLOCK, &end, NULL);
        pthread_t id;
        pthread_create(&id, NULL, print_at_end, &end);
        device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
        if (device < 0) {
                printf("SKIP: /dev/userfaultfd: %s\n", strerror(errno));
                return 77;
        }
        errno = -segment_file_new(segment_filler_open(device), SLOTS, -1, NULL, 0, &segment);
        if (errno)
                die("segment");
        strcpy(address.sun_path, argv[1]);
        int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        if (fd < 0 || bind(fd, (struct sockaddr *) &address, sizeof(address)) < 0 || listen(fd, 64) < 0)
                die(argv[1]);
        printf("ready\n");
        fflush(stdout);
        for (uint64_t n = 1;; n++) {
                int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
                if (client < 0)
                        continue;
                struct client *c = calloc(1, sizeof(*c));
                if (!c)
                        die("memory");
                c->fd = client;
                c->random = (seed + n) * 0x9e3779b97f4a7c15ULL | 1;
                if (pthread_create(&id, NULL, client_main, c) == 0)
                        pthread_detach(id);
        }
}
