#include "bench/model.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"

#define CONTENT_ZERO UINT32_MAX
#define SLOT_NONE UINT32_MAX
#define TABLE_FIRST_SIZE (1U << 16)

int model_init(struct model *m) {
        static const char zeros[KSM_PAGE_SIZE];

        *m = (struct model){ .table_size = TABLE_FIRST_SIZE, .zero_hash = XXH3_128bits(zeros, sizeof(zeros)) };
        m->table = calloc(m->table_size, sizeof(*m->table));
        return m->table ? 0 : -ENOMEM;
}

void model_done(struct model *m) {
        free(m->contents);
        free(m->table);
        *m = (struct model){};
}

void model_process_done(struct model_process *p) {
        free(p->pages);
        *p = (struct model_process){};
}

static size_t table_place(const struct model *m, XXH128_hash_t hash) {
        size_t i = hash.low64 & (m->table_size - 1);

        while (m->table[i] && !XXH128_isEqual(m->contents[m->table[i] - 1].hash, hash))
                i = (i + 1) & (m->table_size - 1);
        return i;
}

static int table_grow(struct model *m) {
        uint32_t *table = calloc(m->table_size * 2, sizeof(*table));

        if (!table)
                return -ENOMEM;
        free(m->table);
        m->table = table;
        m->table_size *= 2;
        for (uint32_t i = 0; i < m->n_contents; i++)
                m->table[table_place(m, m->contents[i].hash)] = i + 1;
        return 0;
}

/* The content with this hash, new or known. Two contents with one 128-bit hash do not happen in practice. */
static int content_find(struct model *m, XXH128_hash_t hash, uint32_t *ret) {
        size_t i = table_place(m, hash);
        int r;

        if (m->table[i]) {
                *ret = m->table[i] - 1;
                return 0;
        }
        if (m->n_contents * 2UL >= m->table_size) {
                r = table_grow(m);
                if (r < 0)
                        return r;
                i = table_place(m, hash);
        }
        if (m->n_contents == m->n_allocated) {
                uint32_t n = MAX(m->n_allocated * 2, 1U << 14);
                struct model_content *c = reallocarray(m->contents, n, sizeof(*c));

                if (!c)
                        return -ENOMEM;
                m->contents = c;
                m->n_allocated = n;
        }
        m->contents[m->n_contents] = (struct model_content){ .hash = hash, .slot = SLOT_NONE };
        *ret = m->n_contents++;
        m->table[i] = m->n_contents;
        return 0;
}

int model_add(struct model *m, struct model_process *p, uint64_t page, uint32_t vma, const void *bytes) {
        XXH128_hash_t hash = XXH3_128bits(bytes, KSM_PAGE_SIZE);
        uint32_t content = CONTENT_ZERO;
        int r;

        if (!XXH128_isEqual(hash, m->zero_hash)) {
                r = content_find(m, hash, &content);
                if (r < 0)
                        return r;
        }
        if (p->n_pages == p->n_allocated) {
                size_t n = MAX(p->n_allocated * 2, (size_t) 1 << 14);
                struct model_page *pages = reallocarray(p->pages, n, sizeof(*pages));

                if (!pages)
                        return -ENOMEM;
                p->pages = pages;
                p->n_allocated = n;
        }
        if (content != CONTENT_ZERO)
                m->contents[content].count++;
        p->pages[p->n_pages++] = (struct model_page){ .page = page, .vma = vma, .content = content };
        return 0;
}

static void histogram_add(struct run_histogram *h, uint64_t n_pages) {
        unsigned bucket = MIN(63U - (unsigned) __builtin_clzll(n_pages), RUN_BUCKETS - 1U);

        h->runs[bucket]++;
        h->pages[bucket] += n_pages;
}

/* The slot of a duplicate page, SLOT_NONE for any other. */
static uint32_t slot_of(struct model *m, uint32_t content, uint32_t *next_slot) {
        struct model_content *c;

        if (content == CONTENT_ZERO)
                return SLOT_NONE;
        c = &m->contents[content];
        if (c->count < 2)
                return SLOT_NONE;
        if (c->slot == SLOT_NONE)
                c->slot = (*next_slot)++;
        return c->slot;
}

/* Cuts a process into runs. A VMA with k runs and g stretches of other pages between, before and behind them becomes
 * k + g VMAs. What lies before the first page and behind the last one is not known from the pages alone; a stretch
 * behind the last run is assumed. So vmas_added is 2 per run at most. */
static void process_runs(struct model *m, struct model_process *p, uint32_t *next_slot) {
        struct ideal_totals *t = &p->totals;
        uint64_t run_pages = 0, last_page = 0;
        uint32_t last_slot = SLOT_NONE, last_vma = UINT32_MAX;

        for (size_t i = 0; i < p->n_pages; i++) {
                const struct model_page *page = &p->pages[i];
                uint32_t slot = slot_of(m, page->content, next_slot);
                bool same_vma = page->vma == last_vma, neighbour = same_vma && page->page == last_page + 1;

                if (!same_vma)
                        t->vmas++;
                if (run_pages > 0 && (slot == SLOT_NONE || !neighbour || slot != last_slot + 1)) {
                        histogram_add(&t->histogram, run_pages);
                        run_pages = 0;
                        t->vmas_added += slot == SLOT_NONE || !neighbour;
                }
                if (slot != SLOT_NONE && run_pages++ == 0) {
                        t->runs++;
                        t->vmas_added++;
                }
                last_slot = slot;
                last_page = page->page;
                last_vma = page->vma;
        }
        if (run_pages > 0) {
                histogram_add(&t->histogram, run_pages);
                t->vmas_added++;
        }
}

static void totals_add(struct ideal_totals *sum, const struct ideal_totals *t) {
        sum->pages += t->pages;
        sum->zero += t->zero;
        sum->duplicate += t->duplicate;
        sum->unique += t->unique;
        sum->saved_pages += t->saved_pages;
        sum->runs += t->runs;
        sum->vmas += t->vmas;
        sum->vmas_added += t->vmas_added;
        for (unsigned i = 0; i < RUN_BUCKETS; i++) {
                sum->histogram.runs[i] += t->histogram.runs[i];
                sum->histogram.pages[i] += t->histogram.pages[i];
        }
}

void model_finish(struct model *m, struct model_process *processes, size_t n_processes) {
        uint32_t next_slot = 0;

        m->totals = (struct ideal_totals){};
        for (size_t n = 0; n < n_processes; n++) {
                struct model_process *p = &processes[n];
                struct ideal_totals *t = &p->totals;

                *t = (struct ideal_totals){ .pages = p->n_pages };
                for (size_t i = 0; i < p->n_pages; i++) {
                        uint32_t content = p->pages[i].content;

                        if (content == CONTENT_ZERO) {
                                t->zero++;
                        } else if (m->contents[content].count > 1) {
                                t->duplicate++;
                                t->saved_pages += 1.0 - 1.0 / m->contents[content].count;
                        } else {
                                t->unique++;
                        }
                }
                t->saved_pages += (double) t->zero;
                process_runs(m, p, &next_slot);
                totals_add(&m->totals, t);
        }
}
