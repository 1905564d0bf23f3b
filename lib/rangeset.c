#include "lib/rangeset.h"

#include <errno.h>
#include <string.h>

#include "common/cleanup.h"
#include "lib/sys.h"

#define RANGESET_MIN 256U /* one page of intervals */

static int reserve(struct rangeset *s, uint32_t n) {
        if (n <= s->capacity)
                return 0;
        uint32_t capacity = MAX(RANGESET_MIN, s->capacity * 2);
        struct interval *v = own_alloc(capacity * sizeof(*v));
        if (!v)
                return -ENOMEM;
        if (s->n)
                memcpy(v, s->v, s->n * sizeof(*v));
        own_free(s->v, s->capacity * sizeof(*v));
        s->v = v;
        s->capacity = capacity;
        return 0;
}

/* Index of the first interval that ends after addr (n when there is none). */
static uint32_t first_after(const struct rangeset *s, uint64_t addr) {
        uint32_t low = 0, high = s->n;
        while (low < high) {
                uint32_t mid = low + (high - low) / 2;
                if (s->v[mid].end > addr)
                        high = mid;
                else
                        low = mid + 1;
        }
        return low;
}

static void splice(struct rangeset *s, uint32_t at, uint32_t drop, const struct interval *put, uint32_t n_put) {
        memmove(s->v + at + n_put, s->v + at + drop, (s->n - at - drop) * sizeof(*s->v));
        if (n_put)
                memcpy(s->v + at, put, n_put * sizeof(*put));
        s->n = s->n - drop + n_put;
}

int rangeset_add(struct rangeset *s, uint64_t start, uint64_t end) {
        if (start >= end)
                return 0;
        if (reserve(s, s->n + 1) < 0)
                return -ENOMEM;
        uint32_t i = start ? first_after(s, start - 1) : 0; /* touching intervals fuse */
        uint32_t j = i;
        struct interval x = { start, end };
        for (; j < s->n && s->v[j].start <= end; j++) {
                x.start = MIN(x.start, s->v[j].start);
                x.end = MAX(x.end, s->v[j].end);
        }
        splice(s, i, j - i, &x, 1);
        return 0;
}

int rangeset_remove(struct rangeset *s, uint64_t start, uint64_t end) {
        if (start >= end)
                return 0;
        if (reserve(s, s->n + 1) < 0)
                return -ENOMEM;
        uint32_t i = first_after(s, start), j = i, n = 0;
        struct interval left[2];
        for (; j < s->n && s->v[j].start < end; j++) {
                if (s->v[j].start < start)
                        left[n++] = (struct interval) { s->v[j].start, start };
                if (s->v[j].end > end)
                        left[n++] = (struct interval) { end, s->v[j].end };
        }
        if (j > i)
                splice(s, i, j - i, left, n);
        return 0;
}

bool rangeset_overlaps(const struct rangeset *s, uint64_t start, uint64_t end) {
        uint32_t i = first_after(s, start);
        return i < s->n && s->v[i].start < end;
}

bool rangeset_contains(const struct rangeset *s, uint64_t start, uint64_t end) {
        uint32_t i = first_after(s, start);
        return i < s->n && s->v[i].start <= start && s->v[i].end >= end;
}

const struct interval *rangeset_from(const struct rangeset *s, uint64_t addr) {
        uint32_t i = first_after(s, addr);
        return i < s->n ? &s->v[i] : NULL;
}

void rangeset_clear(struct rangeset *s) {
        own_free(s->v, s->capacity * sizeof(*s->v));
        *s = (struct rangeset) { 0 };
}

uint64_t rangeset_bytes(const struct rangeset *s) {
        uint64_t n = 0;
        for (uint32_t i = 0; i < s->n; i++)
                n += s->v[i].end - s->v[i].start;
        return n;
}
