/* Merged runs: private mappings of a segment under the shared context. */
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "tests/support/kernel.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif
#define ENDLESS_USEC 300000 /* of the processor's time, for one page */

#define SHARED_MODE (UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MINOR)

struct merged {
        int context, segment;
        void *run;
};

static struct merged map_as(size_t n_pages, uint64_t seed, uint64_t continue_mode) {
        struct merged m = { .context = uffd_open(SHARED_FEATURES), .segment = segment_open(n_pages, seed) };

        m.run = map_segment(NULL, n_pages, m.segment, 0);
        CHECK_EQ(uffd_register(m.context, m.run, n_pages, SHARED_MODE), 0);
        CHECK_EQ(uffd_continue(m.context, m.run, n_pages, continue_mode), 0);
        return m;
}

/* Write-protected by userfaultfd, too. */
static struct merged map_merged(size_t n_pages, uint64_t seed) {
        return map_as(n_pages, seed, UFFDIO_CONTINUE_MODE_WP);
}

/* As the agent does it. */
static struct merged map_unprotected(size_t n_pages, uint64_t seed) {
        return map_as(n_pages, seed, 0);
}

static long minor_faults(void) {
        struct rusage u;

        CHECK(getrusage(RUSAGE_THREAD, &u) == 0);
        return u.ru_minflt;
}

static bool segment_holds(int fd, size_t slot, uint64_t seed) {
        char page[KSM_PAGE_SIZE] __attribute__((aligned(8)));

        CHECK_EQ(pread(fd, page, sizeof(page), (off_t) (slot * KSM_PAGE_SIZE)), KSM_PAGE_SIZE);
        return page_holds(page, seed);
}

/* Removes a page as a program does with a raw system call, with this thread reading the event. */
static void dontneed_page(void *page) {
        CHECK(madvise(page, KSM_PAGE_SIZE, MADV_DONTNEED) == 0);
}

static void remove_page(struct merged *m, void *page) {
        struct toucher t;
        struct uffd_msg msg;

        toucher_start(&t, dontneed_page, page);
        CHECK(uffd_next(m->context, &msg, 5000));
        CHECK_EQ(msg.event, UFFD_EVENT_REMOVE);
        toucher_join(&t);
}

static void read_first_word(void *page) {
        (void) *(volatile uint64_t *) page;
}

static void continue_populates_and_protects_so_that_reads_do_not_fault(void) {
        enum { N = 32 };
        struct merged m = map_merged(N, 10);
        long before;
        bool same = true;

        CHECK_EQ(count_pages(m.run, N, PAGE_IS_PRESENT | PAGE_IS_FILE | PAGE_IS_WPALLOWED), N);
        CHECK_EQ(count_pages(m.run, N, PAGE_IS_WRITTEN), 0);
        before = minor_faults();
        for (size_t i = 0; i < N; i++)
                same &= page_holds(page_at(m.run, i), 10 + i);
        CHECK_EQ(minor_faults(), before);
        CHECK(same);
}

static void write_to_a_merged_page_is_a_copy_that_shows_written_and_not_file(void) {
        struct merged m = map_merged(2, 20);

        page_fill(m.run, 99); /* returns at once: nobody answers anything */
        CHECK_EQ(page_categories(m.run) & (PAGE_IS_WRITTEN | PAGE_IS_FILE | PAGE_IS_PRESENT),
                 PAGE_IS_WRITTEN | PAGE_IS_PRESENT);
        CHECK(segment_holds(m.segment, 0, 20));
        CHECK_EQ(page_categories(page_at(m.run, 1)) & (PAGE_IS_WRITTEN | PAGE_IS_FILE), PAGE_IS_FILE);
        CHECK_EQ(scan_written(m.run, 2), 1);
        CHECK_EQ(scan_written(m.run, 2), 0); /* the copy is tracked like any page */
        CHECK(page_holds(m.run, 99));
}

/* What is of no file, and was written; as daemon/sys/pagemap.c asks. Protected by that. */
static int scan_private_written(void *at, size_t n_pages) {
        _cleanup_close_ int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
        struct page_region region[2];
        struct pm_scan_arg arg = {
                .size = sizeof(arg), .flags = PM_SCAN_WP_MATCHING, .start = (uintptr_t) at,
                .end = (uintptr_t) page_at(at, n_pages), .vec = (uintptr_t) region, .vec_len = ARRAY_SIZE(region),
                .category_inverted = PAGE_IS_FILE,
                .category_mask = PAGE_IS_FILE | PAGE_IS_WRITTEN | PAGE_IS_PRESENT | PAGE_IS_WPALLOWED,
                .return_mask = PAGE_IS_FILE | PAGE_IS_PFNZERO,
        };
        int n;

        CHECK(fd >= 0);
        n = ioctl(fd, PAGEMAP_SCAN, &arg);
        CHECK(n >= 0);
        return n == 0 ? 0 : (int) ((region[0].end - region[0].start) / KSM_PAGE_SIZE) + 1000 * (n - 1);
}

static void merged_pages_need_no_protection_to_be_told_from_written_ones(void) {
        struct merged m = map_unprotected(4, 30);

        CHECK_EQ(count_pages(m.run, 4, PAGE_IS_PRESENT | PAGE_IS_FILE | PAGE_IS_WPALLOWED), 4);
        CHECK_EQ(scan_private_written(m.run, 4), 0);
        page_fill(page_at(m.run, 2), 99);
        CHECK_EQ(scan_private_written(m.run, 4), 1);
        CHECK_EQ(scan_private_written(m.run, 4), 0); /* the copy is tracked like any page */
        page_fill(page_at(m.run, 2), 98);
        CHECK_EQ(scan_private_written(m.run, 4), 1);
        CHECK_EQ(count_pages(m.run, 4, PAGE_IS_WRITTEN | PAGE_IS_FILE), 3); /* and the others as before */
        CHECK(segment_holds(m.segment, 2, 32));
        CHECK(page_holds(page_at(m.run, 2), 98));
}

static void zap_of_an_unprotected_merged_page_leaves_an_empty_entry(void) {
        struct merged m = map_unprotected(2, 31);

        remove_page(&m, m.run);
        CHECK(!page_has_wp_bit(m.run));
        CHECK_EQ(uffd_zeropage(m.context, m.run, 1), 0);
        CHECK(page_is_zero(m.run));
        CHECK(page_holds(page_at(m.run, 1), 32));
}

/* -- what fuses: runs are VMAs, and VMAs are what a process has few of --------------------------------------------- */

enum populate { BY_CONTINUE, BY_CONTINUE_ELSEWHERE, BY_READ };

/* Protects what still is the segment's page, leaves what a write copied meanwhile to read as WRITTEN. */
static void protect_file_pages(void *at, size_t n_pages) {
        _cleanup_close_ int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
        struct page_region region;
        struct pm_scan_arg arg = {
                .size = sizeof(arg), .flags = PM_SCAN_WP_MATCHING, .start = (uintptr_t) at,
                .end = (uintptr_t) page_at(at, n_pages), .vec = (uintptr_t) &region, .vec_len = 1,
                .category_mask = PAGE_IS_FILE | PAGE_IS_WRITTEN | PAGE_IS_PRESENT | PAGE_IS_WPALLOWED,
                .return_mask = PAGE_IS_FILE,
        };

        CHECK(fd >= 0);
        CHECK(ioctl(fd, PAGEMAP_SCAN, &arg) >= 0);
}

static void merge_page(struct merged *m, size_t i, enum populate how) {
        void *page = page_at(m->run, i), *mapped = map_segment(how == BY_CONTINUE_ELSEWHERE ? NULL : page, 1, m->segment, i);

        if (how == BY_READ)
                CHECK(madvise(mapped, KSM_PAGE_SIZE, MADV_POPULATE_READ) == 0);
        CHECK_EQ(uffd_register(m->context, mapped, 1, SHARED_MODE), 0);
        if (how == BY_READ)
                protect_file_pages(mapped, 1);
        else
                CHECK_EQ(uffd_continue(m->context, mapped, 1, UFFDIO_CONTINUE_MODE_WP), 0);
        if (how == BY_CONTINUE_ELSEWHERE) {
                CHECK(mremap(mapped, KSM_PAGE_SIZE, KSM_PAGE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, page) == page);
                CHECK_EQ(uffd_register(m->context, page, 1, SHARED_MODE), 0);
        }
}

/* n single merges into consecutive slots: pages in ascending order, or all even ones first. Returns the VMAs it took. */
static size_t merge_singly(size_t n_pages, bool even_first, enum populate how) {
        /* This thread moves runs: it must not wait for itself. */
        struct merged m = { .context = uffd_open(SHARED_FEATURES & ~UFFD_FEATURE_EVENT_REMAP), .segment = segment_open(n_pages, 30) };
        int track = uffd_open(TRACK_FEATURES);
        size_t stride = even_first ? 2 : 1, vmas;

        m.run = map_filled(n_pages, 30);
        CHECK_EQ(uffd_register(track, m.run, n_pages, UFFDIO_REGISTER_MODE_WP), 0);
        for (size_t first = 0; first < stride; first++)
                for (size_t i = first; i < n_pages; i += stride)
                        merge_page(&m, i, how);
        if (how != BY_CONTINUE_ELSEWHERE)
                CHECK_EQ(count_pages(m.run, n_pages, PAGE_IS_WRITTEN), 0);
        for (size_t i = 0; i < n_pages; i++)
                CHECK(page_holds(page_at(m.run, i), 30 + i));
        vmas = count_vmas(m.run, n_pages);
        printf("%zu VMAs after %zu single merges\n", vmas, n_pages);
        return vmas;
}

static void single_merges_fuse_when_placed_before_they_are_populated(void) {
        CHECK(merge_singly(4096, false, BY_CONTINUE) <= 32);
}

static void runs_populated_before_they_are_placed_never_fuse(void) {
        CHECK_EQ(merge_singly(256, false, BY_CONTINUE_ELSEWHERE), 256);
}

/* CONTINUE gives each island an anon_vma of its own; what is merged between two islands fuses with one of them only. */
static void runs_populated_apart_by_continue_never_fuse(void) {
        CHECK_EQ(merge_singly(256, true, BY_CONTINUE), 128);
}

/* A read fault prepares no anon_vma: such runs fuse in any order. */
static void runs_populated_by_read_fuse_in_any_order(void) {
        CHECK_EQ(merge_singly(4096, true, BY_READ), 1);
}

static void protecting_file_pages_only_keeps_a_racing_write_visible(void) {
        struct merged m = { .context = uffd_open(SHARED_FEATURES), .segment = segment_open(2, 35) };

        m.run = map_segment(NULL, 2, m.segment, 0);
        CHECK(madvise(m.run, 2 * KSM_PAGE_SIZE, MADV_POPULATE_READ) == 0);
        page_fill(m.run, 5); /* before the context is there */
        CHECK_EQ(uffd_register(m.context, m.run, 2, SHARED_MODE), 0);
        protect_file_pages(m.run, 2);
        CHECK_EQ(page_categories(m.run) & (PAGE_IS_WRITTEN | PAGE_IS_FILE), PAGE_IS_WRITTEN);
        CHECK_EQ(page_categories(page_at(m.run, 1)) & (PAGE_IS_WRITTEN | PAGE_IS_FILE), PAGE_IS_FILE);
        page_fill(page_at(m.run, 1), 6);
        CHECK_EQ(page_categories(page_at(m.run, 1)) & (PAGE_IS_WRITTEN | PAGE_IS_FILE), PAGE_IS_WRITTEN);
}

/* -- pages that the program removes ------------------------------------------------------------------------------ */

/* So ZEROPAGE alone cannot answer a removed page. */
static void zap_of_a_protected_page_leaves_a_marker_that_zeropage_does_not_replace(void) {
        struct merged m = map_merged(1, 40);

        remove_page(&m, m.run);
        CHECK_EQ(page_categories(m.run) & (PAGE_IS_PRESENT | PAGE_IS_WRITTEN), 0);
        CHECK(page_has_wp_bit(m.run));
        CHECK_EQ(uffd_zeropage(m.context, m.run, 1), -EEXIST);
        CHECK_EQ(uffd_writeprotect(m.context, m.run, 1, false), 0);
        CHECK(!page_has_wp_bit(m.run));
        CHECK_EQ(uffd_zeropage(m.context, m.run, 1), 0);
        CHECK(page_is_zero(m.run));
}

static void removed_page_faults_minor_and_is_answered_with_zeros(void) {
        struct merged m = map_merged(3, 50);
        void *page = page_at(m.run, 1);
        struct toucher t;
        struct uffd_msg msg;

        remove_page(&m, page);
        toucher_start(&t, read_first_word, page);
        CHECK(uffd_next(m.context, &msg, 5000));
        CHECK_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
        CHECK(msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR);
        CHECK_EQ(uffd_writeprotect(m.context, page, 1, false), 0);
        CHECK_EQ(uffd_zeropage(m.context, page, 1), 0);
        toucher_join(&t);
        CHECK(page_is_zero(page));
        CHECK(!(page_categories(page) & PAGE_IS_FILE));
        CHECK_EQ(count_vmas(m.run, 3), 1); /* costs no VMA */
        page_fill(page, 77);
        CHECK(page_holds(page, 77) && page_holds(m.run, 50) && page_holds(page_at(m.run, 2), 52));
        CHECK(segment_holds(m.segment, 1, 51));
}

/* A program that moves a merged run by mremap without libc. */
struct remap {
        void *from, *to;
        int flags;
};

static void remap_run(void *p) {
        struct remap *r = p;
        CHECK(mremap(r->from, 2 * KSM_PAGE_SIZE, 2 * KSM_PAGE_SIZE, r->flags | MREMAP_MAYMOVE | MREMAP_FIXED, r->to) == r->to);
}

static struct merged map_watched(uint64_t seed) {
        struct merged m = { .context = uffd_open(SHARED_FEATURES), .segment = segment_open(2, seed) };

        m.run = map_segment(NULL, 2, m.segment, 0);
        CHECK_EQ(uffd_register(m.context, m.run, 2, SHARED_MODE), 0);
        CHECK_EQ(uffd_continue(m.context, m.run, 2, UFFDIO_CONTINUE_MODE_WP), 0);
        return m;
}

static void remap_event_comes_after_the_move_and_holds_the_caller(void) {
        struct merged m = map_watched(40);
        struct remap r = { m.run, map_anon(2), 0 };
        struct pollfd event = { .fd = m.context, .events = POLLIN };
        struct toucher t;
        struct uffd_msg msg;

        remove_page(&m, page_at(m.run, 1));
        toucher_start(&t, remap_run, &r);
        CHECK_EQ(poll(&event, 1, 5000), 1);
        CHECK(!toucher_done(&t));
        CHECK_EQ(count_pages(r.to, 1, PAGE_IS_PRESENT | PAGE_IS_FILE | PAGE_IS_WPALLOWED), 1); /* moved, with its context */
        CHECK(page_holds(r.to, 40));
        CHECK_EQ(uffd_continue(m.context, page_at(r.to, 1), 1, UFFDIO_CONTINUE_MODE_WP), -EAGAIN);
        CHECK(uffd_next(m.context, &msg, 0));
        CHECK_EQ(msg.event, UFFD_EVENT_REMAP);
        CHECK_EQ(msg.arg.remap.from, (uintptr_t) m.run);
        CHECK_EQ(msg.arg.remap.to, (uintptr_t) r.to);
        CHECK_EQ(msg.arg.remap.len, 2 * KSM_PAGE_SIZE);
        toucher_join(&t);
        CHECK_EQ(page_categories(r.to) & PAGE_IS_WRITTEN, 0); /* still write-protected */

        toucher_start(&t, read_first_word, page_at(r.to, 1)); /* what was removed is missing there, too */
        CHECK(uffd_next(m.context, &msg, 5000));
        CHECK_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
        CHECK(msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR);
        CHECK_EQ(uffd_writeprotect(m.context, page_at(r.to, 1), 1, false), 0);
        CHECK_EQ(uffd_zeropage(m.context, page_at(r.to, 1), 1), 0);
        toucher_join(&t);
        CHECK(page_is_zero(page_at(r.to, 1)));
}

static void what_dontunmap_leaves_behind_faults_minor(void) {
        struct merged m = map_watched(45);
        struct remap r = { m.run, map_anon(2), MREMAP_DONTUNMAP };
        struct toucher t;
        struct uffd_msg msg;

        toucher_start(&t, remap_run, &r);
        CHECK(uffd_next(m.context, &msg, 5000));
        CHECK_EQ(msg.event, UFFD_EVENT_REMAP);
        toucher_join(&t);
        CHECK(page_holds(r.to, 45));
        CHECK_EQ(count_vmas(m.run, 2), 1);
        CHECK_EQ(count_pages(m.run, 2, PAGE_IS_PRESENT), 0);
        toucher_start(&t, read_first_word, m.run);
        CHECK(uffd_next(m.context, &msg, 5000));
        CHECK_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
        CHECK(msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR);
        (void) uffd_writeprotect(m.context, m.run, 1, false);
        CHECK_EQ(uffd_zeropage(m.context, m.run, 1), 0);
        toucher_join(&t);
        CHECK(page_is_zero(m.run));
}

/* How the agent reads a frozen run without waiting for itself. */
static void dontunmap_takes_entries_out_of_the_guard(void) {
        int guard = uffd_open(GUARD_FEATURES | UFFD_FEATURE_WP_HUGETLBFS_SHMEM), segment = segment_open(2, 150);
        void *run = map_segment(NULL, 2, segment, 0), *beside;
        struct toucher t;
        struct uffd_msg msg;

        CHECK(madvise(run, 2 * KSM_PAGE_SIZE, MADV_POPULATE_READ) == 0);
        CHECK_EQ(uffd_register(guard, run, 2, SHARED_MODE), 0);
        CHECK_EQ(uffd_writeprotect(guard, run, 2, true), 0);
        beside = mremap(run, 2 * KSM_PAGE_SIZE, 2 * KSM_PAGE_SIZE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
        CHECK(beside != MAP_FAILED && beside != run);
        /* There nobody waits, for an entry or to write. */
        CHECK_EQ(count_pages(beside, 2, PAGE_IS_PRESENT | PAGE_IS_FILE), 2);
        dontneed_page(page_at(beside, 1));
        CHECK(page_holds(beside, 150) && page_holds(page_at(beside, 1), 151));
        *(volatile uint64_t *) beside = 1;
        CHECK(!uffd_next(guard, &msg, 0));
        /* Here everybody does. */
        CHECK_EQ(count_pages(run, 2, PAGE_IS_PRESENT), 0);
        toucher_start(&t, read_first_word, run);
        CHECK(uffd_next(guard, &msg, 5000));
        CHECK_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
        CHECK(msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR);
        CHECK_EQ(uffd_continue(guard, run, 2, UFFDIO_CONTINUE_MODE_WP), 0);
        toucher_join(&t);
        CHECK(page_holds(run, 150));
}

static void growing_in_place_sends_no_event(void) {
        struct merged m = map_watched(48);
        struct uffd_msg msg;

        CHECK(munmap(page_at(m.run, 1), KSM_PAGE_SIZE) == 0);
        CHECK(mremap(m.run, KSM_PAGE_SIZE, 2 * KSM_PAGE_SIZE, 0) == m.run);
        CHECK(!uffd_next(m.context, &msg, 0));
}

/* The PTE of a page that is still the segment's can go without an event (reclaim, migration). Here: zapped while no context
 * watched. */
static void page_lost_without_a_remove_event_is_answered_with_continue(void) {
        struct merged m = map_merged(1, 60);
        struct toucher t;
        struct uffd_msg msg;

        CHECK_EQ(uffd_unregister(m.context, m.run, 1), 0);
        dontneed_page(m.run);
        CHECK_EQ(uffd_register(m.context, m.run, 1, SHARED_MODE), 0);
        toucher_start(&t, read_first_word, m.run);
        CHECK(uffd_next(m.context, &msg, 5000));
        CHECK(msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR);
        CHECK_EQ(uffd_continue(m.context, m.run, 1, UFFDIO_CONTINUE_MODE_WP), 0);
        toucher_join(&t);
        CHECK(page_holds(m.run, 60));
        CHECK_EQ(page_categories(m.run) & (PAGE_IS_FILE | PAGE_IS_WRITTEN), PAGE_IS_FILE);
}

/* Why a fault alone must never be answered with CONTINUE: the program has thrown this page away. */
static void continue_over_a_marker_brings_old_bytes_back(void) {
        struct merged m = map_merged(1, 65);

        remove_page(&m, m.run);
        CHECK_EQ(uffd_continue(m.context, m.run, 1, UFFDIO_CONTINUE_MODE_WP), 0);
        CHECK(page_holds(m.run, 65));
}

static void zeropage_into_an_empty_pte_of_a_private_memfd_mapping_works(void) {
        int context = uffd_open(SHARED_FEATURES), segment = segment_open(1, 70);
        void *p = map_segment(NULL, 1, segment, 0);

        CHECK_EQ(uffd_register(context, p, 1, SHARED_MODE), 0);
        CHECK_EQ(uffd_zeropage(context, p, 1), 0);
        CHECK(page_is_zero(p));
        CHECK(segment_holds(segment, 0, 70));
}

/* Unshare: MADV_POPULATE_WRITE breaks the sharing, bytes stay. */
static void populate_write_makes_anonymous_copies_of_merged_pages(void) {
        enum { N = 8 };
        struct merged m = map_merged(N, 80);

        CHECK_EQ(uffd_unregister(m.context, m.run, N), 0);
        CHECK(madvise(m.run, N * KSM_PAGE_SIZE, MADV_POPULATE_WRITE) == 0);
        CHECK_EQ(count_pages(m.run, N, PAGE_IS_FILE), 0);
        CHECK_EQ(count_pages(m.run, N, PAGE_IS_PRESENT), N);
        for (size_t i = 0; i < N; i++)
                CHECK(page_holds(page_at(m.run, i), 80 + i) && segment_holds(m.segment, i, 80 + i));
}

/* Without CONTINUE a merged run would fault page by page. In the middle: what is mapped around a fault ends with the page table, and the
 * first page may be the last of one. */
static void fault_around_is_off_in_registered_mappings(void) {
        enum { N = 16 };
        int context = uffd_open(TRACK_FEATURES), segment = segment_open(N, 90);
        void *plain = map_segment(NULL, N, segment, 0), *tracked = map_segment(NULL, N, segment, 0);

        CHECK_EQ(uffd_register(context, tracked, N, UFFDIO_REGISTER_MODE_WP), 0);
        read_first_word(page_at(plain, N / 2));
        read_first_word(page_at(tracked, N / 2));
        CHECK(count_pages(plain, N, PAGE_IS_PRESENT) > 1);
        CHECK_EQ(count_pages(tracked, N, PAGE_IS_PRESENT), 1);
}

static void child_keeps_merged_pages_and_copies_them_on_write(void) {
        struct merged m = map_merged(2, 97);
        int status;
        pid_t child = fork();

        CHECK(child >= 0);
        if (child == 0) {
                CHECK(page_holds(m.run, 97));
                CHECK_EQ(count_pages(m.run, 2, PAGE_IS_WPALLOWED), 0); /* untracked until it registers itself */
                page_fill(m.run, 1);
                CHECK(page_holds(m.run, 1));
                _exit(0);
        }
        CHECK(waitpid(child, &status, 0) == child);
        CHECK_EQ(status, 0);
        CHECK(page_holds(m.run, 97) && segment_holds(m.segment, 0, 97));
        CHECK_EQ(count_pages(m.run, 2, PAGE_IS_WRITTEN), 0);
}

/* POPULATE_WRITE (unshare) in MINOR mode would wait for whoever reads the context, once a page is missing. */
static void populate_write_page(void *page) {
        (void) madvise(page, KSM_PAGE_SIZE, MADV_POPULATE_WRITE);
}

static void populate_in_minor_mode_waits_for_the_reader_of_the_context(void) {
        struct merged m = map_merged(1, 98);
        struct toucher t;
        struct uffd_msg msg;

        remove_page(&m, m.run);
        toucher_start(&t, populate_write_page, m.run);
        CHECK(uffd_next(m.context, &msg, 5000));
        CHECK_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
        CHECK(!toucher_done(&t));
        CHECK_EQ(uffd_writeprotect(m.context, m.run, 1, false), 0);
        CHECK_EQ(uffd_zeropage(m.context, m.run, 1), 0);
        toucher_join(&t);
        CHECK(page_is_zero(m.run));
}

/* Guards go into empty entries only. The zap that empties them leaves a marker of the write protection in a file mapping, so the
 * call begins again, until a signal is there. On anonymous memory nothing is left. */
static sigjmp_buf endless;

static void on_endless(int number) {
        siglongjmp(endless, 1);
}

static void guards_never_get_into_a_protected_merged_run(void) {
        struct merged m = map_merged(1, 96);
        struct itimerval timer = { .it_value = { .tv_usec = ENDLESS_USEC } };
        int track = uffd_open(TRACK_FEATURES);
        void *plain = map_filled(1, 1);

        if (madvise(plain, KSM_PAGE_SIZE, MADV_GUARD_INSTALL) != 0)
                fact_skip("no MADV_GUARD_INSTALL");
        plain = map_filled(1, 1);
        CHECK_EQ(uffd_register(track, plain, 1, UFFDIO_REGISTER_MODE_WP), 0);
        CHECK_EQ(scan_written(plain, 1), 1);
        CHECK(madvise(plain, KSM_PAGE_SIZE, MADV_GUARD_INSTALL) == 0);
        CHECK(signal(SIGPROF, on_endless) != SIG_ERR);
        if (sigsetjmp(endless, 1) == 0) {
                CHECK(setitimer(ITIMER_PROF, &timer, NULL) == 0);
                int r = madvise(m.run, KSM_PAGE_SIZE, MADV_GUARD_INSTALL);
                CHECK(r == -1 && errno == EINVAL); /* before 6.15: not in file mappings */
        }
}

static void guards_get_into_an_unprotected_merged_run(void) {
        struct merged m = map_unprotected(1, 97);
        struct itimerval timer = { .it_value = { .tv_usec = ENDLESS_USEC } };
        void *plain = map_filled(1, 1);

        if (madvise(plain, KSM_PAGE_SIZE, MADV_GUARD_INSTALL) != 0)
                fact_skip("no MADV_GUARD_INSTALL");
        CHECK(signal(SIGPROF, on_endless) != SIG_ERR);
        CHECK_EQ(sigsetjmp(endless, 1), 0);
        CHECK(setitimer(ITIMER_PROF, &timer, NULL) == 0);
        int r = madvise(m.run, KSM_PAGE_SIZE, MADV_GUARD_INSTALL);
        CHECK(r == 0 || errno == EINVAL); /* before 6.15: not in file mappings */
        if (r == 0)
                CHECK_EQ(page_categories(m.run) & PAGE_IS_FILE, 0);
}

static void segment_outlives_its_fd_through_mappings(void) {
        struct merged m = map_merged(1, 95);

        m.segment = close_fd(m.segment);
        CHECK(page_holds(m.run, 95));
}

FACTS(FACT(continue_populates_and_protects_so_that_reads_do_not_fault),
      FACT(write_to_a_merged_page_is_a_copy_that_shows_written_and_not_file),
      FACT(merged_pages_need_no_protection_to_be_told_from_written_ones),
      FACT(zap_of_an_unprotected_merged_page_leaves_an_empty_entry),
      FACT(single_merges_fuse_when_placed_before_they_are_populated),
      FACT(runs_populated_before_they_are_placed_never_fuse),
      FACT(runs_populated_apart_by_continue_never_fuse),
      FACT(runs_populated_by_read_fuse_in_any_order),
      FACT(protecting_file_pages_only_keeps_a_racing_write_visible),
      FACT(zap_of_a_protected_page_leaves_a_marker_that_zeropage_does_not_replace),
      FACT(removed_page_faults_minor_and_is_answered_with_zeros),
      FACT(remap_event_comes_after_the_move_and_holds_the_caller),
      FACT(what_dontunmap_leaves_behind_faults_minor),
      FACT(dontunmap_takes_entries_out_of_the_guard),
      FACT(growing_in_place_sends_no_event),
      FACT(page_lost_without_a_remove_event_is_answered_with_continue),
      FACT(continue_over_a_marker_brings_old_bytes_back),
      FACT(zeropage_into_an_empty_pte_of_a_private_memfd_mapping_works),
      FACT(populate_write_makes_anonymous_copies_of_merged_pages),
      FACT(fault_around_is_off_in_registered_mappings),
      FACT(child_keeps_merged_pages_and_copies_them_on_write),
      FACT(populate_in_minor_mode_waits_for_the_reader_of_the_context),
      FACT(guards_never_get_into_a_protected_merged_run),
      FACT(guards_get_into_an_unprotected_merged_run),
      FACT(segment_outlives_its_fd_through_mappings))
