/* The ranges of a client: a sorted array of intervals that neither overlap nor touch, unless one of the two was unmerged
 * by request. The cost of a change depends on their number, never on their size. */
#include "daemon/core/internal.h"

#include <errno.h>
#include <string.h>

/* First range that ends after page. */
static uint32_t lower(const struct client *cl, uint64_t page) {
        uint32_t a = 0, b = cl->n_ranges;

        while (a < b) {
                uint32_t m = a + (b - a) / 2;

                if (cl->ranges[m].end <= page)
                        a = m + 1;
                else
                        b = m;
        }
        return a;
}

const struct range *range_find(const struct client *cl, uint64_t page) {
        uint32_t i = lower(cl, page);

        return i < cl->n_ranges ? &cl->ranges[i] : NULL;
}

static void account(struct core *c, struct client *cl, int64_t pages) {
        cl->registered_pages += (uint64_t) pages;
        client_domain(c, cl)->registered_pages += (uint64_t) pages;
        c->registered_pages += (uint64_t) pages;
}

static void delete_at(struct client *cl, uint32_t i) {
        memmove(&cl->ranges[i], &cl->ranges[i + 1], (--cl->n_ranges - i) * sizeof(*cl->ranges));
}

static void insert_at(struct client *cl, uint32_t i, struct range r) {
        memmove(&cl->ranges[i + 1], &cl->ranges[i], (cl->n_ranges++ - i) * sizeof(*cl->ranges));
        cl->ranges[i] = r;
}

static int reserve(struct core *c, struct client *cl, uint32_t more) {
        return memory_grow(&c->memory, (void **) &cl->ranges, &cl->ranges_capacity, cl->n_ranges + more,
                           sizeof(*cl->ranges));
}

int range_cut(struct core *c, struct client *cl, uint64_t start, uint64_t end) {
        uint32_t i = lower(cl, start);
        int r;

        r = reserve(c, cl, 1); /* a cut in the middle leaves two */
        if (r < 0)
                return r;
        while (i < cl->n_ranges && cl->ranges[i].start < end) {
                struct range old = cl->ranges[i];

                account(c, cl, -(int64_t) (MIN(old.end, end) - MAX(old.start, start)));
                delete_at(cl, i);
                if (old.start < start)
                        insert_at(cl, i++, (struct range){ old.start, start, old.is_unmerged });
                if (old.end > end)
                        insert_at(cl, i++, (struct range){ end, old.end, old.is_unmerged });
        }
        return 0;
}

int range_put(struct core *c, struct client *cl, uint64_t start, uint64_t end, bool is_unmerged) {
        uint32_t i;
        int r;

        r = reserve(c, cl, 3); /* the cut's one, the new one, so nothing fails after the cut */
        if (r < 0)
                return r;
        (void) range_cut(c, cl, start, end);
        account(c, cl, (int64_t) (end - start));
        i = lower(cl, start);
        if (i < cl->n_ranges && cl->ranges[i].start == end && cl->ranges[i].is_unmerged == is_unmerged) {
                end = cl->ranges[i].end;
                delete_at(cl, i);
        }
        if (i > 0 && cl->ranges[i - 1].end == start && cl->ranges[i - 1].is_unmerged == is_unmerged) {
                cl->ranges[i - 1].end = end;
                return 0;
        }
        insert_at(cl, i, (struct range){ start, end, is_unmerged });
        return 0;
}

int range_mark_unmerged(struct core *c, struct client *cl, uint64_t start, uint64_t end) {
        uint64_t page = start;

        for (;;) {
                const struct range *r = range_find(cl, page);
                uint64_t from, to;
                int e;

                if (page >= end || !r || r->start >= end)
                        return 0;
                from = MAX(r->start, page);
                to = MIN(r->end, end);
                e = range_put(c, cl, from, to, true);
                if (e < 0)
                        return e;
                page = to;
        }
}

void range_free_all(struct core *c, struct client *cl) {
        for (uint32_t i = 0; i < cl->n_ranges; i++)
                account(c, cl, -(int64_t) (cl->ranges[i].end - cl->ranges[i].start));
        memory_release(&c->memory, cl->ranges, cl->ranges_capacity * sizeof(*cl->ranges));
        cl->ranges = NULL;
        cl->n_ranges = cl->ranges_capacity = 0;
}
