#include "lib/sys.h"

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

void *own_alloc(size_t length) {
        long p = sys_mmap(0, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (sys_is_error(p))
                return NULL;
        if (sys_madvise((uint64_t) p, length, MADV_DONTDUMP) < 0) {
                sys_munmap((uint64_t) p, length);
                return NULL;
        }
        return (void *) p;
}

void own_free(void *p, size_t length) {
        if (p)
                sys_munmap((uint64_t) p, length);
}
