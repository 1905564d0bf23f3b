/* What an ideal page merger would save: the model, no system calls.
 *
 * Pages are added process by process, in address order. The ideal merger keeps one copy of each content that occurs at
 * least twice, and gives zero pages back. The runs come from the same rule as the daemon's: a content gets its slot
 * when its first page is met, so the first process that holds a stretch of duplicate pages decides the order of their
 * slots, and a run is a stretch of neighbouring pages of one VMA whose slots are consecutive. A run costs a VMA.
 *
 * Functions return 0 or -ENOMEM. Not thread-safe. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <xxhash.h>

/* Bucket i of the histogram holds runs of 2^i to 2^(i+1) - 1 pages; the last one has no upper bound. */
#define RUN_BUCKETS 12

struct run_histogram {
        uint64_t runs[RUN_BUCKETS];
        uint64_t pages[RUN_BUCKETS];
};

struct ideal_totals {
        uint64_t pages;     /* candidates read */
        uint64_t zero;      /* of them, all zero */
        uint64_t duplicate; /* of them, content met at least twice, in any process */
        uint64_t unique;
        double saved_pages; /* zero + duplicates less each one's share of the copy that stays */
        uint64_t runs;
        uint64_t vmas;       /* VMAs that the pages lie in */
        uint64_t vmas_added; /* by merging every run; zero pages need none */
        struct run_histogram histogram;
};

struct model_page {
        uint64_t page; /* address >> 12 */
        uint32_t vma;  /* counted from 0 in each process */
        uint32_t content;
};

struct model_process {
        struct model_page *pages;
        size_t n_pages, n_allocated;
        struct ideal_totals totals;
};

struct model_content {
        XXH128_hash_t hash;
        uint32_t count;
        uint32_t slot;
};

struct model {
        struct model_content *contents;
        uint32_t n_contents, n_allocated;
        uint32_t *table; /* open addressing, content + 1, power of two, at most half full */
        size_t table_size;
        XXH128_hash_t zero_hash;
        struct ideal_totals totals;
};

int model_init(struct model *m);
void model_done(struct model *m);
void model_process_done(struct model_process *p);

/* Adds the page with these 4096 bytes; page numbers of a process must ascend. */
int model_add(struct model *m, struct model_process *p, uint64_t page, uint32_t vma, const void *bytes);

/* Fills the totals of every process and of the model, once, after all pages are in. */
void model_finish(struct model *m, struct model_process *processes, size_t n_processes);
