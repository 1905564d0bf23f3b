/* Calls with many meanings, of which a few concern mappings: syscall, ioctl, prctl. All else goes straight through. */
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <linux/seccomp.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/uapi.h"
#include "lib/preload/preload.h"
#include "lib/sys.h"

#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif
#ifndef SYS_mseal
#define SYS_mseal 462
#endif
#ifndef SYS_set_mempolicy_home_node
#define SYS_set_mempolicy_home_node 450
#endif

/* -- ioctl ---------------------------------------------------------------------------------------------------- */

/* The program registers memory with a userfaultfd of its own: ours must let go first. The argument is read by the kernel, so
 * that a bad pointer stays the EFAULT that it is. */
static void release_for_userfaultfd(unsigned long arg) {
        struct uffdio_register reg;
        struct iovec local = { &reg, sizeof(reg) }, remote = { (void *) arg, sizeof(reg) };
        if (sys_call(SYS_process_vm_readv, getpid(), (long) &local, 1, (long) &remote, 1, 0) != (long) sizeof(reg))
                return;
        if (range_is_valid(reg.range.start, reg.range.len))
                (void) REQUEST(agent_release(reg.range.start, reg.range.len));
}

SHIM_EXPORT int ioctl(int fd, unsigned long request, ...) {
        va_list ap;
        va_start(ap, request);
        unsigned long arg = va_arg(ap, unsigned long);
        va_end(ap);
        if (__builtin_expect(request == UFFDIO_REGISTER, 0) && agent_running())
                release_for_userfaultfd(arg);
        return REAL(ioctl)(fd, request, arg);
}

/* -- prctl ---------------------------------------------------------------------------------------------------- */

static int fail(int error) {
        errno = error;
        return -1;
}

/* Inherited over exec by the kernel's flag; here by the environment. */
static int set_memory_merge(const unsigned long arg[4]) {
        if (arg[1] || arg[2] || arg[3])
                return fail(EINVAL);
        if (arg[0]) {
                int r = shim_start_agent(true);
                if (r < 0)
                        return fail(ENOMEM);
                return setenv("USERKSM_MERGE_ANY", "1", 1);
        }
        if (agent_running()) {
                int r = REQUEST(agent_merge_any_stop());
                if (r < 0)
                        return fail(-r);
        }
        return unsetenv("USERKSM_MERGE_ANY");
}

static int get_memory_merge(const unsigned long arg[4]) {
        if (arg[0] || arg[1] || arg[2] || arg[3])
                return fail(EINVAL);
        return agent_merge_any();
}

SHIM_EXPORT int prctl(int option, ...) {
        unsigned long arg[4];
        va_list ap;
        va_start(ap, option);
        for (unsigned i = 0; i < ARRAY_SIZE(arg); i++)
                arg[i] = va_arg(ap, unsigned long);
        va_end(ap);
        if (option == PR_SET_MEMORY_MERGE && shim_enabled())
                return set_memory_merge(arg);
        if (option == PR_GET_MEMORY_MERGE && shim_enabled())
                return get_memory_merge(arg);
        if (option != PR_SET_VMA || arg[0] != PR_SET_VMA_ANON_NAME)
                return REAL(prctl)(option, arg[0], arg[1], arg[2], arg[3]);
        /* Only anonymous memory can be named. */
        struct span span = span_touched((const void *) arg[1], arg[2]);
        (void) enter_restored(span.start, span.end);
        int r = REAL(prctl)(option, arg[0], arg[1], arg[2], arg[3]);
        leave();
        return r;
}

/* -- syscall ---------------------------------------------------------------------------------------------------- */

static long brk_by_number(unsigned long addr) {
        enter();
        long old = sys_call(SYS_brk, 0, 0, 0, 0, 0, 0);
        long now = REAL(syscall)(SYS_brk, addr);
        if ((uint64_t) now < (uint64_t) old)
                note_unmapped(page_ceil((uint64_t) now), page_ceil((uint64_t) old));
        leave();
        return now;
}

/* A memory policy, a seal: attributes of the mapping that a later replacement would lose, or that forbid it. */
static long excluded_by_number(long nr, const unsigned long a[6]) {
        struct span span = span_touched((const void *) a[0], a[1]);
        if (span.end > span.start && agent_running())
                (void) REQUEST(agent_exclude(span.start, span.end - span.start));
        enter();
        long r = REAL(syscall)(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
        leave();
        return r;
}

/* A filter for all threads is one for the agent's, too, and it was not written for userfaultfds. When the agent cannot retire, the
 * call is refused: the filter could otherwise end the program for what the agent does. */
static long seccomp_by_number(const unsigned long a[6]) {
        if (a[0] == SECCOMP_SET_MODE_FILTER && a[1] & SECCOMP_FILTER_FLAG_TSYNC && agent_running()) {
                int r = REQUEST(agent_retire());
                if (r < 0) {
                        errno = EAGAIN;
                        return -1;
                }
        }
        return REAL(syscall)(SYS_seccomp, a[0], a[1], a[2], a[3], a[4], a[5]);
}

#ifdef SYS_fork
#define FORK_NUMBERS(X)                             \
        X(SYS_fork, fork_by_number(SYS_fork, a))    \
        X(SYS_clone, fork_by_number(SYS_clone, a))  \
        X(SYS_clone3, fork_by_number(SYS_clone3, a))
#else /* aarch64 has no fork; its syscall() is a C function, which clone by number does not go through (below) */
#define FORK_NUMBERS(X)
#endif

/* Every number that goes to a wrapper. */
#define ROUTED_NUMBERS(X)                                                                                             \
        X(SYS_mmap, (long) mmap((void *) a[0], a[1], (int) a[2], (int) a[3], (int) a[4], (off_t) a[5]))               \
        X(SYS_munmap, munmap((void *) a[0], a[1]))                                                                    \
        X(SYS_mremap, (long) mremap((void *) a[0], a[1], a[2], (int) a[3], (void *) a[4]))                            \
        X(SYS_mprotect, mprotect((void *) a[0], a[1], (int) a[2]))                                                    \
        X(SYS_pkey_mprotect, pkey_mprotect((void *) a[0], a[1], (int) a[2], (int) a[3]))                              \
        X(SYS_madvise, madvise((void *) a[0], a[1], (int) a[2]))                                                      \
        X(SYS_process_madvise, process_madvise((int) a[0], (const struct iovec *) a[1], a[2], (int) a[3], (unsigned) a[4])) \
        X(SYS_mlock, mlock((void *) a[0], a[1]))                                                                      \
        X(SYS_mlock2, mlock2((void *) a[0], a[1], (unsigned) a[2]))                                                   \
        X(SYS_munlock, munlock((void *) a[0], a[1]))                                                                  \
        X(SYS_mlockall, mlockall((int) a[0]))                                                                         \
        X(SYS_munlockall, munlockall())                                                                               \
        X(SYS_brk, brk_by_number(a[0]))                                                                               \
        X(SYS_shmat, (long) shmat((int) a[0], (const void *) a[1], (int) a[2]))                                       \
        X(SYS_ioctl, ioctl((int) a[0], a[1], a[2]))                                                                   \
        X(SYS_prctl, prctl((int) a[0], a[1], a[2], a[3], a[4]))                                                       \
        X(SYS_seccomp, seccomp_by_number(a))                                                                          \
        X(SYS_mbind, excluded_by_number(SYS_mbind, a))                                                                \
        X(SYS_set_mempolicy_home_node, excluded_by_number(SYS_set_mempolicy_home_node, a))                            \
        X(SYS_mseal, excluded_by_number(SYS_mseal, a))                                                                \
        FORK_NUMBERS(X)

/* -- routing --------------------------------------------------------------------------------------------------- */

#define ROUTED_LIMIT 512

/* One byte a number, enum route; filled at the constructor (before it there is no agent to keep away). */
enum route {
        ROUTE_NOT = 0,
        ROUTE_ALWAYS = 1,
        ROUTE_CLONE = 2,  /* only without CLONE_VM and without a stack: as fork */
        ROUTE_CLONE3 = 3, /* the same, in struct clone_args */
};
extern uint8_t shim_syscall_is_routed[ROUTED_LIMIT];
extern void *shim_syscall_real;
uint8_t shim_syscall_is_routed[ROUTED_LIMIT];
void *shim_syscall_real;

long shim_syscall_routed(long nr, unsigned long a0, unsigned long a1, unsigned long a2, unsigned long a3,
                         unsigned long a4, unsigned long a5);

__attribute__((used)) long shim_syscall_routed(long nr, unsigned long a0, unsigned long a1, unsigned long a2,
                                               unsigned long a3, unsigned long a4, unsigned long a5) {
        const unsigned long a[6] = { a0, a1, a2, a3, a4, a5 };
        switch (nr) {
#define X(number, call) \
        case number:    \
                return call;
                ROUTED_NUMBERS(X)
#undef X
        default:
                return REAL(syscall)(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
        }
}

void syscall_route_init(void) {
#define X(number, call)                                                                  \
        _Static_assert((number) < ROUTED_LIMIT, "a system call number beyond the table"); \
        shim_syscall_is_routed[number] = ROUTE_ALWAYS;
        ROUTED_NUMBERS(X)
#undef X
#ifdef SYS_fork
        shim_syscall_is_routed[SYS_clone] = ROUTE_CLONE;
        shim_syscall_is_routed[SYS_clone3] = ROUTE_CLONE3;
#endif
        shim_syscall_real = real_get(REAL_ID_syscall);
}

#if defined(__x86_64__)
/* long syscall(long nr, ...). Passing on is a tail jump: clone by number comes back on another stack and vfork comes back
 * twice on the same, which a C frame in between would not survive. */
__asm__(".text\n"
        ".globl syscall\n"
        ".type syscall, @function\n"
        ".p2align 4\n"
        "syscall:\n"
        "       .cfi_startproc\n"
        "       endbr64\n"
        "       cmpq    $512, %rdi\n"
        "       jae     1f\n"
        "       leaq    shim_syscall_is_routed(%rip), %r11\n"
        "       movzbl  (%r11, %rdi), %r11d\n"
        "       testl   %r11d, %r11d\n"
        "       je      1f\n"
        "       cmpl    $2, %r11d\n"
        "       jb      shim_syscall_routed\n"
        "       je      2f\n"
        "       testq   %rsi, %rsi\n" /* clone3(args): flags at 0, stack at 40 */
        "       je      1f\n"
        "       testl   $0x100, (%rsi)\n" /* CLONE_VM */
        "       jne     1f\n"
        "       cmpq    $0, 40(%rsi)\n"
        "       je      shim_syscall_routed\n"
        "       jmp     1f\n"
        "2:     testl   $0x100, %esi\n" /* clone(flags, stack) */
        "       jne     1f\n"
        "       testq   %rdx, %rdx\n"
        "       je      shim_syscall_routed\n"
        "1:     movq    shim_syscall_real(%rip), %r11\n"
        "       testq   %r11, %r11\n"
        "       je      shim_syscall_routed\n"
        "       jmp     *%r11\n"
        "       .cfi_endproc\n"
        ".size syscall, . - syscall\n");
_Static_assert(ROUTE_ALWAYS == 1 && ROUTE_CLONE == 2 && ROUTED_LIMIT == 512, "numbers of the code above");
#else
SHIM_EXPORT long syscall(long nr, ...) {
        unsigned long a[6];
        va_list ap;
        va_start(ap, nr);
        for (unsigned i = 0; i < ARRAY_SIZE(a); i++)
                a[i] = va_arg(ap, unsigned long);
        va_end(ap);
        return shim_syscall_routed(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
}
#endif
