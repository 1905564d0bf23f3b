/* Mapping calls: by libc, or around it. */
#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "tests/shadow/shadow.h"

#define MAX_ERRNO 4095

static void *libc_mremap(void *old, size_t bytes, size_t to_bytes, int flags, void *to) {
        return mremap(old, bytes, to_bytes, flags, to);
}

static long raw(long nr, long a, long b, long c, long d, long e, long f) {
        long ret;
        register long r10 __asm__("r10") = d;
        register long r8 __asm__("r8") = e;
        register long r9 __asm__("r9") = f;
        __asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                         : "rcx", "r11", "memory");
        if (ret < 0 && ret >= -MAX_ERRNO) {
                errno = (int) -ret;
                return -1;
        }
        return ret;
}

static void *raw_mmap(void *at, size_t bytes, int prot, int flags, int fd, off_t offset) {
        return (void *) raw(SYS_mmap, (long) at, (long) bytes, prot, flags, fd, offset);
}
static int raw_munmap(void *at, size_t bytes) {
        return (int) raw(SYS_munmap, (long) at, (long) bytes, 0, 0, 0, 0);
}
static void *raw_mremap(void *old, size_t bytes, size_t to_bytes, int flags, void *to) {
        return (void *) raw(SYS_mremap, (long) old, (long) bytes, (long) to_bytes, flags, (long) to, 0);
}
static int raw_mprotect(void *at, size_t bytes, int prot) {
        return (int) raw(SYS_mprotect, (long) at, (long) bytes, prot, 0, 0, 0);
}
static int raw_madvise(void *at, size_t bytes, int advice) {
        return (int) raw(SYS_madvise, (long) at, (long) bytes, advice, 0, 0, 0);
}

const struct calls *calls_of(const struct op *o) {
        static const struct calls by_libc = { mmap, munmap, libc_mremap, mprotect, madvise };
        static const struct calls by_hand = { raw_mmap, raw_munmap, raw_mremap, raw_mprotect, raw_madvise };
        return o->raw ? &by_hand : &by_libc;
}
