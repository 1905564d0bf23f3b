#include "lib/sys.h"

#include <stdatomic.h>

#include "common/cleanup.h"

uint64_t now_usec(void) {
        struct timespec ts;
        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t) ts.tv_sec * 1000000 + (uint64_t) ts.tv_nsec / 1000;
}

uint64_t thread_cpu_usec(void) {
        struct timespec ts;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
        return (uint64_t) ts.tv_sec * 1000000 + (uint64_t) ts.tv_nsec / 1000;
}

/* The agent holds a dozen regions: stacks, buffers, books. */
#define OWN_REGIONS 64U

static struct {
        _Atomic uint64_t start, end; /* start 0: free; end 0: being filled */
} regions[OWN_REGIONS];

static bool region_add(uint64_t start, uint64_t end) {
        for (unsigned i = 0; i < OWN_REGIONS; i++) {
                uint64_t expected = 0;
                if (atomic_compare_exchange_strong(&regions[i].start, &expected, start)) {
                        atomic_store(&regions[i].end, end);
                        return true;
                }
        }
        return false;
}

bool own_holds(uint64_t address) {
        for (unsigned i = 0; i < OWN_REGIONS; i++)
                if (atomic_load(&regions[i].start) <= address && address < atomic_load(&regions[i].end))
                        return true;
        return false;
}

/* Far from where the program maps: our allocations come at times that differ from run to run, and among its own they would
 * move its memory, so that equal processes would hold unequal pointers. A hint only; random, as the kernel's choice is. */
#define HINT_BASE 0x100000000000ULL
#define HINT_RANDOM_MASK 0x0fffffe00000ULL

uint64_t own_hint(size_t length) {
#ifdef __SANITIZE_THREAD__
        return 0; /* TSan keeps its shadow there */
#endif
        static _Atomic uint64_t next;
        uint64_t hint = atomic_load(&next), random = 0;
        if (!hint) {
                (void) sys_call(SYS_getrandom, (long) &random, sizeof(random), 0, 0, 0, 0);
                atomic_compare_exchange_strong(&next, &hint, HINT_BASE + (random & HINT_RANDOM_MASK));
        }
        return atomic_fetch_add(&next, length + KSM_PAGE_SIZE) & ~(KSM_PAGE_SIZE - 1);
}

void *own_alloc(size_t length) {
        long p = sys_mmap(own_hint(length), length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (sys_is_error(p))
                return NULL;
        if (sys_madvise((uint64_t) p, length, MADV_DONTDUMP) < 0 ||
            !region_add((uint64_t) p, (uint64_t) p + length)) {
                sys_munmap((uint64_t) p, length);
                return NULL;
        }
        return (void *) p;
}

void own_forget(void *p) {
        for (unsigned i = 0; p && i < OWN_REGIONS; i++)
                if (atomic_load(&regions[i].start) == (uint64_t) p) {
                        atomic_store(&regions[i].end, 0);
                        atomic_store(&regions[i].start, 0);
                }
}

void own_free(void *p, size_t length) {
        if (!p)
                return;
        sys_munmap((uint64_t) p, length);
        own_forget(p);
}
