/* System calls of the agent, made directly.
 *
 * In the shim libc's mmap, madvise, ioctl and syscall are interposed; the agent calling them would wait for itself. Each
 * function returns the result or -errno and does not touch errno. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

#include "common/fault.h"

#if defined(__x86_64__)
static inline long sys_call(long nr, long a, long b, long c, long d, long e, long f) {
        register long r10 __asm__("r10") = d;
        register long r8 __asm__("r8") = e;
        register long r9 __asm__("r9") = f;
        long ret;
        __asm__ volatile("syscall"
                         : "=a"(ret)
                         : "0"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                         : "rcx", "r11", "memory");
        return ret;
}
#elif defined(__aarch64__)
static inline long sys_call(long nr, long a, long b, long c, long d, long e, long f) {
        register long x8 __asm__("x8") = nr;
        register long x0 __asm__("x0") = a;
        register long x1 __asm__("x1") = b;
        register long x2 __asm__("x2") = c;
        register long x3 __asm__("x3") = d;
        register long x4 __asm__("x4") = e;
        register long x5 __asm__("x5") = f;
        __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
        return x0;
}
#else
#error "userksm: the agent's system calls are written for x86-64 and aarch64"
#endif

static inline int sys_is_error(long r) {
        return r < 0 && r > -4096;
}
/* A call that tests can make fail. */
static inline long sys_try(enum fault_id id, long nr, long a, long b, long c, long d, long e, long f) {
        int error = fault_call(id);
        return __builtin_expect(error, 0) ? error : sys_call(nr, a, b, c, d, e, f);
}
static inline long sys_mmap(uint64_t addr, uint64_t length, int prot, int flags, int fd, uint64_t offset) {
        return sys_try(FAULT_sys_mmap, SYS_mmap, (long) addr, (long) length, prot, flags, fd, (long) offset);
}
static inline long sys_munmap(uint64_t addr, uint64_t length) {
        return sys_try(FAULT_sys_munmap, SYS_munmap, (long) addr, (long) length, 0, 0, 0, 0);
}
static inline long sys_mprotect(uint64_t addr, uint64_t length, int prot) {
        return sys_try(FAULT_sys_mprotect, SYS_mprotect, (long) addr, (long) length, prot, 0, 0, 0);
}
static inline long sys_mremap(uint64_t from, uint64_t length, uint64_t new_length, int flags, uint64_t to) {
        return sys_try(FAULT_sys_mremap, SYS_mremap, (long) from, (long) length, (long) new_length, flags, (long) to, 0);
}
static inline long sys_madvise(uint64_t addr, uint64_t length, int advice) {
        return sys_try(FAULT_sys_madvise, SYS_madvise, (long) addr, (long) length, advice, 0, 0, 0);
}
/* Memory of ours that was touched: gone. MADV_DONTNEED_LOCKED: also where the program has locked everything (mlockall). */
static inline long sys_drop(uint64_t addr, uint64_t length) {
        return sys_madvise(addr, length, 24);
}
static inline long sys_ioctl_as(enum fault_id id, int fd, unsigned long request, void *arg) {
        return sys_try(id, SYS_ioctl, fd, (long) request, (long) arg, 0, 0, 0);
}
static inline long sys_ioctl(int fd, unsigned long request, void *arg) {
        return sys_ioctl_as(FAULT_sys_ioctl, fd, request, arg);
}
static inline long sys_read(int fd, void *p, size_t n) {
        return sys_try(FAULT_sys_read, SYS_read, fd, (long) p, (long) n, 0, 0, 0);
}
static inline long sys_pread(int fd, void *p, size_t n, uint64_t offset) {
        return sys_try(FAULT_sys_pread, SYS_pread64, fd, (long) p, (long) n, (long) offset, 0, 0);
}
static inline long sys_open(const char *path, int flags) {
        return sys_try(FAULT_sys_open, SYS_openat, -100 /* AT_FDCWD */, (long) path, flags, 0, 0, 0);
}
static inline long sys_close(int fd) {
        return sys_call(SYS_close, fd, 0, 0, 0, 0, 0);
}
static inline long sys_futex_wait(_Atomic uint32_t *word, uint32_t expected, const struct timespec *timeout) {
        return sys_call(SYS_futex, (long) word, 128 /* FUTEX_WAIT_PRIVATE */, expected, (long) timeout, 0, 0);
}
static inline long sys_futex_wake(_Atomic uint32_t *word, int n) {
        return sys_call(SYS_futex, (long) word, 129 /* FUTEX_WAKE_PRIVATE */, n, 0, 0, 0);
}
static inline long sys_yield(void) {
        return sys_call(SYS_sched_yield, 0, 0, 0, 0, 0, 0);
}

/* What TSan's runtime places in the stack of each thread, in a build with it. */
#ifdef __SANITIZE_THREAD__
#define STACK_EXTRA_BYTES (1U << 20)
#else
#define STACK_EXTRA_BYTES 0U
#endif

uint64_t now_usec(void);        /* CLOCK_MONOTONIC */
uint64_t thread_cpu_usec(void); /* CPU time of the calling thread */

/* Memory of the agent: anonymous, zeroed, never merged, inherited by fork. MADV_DONTDUMP keeps it from fusing with the
 * program's mappings. NULL when there is none. Any thread. */
void *own_alloc(size_t length);
void own_free(void *p, size_t length);
void own_forget(void *p); /* what a forked child did not inherit, or must leave where it is */
/* Where so much memory of ours should lie: an address for mmap to prefer, another each time. */
uint64_t own_hint(size_t length);
/* True when the address lies in memory of own_alloc. */
bool own_holds(uint64_t address);
