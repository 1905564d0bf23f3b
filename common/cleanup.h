/* Scoped cleanup and checked arithmetic: header only, no allocation, usable from the agent.
 *
 * A destructor accepts NULL (or -1 for an fd) and returns it, so that
 * `p = foo_free(p);` is always right. */
#pragma once

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#define _cleanup_(f) __attribute__((cleanup(f)))
#define DEFINE_CLEANUP(type, func)             \
        static inline void func##p(type *p) {  \
                if (*p)                        \
                        *p = func(*p);         \
        }

/* Closes and returns -1; errno is kept, so it can stand in an error path. */
static inline int close_fd(int fd) {
        if (fd >= 0) {
                int saved = errno;
                (void) close(fd);
                errno = saved;
        }
        return -1;
}
static inline void close_fdp(int *fd) {
        *fd = close_fd(*fd);
}
static inline void freep(void *p) {
        free(*(void **) p);
}
#define _cleanup_close_ _cleanup_(close_fdp)
#define _cleanup_free_ _cleanup_(freep)

/* Hands ownership out of a scope. */
#define TAKE_PTR(p)                     \
        ({                              \
                __typeof__(p) _t = (p); \
                (p) = NULL;             \
                _t;                     \
        })
static inline int take_fd(int *fd) {
        int t = *fd;
        *fd = -1;
        return t;
}

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
/* <sys/param.h>, which <uv.h> includes, has versions that evaluate their arguments twice. */
#undef MIN
#undef MAX
#define MIN(a, b)                                           \
        ({                                                  \
                __typeof__(a) _a = (a);                     \
                __typeof__(b) _b = (b);                     \
                _a < _b ? _a : _b;                          \
        })
#define MAX(a, b)                                           \
        ({                                                  \
                __typeof__(a) _a = (a);                     \
                __typeof__(b) _b = (b);                     \
                _a > _b ? _a : _b;                          \
        })

/* The only page size supported: one merge granule of KSM on x86-64, and what the kernel probe checks. */
#define KSM_PAGE_SHIFT 12
#define KSM_PAGE_SIZE (1UL << KSM_PAGE_SHIFT)
/* 64 pages: the unit of tracking, planning and transitions (docs/architecture.md). */
#define BLOCK_SHIFT 6
#define BLOCK_PAGES (1U << BLOCK_SHIFT)

/* True when [start, start + length) is page aligned, not empty and does not wrap. */
static inline bool range_is_valid(uint64_t start, uint64_t length) {
        uint64_t end;
        return length > 0 && !(start & (KSM_PAGE_SIZE - 1)) && !(length & (KSM_PAGE_SIZE - 1)) &&
               !__builtin_add_overflow(start, length, &end);
}

static inline bool ranges_overlap(uint64_t a, uint64_t a_end, uint64_t b, uint64_t b_end) {
        return a < b_end && b < a_end;
}
