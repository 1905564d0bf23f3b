/* The malloc family: blocks of all sizes in a small table; a block's bytes are looked at whenever it is touched. libc trims and
 * unmaps inside of these calls. */
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "tests/shadow/shadow.h"

#define BLOCKS 64U

static struct block {
        uint8_t *at;
        size_t bytes;
} blocks[THREADS][BLOCKS];

/* Threads that run at the same time have blocks of their own. */
static struct block *block_of(const struct actor *a, const struct op *o) {
        return &blocks[run.program.family == FAMILY_PARALLEL ? a->index % THREADS : 0][o->value % BLOCKS];
}

static size_t bytes_of(uint32_t arg) {
        switch (arg % 16) {
        case 0: return 1 + (arg >> 4) % 1500000;
        case 1: return 1 + (arg >> 4) % 300000;
        case 2:
        case 3: return 1 + (arg >> 4) % 30000;
        default: return 1 + (arg >> 4) % 1500;
        }
}

static void fill(struct block *b, size_t from, uint32_t value) {
        for (size_t at = from; at < b->bytes; at += PAGE)
                memcpy(b->at + at, content((uint32_t) (value % 4 + at / PAGE)), MIN(PAGE, b->bytes - at));
}

static uint64_t drop(struct block *b) {
        uint64_t h = b->at ? digest_bytes(b->bytes, b->at, b->bytes) : 0;
        free(b->at);
        *b = (struct block) { 0 };
        return h;
}

struct record op_heap_new(struct actor *a, const struct op *o) {
        struct block *b = block_of(a, o);
        struct record r = { .digest = drop(b) };
        size_t bytes = bytes_of(o->arg), alignment = 16UL << (o->page % 9);
        void *p = NULL;
        switch (o->pages % 6) {
        case 0:
                p = calloc(1, bytes);
                r.digest = digest_bytes(r.digest, p, bytes);
                break;
        case 1: r.result = posix_memalign(&p, alignment, bytes); break;
        case 2: p = aligned_alloc(alignment, (bytes + alignment - 1) & ~(alignment - 1)); break;
        default: p = malloc(bytes);
        }
        check(p, "malloc of %zu", bytes);
        *b = (struct block) { p, bytes };
        r.result += malloc_usable_size(p) < bytes;
        fill(b, 0, o->value);
        return r;
}

struct record op_heap_resize(struct actor *a, const struct op *o) {
        struct block *b = block_of(a, o);
        size_t old = b->bytes, bytes = bytes_of(o->arg);
        uint8_t *p = realloc(b->at, bytes);
        check(p, "realloc to %zu", bytes);
        *b = (struct block) { p, bytes };
        struct record r = { .digest = digest_bytes(old, p, MIN(old, bytes)) };
        if (bytes > old)
                fill(b, old, o->value);
        return r;
}

struct record op_heap_free(struct actor *a, const struct op *o) {
        struct record r = { .digest = drop(block_of(a, o)) };
        if (o->arg % 16 == 0)
                (void) malloc_trim(run.top_pad_bytes); /* the break itself may be the program's */
        return r;
}
