#include "daemon/sys/pagemap.h"

#include <errno.h>
#include <sys/ioctl.h>

#include "common/cleanup.h"

/* Where user addresses end with four-level page tables; the page before it is never mapped either. With five levels a window
 * beyond it is walked like any other. */
#define USER_END_PAGE ((UINT64_C(1) << (47 - KSM_PAGE_SHIFT)) - 1)

static int scan(int pagemap_fd, uint64_t page, uint64_t n_pages, bool written, struct page_region *regions,
                size_t max_regions, size_t *ret_n_regions, uint64_t *ret_end_page) {
        /* PRESENT stays in the mask: without it a marker would be installed for every hole. */
        const uint64_t mask = PAGE_IS_PRESENT | PAGE_IS_WPALLOWED | (written ? PAGE_IS_WRITTEN | PAGE_IS_FILE : 0);
        struct pm_scan_arg arg = {
                .size = sizeof(arg),
                .flags = written ? PM_SCAN_WP_MATCHING : 0,
                .start = page << KSM_PAGE_SHIFT,
                .end = (page + n_pages) << KSM_PAGE_SHIFT,
                .vec = (uint64_t) (uintptr_t) regions,
                .vec_len = max_regions,
                .max_pages = PAGEMAP_PAGES_MAX,
                .category_inverted = written ? PAGE_IS_FILE : 0,
                .category_mask = mask,
                .return_mask = PAGE_IS_WRITTEN | PAGE_IS_FILE | PAGE_IS_PFNZERO | PAGE_IS_HUGE,
        };
        int n = ioctl(pagemap_fd, PAGEMAP_SCAN, &arg);
        if (n < 0)
                return -errno;
        *ret_n_regions = (size_t) n;
        /* walk_end is where the walk stopped: behind the last region when the vector was full, else the end. */
        uint64_t end = arg.walk_end >> KSM_PAGE_SHIFT;
        if (end <= page || end > page + n_pages)
                return -EIO;
        *ret_end_page = end;
        return 0;
}

int pagemap_scan(int pagemap_fd, uint64_t page, uint64_t n_pages, bool written, struct page_region *regions,
                 size_t max_regions, size_t *ret_n_regions, uint64_t *ret_end_page) {
        /* vec_len 0 would protect and report nothing. */
        if (max_regions == 0 || n_pages == 0)
                return -EINVAL;
        uint64_t end = page + n_pages;
        int r = scan(pagemap_fd, page, n_pages, written, regions, max_regions, ret_n_regions, ret_end_page);
        if (r != -EFAULT || end <= USER_END_PAGE)
                return r;
        /* The window ends where no address is: nothing was walked, and only what lies before can hold anything. */
        *ret_n_regions = 0;
        *ret_end_page = end;
        if (page >= USER_END_PAGE)
                return 0;
        r = scan(pagemap_fd, page, USER_END_PAGE - page, written, regions, max_regions, ret_n_regions, ret_end_page);
        if (r == 0 && *ret_end_page == USER_END_PAGE)
                *ret_end_page = end;
        return r;
}
