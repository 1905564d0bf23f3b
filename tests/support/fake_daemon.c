/* A daemon of canned answers for tests of ksmctl: fake_daemon SOCKET MODE. Listens, prints "ready", serves one
 * connection after the other until it is killed. Modes:
 *   normal   200 clients (three replies), all counters, tunables that remember what is set; pid 76 is raw,
 *            77 unknown, 78 restores only in part
 *   denied   every change is answered with EPERM
 *   refuse   REFUSED instead of WELCOME
 *   version  WELCOME of another protocol version
 *   garbage  bytes that are no frame
 *   close    closes at once
 *   silent   accepts, never answers
 *   loop     CLIENTS replies that never come to an end */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/counters.h"
#include "common/tunables.h"
#include "proto/channel.h"

#define N_CLIENTS 200u

static const char *mode;
static struct tunables tunables;
static struct channel_message message;

static int is_mode(const char *m) {
        return strcmp(mode, m) == 0;
}

static void send_frame(int fd, enum message_type type, const void *body, const void *elements, uint32_t count) {
        (void) channel_send(fd, type, body, elements, count, NULL, 0);
}

static void send_done(int fd, int error, uint64_t pages, uint64_t left) {
        struct msg_admin_done done = { .error = error, .pages = pages, .left = left };

        send_frame(fd, MSG_ADMIN_DONE, &done, NULL, 0);
}

static void welcome(int fd) {
        struct msg_admin_welcome w = { .daemon_pid = (uint32_t) getpid(), .privileged = 1, .version = "fake" };
        struct msg_refused refused = { .error = EMFILE, .reason = "too many connections of this user" };
        uint8_t packet[FRAME_MAX_BYTES];
        size_t size;

        if (is_mode("refuse")) {
                send_frame(fd, MSG_REFUSED, &refused, NULL, 0);
                return;
        }
        size = frame_encode(packet, sizeof(packet), MSG_ADMIN_WELCOME, &w, NULL, 0);
        if (is_mode("version"))
                ((struct frame_header *) packet)->version++;
        if (is_mode("garbage"))
                memset(packet, 0x5a, size);
        (void) channel_send_packet(fd, packet, size, NULL, 0);
}

static void send_stats(int fd) {
        struct msg_stats_reply reply = { .uptime_usec = 3723000000 };
        int64_t values[COUNTER_MAX_ + 1]; /* one more than this ksmctl knows */

        for (int i = 0; i <= COUNTER_MAX_; i++)
                values[i] = 1000 + i;
        values[COUNTER_pages_shared] = 1000;
        values[COUNTER_pages_sharing] = 3000;
        values[COUNTER_ksm_zero_pages] = 256;
        values[COUNTER_general_profit] = -4096;
        send_frame(fd, MSG_STATS_REPLY, &reply, values, COUNTER_MAX_ + 1);
}

static void send_clients(int fd, uint32_t after) {
        struct msg_clients_reply reply = { 0 };
        struct client_element c[CLIENTS_MAX] = { 0 };
        uint32_t n = 0;

        for (uint32_t id = is_mode("loop") ? 1 : after + 1; id <= N_CLIENTS && n < CLIENTS_MAX; id++, n++) {
                c[n] = (struct client_element) {
                        .client = id,
                        .pid = 1000 + id,
                        .registered_pages = 1 << 20,
                        .merged_pages = 20,
                        .zero_pages = 1,
                        .profit_bytes = -8192,
                        .vmas_used = id == 4 ? 99 : 1,
                        .vma_budget = 100,
                        .state = id == 2 ? CLIENT_RAW : id == 3 ? CLIENT_PARKED : CLIENT_ACTIVE,
                };
                strcpy(c[n].comm, id == 1 ? "evil\033[2J\n" : "worker");
        }
        send_frame(fd, MSG_CLIENTS_REPLY, &reply, c, n);
}

/* 70 domains, the last of them in a second reply. */
static void send_domains(int fd, uint32_t after) {
        struct domain_element d[DOMAINS_MAX] = { 0 };
        struct msg_domains_reply reply = { 0 };
        uint32_t n = 0;

        for (uint32_t id = after + 1; id <= 70 && n < DOMAINS_MAX; id++, n++) {
                d[n] = (struct domain_element) {
                        .domain = id, .n_clients = 2, .registered_pages = 1 << 18, .merged_pages = 512, .shared_pages = 256, .segment_pages = 256
                };
                strcpy(d[n].key, id == 1 ? "uid=0 unit=\033[2J" : "uid=1000");
        }
        if (n == DOMAINS_MAX)
                reply.next = d[n - 1].domain;
        send_frame(fd, MSG_DOMAINS_REPLY, &reply, d, n);
}

/* Two ranges, the first in two pieces. */
static void send_ranges(int fd, const struct msg_ranges_request *request) {
        struct client_range_element e[2] = { { .page = 16, .n_pages = 100, .tracked_pages = 50, .merged_pages = 40, .flags = RANGE_CONTINUED } };
        struct msg_ranges_reply reply = { .next = 116 };
        uint32_t n = 1;

        if (request->page > 0) {
                e[0] = (struct client_range_element) { .page = 116, .n_pages = 900, .tracked_pages = 1, .zero_pages = 7 };
                e[1] = (struct client_range_element) { .page = 5000, .n_pages = 1, .unshared_pages = 1, .flags = RANGE_UNMERGED };
                reply.next = 0;
                n = 2;
        }
        if (request->client > N_CLIENTS)
                send_done(fd, ENOENT, 0, 0);
        else
                send_frame(fd, MSG_RANGES_REPLY, &reply, e, n);
}

static void send_tunables(int fd) {
        struct msg_tunables_reply reply = { 0 };
        struct tunable_element t[TUNABLE_MAX_];

        for (uint32_t i = 0; i < TUNABLE_MAX_; i++)
                t[i] = (struct tunable_element) { .id = i, .value = tunable_get(&tunables, (enum tunable_id) i) };
        send_frame(fd, MSG_TUNABLES_REPLY, &reply, t, TUNABLE_MAX_);
}

static void set_tunable(int fd, const struct msg_tunable_set *set) {
        int r;

        if (is_mode("denied"))
                r = -EPERM;
        else if (set->id == TUNABLE_pages_to_scan && tunables.advisor_mode != ADVISOR_NONE)
                r = -EINVAL;
        else if (set->id == TUNABLE_run && set->value == 2 && !(set->flags & UNMERGE_FORCE)) {
                send_frame(fd, MSG_ADMIN_DONE, &(struct msg_admin_done) { .error = ENOMEM, .pages = 512, .left = 256 }, NULL, 0);
                return;
        } else
                r = tunable_set(&tunables, (enum tunable_id) set->id, set->value);

        send_done(fd, -r, 0, 0);
}

static void change(int fd, enum message_type type, const void *body) {
        uint32_t pid = ((const struct msg_admin_merge *) body)->pid; /* the first of both */

        if (is_mode("denied"))
                send_done(fd, EPERM, 0, 0);
        else if (type == MSG_ADMIN_UNMERGE && pid == 75 && !(((const struct msg_admin_unmerge *) body)->flags & UNMERGE_FORCE))
                send_frame(fd, MSG_ADMIN_DONE, &(struct msg_admin_done) { .error = ENOMEM, .pid = 75, .pages = 512, .left = 256 }, NULL, 0);
        else if (type == MSG_ADMIN_UNMERGE && ((const struct msg_admin_unmerge *) body)->n_pages > 0)
                send_done(fd, 0, ((const struct msg_admin_unmerge *) body)->page, 0);
        else if (pid == 76 || pid == 77)
                send_done(fd, pid == 76 ? EOPNOTSUPP : ESRCH, 0, 0);
        else
                send_done(fd, 0, 512, pid == 78 ? 3 : 0);
}

static void serve(int fd) {
        enum codec_error e;

        if (is_mode("close"))
                return;
        while (channel_receive(fd, ROLE_ADMIN, &message, &e) == 1) {
                const struct msg_tunable_set *set = message.frame.body;

                channel_message_done(&message);
                if (is_mode("silent"))
                        continue;
                switch (message.frame.type) {
                case MSG_ADMIN_HELLO:
                        welcome(fd);
                        break;
                case MSG_STATS_REQUEST:
                        send_stats(fd);
                        break;
                case MSG_CLIENTS_REQUEST:
                        send_clients(fd, ((const struct msg_clients_request *) message.frame.body)->after);
                        break;
                case MSG_TUNABLES_REQUEST:
                        send_tunables(fd);
                        break;
                case MSG_TUNABLE_SET:
                        set_tunable(fd, set);
                        break;
                case MSG_DOMAINS_REQUEST:
                        send_domains(fd, ((const struct msg_domains_request *) message.frame.body)->after);
                        break;
                case MSG_RANGES_REQUEST:
                        send_ranges(fd, message.frame.body);
                        break;
                case MSG_ADMIN_MERGE:
                case MSG_ADMIN_UNMERGE:
                        change(fd, message.frame.type, message.frame.body);
                        break;
                default:
                        return;
                }
        }
}

int main(int argc, char **argv) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int listener;

        if (argc != 3 || strlen(argv[1]) >= sizeof(address.sun_path)) {
                fprintf(stderr, "usage: %s SOCKET MODE\n", argv[0]);
                return EXIT_FAILURE;
        }
        mode = argv[2];
        tunables_init(&tunables);
        strcpy(address.sun_path, argv[1]);
        listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        if (listener < 0 || bind(listener, (struct sockaddr *) &address, sizeof(address)) < 0 ||
            listen(listener, 8) < 0) {
                perror(argv[1]);
                return EXIT_FAILURE;
        }
        puts("ready");
        fflush(stdout);
        for (;;) {
                int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

                if (fd < 0)
                        return EXIT_FAILURE;
                serve(fd);
                close_fd(fd);
        }
}
