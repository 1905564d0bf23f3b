/* Self-checks: the child has one thread and touches only pages that are present or that no context in MISSING mode
 * covers, so nothing in it can wait for a fault that nobody answers. The parent bounds it all the same. Whatever the child
 * opens or maps ends with it; its results come back in one shared page. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "common/cleanup.h"
#include "common/kernel_selfcheck.h"
#include "common/uapi.h"

#define TRACK_FEATURES (UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_HUGETLBFS_SHMEM)
#define CHECK_PAGES 4UL
#define CHECK_BYTES (CHECK_PAGES * KSM_PAGE_SIZE)

struct child {
        struct kernel_selfcheck *out;
        struct kernel_selfcheck_result *current;
        int device_fd, pagemap_fd; /* -1: not there */
};

static int failed(struct child *c, int error, const char *step) {
        snprintf(c->current->step, sizeof(c->current->step), "%s", step);
        return error;
}

/* A step by system call, and a step by looking whether the call did it. */
#define TRY(cond, step)                                 \
        do {                                            \
                if (!(cond))                            \
                        return failed(c, -errno, step); \
        } while (0)
#define LOOK(cond, step)                                 \
        do {                                             \
                if (!(cond))                             \
                        return failed(c, -EPROTO, step); \
        } while (0)

/* -- small parts --------------------------------------------------------------------------------------------- */

/* Without the device: a context for user-mode faults only, which no sysctl forbids. */
static int context_new(struct child *c, uint64_t features, uint64_t *ret_features) {
        struct uffdio_api api = { .api = UFFD_API, .features = features };
        _cleanup_close_ int fd = c->device_fd >= 0
                                         ? ioctl(c->device_fd, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK)
                                         : (int) syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);

        if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0)
                return -errno;
        if (ret_features)
                *ret_features = api.features;
        return take_fd(&fd);
}

static int register_range(int fd, void *at, uint64_t mode) {
        struct uffdio_register arg = { .range = { (uintptr_t) at, CHECK_BYTES }, .mode = mode };

        return ioctl(fd, UFFDIO_REGISTER, &arg);
}

/* One page's categories; with wp, those of the written page it write-protects. 0: no such page, < 0: -errno. */
static int64_t scan_page(struct child *c, char *page, bool wp) {
        struct page_region region = { 0 };
        struct pm_scan_arg arg = {
                .size = sizeof(arg), .flags = wp ? PM_SCAN_WP_MATCHING : 0,
                .start = (uintptr_t) page, .end = (uintptr_t) page + KSM_PAGE_SIZE,
                .vec = (uintptr_t) &region, .vec_len = 1,
                .category_mask = PAGE_IS_PRESENT | (wp ? PAGE_IS_WRITTEN | PAGE_IS_WPALLOWED : 0),
                .return_mask = PAGE_IS_PRESENT | PAGE_IS_WRITTEN | PAGE_IS_WPALLOWED | PAGE_IS_FILE,
        };
        int n = ioctl(c->pagemap_fd, PAGEMAP_SCAN, &arg);

        return n < 0 ? -errno : n == 0 ? 0 : (int64_t) region.categories;
}

static char *map_pages(int fd, int flags) {
        char *p = mmap(NULL, CHECK_BYTES, PROT_READ | PROT_WRITE, flags, fd, 0);

        if (p == MAP_FAILED)
                return NULL;
        (void) madvise(p, CHECK_BYTES, MADV_NOHUGEPAGE);
        return p;
}

static void fill(char *p, int seed) {
        for (size_t i = 0; i < CHECK_PAGES; i++)
                memset(p + i * KSM_PAGE_SIZE, seed + (int) i, KSM_PAGE_SIZE);
}

static bool filled(const char *p, int seed) {
        for (size_t i = 0; i < CHECK_BYTES; i++)
                if (p[i] != (char) (seed + (int) (i / KSM_PAGE_SIZE)))
                        return false;
        return true;
}

/* -- the checks, in the order of kernel_selfcheck_id --------------------------------------------------------- */

static int check_pagemap_scan(struct child *c) {
        char *p = map_pages(-1, MAP_PRIVATE | MAP_ANONYMOUS);
        int64_t r;

        c->pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
        TRY(c->pagemap_fd >= 0, "open /proc/self/pagemap");
        TRY(p, "mmap");
        p[0] = 1;
        r = scan_page(c, p, false);
        if (r < 0)
                return failed(c, (int) r, "PAGEMAP_SCAN");
        LOOK(r & PAGE_IS_PRESENT, "a page just written is not PRESENT");
        return 0;
}

static int check_procmap_query(struct child *c) {
        _cleanup_close_ int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
        char *p = map_pages(-1, MAP_PRIVATE | MAP_ANONYMOUS);
        struct procmap_query q = { .size = sizeof(q), .query_addr = (uintptr_t) p };

        TRY(fd >= 0, "open /proc/self/maps");
        TRY(p, "mmap");
        TRY(ioctl(fd, PROCMAP_QUERY, &q) == 0, "PROCMAP_QUERY");
        LOOK(q.vma_start <= (uintptr_t) p && q.vma_end >= (uintptr_t) p + CHECK_BYTES &&
                     (q.vma_flags & PROCMAP_QUERY_VMA_WRITABLE) && !(q.vma_flags & PROCMAP_QUERY_VMA_SHARED),
             "PROCMAP_QUERY describes another mapping");
        return 0;
}

static int check_userfaultfd(struct child *c) {
        _cleanup_close_ int fd = context_new(c, 0, &c->out->uffd_features);

        if (fd < 0)
                return failed(c, fd, "userfaultfd");
        return 0;
}

static int check_uffd_device(struct child *c) {
        TRY(c->device_fd >= 0, "open /dev/userfaultfd");
        return 0;
}

/* -EEXIST with the pages arrived is a known bug of some kernels: judged as the agent does, by the destination. */
static int check_move(struct child *c) {
        _cleanup_close_ int fd = context_new(c, UFFD_FEATURE_MOVE, NULL);
        char *src = map_pages(-1, MAP_PRIVATE | MAP_ANONYMOUS), *dst = map_pages(-1, MAP_PRIVATE | MAP_ANONYMOUS);
        struct uffdio_move arg = { .dst = (uintptr_t) dst, .src = (uintptr_t) src, .len = CHECK_BYTES };

        if (fd < 0)
                return failed(c, fd, "userfaultfd with MOVE");
        TRY(src && dst, "mmap");
        fill(src, 1);
        TRY(register_range(fd, dst, UFFDIO_REGISTER_MODE_MISSING) == 0, "UFFDIO_REGISTER");
        TRY(ioctl(fd, UFFDIO_MOVE, &arg) == 0 || errno == EEXIST, "UFFDIO_MOVE");
        for (size_t i = 0; i < CHECK_PAGES; i++) {
                LOOK(scan_page(c, dst + i * KSM_PAGE_SIZE, false) > 0, "UFFDIO_MOVE left its destination empty");
                LOOK(scan_page(c, src + i * KSM_PAGE_SIZE, false) == 0, "UFFDIO_MOVE left its source");
        }
        LOOK(filled(dst, 1), "UFFDIO_MOVE brought other bytes");
        return 0;
}

static int check_scan(struct child *c) {
        _cleanup_close_ int fd = context_new(c, TRACK_FEATURES, NULL);
        char *p = map_pages(-1, MAP_PRIVATE | MAP_ANONYMOUS);

        if (fd < 0)
                return failed(c, fd, "userfaultfd with WP_ASYNC");
        TRY(p, "mmap");
        fill(p, 1);
        TRY(register_range(fd, p, UFFDIO_REGISTER_MODE_WP) == 0, "UFFDIO_REGISTER");
        for (int round = 0; round < 2; round++) {
                for (size_t i = 0; i < CHECK_PAGES; i++) {
                        LOOK(scan_page(c, p + i * KSM_PAGE_SIZE, true) > 0, "a written page was not reported");
                        LOOK(scan_page(c, p + i * KSM_PAGE_SIZE, true) == 0, "an unwritten page was reported");
                }
                fill(p, 2 + round);
        }
        LOOK(filled(p, 3), "write-protection changed bytes");
        return 0;
}

static int check_continue(struct child *c) {
        _cleanup_close_ int fd = context_new(c, TRACK_FEATURES | UFFD_FEATURE_MINOR_SHMEM, NULL);
        _cleanup_close_ int segment = memfd_create("userksm-check", MFD_CLOEXEC);
        char *origin, *run;
        struct uffdio_continue arg = { .range = { .len = CHECK_BYTES }, .mode = UFFDIO_CONTINUE_MODE_WP };

        if (fd < 0)
                return failed(c, fd, "userfaultfd with MINOR_SHMEM");
        TRY(segment >= 0 && ftruncate(segment, CHECK_BYTES) == 0, "memfd_create");
        origin = map_pages(segment, MAP_SHARED);
        run = map_pages(segment, MAP_PRIVATE);
        TRY(origin && run, "mmap");
        fill(origin, 5);
        TRY(register_range(fd, run, UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MINOR) == 0, "UFFDIO_REGISTER");
        arg.range.start = (uintptr_t) run;
        TRY(ioctl(fd, UFFDIO_CONTINUE, &arg) == 0, "UFFDIO_CONTINUE");
        for (size_t i = 0; i < CHECK_PAGES; i++) {
                int64_t r = scan_page(c, run + i * KSM_PAGE_SIZE, false);

                LOOK(r > 0 && (r & PAGE_IS_FILE), "UFFDIO_CONTINUE did not map the segment's page");
                LOOK(!(r & PAGE_IS_WRITTEN), "UFFDIO_CONTINUE did not write-protect the page");
        }
        LOOK(filled(run, 5), "UFFDIO_CONTINUE mapped other bytes");
        run[0] = 77;
        LOOK((scan_page(c, run, false) & (PAGE_IS_WRITTEN | PAGE_IS_FILE)) == PAGE_IS_WRITTEN,
             "a copied page does not show as written");
        LOOK(filled(origin, 5), "a private write reached the segment");
        return 0;
}

static int check_close_range(struct child *c) {
        TRY(syscall(SYS_close_range, ~0U, ~0U, CLOSE_RANGE_UNSHARE) == 0, "close_range");
        return 0;
}

/* What a segment relies on: nobody can write any more, but the mapping made before still can. */
static int check_memfd_seals(struct child *c) {
        _cleanup_close_ int fd = memfd_create("userksm-check", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        char *p;

        TRY(fd >= 0 && ftruncate(fd, CHECK_BYTES) == 0, "memfd_create");
        p = map_pages(fd, MAP_SHARED);
        TRY(p, "mmap");
        TRY(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_GROW | F_SEAL_SHRINK) == 0, "F_SEAL_FUTURE_WRITE");
        p[0] = 1;
        LOOK(pwrite(fd, "", 1, 0) < 0, "a sealed memfd was written");
        LOOK(!map_pages(fd, MAP_SHARED), "a sealed memfd was mapped writable");
        LOOK(ftruncate(fd, 0) < 0, "a sealed memfd was truncated");
        return 0;
}

static int check_memfd_noexec(struct child *c) {
        _cleanup_close_ int fd = memfd_create("userksm-check", MFD_CLOEXEC | MFD_NOEXEC_SEAL);

        TRY(fd >= 0, "memfd_create MFD_NOEXEC_SEAL");
        return 0;
}

static int (*const checks[SELFCHECK_MAX_])(struct child *) = {
        [SELFCHECK_PAGEMAP_SCAN] = check_pagemap_scan, [SELFCHECK_PROCMAP_QUERY] = check_procmap_query,
        [SELFCHECK_USERFAULTFD] = check_userfaultfd,   [SELFCHECK_UFFD_DEVICE] = check_uffd_device,
        [SELFCHECK_MOVE] = check_move,                 [SELFCHECK_SCAN] = check_scan,
        [SELFCHECK_CONTINUE] = check_continue,         [SELFCHECK_CLOSE_RANGE] = check_close_range,
        [SELFCHECK_MEMFD_SEALS] = check_memfd_seals,   [SELFCHECK_MEMFD_NOEXEC] = check_memfd_noexec,
};

/* Results are ready one by one: a child that dies says how far it came. */
__attribute__((noreturn)) static void child_main(struct kernel_selfcheck *out) {
        struct child c = { .out = out, .device_fd = -1, .pagemap_fd = -1 };

        (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
        c.device_fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
        for (int i = 0; i < SELFCHECK_MAX_; i++) {
                errno = 0;
                c.current = &out->results[i];
                if (i == SELFCHECK_UFFD_DEVICE && c.device_fd < 0)
                        c.device_fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC); /* for its errno */
                out->results[i].error = checks[i](&c);
        }
        _exit(0);
}

int kernel_selfcheck_run(struct kernel_selfcheck *ret) {
        struct kernel_selfcheck *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        struct pollfd ended = { .fd = -1, .events = POLLIN };
        pid_t pid;

        if (shared == MAP_FAILED)
                return -errno;
        for (int i = 0; i < SELFCHECK_MAX_; i++)
                shared->results[i].error = -ENODATA;
        pid = fork();
        if (pid == 0)
                child_main(shared);
        if (pid < 0) {
                int error = -errno;

                (void) munmap(shared, sizeof(*shared));
                return error;
        }
        ended.fd = (int) syscall(SYS_pidfd_open, pid, 0);
        if (ended.fd >= 0) {
                while (poll(&ended, 1, SELFCHECK_TIMEOUT_MS) < 0 && errno == EINTR)
                        ;
                (void) kill(pid, SIGKILL); /* not reaped yet: the pid is still the child's */
                close_fd(ended.fd);
        }
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
                ;
        *ret = *shared;
        (void) munmap(shared, sizeof(*shared));
        return 0;
}
