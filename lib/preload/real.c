/* Lookup of the real functions. See preload.h.
 *
 * dlsym(RTLD_NEXT) may itself call calloc or malloc (dlerror's buffer), which are ours: the thread that is inside a
 * lookup gets memory of a small static arena instead. Threads look up independently; the result is the same. */
#include <dlfcn.h>
#include <errno.h>
#include <gnu/libc-version.h>
#include <string.h>

#include "lib/preload/preload.h"

/* dlerror's buffer of a thread is about 32 bytes plus its text; a page and some, for loaders we do not know. */
#define BOOTSTRAP_BYTES 8192U

static const char *const real_names[REAL_ID_MAX_] = {
#define X(name, type, args) [REAL_ID_##name] = #name,
        REAL_FUNCTIONS(X)
#undef X
};

void *_Atomic real_table[REAL_ID_MAX_];
static __thread bool resolving __attribute__((tls_model("initial-exec")));

void *real_resolve(enum real_id id) {
        if (resolving)
                return NULL;
        int saved = errno;
        resolving = true;
        void *f = dlsym(RTLD_NEXT, real_names[id]);
        resolving = false;
        errno = saved;
        if (f)
                atomic_store_explicit(&real_table[id], f, memory_order_relaxed);
        return f;
}

static _Atomic bool malloc_is_foreign;

/* Nobody interposes gnu_get_libc_version: it is where libc is. */
static void look_whose_malloc(void) {
        Dl_info libc, allocator;
        if (dladdr((void *) gnu_get_libc_version, &libc) && dladdr(real_get(REAL_ID_realloc), &allocator))
                atomic_store_explicit(&malloc_is_foreign, libc.dli_fbase != allocator.dli_fbase, memory_order_relaxed);
}

bool real_malloc_is_libc(void) {
        return !atomic_load_explicit(&malloc_is_foreign, memory_order_relaxed);
}

void real_resolve_all(void) {
        for (enum real_id id = 0; id < REAL_ID_MAX_; id++)
                (void) real_get(id);
        look_whose_malloc();
}

/* -- bootstrap memory ----------------------------------------------------------------------------------------- */

struct bootstrap_header {
        size_t size;
        size_t pad; /* keeps 16-byte alignment */
};

static _Alignas(16) uint8_t bootstrap[BOOTSTRAP_BYTES];
static _Atomic size_t bootstrap_used;

void *bootstrap_alloc(size_t size, size_t alignment) {
        if (size > BOOTSTRAP_BYTES || alignment > 16) {
                errno = ENOMEM;
                return NULL;
        }
        size_t need = sizeof(struct bootstrap_header) + ((size + 15) & ~(size_t) 15);
        size_t at = atomic_fetch_add(&bootstrap_used, need);
        if (at + need > BOOTSTRAP_BYTES) {
                errno = ENOMEM;
                return NULL;
        }
        struct bootstrap_header *h = (struct bootstrap_header *) &bootstrap[at];
        h->size = size;
        return h + 1; /* static memory: zero, as calloc wants it */
}

bool bootstrap_owns(const void *p) {
        return (const uint8_t *) p >= bootstrap && (const uint8_t *) p < bootstrap + BOOTSTRAP_BYTES;
}

size_t bootstrap_size(const void *p) {
        return ((const struct bootstrap_header *) p)[-1].size;
}
