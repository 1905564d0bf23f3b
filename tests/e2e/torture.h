/* The lost-write test: threads change, read and remap memory while it is merged and unmerged under them; every byte is
 * compared with a shadow. The shadow is MAP_SHARED, which is never merged.
 *
 * Pages are locked one by one (a byte of shared memory), so that what a page must hold is known; the transitions of the
 * agent respect no such lock. Contents come from a small series, so that duplicates abound, in runs, within and between
 * processes. The program knows nothing of userksm but madvise(MADV_MERGEABLE). */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE 4096UL
#define REGION_PAGES 512U /* 2 MiB: one transparent huge page */
#define RUN_MAX 64U
#define SERIES 64U /* contents */
#define HISTORY 8U
#define THREADS_MAX 16U

/* Regions differ in what is done to them. */
enum region_kind {
        REGION_PLAIN,  /* everything but what the others are for */
        REGION_HUGE,   /* as plain, MADV_HUGEPAGE */
        REGION_PINNED, /* parts are registered as io_uring fixed buffers: no unmapping */
        REGION_KINDS_
};

struct page_meta {
        _Atomic uint32_t locked;
        uint32_t n_history;
        struct {
                const char *op;
                uint32_t thread, msec;
        } history[HISTORY];
};

struct region {
        enum region_kind kind;
        uint8_t *memory, *shadow;
        struct page_meta *meta;
};

struct thread {
        uint32_t index;
        uint64_t random;
        uint64_t operations;
        int file, direct;    /* scratch file; direct: the same with O_DIRECT, -1 = not supported here */
        int pipe[2];
        uint8_t *bounce;     /* RUN_MAX pages of MAP_SHARED memory */
        struct heap *heap;   /* torture_heap.c */
        struct uring *uring; /* torture_io.c; NULL = no io_uring here */
};

struct torture {
        unsigned n_regions;
        struct region *regions;
        const uint8_t (*series)[PAGE];
        _Atomic bool stop;
        _Atomic uint32_t skipped_direct, skipped_uring;
        uint64_t start_usec;
};
extern struct torture torture;

uint64_t now_usec(void);
uint64_t random_next(struct thread *t);
static inline uint32_t random_below(struct thread *t, uint32_t n) {
        return (uint32_t) (random_next(t) >> 32) % n;
}
void *shared_alloc(size_t size);
__attribute__((noreturn, format(printf, 1, 2))) void fail(const char *format, ...);
#define check(x, ...)                    \
        do {                             \
                if (!(x))                \
                        fail(__VA_ARGS__); \
        } while (0)

/* A run of pages that this thread has locked. */
struct run {
        struct region *region;
        uint32_t first, n;
        uint8_t *memory, *shadow;
        bool lost; /* another thread has mapped something there: stays locked for ever */
};
/* False when some of them are locked by another thread. */
bool run_lock(struct thread *t, struct run *ret, struct region *r, uint32_t first, uint32_t n);
void run_unlock(struct run *run);
void run_note(struct thread *t, struct run *run, const char *op);
/* Compares memory (somewhere else than run->memory when given) with the shadow, byte for byte. */
void run_verify(struct run *run, const uint8_t *memory, const char *when);
void compare(const uint8_t *memory, const uint8_t *shadow, size_t size, const char *when);

/* What the pages of a fill hold: the series by position, one content throughout, a random choice, or zeros. */
void fill_pattern(struct thread *t, uint8_t *to, uint32_t first, uint32_t n);

void ops_once(struct thread *t); /* torture_ops.c */
struct heap *heap_new(void);     /* torture_heap.c: malloc, realloc and mremap of blocks of a thread's own */
void heap_once(struct thread *t);
void io_open(struct thread *t, const char *directory); /* torture_io.c */
void io_once(struct thread *t, struct run *run);
void uring_once(struct thread *t);
void fork_once(struct thread *t); /* torture_fork.c */
