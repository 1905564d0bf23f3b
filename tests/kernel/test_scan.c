/* PAGEMAP_SCAN and the pagemap and mem fds that a client hands to the daemon. */
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "tests/support/kernel.h"

#define NOBODY 65534U

#define DAEMON_MASK (PAGE_IS_WRITTEN | PAGE_IS_PRESENT | PAGE_IS_WPALLOWED)

/* Pages of one call, or -errno. */
static long scan_through(int pagemap_fd, const void *at, uint64_t length, uint64_t mask, struct pm_scan_arg *ret) {
        struct page_region regions[16];
        struct pm_scan_arg arg = {
                .size = sizeof(arg), .flags = PM_SCAN_WP_MATCHING, .start = (uintptr_t) at, .end = (uintptr_t) at + length,
                .vec = (uintptr_t) regions, .vec_len = ARRAY_SIZE(regions), .category_mask = mask, .return_mask = mask,
        };
        int n = ioctl(pagemap_fd, PAGEMAP_SCAN, &arg);
        long found = 0;

        if (n < 0)
                return -errno;
        for (int i = 0; i < n; i++)
                found += (long) ((regions[i].end - regions[i].start) / KSM_PAGE_SIZE);
        if (ret)
                *ret = arg;
        return found;
}

static int own_pagemap(void) {
        int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

        CHECK(fd >= 0);
        return fd;
}

static void *map_tracked(size_t n_pages) {
        int track = uffd_open(TRACK_FEATURES);
        void *p = map_filled(n_pages, 1);

        CHECK_EQ(uffd_register(track, p, n_pages, UFFDIO_REGISTER_MODE_WP), 0);
        return p;
}

static void each_write_is_reported_once(void) {
        void *p = map_tracked(8);

        CHECK_EQ(scan_written(p, 8), 8);
        CHECK_EQ(scan_written(p, 8), 0);
        page_fill(page_at(p, 3), 5);
        page_fill(page_at(p, 3), 6);
        (void) *(volatile char *) page_at(p, 4); /* a read is no write */
        CHECK_EQ(scan_written(p, 8), 1);
        CHECK(page_categories(page_at(p, 3)) & PAGE_IS_PRESENT);
        CHECK_EQ(scan_written(p, 8), 0);
}

static void write_by_the_kernel_is_reported(void) {
        void *p = map_tracked(1);
        int fds[2];

        CHECK_EQ(scan_written(p, 1), 1);
        CHECK(pipe2(fds, O_CLOEXEC) == 0);
        CHECK_EQ(write(fds[1], "x", 1), 1);
        CHECK_EQ(read(fds[0], page_at(p, 0), 1), 1);
        CHECK_EQ(scan_written(p, 1), 1);
}

static void present_in_the_mask_puts_no_markers_over_holes(void) {
        int pagemap = own_pagemap(), track = uffd_open(TRACK_FEATURES);
        void *p = map_anon(4);
        long holes;

        page_fill(p, 1);
        CHECK_EQ(uffd_register(track, p, 4, UFFDIO_REGISTER_MODE_WP), 0);
        CHECK_EQ(scan_through(pagemap, p, 4 * KSM_PAGE_SIZE, DAEMON_MASK, NULL), 1);
        CHECK(page_has_wp_bit(p) && !page_has_wp_bit(page_at(p, 1)));
        /* What the mask prevents. Kernels without a late fix (6.12.95) do not take a hole for written with this mask. */
        holes = scan_through(pagemap, p, 4 * KSM_PAGE_SIZE, PAGE_IS_WRITTEN | PAGE_IS_WPALLOWED, NULL);
        CHECK(holes == 3 || holes == 0);
        CHECK_EQ(page_has_wp_bit(page_at(p, 1)), holes == 3);
        printf("without PRESENT: markers over %ld holes of 3\n", holes);
}

static void only_registered_mappings_are_wpallowed(void) {
        int track = uffd_open(TRACK_FEATURES);
        void *p = map_filled(4, 1);

        CHECK_EQ(uffd_register(track, page_at(p, 1), 2, UFFDIO_REGISTER_MODE_WP), 0);
        CHECK_EQ(count_pages(p, 4, PAGE_IS_WPALLOWED), 2);
        CHECK_EQ(scan_written(p, 4), 2);
        CHECK(!page_has_wp_bit(p));
}

static void hole_read_under_tracking_is_the_zero_page(void) {
        int track = uffd_open(TRACK_FEATURES);
        void *p = map_anon(2);

        CHECK_EQ(uffd_register(track, p, 2, UFFDIO_REGISTER_MODE_WP), 0);
        CHECK(page_is_zero(p));
        CHECK_EQ(page_categories(p) & (PAGE_IS_PFNZERO | PAGE_IS_PRESENT), PAGE_IS_PFNZERO | PAGE_IS_PRESENT);
        CHECK_EQ(page_categories(page_at(p, 1)) & (PAGE_IS_PFNZERO | PAGE_IS_PRESENT), 0);
        CHECK_EQ(scan_written(p, 2), 1); /* so the daemon sees it once, and must skip PFNZERO */
        page_fill(p, 8);
        CHECK(!(page_categories(p) & PAGE_IS_PFNZERO));
        CHECK_EQ(scan_written(p, 2), 1);
}

static void walk_over_32_tib_of_nothing_is_fast(void) {
        const uint64_t length = 32ULL << 40, middle = 16ULL << 40;
        struct uffdio_register arg = { .mode = UFFDIO_REGISTER_MODE_WP };
        int pagemap = own_pagemap(), track = uffd_open(TRACK_FEATURES);
        char *p = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        struct timespec a, b;
        struct pm_scan_arg end;
        long usec;

        if (p == MAP_FAILED)
                fact_skip("cannot map 32 TiB: %s", strerror(errno));
        (void) madvise(p, length, MADV_NOHUGEPAGE);
        arg.range = (struct uffdio_range){ (uintptr_t) p, length };
        CHECK(ioctl(track, UFFDIO_REGISTER, &arg) == 0);
        p[middle] = 1;
        CHECK(clock_gettime(CLOCK_MONOTONIC, &a) == 0);
        CHECK_EQ(scan_through(pagemap, p, length, DAEMON_MASK, &end), 1);
        CHECK(clock_gettime(CLOCK_MONOTONIC, &b) == 0);
        CHECK_EQ(end.walk_end, (uintptr_t) p + length);
        usec = (b.tv_sec - a.tv_sec) * 1000000 + (b.tv_nsec - a.tv_nsec) / 1000;
        printf("%ld us\n", usec);
        CHECK(usec < 100000); /* page by page it would be an hour */
}

/* A result that does not fit is given in parts; nothing is protected that was not handed out. */
static void full_result_stops_the_walk_and_protects_nothing_beyond(void) {
        enum { N = 64 };
        void *p = map_tracked(N);
        struct pm_scan_arg end;
        size_t protected_pages = 0;

        CHECK_EQ(scan_written(p, N), N);
        for (size_t i = 0; i < N; i += 2)
                page_fill(page_at(p, i), 9); /* 32 runs, 16 fit */
        CHECK_EQ(scan_through(own_pagemap(), p, N * KSM_PAGE_SIZE, DAEMON_MASK, &end), 16);
        CHECK(end.walk_end < (uintptr_t) page_at(p, N));
        for (size_t i = 0; i < N; i += 2)
                protected_pages += page_has_wp_bit(page_at(p, i));
        CHECK_EQ(protected_pages, 16);
        CHECK_EQ(scan_written(p, N), 16);
}

/* The kernel collects 512 runs at a time, and sets walk_end when there is no room for more of them; then it walks on, and leaves walk_end as
 * it is when it comes to the end. */
static void walk_that_ends_may_say_that_it_stopped_before(void) {
        enum { RUNS = 600, N = 2 * RUNS, ROOM = 700, BUFFER = 512 };
        static struct page_region regions[ROOM];
        void *p = map_tracked(N);
        struct pm_scan_arg arg = {
                .size = sizeof(arg), .flags = PM_SCAN_WP_MATCHING, .start = (uintptr_t) p, .end = (uintptr_t) page_at(p, N),
                .vec = (uintptr_t) regions, .vec_len = ROOM, .category_mask = DAEMON_MASK, .return_mask = DAEMON_MASK,
        };

        CHECK_EQ(scan_written(p, N), N);
        for (size_t i = 0; i < N; i += 2)
                page_fill(page_at(p, i), 9);
        CHECK_EQ(ioctl(own_pagemap(), PAGEMAP_SCAN, &arg), RUNS);
        CHECK_EQ(regions[RUNS - 1].start, (uintptr_t) page_at(p, N - 2));
        CHECK(arg.walk_end == (uintptr_t) page_at(p, N) || arg.walk_end == (uintptr_t) page_at(p, 2 * BUFFER));
        printf("walk_end of a walk over %d pages: behind page %zu\n", N, (size_t) (arg.walk_end - (uintptr_t) p) / KSM_PAGE_SIZE);
}

/* -- through fds handed over --------------------------------------------------------------------------------------- */

static void scan_in_another_process_tracks_ours(void) {
        void *p = map_tracked(4);
        int pagemap = own_pagemap(), status;
        pid_t child = fork(); /* inherits the fd as SCM_RIGHTS would give it: it stays bound to our mm */

        CHECK(child >= 0);
        if (child == 0) {
                CHECK(munmap(p, 4 * KSM_PAGE_SIZE) == 0);
                CHECK_EQ(scan_through(pagemap, p, 4 * KSM_PAGE_SIZE, DAEMON_MASK, NULL), 4);
                _exit(0);
        }
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        CHECK_EQ(count_pages(p, 4, PAGE_IS_WRITTEN), 0);
        page_fill(page_at(p, 2), 3);
        CHECK_EQ(scan_written(p, 4), 1);
}

static void fds_read_nothing_after_exec(void) {
        int pair[2], input[2], pagemap, mem, status;
        char byte = 0, path[64];
        void *p = map_filled(1, 4); /* inherited at the same address */
        char *const argv[] = { (char *) "cat", NULL };
        pid_t child;

        CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
        CHECK(pipe2(input, O_CLOEXEC) == 0);
        child = fork();
        CHECK(child >= 0);
        if (child == 0) {
                close_fd(pair[0]);
                CHECK(dup2(input[0], STDIN_FILENO) == STDIN_FILENO);
                CHECK_EQ(send(pair[1], "r", 1, 0), 1);
                CHECK_EQ(recv(pair[1], &byte, 1, 0), 1);
                execvp("cat", argv); /* closes pair[1] */
                _exit(1);
        }
        close_fd(pair[1]);
        CHECK_EQ(recv(pair[0], &byte, 1, 0), 1);
        snprintf(path, sizeof(path), "/proc/%d/pagemap", child);
        pagemap = open(path, O_RDONLY | O_CLOEXEC);
        snprintf(path, sizeof(path), "/proc/%d/mem", child);
        mem = open(path, O_RDONLY | O_CLOEXEC);
        CHECK(pagemap >= 0 && mem >= 0);
        CHECK_EQ(pread(mem, &byte, 1, (off_t) (uintptr_t) p), 1);
        CHECK_EQ(send(pair[0], "g", 1, 0), 1);
        CHECK_EQ(recv(pair[0], &byte, 1, 0), 0); /* end of file: the exec has happened */

        CHECK(pread(mem, &byte, 1, (off_t) (uintptr_t) p) <= 0);
        CHECK(scan_through(pagemap, p, KSM_PAGE_SIZE, PAGE_IS_PRESENT, NULL) <= 0);
        close_fd(input[1]);
        CHECK(waitpid(child, &status, 0) == child && status == 0);
}

/* What the daemon gets for a page in transition: an error now, not a wait. */
static void mem_fd_of_another_process_fails_on_a_hole_with_a_guard(void) {
        int guard = uffd_open(GUARD_FEATURES), pair[2], mem, status;
        void *p = map_anon(1);
        char byte, path[64];
        pid_t child;

        CHECK_EQ(uffd_register(guard, p, 1, UFFDIO_REGISTER_MODE_MISSING), 0);
        CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
        snprintf(path, sizeof(path), "/proc/self/mem");
        mem = open(path, O_RDONLY | O_CLOEXEC);
        CHECK(mem >= 0);
        child = fork();
        CHECK(child >= 0);
        if (child == 0) {
                alarm(5);
                _exit(pread(mem, &byte, 1, (off_t) (uintptr_t) p) < 0 ? errno : 0);
        }
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(WIFEXITED(status));
        CHECK_EQ(WEXITSTATUS(status), EIO);
}

static uid_t owner_of(pid_t pid, const char *name) {
        char path[64];
        struct stat st;

        snprintf(path, sizeof(path), "/proc/%d/%s", (int) pid, name);
        CHECK(stat(path, &st) == 0);
        return st.st_uid;
}

static void files_of_an_undumpable_process_are_roots_but_not_its_directory(void) {
        uid_t uid = getuid() ? getuid() : NOBODY;
        int told[2], asked[2], status;
        char byte;
        pid_t child;

        CHECK(pipe2(told, O_CLOEXEC) == 0 && pipe2(asked, O_CLOEXEC) == 0);
        child = fork();
        CHECK(child >= 0);
        if (child == 0) {
                close_fd(asked[1]);
                CHECK(setresuid(uid, uid, uid) == 0);
                for (int dumpable = 1; dumpable >= 0; dumpable--) {
                        CHECK(prctl(PR_SET_DUMPABLE, dumpable, 0, 0, 0) == 0);
                        CHECK(write(told[1], "", 1) == 1);
                        (void) !read(asked[0], &byte, 1);
                }
                _exit(0);
        }
        for (int dumpable = 1; dumpable >= 0; dumpable--) {
                CHECK(read(told[0], &byte, 1) == 1);
                CHECK_EQ(owner_of(child, "status"), dumpable ? uid : 0);
                CHECK_EQ(owner_of(child, "."), uid);
                CHECK(write(asked[1], "", 1) == 1);
        }
        CHECK(waitpid(child, &status, 0) == child && status == 0);
}

FACTS(FACT(each_write_is_reported_once),
      FACT(write_by_the_kernel_is_reported),
      FACT(present_in_the_mask_puts_no_markers_over_holes),
      FACT(only_registered_mappings_are_wpallowed),
      FACT(hole_read_under_tracking_is_the_zero_page),
      FACT(walk_over_32_tib_of_nothing_is_fast),
      FACT(full_result_stops_the_walk_and_protects_nothing_beyond),
      FACT(walk_that_ends_may_say_that_it_stopped_before),
      FACT(scan_in_another_process_tracks_ours),
      FACT(fds_read_nothing_after_exec),
      FACT(mem_fd_of_another_process_fails_on_a_hole_with_a_guard),
      FACT(files_of_an_undumpable_process_are_roots_but_not_its_directory))
