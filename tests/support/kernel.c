#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "tests/support/kernel.h"

#define HUGE_PAGE_SIZE (512 * KSM_PAGE_SIZE)
#define KPF_COMPOUND_BITS (1ULL << 15 | 1ULL << 16) /* KPF_COMPOUND_HEAD, KPF_COMPOUND_TAIL */

/* -- memory ------------------------------------------------------------------------------------------------ */

void page_fill(void *page, uint64_t seed) {
        uint64_t *words = page;

        for (size_t i = 0; i < KSM_PAGE_SIZE / sizeof(*words); i++)
                words[i] = (seed + 1) * 0x9e3779b97f4a7c15ULL + i;
}

bool page_holds(const void *page, uint64_t seed) {
        const uint64_t *words = page;

        for (size_t i = 0; i < KSM_PAGE_SIZE / sizeof(*words); i++)
                if (words[i] != (seed + 1) * 0x9e3779b97f4a7c15ULL + i)
                        return false;
        return true;
}

bool page_is_zero(const void *page) {
        const uint64_t *words = page;

        for (size_t i = 0; i < KSM_PAGE_SIZE / sizeof(*words); i++)
                if (words[i])
                        return false;
        return true;
}

void *map_anon(size_t n_pages) {
        char *p = mmap(NULL, (n_pages + 2) * KSM_PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        CHECK(p != MAP_FAILED);
        p += KSM_PAGE_SIZE;
        CHECK(mprotect(p, n_pages * KSM_PAGE_SIZE, PROT_READ | PROT_WRITE) == 0);
        (void) madvise(p, n_pages * KSM_PAGE_SIZE, MADV_NOHUGEPAGE); /* EINVAL in a kernel without THP: fine */
        return p;
}

void *map_filled(size_t n_pages, uint64_t seed) {
        void *p = map_anon(n_pages);

        for (size_t i = 0; i < n_pages; i++)
                page_fill(page_at(p, i), seed + i);
        return p;
}

void *map_huge(uint64_t seed) {
        char *raw = mmap(NULL, 3 * HUGE_PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        char *p;

        CHECK(raw != MAP_FAILED);
        p = (char *) (((uintptr_t) raw + HUGE_PAGE_SIZE) & ~(HUGE_PAGE_SIZE - 1));
        CHECK(mprotect(p, HUGE_PAGE_SIZE, PROT_READ | PROT_WRITE) == 0);
        if (madvise(p, HUGE_PAGE_SIZE, MADV_HUGEPAGE) < 0)
                fact_skip("no transparent huge pages in this kernel");
        for (size_t i = 0; i < 512; i++)
                page_fill(page_at(p, i), seed + i);
        if (!(page_categories(p) & PAGE_IS_HUGE))
                fact_skip("the kernel gave no transparent huge page (disabled or fragmented memory)");
        return p;
}

int segment_open(size_t n_pages, uint64_t seed) {
        _cleanup_close_ int rw = memfd_create("segment", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        char path[64];
        void *p;
        int ro;

        CHECK(rw >= 0);
        CHECK(ftruncate(rw, (off_t) (n_pages * KSM_PAGE_SIZE)) == 0);
        p = mmap(NULL, n_pages * KSM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, rw, 0);
        CHECK(p != MAP_FAILED);
        for (size_t i = 0; i < n_pages; i++)
                page_fill(page_at(p, i), seed + i);
        CHECK(munmap(p, n_pages * KSM_PAGE_SIZE) == 0);
        snprintf(path, sizeof(path), "/proc/self/fd/%d", rw);
        ro = open(path, O_RDONLY | O_CLOEXEC);
        CHECK(ro >= 0);
        return ro;
}

void *map_segment(void *at, size_t n_pages, int fd, size_t first_slot) {
        void *p = mmap(at, n_pages * KSM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | (at ? MAP_FIXED : 0), fd,
                       (off_t) (first_slot * KSM_PAGE_SIZE));

        CHECK(p != MAP_FAILED);
        return p;
}

/* -- userfaultfd ------------------------------------------------------------------------------------------- */

int uffd_new(int device_fd, uint64_t features) {
        struct uffdio_api api = { .api = UFFD_API, .features = features };
        _cleanup_close_ int fd = ioctl(device_fd, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);

        if (fd < 0)
                return -errno;
        if (ioctl(fd, UFFDIO_API, &api) < 0)
                return -errno;
        return take_fd(&fd);
}

int uffd_open(uint64_t features) {
        _cleanup_close_ int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
        int fd;

        if (device < 0)
                fact_skip("/dev/userfaultfd: %s", strerror(errno));
        fd = uffd_new(device, features);
        if (fd < 0)
                fact_skip("no userfaultfd with features %#llx: %s", (unsigned long long) features, strerror(-fd));
        return fd;
}

static struct uffdio_range pages(void *at, size_t n_pages) {
        return (struct uffdio_range){ (uintptr_t) at, n_pages * KSM_PAGE_SIZE };
}

int uffd_register(int fd, void *at, size_t n_pages, uint64_t mode) {
        struct uffdio_register arg = { .range = pages(at, n_pages), .mode = mode };

        return ioctl(fd, UFFDIO_REGISTER, &arg) < 0 ? -errno : 0;
}

int uffd_unregister(int fd, void *at, size_t n_pages) {
        struct uffdio_range arg = pages(at, n_pages);

        return ioctl(fd, UFFDIO_UNREGISTER, &arg) < 0 ? -errno : 0;
}

int uffd_move(int fd, void *dst, void *src, size_t n_pages, uint64_t mode, int64_t *ret_moved) {
        struct uffdio_move arg = {
                .dst = (uintptr_t) dst, .src = (uintptr_t) src, .len = n_pages * KSM_PAGE_SIZE, .mode = mode,
        };
        int r = ioctl(fd, UFFDIO_MOVE, &arg) < 0 ? -errno : 0;

        if (ret_moved)
                *ret_moved = arg.move;
        return r;
}

int uffd_continue(int fd, void *at, size_t n_pages, uint64_t mode) {
        struct uffdio_continue arg = { .range = pages(at, n_pages), .mode = mode };

        return ioctl(fd, UFFDIO_CONTINUE, &arg) < 0 ? -errno : 0;
}

int uffd_zeropage(int fd, void *at, size_t n_pages) {
        struct uffdio_zeropage arg = { .range = pages(at, n_pages) };

        return ioctl(fd, UFFDIO_ZEROPAGE, &arg) < 0 ? -errno : 0;
}

int uffd_writeprotect(int fd, void *at, size_t n_pages, bool on) {
        struct uffdio_writeprotect arg = { .range = pages(at, n_pages), .mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0 };

        return ioctl(fd, UFFDIO_WRITEPROTECT, &arg) < 0 ? -errno : 0;
}

int uffd_wake(int fd, void *at, size_t n_pages) {
        struct uffdio_range arg = pages(at, n_pages);

        return ioctl(fd, UFFDIO_WAKE, &arg) < 0 ? -errno : 0;
}

bool uffd_next(int fd, struct uffd_msg *ret, int timeout_ms) {
        struct pollfd p = { .fd = fd, .events = POLLIN };

        return poll(&p, 1, timeout_ms) == 1 && read(fd, ret, sizeof(*ret)) == sizeof(*ret);
}

/* -- what the kernel says ----------------------------------------------------------------------------------- */

static int own_pagemap(void) {
        int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

        CHECK(fd >= 0);
        return fd;
}

/* Walks all regions whose pages have every bit of mask. */
static size_t scan(const void *at, size_t n_pages, uint64_t mask, uint64_t flags, uint64_t *ret_categories) {
        _cleanup_close_ int fd = own_pagemap();
        struct page_region regions[64];
        struct pm_scan_arg arg = {
                .size = sizeof(arg), .flags = flags, .start = (uintptr_t) at, .end = (uintptr_t) page_at((void *) at, n_pages),
                .vec = (uintptr_t) regions, .vec_len = ARRAY_SIZE(regions), .category_mask = mask,
                .return_mask = ret_categories ? 0xff : mask,
        };
        size_t found = 0;

        while (arg.start < arg.end) {
                int n = ioctl(fd, PAGEMAP_SCAN, &arg);

                CHECK(n >= 0);
                for (int i = 0; i < n; i++) {
                        found += (regions[i].end - regions[i].start) / KSM_PAGE_SIZE;
                        if (ret_categories)
                                *ret_categories |= regions[i].categories;
                }
                arg.start = arg.walk_end;
        }
        return found;
}

uint64_t page_categories(const void *page) {
        uint64_t categories = 0;

        scan(page, 1, 0, 0, &categories);
        return categories;
}

size_t count_pages(const void *at, size_t n_pages, uint64_t all_of) {
        return scan(at, n_pages, all_of, 0, NULL);
}

size_t scan_written(const void *at, size_t n_pages) {
        return scan(at, n_pages, PAGE_IS_WRITTEN | PAGE_IS_PRESENT | PAGE_IS_WPALLOWED,
                    PM_SCAN_WP_MATCHING, NULL);
}

size_t count_vmas(const void *at, size_t n_pages) {
        _cleanup_close_ int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
        uint64_t end = (uintptr_t) page_at((void *) at, n_pages);
        struct procmap_query q = {
                .size = sizeof(q), .query_flags = PROCMAP_QUERY_COVERING_OR_NEXT_VMA, .query_addr = (uintptr_t) at,
        };
        size_t n = 0;

        CHECK(fd >= 0);
        while (ioctl(fd, PROCMAP_QUERY, &q) == 0 && q.vma_start < end) {
                n++;
                if (q.vma_end >= end)
                        break;
                q.query_addr = q.vma_end;
        }
        return n;
}

static uint64_t pagemap_entry(const void *page) {
        _cleanup_close_ int fd = own_pagemap();
        uint64_t entry;

        CHECK(pread(fd, &entry, sizeof(entry), (off_t) ((uintptr_t) page / KSM_PAGE_SIZE * sizeof(entry))) ==
              sizeof(entry));
        return entry;
}

uint64_t page_pfn(const void *page) {
        uint64_t entry = pagemap_entry(page);

        return entry >> 63 ? entry & ((1ULL << 55) - 1) : 0;
}

bool page_is_mapped_once(const void *page) {
        return pagemap_entry(page) & 1ULL << 56;
}

bool page_has_wp_bit(const void *page) {
        return pagemap_entry(page) & 1ULL << 57;
}

uint64_t page_kflags(const void *page) {
        _cleanup_close_ int fd = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
        uint64_t flags = 0, pfn = page_pfn(page);

        if (fd < 0 || !pfn)
                return 0;
        return pread(fd, &flags, sizeof(flags), (off_t) (pfn * sizeof(flags))) == sizeof(flags) ? flags : 0;
}

bool page_is_compound(const void *page) {
        if (geteuid() != 0)
                fact_skip("/proc/kpageflags needs root");
        return page_kflags(page) & KPF_COMPOUND_BITS;
}

/* -- another thread ------------------------------------------------------------------------------------------ */

static void *toucher_main(void *argument) {
        struct toucher *t = argument;

        atomic_store(&t->tid, (int) syscall(SYS_gettid));
        t->run(t->argument);
        atomic_store(&t->done, true);
        return NULL;
}

void toucher_start(struct toucher *t, void (*run)(void *), void *argument) {
        *t = (struct toucher){ .run = run, .argument = argument };
        CHECK(pthread_create(&t->thread, NULL, toucher_main, t) == 0);
}

bool toucher_done(struct toucher *t) {
        return atomic_load(&t->done);
}

void toucher_join(struct toucher *t) {
        CHECK(pthread_join(t->thread, NULL) == 0);
}
