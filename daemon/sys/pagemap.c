#include "daemon/sys/pagemap.h"

#include <errno.h>
#include <sys/ioctl.h>

#include "common/cleanup.h"

/* Where user addresses end with four-level page tables; the page before it is never mapped either. With five levels a window
 * beyond it is walked like any other. */
#define USER_END_PAGE ((UINT64_C(1) << (47 - KSM_PAGE_SHIFT)) - 1)

/* To say whether a page is of a file the kernel looks at its struct page, which is not in cache: 30 ns each, where the entry alone takes 2. So
 * what was not written can be left out first, by a scan that does not ask for that. A call costs as much as so many of those pages. */
#define CALL_PAGES 32
/* Runs that are looked at more closely before more are looked for. */
#define FOUND_MAX 128

enum wanted {
        WANT_PRESENT,
        WANT_UNPROTECTED, /* what was written, and what maps a segment */
        WANT_WRITTEN,     /* and protect it */
};

static uint64_t pages_in(const struct page_region *regions, size_t n) {
        uint64_t n_pages = 0;
        for (size_t i = 0; i < n; i++)
                n_pages += (regions[i].end - regions[i].start) >> KSM_PAGE_SHIFT;
        return n_pages;
}

static int scan(int pagemap_fd, enum wanted wanted, uint64_t page, uint64_t n_pages, uint64_t max_pages, struct page_region *regions,
                size_t max_regions, size_t *ret_n_regions, uint64_t *ret_end_page) {
        /* PRESENT stays in the mask: without it a marker would be installed for every hole. */
        const uint64_t mask = PAGE_IS_PRESENT | PAGE_IS_WPALLOWED | (wanted == WANT_PRESENT ? 0 : PAGE_IS_WRITTEN);
        const uint64_t file = wanted == WANT_WRITTEN ? PAGE_IS_FILE : 0;
        struct pm_scan_arg arg = {
                .size = sizeof(arg),
                .flags = wanted == WANT_WRITTEN ? PM_SCAN_WP_MATCHING : 0,
                .start = page << KSM_PAGE_SHIFT,
                .end = (page + n_pages) << KSM_PAGE_SHIFT,
                .vec = (uint64_t) (uintptr_t) regions,
                .vec_len = MIN(max_regions, n_pages),
                .max_pages = max_pages,
                .category_inverted = file,
                .category_mask = mask | file,
                .return_mask = wanted == WANT_UNPROTECTED ? PAGE_IS_WRITTEN
                                                          : PAGE_IS_WRITTEN | PAGE_IS_FILE | PAGE_IS_PFNZERO | PAGE_IS_HUGE,
        };
        int n = ioctl(pagemap_fd, PAGEMAP_SCAN, &arg);
        if (n < 0)
                return -errno;
        *ret_n_regions = (size_t) n;
        *ret_end_page = page + n_pages;
        /* Only a walk that stopped says where: of one that did not, walk_end may name a place on the way (docs/kernel.md). */
        if ((uint64_t) n < arg.vec_len && (max_pages == 0 || pages_in(regions, (size_t) n) < max_pages))
                return 0;
        uint64_t end = MAX(arg.walk_end, regions[n - 1].end) >> KSM_PAGE_SHIFT;
        if (end <= page || end > page + n_pages)
                return -EIO;
        *ret_end_page = end;
        return 0;
}

static uint64_t end_of(const struct page_region *r) {
        return r->end >> KSM_PAGE_SHIFT;
}

/* What page table entries say may have been written, in pieces that are worth a call each. A window that is not is one itself. */
static int find_unprotected(int pagemap_fd, uint64_t page, uint64_t end, struct page_region *found, size_t *ret_n, uint64_t *ret_end_page) {
        size_t n = 0, kept = 0;
        if (end - page <= CALL_PAGES) {
                found[0] = (struct page_region){ .start = page << KSM_PAGE_SHIFT, .end = end << KSM_PAGE_SHIFT };
                *ret_n = 1;
                *ret_end_page = end;
                return 0;
        }
        int r = scan(pagemap_fd, WANT_UNPROTECTED, page, end - page, 0, found, FOUND_MAX, &n, ret_end_page);
        if (r < 0)
                return r;
        for (size_t i = 0; i < n; i++)
                if (kept > 0 && found[i].start - found[kept - 1].end <= CALL_PAGES << KSM_PAGE_SHIFT)
                        found[kept - 1].end = found[i].end;
                else
                        found[kept++] = found[i];
        *ret_n = kept;
        return 0;
}

static int scan_written_few(int pagemap_fd, uint64_t page, uint64_t end, struct page_region *regions, size_t max_regions,
                            size_t *ret_n_regions, uint64_t *ret_end_page) {
        struct page_region found[FOUND_MAX];
        uint64_t n_pages = 0;
        size_t n_regions = 0;
        while (page < end) {
                size_t n_found = 0, n = 0;
                uint64_t next = end;
                int r = find_unprotected(pagemap_fd, page, end, found, &n_found, &next);
                if (r < 0)
                        return r;
                for (size_t i = 0; i < n_found; i++) {
                        uint64_t start = found[i].start >> KSM_PAGE_SHIFT, stop = start;
                        if (n_regions < max_regions && n_pages < PAGEMAP_PAGES_MAX) {
                                r = scan(pagemap_fd, WANT_WRITTEN, start, end_of(&found[i]) - start, PAGEMAP_PAGES_MAX - n_pages,
                                         regions + n_regions, max_regions - n_regions, &n, &stop);
                                if (r < 0)
                                        return r;
                                n_pages += pages_in(regions + n_regions, n);
                                n_regions += n;
                        }
                        if (stop < end_of(&found[i])) { /* no room for more */
                                *ret_n_regions = n_regions;
                                *ret_end_page = stop;
                                return 0;
                        }
                }
                page = next;
        }
        *ret_n_regions = n_regions;
        *ret_end_page = end;
        return 0;
}

static int scan_window(int pagemap_fd, uint64_t page, uint64_t end, enum pagemap_look look, struct page_region *regions, size_t max_regions,
                       size_t *ret_n_regions, uint64_t *ret_end_page) {
        if (look == PAGEMAP_WRITTEN_FEW)
                return scan_written_few(pagemap_fd, page, end, regions, max_regions, ret_n_regions, ret_end_page);
        return scan(pagemap_fd, look == PAGEMAP_WRITTEN ? WANT_WRITTEN : WANT_PRESENT, page, end - page, PAGEMAP_PAGES_MAX, regions, max_regions,
                    ret_n_regions, ret_end_page);
}

int pagemap_scan(int pagemap_fd, uint64_t page, uint64_t n_pages, enum pagemap_look look, struct page_region *regions,
                 size_t max_regions, size_t *ret_n_regions, uint64_t *ret_end_page) {
        /* vec_len 0 would protect and report nothing. */
        if (max_regions == 0 || n_pages == 0)
                return -EINVAL;
        uint64_t end = page + n_pages;
        int r = scan_window(pagemap_fd, page, end, look, regions, max_regions, ret_n_regions, ret_end_page);
        if (r != -EFAULT || end <= USER_END_PAGE)
                return r;
        /* The window ends where no address is: nothing was walked, and only what lies before can hold anything. */
        *ret_n_regions = 0;
        *ret_end_page = end;
        if (page >= USER_END_PAGE)
                return 0;
        r = scan_window(pagemap_fd, page, USER_END_PAGE, look, regions, max_regions, ret_n_regions, ret_end_page);
        if (r == 0 && *ret_end_page == USER_END_PAGE)
                *ret_end_page = end;
        return r;
}
