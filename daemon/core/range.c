/* The ranges of a client: a sorted list of intervals that neither overlap nor touch, unless one of the two was unmerged by
 * request. The list is cut into chunks of at most RANGE_CHUNK, so that a change moves a few KiB however many ranges a
 * client announces; it never depends on the size of the ranges. Every change is one step: a span of old ranges goes, at
 * most three come in its place, and what can fail fails before it. */
#include "daemon/core/internal.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#define RANGE_CHUNK 128
#define RANGE_CHUNK_FIRST 8 /* most clients have a handful */

struct range_chunk {
        uint32_t n, capacity; /* n > 0; RANGE_CHUNK unless it is the only one */
        struct range items[];
};

/* A place in the list; the end is { n_chunks, 0 }. */
struct place {
        uint32_t chunk, i;
};

static size_t chunk_bytes(uint32_t capacity) {
        return sizeof(struct range_chunk) + capacity * sizeof(struct range);
}

static struct range *range_at(const struct client *cl, struct place p) {
        return p.chunk < cl->n_chunks ? &cl->chunks[p.chunk]->items[p.i] : NULL;
}

static struct place after(const struct client *cl, struct place p) {
        return p.i + 1 < cl->chunks[p.chunk]->n ? (struct place){ p.chunk, p.i + 1 } : (struct place){ p.chunk + 1, 0 };
}

/* First range that ends after page. */
static struct place lower(const struct client *cl, uint64_t page) {
        struct place p = { 0, 0 };
        uint32_t b = cl->n_chunks;

        while (p.chunk < b) {
                uint32_t m = p.chunk + (b - p.chunk) / 2;
                const struct range_chunk *k = cl->chunks[m];

                if (k->items[k->n - 1].end <= page)
                        p.chunk = m + 1;
                else
                        b = m;
        }
        assert(p.chunk >= cl->n_chunks || cl->chunks[p.chunk]);
        b = p.chunk < cl->n_chunks ? cl->chunks[p.chunk]->n : 0;
        while (p.i < b) {
                uint32_t m = p.i + (b - p.i) / 2;

                if (cl->chunks[p.chunk]->items[m].end <= page)
                        p.i = m + 1;
                else
                        b = m;
        }
        return p;
}

const struct range *range_find(const struct client *cl, uint64_t page) {
        return range_at(cl, lower(cl, page));
}

static void account(struct core *c, struct client *cl, int64_t pages) {
        cl->registered_pages += (uint64_t) pages;
        client_domain(c, cl)->registered_pages += (uint64_t) pages;
        c->registered_pages += (uint64_t) pages;
}

/* -- chunks --------------------------------------------------------------------------------------------------------- */

static void chunk_free(struct core *c, struct range_chunk *k) {
        memory_release(&c->memory, k, chunk_bytes(k->capacity));
}

static int chunk_insert(struct core *c, struct client *cl, uint32_t at, uint32_t capacity) {
        struct range_chunk *k;
        int r = memory_grow(&c->memory, (void **) &cl->chunks, &cl->chunks_capacity, cl->n_chunks + 1, sizeof(*cl->chunks));

        if (r < 0)
                return r;
        k = memory_realloc(&c->memory, NULL, 0, chunk_bytes(capacity));
        if (!k)
                return -ENOMEM;
        k->n = 0;
        k->capacity = capacity;
        memmove(&cl->chunks[at + 1], &cl->chunks[at], (cl->n_chunks++ - at) * sizeof(*cl->chunks));
        cl->chunks[at] = k;
        return 0;
}

/* Takes the empty chunks from..to-1 out, in one movement of those behind. */
static void chunks_drop_empty(struct core *c, struct client *cl, uint32_t from, uint32_t to) {
        uint32_t kept = from;

        for (uint32_t k = from; k < to; k++) {
                if (cl->chunks[k]->n > 0)
                        cl->chunks[kept++] = cl->chunks[k];
                else
                        chunk_free(c, cl->chunks[k]);
        }
        memmove(&cl->chunks[kept], &cl->chunks[to], (cl->n_chunks - to) * sizeof(*cl->chunks));
        cl->n_chunks -= to - kept;
}

/* Joins chunk k with the next when both fill half of one at most: so there are never many with little in them. */
static void chunk_join(struct core *c, struct client *cl, uint32_t k) {
        struct range_chunk *a, *b;

        if (k + 1 >= cl->n_chunks)
                return;
        a = cl->chunks[k];
        b = cl->chunks[k + 1];
        if (a->n + b->n > RANGE_CHUNK / 2)
                return;
        assert(a->capacity == RANGE_CHUNK);
        memcpy(&a->items[a->n], b->items, b->n * sizeof(*b->items));
        a->n += b->n;
        b->n = 0;
        chunks_drop_empty(c, cl, k + 1, k + 2);
}

/* Makes room for n more at the place, which moves along when its chunk is split. */
static int reserve(struct core *c, struct client *cl, struct place *p, uint32_t n) {
        struct range_chunk *k;
        uint32_t half;
        int r;

        if (cl->n_chunks == 0) {
                r = chunk_insert(c, cl, 0, RANGE_CHUNK_FIRST);
                if (r < 0)
                        return r;
        }
        if (p->chunk == cl->n_chunks)
                *p = (struct place){ cl->n_chunks - 1, cl->chunks[cl->n_chunks - 1]->n };
        k = cl->chunks[p->chunk];
        if (k->n + n <= k->capacity)
                return 0;
        if (k->n + n <= RANGE_CHUNK) {
                uint32_t capacity = MAX(2 * k->capacity, k->n + n);

                capacity = MIN(capacity, (uint32_t) RANGE_CHUNK);
                k = memory_realloc(&c->memory, k, chunk_bytes(k->capacity), chunk_bytes(capacity));
                if (!k)
                        return -ENOMEM;
                k->capacity = capacity;
                cl->chunks[p->chunk] = k;
                return 0;
        }
        r = chunk_insert(c, cl, p->chunk + 1, RANGE_CHUNK);
        if (r < 0)
                return r;
        half = k->n / 2;
        cl->chunks[p->chunk + 1]->n = k->n - half;
        memcpy(cl->chunks[p->chunk + 1]->items, &k->items[half], (k->n - half) * sizeof(*k->items));
        k->n = half;
        if (p->i > half)
                *p = (struct place){ p->chunk + 1, p->i - half };
        return 0;
}

/* -- a change ------------------------------------------------------------------------------------------------------- */

struct change {
        struct place from;
        uint32_t n_removed, n_added;
        struct range added[3]; /* what is left of the first, the new one, what is left of the last */
        int64_t pages;         /* more registered than before */
};

static void change_add(struct change *ch, uint64_t start, uint64_t end, bool is_unmerged) {
        ch->added[ch->n_added++] = (struct range){ start, end, is_unmerged };
        ch->pages += (int64_t) (end - start);
}

static int change_make(struct core *c, struct client *cl, struct change *ch) {
        struct range_chunk *k;
        uint32_t left = ch->n_removed, first, last, i;
        int r = reserve(c, cl, &ch->from, ARRAY_SIZE(ch->added));

        if (r < 0)
                return r;
        first = last = ch->from.chunk;
        i = ch->from.i;
        for (; left > 0; last++, i = 0) {
                uint32_t n;

                k = cl->chunks[last];
                n = MIN(left, k->n - i);
                memmove(&k->items[i], &k->items[i + n], (k->n - i - n) * sizeof(*k->items));
                k->n -= n;
                left -= n;
        }
        k = cl->chunks[first];
        memmove(&k->items[ch->from.i + ch->n_added], &k->items[ch->from.i], (k->n - ch->from.i) * sizeof(*k->items));
        memcpy(&k->items[ch->from.i], ch->added, ch->n_added * sizeof(*ch->added));
        k->n += ch->n_added;
        cl->n_ranges += ch->n_added - ch->n_removed;
        account(c, cl, ch->pages);
        chunks_drop_empty(c, cl, first, MAX(last, first + 1));
        /* The first and the last that changed, each with both its neighbours. */
        chunk_join(c, cl, first + 1);
        chunk_join(c, cl, first);
        if (first > 0)
                chunk_join(c, cl, first - 1);
        return 0;
}

int range_cut(struct core *c, struct client *cl, uint64_t start, uint64_t end) {
        struct change ch = { .from = lower(cl, start) };
        struct place p = ch.from;
        const struct range *r;

        for (; (r = range_at(cl, p)) && r->start < end; p = after(cl, p)) {
                ch.n_removed++;
                ch.pages -= (int64_t) (r->end - r->start);
                if (r->start < start)
                        change_add(&ch, r->start, start, r->is_unmerged);
                if (r->end > end)
                        change_add(&ch, end, r->end, r->is_unmerged);
        }
        return ch.n_removed > 0 ? change_make(c, cl, &ch) : 0;
}

/* Ranges of the same kind that it overlaps or touches become one with it; of the other kind, what lies outside stays. */
int range_put(struct core *c, struct client *cl, uint64_t start, uint64_t end, bool is_unmerged) {
        struct change ch = { .from = lower(cl, start > 0 ? start - 1 : 0) };
        struct range whole = { start, end, is_unmerged }, rest = { 0, 0, false };
        struct place p = ch.from;
        const struct range *r;

        for (; (r = range_at(cl, p)) && r->start <= end; p = after(cl, p)) {
                if (r->is_unmerged != is_unmerged && r->end == start) {
                        ch.from = after(cl, p);
                        continue;
                }
                if (r->is_unmerged != is_unmerged && r->start == end)
                        break;
                ch.n_removed++;
                ch.pages -= (int64_t) (r->end - r->start);
                if (r->is_unmerged == is_unmerged) {
                        whole.start = MIN(whole.start, r->start);
                        whole.end = MAX(whole.end, r->end);
                        continue;
                }
                if (r->start < start)
                        change_add(&ch, r->start, start, r->is_unmerged);
                if (r->end > end)
                        rest = (struct range){ end, r->end, r->is_unmerged };
        }
        change_add(&ch, whole.start, whole.end, is_unmerged);
        if (rest.end)
                change_add(&ch, rest.start, rest.end, rest.is_unmerged);
        return change_make(c, cl, &ch);
}

int range_mark_unmerged(struct core *c, struct client *cl, uint64_t start, uint64_t end) {
        uint64_t page = start;

        for (;;) {
                struct place p = lower(cl, page);
                struct range *r = range_at(cl, p);
                const struct range *next;
                int e = 0;

                if (page >= end || !r || r->start >= end)
                        return 0;
                next = range_at(cl, after(cl, p));
                /* Whole and apart from its neighbours: nothing moves. (Before it nothing touches but a piece just made.) */
                if (r->start > page && r->end <= end && (!next || next->start > r->end))
                        r->is_unmerged = true;
                else
                        e = range_put(c, cl, MAX(r->start, page), MIN(r->end, end), true);
                if (e < 0)
                        return e;
                r = range_at(cl, lower(cl, page));
                assert(r && r->end > page); /* the piece just marked */
                page = MIN(r->end, end);
        }
}

void range_free_all(struct core *c, struct client *cl) {
        account(c, cl, -(int64_t) cl->registered_pages);
        for (uint32_t k = 0; k < cl->n_chunks; k++)
                chunk_free(c, cl->chunks[k]);
        memory_release(&c->memory, cl->chunks, cl->chunks_capacity * sizeof(*cl->chunks));
        cl->chunks = NULL;
        cl->n_ranges = cl->n_chunks = cl->chunks_capacity = 0;
}

const char *range_check(const struct client *cl, uint64_t *ret_pages) {
        const struct range *before = NULL;
        uint32_t n = 0;

        *ret_pages = 0;
        for (uint32_t k = 0; k < cl->n_chunks; k++) {
                const struct range_chunk *chunk = cl->chunks[k];

                if (chunk->n == 0 || chunk->n > chunk->capacity || (cl->n_chunks > 1 && chunk->capacity != RANGE_CHUNK))
                        return "a chunk of ranges is empty or too full";
                if (k > 0 && cl->chunks[k - 1]->n + chunk->n <= RANGE_CHUNK / 2)
                        return "chunks of ranges with little in them";
                for (uint32_t i = 0; i < chunk->n; i++) {
                        const struct range *r = &chunk->items[i];

                        if (r->start >= r->end)
                                return "an empty range";
                        if (before && (before->end > r->start ||
                                       (before->end == r->start && before->is_unmerged == r->is_unmerged)))
                                return "ranges overlap or should be one";
                        *ret_pages += r->end - r->start;
                        before = r;
                        n++;
                }
        }
        return n == cl->n_ranges ? NULL : "ranges are miscounted";
}
