/* A client for the fault tests: merges, writes, discards, forks, and checks every byte, while the test kills and stops whom it likes.
 *
 * usage: client BOARD INDEX [quiet].    BOARD is a file that all clients and the test map (struct board, tests/fault/arena.py).
 *
 * Four areas, each with what a test needs of it:
 *   steady  written once, the same in every client: merged, and stays merged whatever happens to the daemon
 *   turn    written anew whenever the board's turn changes, the same in every client: merges again, by whom is there now
 *   churn   one thread writes common contents, single bytes and zeros, and discards, all the time
 *   guest   another thread registers it, merges it on demand, writes into it, pins, forks, unregisters it, and begins again
 * A thread of its own reads steady and turn, and guest while it is being merged. Every access and call is timed. What counts is the time
 * in which no thread of the process, the agent's included, was ready to run and had no processor: the machine may be busy.
 *
 * With "quiet" as third argument: writes a few pages of its own now and then and gives the daemon nothing to hear of. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <liburing.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "lib/userksm.h"

#define PAGE 4096UL
#define STEADY_PAGES 128U
#define TURN_PAGES 128U
#define CHURN_PAGES 128U
#define GUEST_PAGES 64U
#define BALLAST_PAGES 4096U /* registered and never touched: what may be shared is a share of what is registered */
#define CONTENTS 48U /* that churn and guest choose from */
#define CLIENTS_MAX 8U
/* Short accesses are not worth a look at how long the thread was ready to run. */
#define LOOK_CLOSER_USEC 50000U
#define READ_PAUSE_USEC 4000U
#define WORTH_SAYING_USEC 300000U
#define UPPER_HALF_RARELY 16U
#define PIN_ROUNDS 4U
#define FORK_ROUNDS 3U /* pages that a child shares cannot be merged: not all the time */
#define CALM_PAUSE_USEC 5000U
#define SAMPLE_PAUSE_USEC 10000U
#define THREADS_MAX 32U /* ours, the agent's two, and io_uring's */
#define CHURN_PAUSE_USEC 3000U
#define GUEST_PAUSE_USEC 20000U
#define LOOK_PAUSE_USEC 10000U

struct board {
        _Atomic uint64_t turn, quit, calm, linger_usec, reserved[4]; /* linger: how long forked children live on */
        struct status {
                _Atomic uint64_t pid, rounds, wrong, wrong_at, longest_usec, call_usec, turn_done, merged, connected, forks, merges,
                        calm[2], steady_at, call_name, reserved[1];
        } clients[CLIENTS_MAX];
};

static struct board *board;
static struct status *status;
static uint8_t *steady, *turn, *churn;
static uint8_t *_Atomic guest;
static uint64_t turn_now; /* under turn_lock */
static pthread_mutex_t turn_lock = PTHREAD_MUTEX_INITIALIZER, churn_lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_bool probe_guest;

/* -- contents ------------------------------------------------------------------------------------------------------ */

static void content(uint8_t *page, uint64_t seed) {
        uint64_t *w = (uint64_t *) page, x = seed * 0x9e3779b97f4a7c15ULL;
        for (unsigned i = 0; i < PAGE / 8; i++) {
                x ^= x << 13, x ^= x >> 7, x ^= x << 17;
                w[i] = x;
        }
}

static void wrong(const char *where, const uint8_t *page) {
        atomic_store(&status->wrong_at, (uint64_t) page);
        atomic_fetch_add(&status->wrong, 1);
        fprintf(stderr, "client %d: wrong bytes in %s at %p\n", (int) getpid(), where, (const void *) page);
}

/* -- time ----------------------------------------------------------------------------------------------------------- */

static uint64_t now_usec(void) {
        struct timespec ts;
        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t) ts.tv_sec * 1000000 + (uint64_t) ts.tv_nsec / 1000;
}

static void pause_usec(uint32_t usec) {
        const struct timespec ts = { .tv_nsec = usec * 1000L };
        (void) nanosleep(&ts, NULL);
}

/* How long a thread has been ready to run without a processor, ever; what its schedstat says. */
static uint64_t ready_in(int fd) {
        char text[64] = "";
        unsigned long long ran = 0, ready = 0;
        if (fd >= 0 && pread(fd, text, sizeof(text) - 1, 0) > 0)
                (void) sscanf(text, "%llu %llu", &ran, &ready);
        return ready / 1000;
}

static int open_schedstat(const char *tid) {
        char path[300];
        (void) snprintf(path, sizeof(path), "/proc/self/task/%s/schedstat", tid);
        return open(path, O_RDONLY | O_CLOEXEC);
}

/* The same of all threads of this process. */
static uint64_t ready_usec(void) {
        uint64_t sum = 0;
        DIR *tasks = opendir("/proc/self/task");
        for (struct dirent *e; tasks && (e = readdir(tasks));) {
                int fd = e->d_name[0] == '.' ? -1 : open_schedstat(e->d_name);
                sum += ready_in(fd);
                close_fd(fd);
        }
        if (tasks)
                (void) closedir(tasks);
        return sum;
}

static void raise_to(_Atomic uint64_t *most, uint64_t value) {
        uint64_t seen = atomic_load(most);
        while (seen < value && !atomic_compare_exchange_weak(most, &seen, value))
                ;
}

struct stopwatch {
        uint64_t started_usec, ready_usec;
};
static _Atomic uint64_t ready_before_usec; /* of some milliseconds ago: waits only look shorter by it */

/* Churn and guest rest while the test measures how soon the others are merged: a page that a child shares, or that is written, is
 * put off for good reason. */
static void be_calm(unsigned thread) {
        while (atomic_load(&board->calm)) {
                atomic_store(&status->calm[thread], 1);
                pause_usec(CALM_PAUSE_USEC);
        }
        atomic_store(&status->calm[thread], 0);
}

/* With files that stay open: who ends a process waits, busily, for all that is being looked up and let go of below its /proc/PID (Linux
 * 6.18 d_invalidate), and so many would be. */
static void *sample_ready(void *unused) {
        struct {
                int tid, fd;
        } files[THREADS_MAX];
        unsigned n = 0;
        DIR *tasks = opendir("/proc/self/task");
        if (!tasks)
                exit(1);
        while (!atomic_load(&board->quit)) {
                uint64_t sum = 0;
                rewinddir(tasks);
                for (struct dirent *e; (e = readdir(tasks));) {
                        int tid = atoi(e->d_name);
                        unsigned i = 0;
                        while (i < n && files[i].tid != tid)
                                i++;
                        if (tid && i == n) {
                                if (n == THREADS_MAX)
                                        exit(1); /* waits would look shorter than they are */
                                files[n].tid = tid;
                                files[n++].fd = open_schedstat(e->d_name);
                        }
                }
                for (unsigned i = 0; i < n; i++)
                        sum += ready_in(files[i].fd); /* of one that has ended: nothing */
                pause_usec(SAMPLE_PAUSE_USEC);
                atomic_store(&ready_before_usec, sum);
        }
        return unused;
}

static struct stopwatch stopwatch_start(void) {
        return (struct stopwatch) { now_usec(), atomic_load(&ready_before_usec) };
}

static void stopwatch_stop(struct stopwatch s, _Atomic uint64_t *most, const char *what) {
        uint64_t usec = now_usec() - s.started_usec;
        if (usec > LOOK_CLOSER_USEC) {
                uint64_t ready = ready_usec() - s.ready_usec;
                usec = usec > ready ? usec - ready : 0;
                if (usec > WORTH_SAYING_USEC)
                        fprintf(stderr, "client %d: %s took %" PRIu64 " us, and %" PRIu64 " more without a processor\n", (int) getpid(), what,
                                usec, ready);
        }
        if (usec <= atomic_load(most))
                return;
        raise_to(most, usec);
        if (most == &status->call_usec) { /* the first letters, beside it */
                uint64_t letters = 0;
                memcpy(&letters, what, MIN(strlen(what), sizeof(letters)));
                atomic_store(&status->call_name, letters);
        }
}

/* -- calls ------------------------------------------------------------------------------------------------------------ */

static void call(struct stopwatch s, const char *name, int result) {
        stopwatch_stop(s, &status->call_usec, name);
        /* What a machine that lacks something may answer. */
        if (result < 0 && result != -EAGAIN && result != -ENOMEM && result != -ENOENT) {
                fprintf(stderr, "client %d: %s: %s\n", (int) getpid(), name, strerror(-result));
                atomic_fetch_add(&status->wrong, 1);
        }
}

static void register_area(uint8_t *p, unsigned n_pages) {
        struct stopwatch s = stopwatch_start();
        call(s, "register", userksm_register(p, n_pages * PAGE));
}

/* Pages that were copied on write stay in the segment's mapping, which nobody can register. */
static void map_anew(uint8_t *p, unsigned n_pages) {
        struct stopwatch s = stopwatch_start();
        if (userksm_mmap(p, n_pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != p)
                call(s, "mmap", -errno);
        else
                stopwatch_stop(s, &status->call_usec, "mmap");
}

/* -- steady and turn ------------------------------------------------------------------------------------------------- */

static uint64_t steady_seed(unsigned i) {
        return 1000 + i;
}
static uint64_t turn_seed(uint64_t at_turn, unsigned i) {
        return at_turn * 100000 + 10000 + i;
}

static void check(const char *where, const uint8_t *page, uint64_t seed) {
        uint8_t want[PAGE];
        content(want, seed);
        struct stopwatch s = stopwatch_start();
        bool same = memcmp(page, want, PAGE) == 0;
        stopwatch_stop(s, &status->longest_usec, where);
        if (!same)
                wrong(where, page);
}

static void *read_all(void *unused) {
        while (!atomic_load(&board->quit)) {
                for (unsigned i = 0; i < STEADY_PAGES; i++)
                        check("steady", steady + i * PAGE, steady_seed(i));
                (void) pthread_mutex_lock(&turn_lock);
                for (unsigned i = 0; i < TURN_PAGES; i++)
                        check("turn", turn + i * PAGE, turn_seed(turn_now, i));
                (void) pthread_mutex_unlock(&turn_lock);
                atomic_fetch_add(&status->rounds, 1);
                pause_usec(READ_PAUSE_USEC);
        }
        return unused;
}

static void take_turn(void) {
        uint64_t wanted = atomic_load(&board->turn);
        if (wanted == turn_now)
                return;
        (void) pthread_mutex_lock(&turn_lock);
        map_anew(turn, TURN_PAGES);
        for (unsigned i = 0; i < TURN_PAGES; i++) {
                struct stopwatch s = stopwatch_start();
                content(turn + i * PAGE, turn_seed(wanted, i));
                stopwatch_stop(s, &status->longest_usec, "access");
        }
        register_area(turn, TURN_PAGES);
        turn_now = wanted;
        (void) pthread_mutex_unlock(&turn_lock);
        atomic_store(&status->turn_done, wanted);
}

/* -- churn ----------------------------------------------------------------------------------------------------------- */

static uint64_t churn_seed[CHURN_PAGES]; /* 0: zeros */
static uint8_t churn_poked[CHURN_PAGES];

static void check_churn(unsigned i) {
        static const uint8_t zeros[PAGE];
        uint8_t want[PAGE];
        if (churn_seed[i])
                content(want, churn_seed[i]);
        else
                memcpy(want, zeros, PAGE);
        want[7] = (uint8_t) (want[7] + churn_poked[i]);
        struct stopwatch s = stopwatch_start();
        bool same = memcmp(churn + i * PAGE, want, PAGE) == 0;
        stopwatch_stop(s, &status->longest_usec, "access");
        if (!same)
                wrong("churn", churn + i * PAGE);
}

static void churn_once(unsigned *random) {
        static const uint8_t zeros[PAGE];
        /* The upper half is mostly left in peace, long enough to be merged (again). */
        bool upper = rand_r(random) % UPPER_HALF_RARELY == 0;
        unsigned first = (upper ? CHURN_PAGES / 2 : 0) + (unsigned) rand_r(random) % (CHURN_PAGES / 2);
        unsigned n = 1 + (unsigned) rand_r(random) % 24, what = (unsigned) rand_r(random) % 8;
        unsigned last = MIN(first + n, upper ? CHURN_PAGES : CHURN_PAGES / 2);
        for (unsigned i = first; i < last; i++) {
                check_churn(i);
                if (what < 3) {
                        churn_seed[i] = what ? 1 + (i + what) % CONTENTS : 0;
                        churn_poked[i] = 0;
                        struct stopwatch s = stopwatch_start();
                        if (churn_seed[i])
                                content(churn + i * PAGE, churn_seed[i]);
                        else
                                memcpy(churn + i * PAGE, zeros, PAGE);
                        stopwatch_stop(s, &status->longest_usec, "access");
                } else if (what == 3) {
                        churn_poked[i]++;
                        struct stopwatch s = stopwatch_start();
                        churn[i * PAGE + 7]++;
                        stopwatch_stop(s, &status->longest_usec, "access");
                }
        }
        if (what != 4)
                return;
        for (unsigned i = first; i < last; i++)
                churn_seed[i] = churn_poked[i] = 0;
        struct stopwatch s = stopwatch_start();
        if (userksm_madvise(churn + first * PAGE, (last - first) * PAGE, MADV_DONTNEED) < 0)
                perror("madvise");
        stopwatch_stop(s, &status->call_usec, "discard");
        if (first & 1) /* at once, before the agent has given them their zeros, or not */
                for (unsigned i = first; i < last; i++)
                        check_churn(i);
}

static void *churn_all(void *unused) {
        unsigned random = (unsigned) getpid();
        while (!atomic_load(&board->quit)) {
                be_calm(0);
                (void) pthread_mutex_lock(&churn_lock);
                churn_once(&random);
                (void) pthread_mutex_unlock(&churn_lock);
                pause_usec(CHURN_PAUSE_USEC);
        }
        return unused;
}

/* -- guest ----------------------------------------------------------------------------------------------------------- */

static void *probe(void *unused) {
        while (!atomic_load(&board->quit)) {
                if (!atomic_load(&probe_guest)) {
                        pause_usec(1000);
                        continue;
                }
                uint8_t *page = atomic_load(&guest);
                for (unsigned k = 0; k < 64 && atomic_load(&probe_guest); k++) {
                        struct stopwatch s = stopwatch_start();
                        for (unsigned i = 0; i < GUEST_PAGES; i++)
                                (void) ((volatile uint8_t *) page)[i * PAGE];
                        stopwatch_stop(s, &status->longest_usec, "access");
                        if (k % 8 == 7)
                                pause_usec(200);
                }
        }
        return unused;
}

/* In the child, which has one thread: everything as the parent had it. Then it lives a little with an agent of its own. */
static int child(void) {
        uint64_t before = atomic_load(&status->wrong);
        atomic_store(&ready_before_usec, 0); /* a process of its own */
        for (unsigned again = 0; again < 2; again++) {
                for (unsigned i = 0; i < STEADY_PAGES; i++)
                        check("steady of a child", steady + i * PAGE, steady_seed(i));
                for (unsigned i = 0; i < CHURN_PAGES; i++)
                        check_churn(i);
                if (again == 0)
                        for (unsigned i = 0; i < CHURN_PAGES / 2; i++)
                                churn_seed[i] = churn_poked[i] = 0;
                if (again == 0 && userksm_madvise(churn, CHURN_PAGES / 2 * PAGE, MADV_DONTNEED) < 0)
                        return 2;
        }
        pause_usec((uint32_t) atomic_load(&board->linger_usec));
        return atomic_load(&status->wrong) != before;
}

static void fork_once(void) {
        (void) pthread_mutex_lock(&churn_lock);
        (void) pthread_mutex_lock(&turn_lock);
        struct stopwatch s = stopwatch_start();
        pid_t pid = fork();
        stopwatch_stop(s, &status->call_usec, pid ? "fork" : "fork, in the child");
        if (pid == 0) {
                (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
                _exit(child());
        }
        (void) pthread_mutex_unlock(&turn_lock);
        (void) pthread_mutex_unlock(&churn_lock);
        int result = 0;
        if (pid > 0)
                (void) waitpid(pid, &result, 0);
        /* Killed is what the test may do to it. */
        if (pid < 0 || (WIFEXITED(result) && WEXITSTATUS(result) != 0) || (WIFSIGNALED(result) && WTERMSIG(result) != SIGKILL)) {
                fprintf(stderr, "client %d: fork %d: status %x\n", (int) getpid(), (int) pid, result);
                atomic_fetch_add(&status->wrong, 1);
        }
        atomic_fetch_add(&status->forks, 1);
}

static struct io_uring ring; /* for pins: a page with one stays in its merged run when the rest leaves */

static void unregister_guest(uint8_t *p, bool pinned) {
        const struct iovec page = { p, PAGE };
        pinned = pinned && io_uring_register_buffers(&ring, &page, 1) == 0;
        struct stopwatch s = stopwatch_start();
        call(s, "unregister", userksm_unregister(p, GUEST_PAGES * PAGE));
        if (pinned)
                (void) io_uring_unregister_buffers(&ring);
}

static void guest_once(unsigned round) {
        uint8_t *p = guest, want[PAGE];
        map_anew(p, GUEST_PAGES);
        for (unsigned i = 0; i < GUEST_PAGES; i++)
                content(p + i * PAGE, 1 + (i + round) % CONTENTS);
        register_area(p, GUEST_PAGES);
        if (round % FORK_ROUNDS == 0)
                fork_once();
        atomic_store(&probe_guest, true);
        int r = userksm_merge(p, GUEST_PAGES * PAGE, NULL);
        atomic_store(&probe_guest, false);
        if (r == 0)
                atomic_fetch_add(&status->merges, 1);
        for (unsigned i = 0; i < GUEST_PAGES; i += 1 + round % 7)
                p[i * PAGE + 9] = 77;
        unregister_guest(p, round % PIN_ROUNDS == 0);
        for (unsigned i = 0; i < GUEST_PAGES; i++) {
                content(want, 1 + (i + round) % CONTENTS);
                want[9] = i % (1 + round % 7) ? want[9] : 77;
                if (memcmp(p + i * PAGE, want, PAGE) != 0)
                        wrong("guest", p + i * PAGE);
        }
}

static void *guest_all(void *unused) {
        if (io_uring_queue_init(4, &ring, 0) < 0)
                return unused;
        for (unsigned round = 0; !atomic_load(&board->quit); round++) {
                be_calm(1);
                guest_once(round);
                pause_usec(GUEST_PAUSE_USEC);
        }
        return unused;
}

/* -- what the kernel says -------------------------------------------------------------------------------------------- */

static uint64_t count_merged(int pagemap_fd, const uint8_t *area, unsigned n_pages) {
        uint64_t entries[STEADY_PAGES], n = 0;
        if (pread(pagemap_fd, entries, n_pages * 8, (off_t) ((uintptr_t) area / PAGE * 8)) != (ssize_t) n_pages * 8)
                return 0;
        for (unsigned i = 0; i < n_pages; i++)
                n += entries[i] >> 61 & 1; /* maps a file: a segment */
        return n;
}

static uint8_t *map_area(unsigned n_pages) {
        /* Apart from each other: as neighbours two areas would be one mapping. */
        uint8_t *p = mmap(NULL, (n_pages + 64) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
                exit(1);
        p = (uint8_t *) (((uintptr_t) p + 64 * PAGE - 1) & ~(64 * PAGE - 1)); /* whole blocks: long runs */
        if (mprotect(p, n_pages * PAGE, PROT_READ | PROT_WRITE) < 0)
                exit(1);
        return p;
}

/* Silent but for its pages, which the daemon wants to read: it must ask whether we live first. */
static int be_quiet(void) {
        uint8_t *p = map_area(1);
        register_area(p, 1);
        for (uint64_t n = 0; !atomic_load(&board->quit); n++) {
                content(p, (uint64_t) getpid() << 32 | n);
                (void) sleep(2); /* longer than somebody just heard is taken to be alive */
        }
        return 0;
}

int main(int argc, char **argv) {
        void *(*const threads[])(void *) = { sample_ready, read_all, churn_all, guest_all, probe };
        int fd = argc >= 3 ? open(argv[1], O_RDWR | O_CLOEXEC) : -1;
        board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (fd < 0 || board == MAP_FAILED)
                return 64;
        close_fd(fd);
        status = &board->clients[(unsigned) atoi(argv[2]) % CLIENTS_MAX];
        (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (argc > 3)
                return userksm_init(NULL) < 0 ? 1 : be_quiet();
        steady = map_area(STEADY_PAGES);
        turn = map_area(TURN_PAGES);
        churn = map_area(CHURN_PAGES);
        guest = map_area(GUEST_PAGES);
        atomic_store(&status->steady_at, (uint64_t) steady);
        for (unsigned i = 0; i < STEADY_PAGES; i++)
                content(steady + i * PAGE, steady_seed(i));
        turn_now = UINT64_MAX;
        struct stopwatch s = stopwatch_start();
        call(s, "init", userksm_init(NULL));
        register_area(steady, STEADY_PAGES);
        register_area(churn, CHURN_PAGES);
        register_area(map_area(BALLAST_PAGES), BALLAST_PAGES);
        take_turn();
        atomic_store(&status->pid, (uint64_t) getpid());
        pthread_t ids[ARRAY_SIZE(threads)];
        for (unsigned i = 0; i < ARRAY_SIZE(threads); i++)
                if (pthread_create(&ids[i], NULL, threads[i], NULL) != 0)
                        return 1;
        int pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
        while (!atomic_load(&board->quit)) {
                struct userksm_stats stats = { .size = sizeof(stats) };
                take_turn();
                s = stopwatch_start();
                call(s, "stats", userksm_stats(&stats));
                atomic_store(&status->connected, stats.connected);
                uint64_t done = turn_now;
                uint64_t merged = count_merged(pagemap_fd, steady, STEADY_PAGES) << 32 | count_merged(pagemap_fd, turn, TURN_PAGES);
                if (done == atomic_load(&board->turn))
                        atomic_store(&status->merged, merged);
                pause_usec(LOOK_PAUSE_USEC);
        }
        /* What waits for a daemon may wait long: exit, not join. */
        return 0;
}
