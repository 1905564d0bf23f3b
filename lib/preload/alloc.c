/* The malloc family. libc trims (madvise, brk), unmaps and remaps inside these, through no symbol that could be interposed;
 * so each call is one bracket of the mapping lock: two plain stores and a load.
 *
 * What libc unmaps in here is not told to the agent: its books may be stale and are checked against the kernel.
 * MADV_DONTNEED in here shows as an event while a word is raised: that is the wrapper's, and answered exactly. */
#include <errno.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#include "lib/book.h"
#include "lib/preload/preload.h"

SHIM_EXPORT void *malloc(size_t size) {
        real_malloc_fn f = REAL(malloc);
        if (__builtin_expect(!f, 0))
                return bootstrap_alloc(size, 16);
        enter();
        void *p = f(size);
        leave();
        return p;
}

SHIM_EXPORT void free(void *p) {
        real_free_fn f = REAL(free);
        if (__builtin_expect(!f || bootstrap_owns(p), 0))
                return;
        enter();
        f(p);
        leave();
}

SHIM_EXPORT void *calloc(size_t n, size_t size) {
        real_calloc_fn f = REAL(calloc);
        if (__builtin_expect(!f, 0)) {
                size_t total;
                if (__builtin_mul_overflow(n, size, &total)) {
                        errno = ENOMEM;
                        return NULL;
                }
                return bootstrap_alloc(total, 16);
        }
        enter();
        void *p = f(n, size);
        leave();
        return p;
}

/* realloc by hand: for memory of the bootstrap arena, and for blocks with merged pages that must not be remapped. */
static void *realloc_by_copy(void *p, size_t old_size, size_t size) {
        void *q = malloc(size);
        if (!q)
                return NULL;
        memcpy(q, p, MIN(old_size, size));
        free(p);
        return q;
}

/* libc grows a block that has a mapping of its own by mremap, which would expose what lies behind a merged run in its segment.
 * Other blocks it copies or cuts off at the end. Other allocators make mapping calls by name, and those come here. */
#define LIBC_IS_MMAPPED 2 /* malloc(3) chunks: flags in the low bits of the size, which stands before the block */
static bool is_remapped(const void *p, size_t usable, size_t size) {
        return size > usable && usable >= KSM_PAGE_SIZE / 2 && real_malloc_is_libc() &&
               ((const size_t *) p)[-1] & LIBC_IS_MMAPPED;
}

static void *realloc_remapped(void *p, size_t usable, size_t size) {
        struct span span = span_touched(p, usable);
        /* libc's header, which begins the mapping, is in the page of p - 1. */
        span.start = page_floor((uint64_t) p - 1);
        if (enter_restored(span.start, span.end) != 0) {
                leave();
                return realloc_by_copy(p, usable, size);
        }
        void *q = REAL(realloc)(p, size);
        leave();
        return q;
}

SHIM_EXPORT void *realloc(void *p, size_t size) {
        real_realloc_fn f = REAL(realloc);
        if (__builtin_expect(!f, 0)) {
                if (!p)
                        return bootstrap_alloc(size, 16);
                errno = ENOMEM;
                return NULL;
        }
        if (__builtin_expect(bootstrap_owns(p), 0))
                return realloc_by_copy(p, bootstrap_size(p), size);
        if (p && size) {
                real_malloc_usable_size_fn usable_size = REAL(malloc_usable_size);
                size_t usable = usable_size ? usable_size(p) : 0;
                if (is_remapped(p, usable, size))
                        return realloc_remapped(p, usable, size);
        }
        enter();
        void *q = f(p, size);
        leave();
        return q;
}

SHIM_EXPORT void *reallocarray(void *p, size_t n, size_t size) {
        size_t total;
        if (__builtin_mul_overflow(n, size, &total)) {
                errno = ENOMEM;
                return NULL;
        }
        return realloc(p, total);
}

#define ALIGNED(name)                                          \
        SHIM_EXPORT void *name(size_t alignment, size_t size) { \
                real_##name##_fn f = REAL(name);               \
                if (!f) {                                      \
                        errno = ENOMEM;                        \
                        return NULL;                           \
                }                                              \
                enter();                                       \
                void *p = f(alignment, size);                  \
                leave();                                       \
                return p;                                      \
        }
ALIGNED(memalign)
ALIGNED(aligned_alloc)

SHIM_EXPORT int posix_memalign(void **ret, size_t alignment, size_t size) {
        real_posix_memalign_fn f = REAL(posix_memalign);
        if (!f)
                return ENOMEM;
        enter();
        int r = f(ret, alignment, size);
        leave();
        return r;
}

#define PAGED(name)                              \
        SHIM_EXPORT void *name(size_t size) {    \
                real_##name##_fn f = REAL(name); \
                if (!f) {                        \
                        errno = ENOMEM;          \
                        return NULL;             \
                }                                \
                enter();                         \
                void *p = f(size);               \
                leave();                         \
                return p;                        \
        }
PAGED(valloc)
PAGED(pvalloc)

SHIM_EXPORT int malloc_trim(size_t pad) {
        real_malloc_trim_fn f = REAL(malloc_trim);
        if (!f)
                return 0;
        enter();
        int r = f(pad);
        leave();
        return r;
}
