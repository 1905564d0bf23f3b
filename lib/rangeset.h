/* A set of addresses as sorted, disjoint [start, end) intervals, in memory of the agent's own. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct interval {
        uint64_t start, end;
};
struct rangeset {
        struct interval *v;
        uint32_t n, capacity;
};

/* 0 or -ENOMEM (unchanged). */
int rangeset_add(struct rangeset *s, uint64_t start, uint64_t end);
int rangeset_remove(struct rangeset *s, uint64_t start, uint64_t end);
bool rangeset_overlaps(const struct rangeset *s, uint64_t start, uint64_t end);
bool rangeset_contains(const struct rangeset *s, uint64_t start, uint64_t end);
/* First interval that ends after addr, or NULL. Iterate: it++, up to s->v + s->n. */
const struct interval *rangeset_from(const struct rangeset *s, uint64_t addr);
void rangeset_clear(struct rangeset *s);
uint64_t rangeset_bytes(const struct rangeset *s);
