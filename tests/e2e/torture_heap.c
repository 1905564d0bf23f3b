/* Blocks of a thread's own that come and go through malloc and mmap, and change size by realloc and mremap. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tests/e2e/torture.h"

#define BLOCKS 12U
#define BLOCK_MAX (96U * PAGE) /* above and below the size at which libc maps a block by itself */

struct block {
        uint8_t *memory, *shadow;
        size_t size;
        bool mapped; /* by mmap */
};
struct heap {
        struct block blocks[BLOCKS];
};

struct heap *heap_new(void) {
        struct heap *h = shared_alloc(sizeof(*h));
        for (unsigned i = 0; i < BLOCKS; i++)
                h->blocks[i].shadow = shared_alloc(BLOCK_MAX);
        return h;
}

static size_t new_size(struct thread *t, bool mapped) {
        size_t size = 1 + random_below(t, random_below(t, 2) ? BLOCK_MAX : 8 * PAGE);
        return mapped ? (size + PAGE - 1) & ~(PAGE - 1) : size;
}

static void fill_tail(struct thread *t, struct block *b, size_t from) {
        static const size_t unit = PAGE;
        for (size_t at = from; at < b->size; at += unit) {
                uint32_t id = (uint32_t) (at / unit) % SERIES;
                memcpy(b->shadow + at, torture.series[id], b->size - at < unit ? b->size - at : unit);
        }
        if (b->size > from)
                memcpy(b->memory + from, b->shadow + from, b->size - from);
}

static void block_new(struct thread *t, struct block *b) {
        b->mapped = random_below(t, 2);
        b->size = new_size(t, b->mapped);
        memset(b->shadow, 0, b->size);
        if (b->mapped) {
                b->memory = mmap(NULL, b->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
                check(b->memory != MAP_FAILED, "mmap: %s", strerror(errno));
                check(madvise(b->memory, b->size, MADV_MERGEABLE) == 0, "MADV_MERGEABLE: %s", strerror(errno));
                compare(b->memory, b->shadow, b->size, "in new memory");
        } else if (random_below(t, 2)) {
                b->memory = calloc(1, b->size);
                check(b->memory, "calloc: %s", strerror(errno));
                compare(b->memory, b->shadow, b->size, "from calloc");
        } else {
                b->memory = malloc(b->size);
                check(b->memory, "malloc: %s", strerror(errno));
        }
        fill_tail(t, b, 0);
}

static void block_free(struct block *b) {
        compare(b->memory, b->shadow, b->size, "before a block is freed");
        if (b->mapped)
                check(munmap(b->memory, b->size) == 0, "munmap: %s", strerror(errno));
        else
                free(b->memory);
        b->memory = NULL;
}

static void block_resize(struct thread *t, struct block *b) {
        size_t old = b->size, size = new_size(t, b->mapped);
        if (b->mapped) {
                void *p = mremap(b->memory, old, size, MREMAP_MAYMOVE);
                if (p == MAP_FAILED) { /* pages that may be pinned: nothing has changed */
                        check(errno == ENOMEM, "mremap: %s", strerror(errno));
                        compare(b->memory, b->shadow, old, "after mremap failed");
                        return;
                }
                b->memory = p;
                if (size > old) {
                        memset(b->shadow + old, 0, size - old);
                        compare(b->memory, b->shadow, size, "after mremap grew a block");
                }
        } else {
                void *p = realloc(b->memory, size);
                check(p, "realloc: %s", strerror(errno));
                b->memory = p;
                compare(b->memory, b->shadow, size < old ? size : old, "after realloc");
        }
        b->size = size;
        fill_tail(t, b, old);
}

void heap_once(struct thread *t) {
        struct block *b = &t->heap->blocks[random_below(t, BLOCKS)];
        if (!b->memory) {
                block_new(t, b);
                return;
        }
        switch (random_below(t, 6)) {
        case 0:
                block_free(b);
                break;
        case 1:
        case 2:
                block_resize(t, b);
                break;
        case 3: {
                size_t at = random_below(t, (uint32_t) b->size);
                b->shadow[at] ^= 1;
                b->memory[at] ^= 1;
                break;
        }
        default:
                compare(b->memory, b->shadow, b->size, "in a block");
        }
}
