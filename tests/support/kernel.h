/* What tests that look at the kernel need: mappings with known content, userfaultfd calls as functions, and what
 * pagemap and the VMA list say.
 *
 * The map_* and *_open functions end the test (skip or fail) when they cannot do their work; functions named after an ioctl
 * return 0 or -errno, because how they fail is what tests ask. Not thread-safe unless said. */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

#include "common/cleanup.h"
#include "common/uapi.h"
#include "tests/support/fact.h"

/* The three roles of docs/architecture.md (design: track, shared, guard). */
#define TRACK_FEATURES (UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_HUGETLBFS_SHMEM)
#define SHARED_FEATURES (TRACK_FEATURES | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_EVENT_REMOVE | \
                         UFFD_FEATURE_EVENT_REMAP)
#define GUARD_FEATURES (UFFD_FEATURE_MOVE | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_EVENT_REMOVE)
#define SCRATCH_FEATURES UFFD_FEATURE_MOVE

/* -- memory ------------------------------------------------------------------------------------------------ */

static inline void *page_at(void *base, size_t i) {
        return (char *) base + i * KSM_PAGE_SIZE;
}
/* Every page gets content of its own, derived from seed and index; page_holds says whether it is still there. */
void page_fill(void *page, uint64_t seed);
bool page_holds(const void *page, uint64_t seed);
bool page_is_zero(const void *page);

/* Private anonymous memory, not populated, never part of a huge page, with an inaccessible page on either side so that
 * it is a VMA of its own. */
void *map_anon(size_t n_pages);
/* The same, page i filled with seed + i. */
void *map_filled(size_t n_pages, uint64_t seed);
/* 2 MiB aligned. True huge page (PMD-mapped) or the test is skipped. */
void *map_huge(uint64_t seed);
/* A segment: memfd with n pages, page i filled with seed + i; returns a read-only fd. */
int segment_open(size_t n_pages, uint64_t seed);
void *map_segment(void *at, size_t n_pages, int fd, size_t first_slot); /* MAP_PRIVATE; at != NULL: MAP_FIXED */

/* -- userfaultfd ------------------------------------------------------------------------------------------- */

/* From /dev/userfaultfd, so that kernel-mode faults are handled; O_NONBLOCK. */
int uffd_open(uint64_t features);
int uffd_new(int device_fd, uint64_t features); /* fd or -errno */
int uffd_register(int fd, void *at, size_t n_pages, uint64_t mode);
int uffd_unregister(int fd, void *at, size_t n_pages);
int uffd_move(int fd, void *dst, void *src, size_t n_pages, uint64_t mode, int64_t *ret_moved);
int uffd_continue(int fd, void *at, size_t n_pages, uint64_t mode);
int uffd_zeropage(int fd, void *at, size_t n_pages);
int uffd_writeprotect(int fd, void *at, size_t n_pages, bool on);
int uffd_wake(int fd, void *at, size_t n_pages);
/* Waits for the next message; false after timeout_ms. */
bool uffd_next(int fd, struct uffd_msg *ret, int timeout_ms);

/* -- what the kernel says ----------------------------------------------------------------------------------- */

/* PAGE_IS_* of one page of this process; nothing is changed. */
uint64_t page_categories(const void *page);
size_t count_pages(const void *at, size_t n_pages, uint64_t all_of);
/* One scan as the daemon does it: WRITTEN|PRESENT|WPALLOWED, write-protecting what it returns. Pages found. */
size_t scan_written(const void *at, size_t n_pages);
/* VMAs that overlap the pages (PROCMAP_QUERY). */
size_t count_vmas(const void *at, size_t n_pages);
/* /proc/kpageflags of the page mapped here, 0 when not permitted or not present. KPF_* bits of kernel-page-flags.h. */
uint64_t page_kflags(const void *page);
uint64_t page_pfn(const void *page); /* 0 without CAP_SYS_ADMIN */
bool page_is_mapped_once(const void *page); /* pagemap bit 56 */
bool page_has_wp_bit(const void *page);     /* pagemap bit 57: write-protected page, or marker where none is present */
bool page_is_compound(const void *page); /* part of a large folio, however mapped; skips without root */

/* -- another thread ------------------------------------------------------------------------------------------ */

/* Runs a function in a thread; toucher_done tells whether it returned, so a test can see that it waits. */
struct toucher {
        pthread_t thread;
        void (*run)(void *);
        void *argument;
        atomic_bool done;
        atomic_int tid;
};
void toucher_start(struct toucher *t, void (*run)(void *), void *argument);
bool toucher_done(struct toucher *t);
void toucher_join(struct toucher *t); /* bounded by the watchdog */
