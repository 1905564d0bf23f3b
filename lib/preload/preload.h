/* The shim (libuserksm-preload.so): libc's mapping calls, interposed.
 *
 * Contract
 *  - A call returns what the kernel or libc returns, errno included. Without a daemon, in a setuid program, or with
 *    USERKSM_DISABLE=1 the shim only passes calls on.
 *  - Every call that changes mappings is made inside the mapping lock (lib/maplock.h): no transition overlaps it.
 *  - Calls whose meaning a merged page (a private file mapping) would change are preceded by a restore.
 *  - Requests to the agent (agent_restore and friends) are never made inside the lock; a callback of libc that runs inside
 *    (a destructor in dlclose, a signal handler in free) leaves it for the time of the request: request_begin.
 *  - The wrappers are as async-signal-safe as what they wrap: no allocation, no stdio, no locks of their own.
 *
 * The real functions are RTLD_NEXT's: libc's, or those of an allocator or interposer loaded after us. */
#pragma once

#include <pthread.h>
#include <spawn.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <threads.h>

#include "common/rules.h"
#include "common/cleanup.h"
#include "lib/agent.h"
#include "lib/maplock.h"
#include "proto/messages.h"

#define SHIM_EXPORT __attribute__((visibility("default")))

/* Every function that is interposed and passed on; one table, from which come the pointers and the names. */
#define REAL_FUNCTIONS(X)                                                                                             \
        X(malloc, void *, (size_t))                                                                                   \
        X(calloc, void *, (size_t, size_t))                                                                           \
        X(realloc, void *, (void *, size_t))                                                                          \
        X(free, void, (void *))                                                                                       \
        X(memalign, void *, (size_t, size_t))                                                                         \
        X(aligned_alloc, void *, (size_t, size_t))                                                                    \
        X(posix_memalign, int, (void **, size_t, size_t))                                                             \
        X(valloc, void *, (size_t))                                                                                   \
        X(pvalloc, void *, (size_t))                                                                                  \
        X(malloc_trim, int, (size_t))                                                                                 \
        X(malloc_usable_size, size_t, (void *))                                                                       \
        X(mmap, void *, (void *, size_t, int, int, int, off_t))                                                       \
        X(munmap, int, (void *, size_t))                                                                              \
        X(mremap, void *, (void *, size_t, size_t, int, ...))                                                         \
        X(mprotect, int, (void *, size_t, int))                                                                       \
        X(pkey_mprotect, int, (void *, size_t, int, int))                                                             \
        X(madvise, int, (void *, size_t, int))                                                                        \
        X(posix_madvise, int, (void *, size_t, int))                                                                  \
        X(process_madvise, ssize_t, (int, const struct iovec *, size_t, int, unsigned))                               \
        X(mlock, int, (const void *, size_t))                                                                         \
        X(mlock2, int, (const void *, size_t, unsigned))                                                              \
        X(munlock, int, (const void *, size_t))                                                                       \
        X(mlockall, int, (int))                                                                                       \
        X(munlockall, int, (void))                                                                                    \
        X(brk, int, (void *))                                                                                         \
        X(sbrk, void *, (intptr_t))                                                                                   \
        X(shmat, void *, (int, const void *, int))                                                                    \
        X(syscall, long, (long, ...))                                                                                 \
        X(ioctl, int, (int, unsigned long, ...))                                                                      \
        X(prctl, int, (int, ...))                                                                                     \
        X(pthread_create, int, (pthread_t *, const pthread_attr_t *, void *(*) (void *), void *))                     \
        X(thrd_create, int, (thrd_t *, thrd_start_t, void *))                                                         \
        X(posix_spawn, int,                                                                                           \
          (pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *, char *const[],       \
           char *const[]))                                                                                            \
        X(posix_spawnp, int,                                                                                          \
          (pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *, char *const[],       \
           char *const[]))                                                                                            \
        X(dlclose, int, (void *))                                                                                     \
        X(_Fork, pid_t, (void))                                                                                       \
        X(clone, int, (int (*)(void *), void *, int, void *, ...))

struct iovec;

enum real_id {
#define X(name, type, args) REAL_ID_##name,
        REAL_FUNCTIONS(X)
#undef X
                REAL_ID_MAX_
};
#define X(name, type, args) typedef type(*real_##name##_fn) args;
REAL_FUNCTIONS(X)
#undef X

extern void *_Atomic real_table[REAL_ID_MAX_];

/* Looks the function up. NULL: libc does not have it, or this is a call from inside the lookup itself (dlsym may
 * allocate): allocation functions then use the bootstrap memory below. errno is preserved. */
void *real_resolve(enum real_id id);
/* Looks all up, once, at the constructor: later a lookup would clear what dlerror() has to say to the program. */
void real_resolve_all(void);
/* Whether realloc is libc's, whose own mapping calls come from inside; so as long as nothing is looked up. */
bool real_malloc_is_libc(void);

static inline void *real_get(enum real_id id) {
        void *f = atomic_load_explicit(&real_table[id], memory_order_relaxed);
        return __builtin_expect(f != NULL, 1) ? f : real_resolve(id);
}
#define REAL(name) ((real_##name##_fn) real_get(REAL_ID_##name))

/* Memory for what dlsym allocates before malloc is known: static, never given back. */
void *bootstrap_alloc(size_t size, size_t alignment);
bool bootstrap_owns(const void *p);
size_t bootstrap_size(const void *p);

/* -- the lock, as the wrappers use it -- */

void thread_count_init(void); /* thread.c, from the constructor */

static inline void enter(void) {
        agent_ensure_after_fork();
        map_enter();
}
static inline void leave(void) {
        map_leave();
}

/* Around a request to the agent: leaves the lock however deep this thread is in it, and takes it again. */
static inline unsigned request_begin(void) {
        struct map_slot *s = map_slot_self;
        if (!s)
                return 0;
        unsigned depth = atomic_load_explicit(&s->word, memory_order_relaxed) & MAP_DEPTH_MASK;
        for (unsigned i = 0; i < depth; i++)
                map_leave();
        return depth;
}
static inline void request_end(unsigned depth) {
        while (depth--)
                map_enter();
}
#define REQUEST(call)                            \
        ({                                       \
                unsigned _depth = request_begin(); \
                int _r = (call);                 \
                request_end(_depth);             \
                _r;                              \
        })

/* Enters the lock with nothing merged in [start, end). 0; 1 = entered, but pages that were copied on write stay in their
 * file mapping; negative = entered, and merged pages are still there (no memory for copies). */
int enter_restored(uint64_t start, uint64_t end);

/* -- addresses, as the kernel sees them -- */

static inline uint64_t page_floor(uint64_t a) {
        return a & ~(KSM_PAGE_SIZE - 1);
}
static inline uint64_t page_ceil(uint64_t a) {
        return (a + KSM_PAGE_SIZE - 1) & ~(KSM_PAGE_SIZE - 1);
}
/* The pages that [addr, addr + length) touches; an empty range when it wraps (the kernel will refuse it). */
struct span {
        uint64_t start, end;
};
static inline struct span span_touched(const void *addr, size_t length) {
        uint64_t start = page_floor((uint64_t) addr), end;
        if (__builtin_add_overflow((uint64_t) addr, length, &end) || end > UINT64_MAX - KSM_PAGE_SIZE)
                return (struct span) { start, start };
        return (struct span) { start, page_ceil(end) };
}
/* Tells the agent, after success and inside the lock. */
static inline void note_unmapped(uint64_t start, uint64_t end) {
        if (end > start)
                agent_note_unmapped(start, end - start);
}

/* -- start (init.c) -- */

/* False in a setuid program or with USERKSM_DISABLE: merge requests go to the kernel as they are. */
bool shim_enabled(void);
/* Starts the agent if it does not run; merge_any: discovery too. 0 or -errno. */
int shim_start_agent(bool merge_any);

/* What the rules in the directory say of this program (rules.c). */
enum rule_action shim_rules(const char *directory);

/* fork, and clone without CLONE_VM and without a stack, by number (fork.c). */
long fork_by_number(long nr, const unsigned long a[6]);

/* Fills the table by which syscall() finds the wrappers (control.c). */
void syscall_route_init(void);
