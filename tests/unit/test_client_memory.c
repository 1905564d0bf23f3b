/* What the daemon does with a client's two descriptors, tried on a child and on ourselves: reading both ways, and scans that
 * stop and resume. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/uapi.h"
#include "daemon/sys/pagemap.h"
#include "daemon/sys/process.h"
#include "daemon/sys/reader.h"
#include "tests/unit/device.h"

#define PAGES 64
#define NOBODY 65534

/* A process on our own memory. */
static struct process *self_process(void) {
        struct process *p;
        const char *reason;
        struct peer peer;
        int pair[2];
        assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
        assert_int_equal(peer_get(pair[0], &peer), 0);
        assert_int_equal(process_new(&peer, open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC),
                                     open("/proc/self/mem", O_RDONLY | O_CLOEXEC), &p, &reason), 0);
        peer_clear(&peer);
        close_fd(pair[0]);
        close_fd(pair[1]);
        return p;
}

/* In a child: ends with the test at the latest. */
static _Noreturn void wait_to_be_killed(void) {
        (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;)
                (void) pause();
}

static uint8_t *map_pages(size_t n) {
        uint8_t *p = mmap(NULL, n * KSM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        assert_true(p != MAP_FAILED);
        assert_int_equal(madvise(p, n * KSM_PAGE_SIZE, MADV_NOHUGEPAGE), 0);
        for (size_t i = 0; i < n; i++)
                memset(p + i * KSM_PAGE_SIZE, (int) (1 + i), KSM_PAGE_SIZE);
        return p;
}

/* Scattered pages, one of them unmapped, both ways: the readable ones arrive, at their place. */
static void read_with_hole(bool fast) {
        _cleanup_(process_unrefp) struct process *p = self_process();
        static uint8_t buffer[READER_PAGES_MAX * KSM_PAGE_SIZE];
        bool ok[READER_PAGES_MAX];
        uint64_t pages[READER_PAGES_MAX];
        unsigned n = 0;
        uint8_t *memory = map_pages(PAGES);
        for (unsigned i = 0; i < PAGES; i++)
                if (i % 5 != 3)
                        pages[n++] = ((uintptr_t) memory >> KSM_PAGE_SHIFT) + i;
        const unsigned hole = 20;
        void *gone = (void *) (uintptr_t) (pages[hole] << KSM_PAGE_SHIFT);
        assert_int_equal(munmap(gone, KSM_PAGE_SIZE), 0);
        reader_read(p, fast, pages, n, buffer, ok);
        for (unsigned i = 0; i < n; i++) {
                assert_int_equal(ok[i], i != hole);
                if (i != hole)
                        assert_memory_equal(buffer + i * KSM_PAGE_SIZE, (void *) (uintptr_t) (pages[i] << KSM_PAGE_SHIFT),
                                            KSM_PAGE_SIZE);
        }
        assert_int_equal(reader_read_exact(p, pages[hole], 1, buffer), -EIO);
        assert_int_equal(reader_read_exact(p, pages[hole], 2, buffer), -EIO);
        assert_int_equal(pages[hole - 1] + 1, pages[hole]);
        assert_int_equal(reader_read_exact(p, pages[hole - 1], 2, buffer), 1);
        assert_int_equal(reader_read_exact(p, pages[0], 3, buffer), 3);
        assert_memory_equal(buffer, memory, 3 * KSM_PAGE_SIZE);
        assert_int_equal(munmap(memory, PAGES * KSM_PAGE_SIZE), 0);
}

static void test_read_fast(void **state) {
        read_with_hole(true);
}

static void test_read_through_mem(void **state) {
        read_with_hole(false);
}

static unsigned exclusive_pages(const struct process *p, const uint8_t *memory) {
        uint64_t entries[PAGES];
        unsigned n = 0;
        off_t at = (off_t) ((uintptr_t) memory / KSM_PAGE_SIZE * sizeof(entries[0]));
        assert_int_equal(pread(p->pagemap_fd, entries, sizeof(entries), at), sizeof(entries));
        for (unsigned i = 0; i < PAGES; i++)
                n += entries[i] >> 56 & 1;
        return n;
}

/* What a fork shares stays shared when it is read; what the parent has written since is its own. */
static void test_read_leaves_forks_alone(void **state) {
        _cleanup_(process_unrefp) struct process *p = self_process();
        static uint8_t buffer[READER_PAGES_MAX * KSM_PAGE_SIZE];
        bool ok[PAGES];
        uint64_t pages[PAGES];
        uint8_t *memory = map_pages(PAGES);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0)
                wait_to_be_killed();
        for (unsigned i = 0; i < PAGES; i++) {
                pages[i] = ((uintptr_t) memory >> KSM_PAGE_SHIFT) + i;
                if (i % 9 == 2)
                        memory[i * KSM_PAGE_SIZE] ^= 1;
        }
        unsigned own = exclusive_pages(p, memory);
        assert_in_range(own, PAGES / 9, PAGES / 9 + 1);
        reader_read(p, true, pages, PAGES, buffer, ok);
        assert_memory_equal(buffer, memory, PAGES * KSM_PAGE_SIZE);
        for (unsigned i = 0; i < PAGES; i++)
                assert_true(ok[i]);
        assert_int_equal(exclusive_pages(p, memory), own);
        assert_int_equal(kill(pid, SIGKILL), 0);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
        assert_int_equal(munmap(memory, PAGES * KSM_PAGE_SIZE), 0);
}

/* The fds are bound to the mm: after an exec nothing is read, by either way, even though the pid lives on. */
static void test_exec_reads_nothing(void **state) {
        int pair[2], to_child[2];
        char byte;
        assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
        assert_int_equal(pipe2(to_child, O_CLOEXEC), 0);
        uint8_t *memory = map_pages(1);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                (void) !read(to_child[0], &byte, 1);
                (void) execl("/bin/sleep", "sleep", "1000", (char *) NULL);
                _exit(1);
        }
        char path[64];
        (void) snprintf(path, sizeof(path), "/proc/%d/pagemap", (int) pid);
        int pagemap = open(path, O_RDONLY | O_CLOEXEC);
        (void) snprintf(path, sizeof(path), "/proc/%d/mem", (int) pid);
        int mem = open(path, O_RDONLY | O_CLOEXEC);
        assert_true(pagemap >= 0 && mem >= 0);
        struct peer peer = { .pid = pid, .uid = getuid(), .pidfd = -1 };
        struct process *p;
        const char *reason;
        assert_int_equal(process_new(&peer, pagemap, mem, &p, &reason), 0);
        const uint64_t page = (uintptr_t) memory >> KSM_PAGE_SHIFT;
        static uint8_t buffer[KSM_PAGE_SIZE];
        bool ok;
        assert_int_equal(reader_read_exact(p, page, 1, buffer), 1);
        assert_memory_equal(buffer, memory, KSM_PAGE_SIZE);
        assert_int_equal(write(to_child[1], "", 1), 1);
        /* The child's exec is done when its old memory is no longer there. */
        unsigned tries = 0;
        while (reader_read_exact(p, page, 1, buffer) == 1)
                assert_true(tries++ < 10000 && usleep(1000) == 0);
        reader_read(p, false, &page, 1, buffer, &ok);
        assert_false(ok);
        assert_int_equal(kill(pid, SIGKILL), 0);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
        p = process_unref(p);
        close_fd(pair[0]);
        close_fd(pair[1]);
        close_fd(to_child[0]);
        close_fd(to_child[1]);
        assert_int_equal(munmap(memory, KSM_PAGE_SIZE), 0);
}

/* The pid of a process that has ended may name another: what it names is not read. Here it names us. */
static void test_dead_reads_nothing(void **state) {
        uint8_t *memory = map_pages(1), buffer[KSM_PAGE_SIZE];
        const uint64_t page = (uintptr_t) memory >> KSM_PAGE_SHIFT;
        struct process *p = self_process();
        bool ok;
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0)
                wait_to_be_killed();
        memory[0] ^= 1; /* a page that a fork shares is not read by pid */
        close_fd(p->mem_fd);
        p->mem_fd = open("/dev/full", O_WRONLY | O_CLOEXEC); /* reads nothing */
        reader_read(p, true, &page, 1, buffer, &ok);
        assert_true(ok);
        close_fd(p->pidfd);
        p->pidfd = (int) syscall(SYS_pidfd_open, pid, 0);
        assert_true(p->pidfd >= 0);
        assert_false(process_has_exited(p));
        assert_int_equal(kill(pid, SIGKILL), 0);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
        assert_true(process_has_exited(p));
        reader_read(p, true, &page, 1, buffer, &ok);
        assert_false(ok);
        /* What is published is never read by pid. */
        assert_true(reader_read_exact(p, page, 1, buffer) < 0);
        p = process_unref(p);
        assert_int_equal(munmap(memory, KSM_PAGE_SIZE), 0);
}

static void reap(pid_t child) {
        assert_int_equal(kill(child, SIGKILL), 0);
        assert_int_equal(waitpid(child, NULL, 0), child);
}

/* Of another user than root, or the kernel does not tell. */
static bool is_its_users(uid_t uid, int dumpable) {
        char byte;
        int ready[2];
        assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
                if (uid != getuid() && setresuid(uid, uid, uid) < 0)
                        _exit(1);
                if (prctl(PR_SET_DUMPABLE, dumpable, 0, 0, 0) < 0 || write(ready[1], "", 1) != 1)
                        _exit(1);
                wait_to_be_killed();
        }
        close_fd(ready[1]);
        assert_int_equal(read(ready[0], &byte, 1), 1);
        close_fd(ready[0]);
        bool is = process_is_its_users(&(struct process){ .pid = child, .uid = uid });
        assert_false(process_is_its_users(&(struct process){ .pid = child, .uid = uid + 1 }));
        reap(child);
        return is;
}

static void test_undumpable_is_not_its_users(void **state) {
        uid_t uid = getuid() ? getuid() : NOBODY;
        assert_true(is_its_users(uid, 1));
        assert_false(is_its_users(uid, 0));
}

static int process_of(const char *pagemap, const char *mem, pid_t pid, bool *ret_fast) {
        const struct peer peer = { .pid = pid, .uid = getuid(), .pidfd = (int) syscall(SYS_pidfd_open, getpid(), 0) };
        const char *reason;
        struct process *p = NULL;
        int r = process_new(&peer, open(pagemap, O_RDONLY | O_CLOEXEC), open(mem, O_RDONLY | O_CLOEXEC), &p, &reason);
        *ret_fast = p && !p->fast_denied;
        assert_true(r == 0 || reason);
        p = process_unref(p);
        close(peer.pidfd);
        return r;
}

/* Only procfs says whose memory it is, and only for the process that the kernel vouches for is the pid used. */
static void test_consent(void **state) {
        char directory[] = "consent-XXXXXX", path[64], pagemap[128], mem[128];
        bool fast;
        assert_int_equal(process_of("/proc/self/pagemap", "/proc/self/mem", getpid(), &fast), 0);
        assert_true(fast);
        assert_int_equal(process_of("/proc/self/pagemap", "/proc/self/mem", getppid(), &fast), 0);
        assert_false(fast);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0)
                wait_to_be_killed();
        (void) snprintf(mem, sizeof(mem), "/proc/%d/mem", (int) child);
        assert_int_equal(process_of("/proc/self/pagemap", mem, getpid(), &fast), -EINVAL);
        (void) kill(child, SIGKILL);
        assert_int_equal(waitpid(child, NULL, 0), child);
        assert_non_null(mkdtemp(directory));
        (void) snprintf(path, sizeof(path), "%s/%d", directory, (int) getpid());
        (void) snprintf(pagemap, sizeof(pagemap), "%s/pagemap", path);
        (void) snprintf(mem, sizeof(mem), "%s/mem", path);
        assert_int_equal(mkdir(path, 0700), 0);
        close(open(pagemap, O_CREAT | O_RDWR, 0600));
        close(open(mem, O_CREAT | O_RDWR, 0600));
        assert_int_equal(process_of(pagemap, "/proc/self/mem", getpid(), &fast), -EINVAL);
        assert_int_equal(process_of("/proc/self/pagemap", mem, getpid(), &fast), -EINVAL);
        assert_int_equal(unlink(pagemap) | unlink(mem) | rmdir(path) | rmdir(directory), 0);
}

#define MANY_PAGES 80064 /* more than a call reports */
#define SCANS_BESIDE 100

/* Which of n pages the scan reports, taking at most max regions a call. */
static size_t scan_pages(const struct process *p, uint64_t first, size_t n_pages, enum pagemap_look look, size_t max, bool *seen) {
        static struct page_region regions[MANY_PAGES];
        size_t n, calls = 0;
        uint64_t at = first, end;
        memset(seen, 0, n_pages * sizeof(*seen));
        while (at < first + n_pages) {
                size_t reported = 0;
                assert_int_equal(pagemap_scan(p->pagemap_fd, at, first + n_pages - at, look, regions, max, &n, &end), 0);
                assert_true(n <= max && end > at && end <= first + n_pages);
                for (size_t i = 0; i < n; i++)
                        for (uint64_t page = regions[i].start >> KSM_PAGE_SHIFT; page < regions[i].end >> KSM_PAGE_SHIFT;
                             page++, reported++) {
                                assert_true(page >= at && page < end);
                                assert_false(seen[page - first]);
                                seen[page - first] = true;
                        }
                assert_true(reported <= PAGEMAP_PAGES_MAX);
                at = end;
                calls++;
        }
        return calls;
}

static size_t scan_all(const struct process *p, uint64_t first, enum pagemap_look look, size_t max, bool seen[PAGES]) {
        return scan_pages(p, first, PAGES, look, max, seen);
}

static int open_tracking(void) {
        _cleanup_close_ int device = open_device();
        int track = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
        struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED };
        assert_int_equal(ioctl(track, UFFDIO_API, &api), 0);
        return track;
}

static void track_pages(int track, const uint8_t *memory, size_t n_pages) {
        struct uffdio_register r = { .range = { (uintptr_t) memory, n_pages * KSM_PAGE_SIZE }, .mode = UFFDIO_REGISTER_MODE_WP };
        assert_int_equal(ioctl(track, UFFDIO_REGISTER, &r), 0);
}

static void test_scan(void **state) {
        _cleanup_close_ int track = open_tracking();
        _cleanup_(process_unrefp) struct process *p = self_process();
        uint8_t *memory = map_pages(PAGES);
        uint64_t first = (uintptr_t) memory >> KSM_PAGE_SHIFT;
        bool seen[PAGES];
        /* Not registered: nothing of it is ours to look at. */
        (void) scan_all(p, first, PAGEMAP_PRESENT, PAGES, seen);
        for (unsigned i = 0; i < PAGES; i++)
                assert_false(seen[i]);
        track_pages(track, memory, PAGES);
        assert_int_equal(madvise(memory + 7 * KSM_PAGE_SIZE, KSM_PAGE_SIZE, MADV_DONTNEED), 0);

        (void) scan_all(p, first, PAGEMAP_WRITTEN, PAGES, seen); /* the first look: all present pages, but not the hole */
        for (unsigned i = 0; i < PAGES; i++)
                assert_int_equal(seen[i], i != 7);
        (void) scan_all(p, first, PAGEMAP_WRITTEN, PAGES, seen); /* nothing was written since */
        for (unsigned i = 0; i < PAGES; i++)
                assert_false(seen[i]);
        for (unsigned i = 0; i < PAGES; i += 3)
                memory[i * KSM_PAGE_SIZE] ^= 1;
        (void) scan_all(p, first, PAGEMAP_PRESENT, PAGES, seen); /* a plain look changes nothing ... */
        size_t calls = scan_all(p, first, PAGEMAP_WRITTEN, 2, seen); /* ... and two regions at a time lose nothing */
        assert_true(calls > 5);
        for (unsigned i = 0; i < PAGES; i++)
                assert_int_equal(seen[i], i % 3 == 0);
        (void) scan_all(p, first, PAGEMAP_WRITTEN, 1, seen);
        for (unsigned i = 0; i < PAGES; i++)
                assert_false(seen[i]);
        struct page_region region;
        size_t n;
        uint64_t end;
        assert_int_equal(pagemap_scan(p->pagemap_fd, first, PAGES, PAGEMAP_WRITTEN, &region, 0, &n, &end), -EINVAL);
        /* Where no address is there is nothing, and that is no error. */
        const uint64_t last = (UINT64_C(1) << (47 - KSM_PAGE_SHIFT)) - 2, beyond = UINT64_C(1) << (48 - KSM_PAGE_SHIFT);
        assert_int_equal(pagemap_scan(p->pagemap_fd, last, beyond - last, PAGEMAP_WRITTEN, &region, 1, &n, &end), 0);
        assert_true(n == 0 && end == beyond);
        assert_int_equal(pagemap_scan(p->pagemap_fd, last + 2, 1, PAGEMAP_WRITTEN, &region, 1, &n, &end), 0);
        assert_true(n == 0 && end == last + 3);
        assert_int_equal(munmap(memory, PAGES * KSM_PAGE_SIZE), 0);
}

/* What was not written is left out by a first look, and what is near together is looked at together: all of that must not be seen in the
 * result, however the written pages lie and however little room there is for them. */
static void check_scan_many(enum pagemap_look look) {
        static const struct {
                size_t step, max;
        } cases[] = { { 3, 1000 }, { 33, 1000 }, { 34, 1000 }, { 40, 3 }, { 200, 1 }, { 5000, 1000 }, { MANY_PAGES, 1 } };
        static bool seen[MANY_PAGES];
        _cleanup_close_ int track = open_tracking();
        _cleanup_(process_unrefp) struct process *p = self_process();
        uint8_t *memory = map_pages(MANY_PAGES);
        uint64_t first = (uintptr_t) memory >> KSM_PAGE_SHIFT;
        track_pages(track, memory, MANY_PAGES);
        /* Two halves, each less than a call may report. */
        assert_int_equal(madvise(memory + MANY_PAGES / 128 * 64 * KSM_PAGE_SIZE, 64 * KSM_PAGE_SIZE, MADV_DONTNEED), 0);
        size_t calls = scan_pages(p, first, MANY_PAGES, look, 1000, seen);
        assert_int_equal(calls, 2);
        for (size_t i = 0; i < MANY_PAGES; i++)
                assert_int_equal(seen[i], i / 64 != MANY_PAGES / 128);
        for (size_t c = 0; c < ARRAY_SIZE(cases); c++) {
                for (size_t i = 0; i < MANY_PAGES; i += cases[c].step)
                        memory[i * KSM_PAGE_SIZE]++;
                calls = scan_pages(p, first, MANY_PAGES, look, cases[c].max, seen);
                assert_true(calls <= ((MANY_PAGES - 1) / cases[c].step + 1) / cases[c].max + 1);
                for (size_t i = 0; i < MANY_PAGES; i++)
                        if (seen[i] != (i % cases[c].step == 0))
                                fail_msg("page %zu of those written every %zu, %zu regions a call: %s", i, cases[c].step, cases[c].max,
                                         seen[i] ? "reported" : "not reported");
        }
        assert_int_equal(munmap(memory, MANY_PAGES * KSM_PAGE_SIZE), 0);
}

static void test_scan_many(void **state) {
        check_scan_many(PAGEMAP_WRITTEN);
        check_scan_many(PAGEMAP_WRITTEN_FEW);
}

struct writer {
        uint8_t *memory;
        int track;
        _Atomic bool over;
};

static _Atomic uint32_t *word_of(const struct writer *w, size_t page) {
        return (_Atomic uint32_t *) (void *) (w->memory + page * KSM_PAGE_SIZE);
}

/* Anew what lies there, in one step; tracked a moment later. */
static void map_anew(const struct writer *w, size_t page, size_t n) {
        uint8_t *at = w->memory + page * KSM_PAGE_SIZE;
        assert_true(mmap(at, n * KSM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at);
        assert_int_equal(madvise(at, n * KSM_PAGE_SIZE, MADV_NOHUGEPAGE), 0);
        track_pages(w->track, at, n);
}

static void *write_all_the_time(void *p) {
        enum { STRETCH = 40, ANEW = 1000, REST = 500 };
        const struct writer *w = p;
        const struct timespec rest = { .tv_nsec = 1000000 };
        for (uint32_t step = 1, random = 1; !atomic_load(&w->over); step++) {
                random = random * 1664525U + 1013904223U;
                size_t page = (random >> 8) % (MANY_PAGES - STRETCH);
                if (step % ANEW == 0)
                        map_anew(w, page, STRETCH);
                atomic_fetch_add(word_of(w, page), 1);
                if (step % REST == 0)
                        (void) nanosleep(&rest, NULL); /* few are written from one scan to the next */
        }
        return NULL;
}

/* Between the two looks, and within each, pages are written, go, and come again: whatever stands in one in the end, a scan that came after
 * the last store has reported it. */
static void check_scan_beside(enum pagemap_look look) {
        static bool seen[MANY_PAGES];
        static uint32_t noted[MANY_PAGES];
        _cleanup_close_ int track = open_tracking();
        _cleanup_(process_unrefp) struct process *p = self_process();
        struct writer w = { .memory = map_pages(MANY_PAGES), .track = track };
        uint64_t first = (uintptr_t) w.memory >> KSM_PAGE_SHIFT;
        pthread_t thread;
        track_pages(track, w.memory, MANY_PAGES);
        assert_int_equal(pthread_create(&thread, NULL, write_all_the_time, &w), 0);
        for (unsigned round = 0; round <= SCANS_BESIDE; round++) {
                if (round == SCANS_BESIDE) {
                        atomic_store(&w.over, true);
                        assert_int_equal(pthread_join(thread, NULL), 0);
                }
                (void) scan_pages(p, first, MANY_PAGES, look, 1000, seen);
                for (size_t i = 0; i < MANY_PAGES; i++)
                        if (seen[i])
                                noted[i] = atomic_load(word_of(&w, i));
        }
        (void) scan_pages(p, first, MANY_PAGES, PAGEMAP_PRESENT, 1000, seen); /* those that went and did not come again are not */
        for (size_t i = 0; i < MANY_PAGES; i++)
                if (seen[i] && noted[i] != atomic_load(word_of(&w, i)))
                        fail_msg("page %zu was written and not reported", i);
        assert_int_equal(munmap(w.memory, MANY_PAGES * KSM_PAGE_SIZE), 0);
}

static void test_scan_beside_writes(void **state) {
        check_scan_beside(PAGEMAP_WRITTEN);
        check_scan_beside(PAGEMAP_WRITTEN_FEW);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_read_fast),
                cmocka_unit_test(test_read_through_mem),
                cmocka_unit_test(test_read_leaves_forks_alone),
                cmocka_unit_test(test_exec_reads_nothing),
                cmocka_unit_test(test_dead_reads_nothing),
                cmocka_unit_test(test_undumpable_is_not_its_users),
                cmocka_unit_test(test_consent),
                cmocka_unit_test(test_scan),
                cmocka_unit_test(test_scan_many),
                cmocka_unit_test(test_scan_beside_writes),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
