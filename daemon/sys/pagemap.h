/* PAGEMAP_SCAN: which pages of a window are present, which were written since the last look. Any thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/uapi.h"

/* One call reports so many pages: few runs may be of terabytes, and the caller keeps books about each page. */
#define PAGEMAP_PAGES_MAX 65536

enum pagemap_look {
        PAGEMAP_PRESENT, /* all present pages; nothing is changed */
        /* Pages written since the last such look, which are write-protected again. Not those of a file: what maps a segment is never
         * protected, and nobody has written it, as the first store makes a private page of it. */
        PAGEMAP_WRITTEN,
        /* The same, at less cost where most pages are protected and mappings are long, at more elsewhere. */
        PAGEMAP_WRITTEN_FEW,
};

/* Reports runs of pages in [page, page + n_pages), ascending, at most max_regions of them with PAGEMAP_PAGES_MAX pages, and in
 * *ret_end_page the first page not looked at: call again from there. Holes cost nothing, nor do addresses that no process has. Only memory
 * registered for asynchronous write tracking is looked at.
 *
 * 0 or -errno. After an error the window's pages may have been write-protected without being reported, since the kernel
 * protects before it copies the result out: the caller must treat the whole window as written. */
int pagemap_scan(int pagemap_fd, uint64_t page, uint64_t n_pages, enum pagemap_look look, struct page_region *regions,
                 size_t max_regions, size_t *ret_n_regions, uint64_t *ret_end_page);
