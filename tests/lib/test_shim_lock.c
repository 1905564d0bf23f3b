/* Every system call that changes mappings is made inside the mapping lock, whichever call of libc it comes from: a filter sends
 * each of them to a handler, which looks at the thread's own word of the lock and then makes the call. */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>

#include "lib/maplock.h"

#if defined(__x86_64__)

#define PAGE 4096UL
#define BIG (256 * PAGE)

/* The one place from which the filter lets them through. */
extern const char passed_on[];
long pass_on(long nr, const long long *args);
__asm__(".text\n"
        ".globl pass_on\n"
        ".type pass_on, @function\n"
        "pass_on:\n"
        "       movq    %rdi, %rax\n"
        "       movq    %rsi, %r11\n"
        "       movq    0(%r11), %rdi\n"
        "       movq    8(%r11), %rsi\n"
        "       movq    16(%r11), %rdx\n"
        "       movq    24(%r11), %r10\n"
        "       movq    32(%r11), %r8\n"
        "       movq    40(%r11), %r9\n"
        "       syscall\n"
        ".globl passed_on\n"
        "passed_on:\n"
        "       ret\n"
        ".size pass_on, . - pass_on\n");

static const int numbers[] = { SYS_mmap, SYS_munmap, SYS_mremap, SYS_mprotect, SYS_madvise, SYS_brk, SYS_process_madvise, SYS_mlock,
                               SYS_mlock2, SYS_munlock, SYS_mlockall, SYS_munlockall, SYS_shmat, SYS_pkey_mprotect };
static const char *volatile doing;
static volatile unsigned calls, all_calls, outside; /* the handler changes them inside of "leaf" functions */

static void on_call(int signal_number, siginfo_t *info, void *context) {
        ucontext_t *c = context;
        const greg_t *g = c->uc_mcontext.gregs;
        const long long args[6] = { g[REG_RDI], g[REG_RSI], g[REG_RDX], g[REG_R10], g[REG_R8], g[REG_R9] };
        calls++;
        if (!map_inside()) {
                char text[128];
                int n = snprintf(text, sizeof(text), "%s: system call %d outside of the lock\n", doing, info->si_syscall);
                (void) !write(2, text, (size_t) n);
                outside++;
        }
        c->uc_mcontext.gregs[REG_RAX] = pass_on(info->si_syscall, args);
}

static int trap_calls(void) {
        enum { N = sizeof(numbers) / sizeof(*numbers) };
        const uintptr_t here = (uintptr_t) passed_on;
        struct sock_filter code[N + 8];
        unsigned n = 0;
        code[n++] = (struct sock_filter) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
        for (unsigned i = 0; i < N; i++)
                code[n++] = (struct sock_filter) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned) numbers[i], (uint8_t) (N - i), 0);
        code[n++] = (struct sock_filter) BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
        code[n++] = (struct sock_filter) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer));
        code[n++] = (struct sock_filter) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t) here, 0, 3);
        code[n++] = (struct sock_filter) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer) + 4);
        code[n++] = (struct sock_filter) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t) (here >> 32), 0, 1);
        code[n++] = (struct sock_filter) BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
        code[n++] = (struct sock_filter) BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP);
        const struct sock_fprog program = { (unsigned short) n, code };
        const struct sigaction on = { .sa_sigaction = on_call, .sa_flags = SA_SIGINFO | SA_NODEFER };
        if (sigaction(SIGSYS, &on, NULL) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
                return -errno;
        return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0 ? -errno : 0;
}

/* Some of them come to the kernel at all. */
#define DO(...)                                                                        \
        do {                                                                           \
                doing = #__VA_ARGS__;                                                  \
                calls = 0;                                                             \
                __VA_ARGS__;                                                           \
                all_calls += calls;                                                    \
                if (calls == 0) {                                                      \
                        fprintf(stderr, "%s: no system call\n", doing);                \
                        outside++;                                                     \
                }                                                                      \
        } while (0)

static void mappings(void) {
        const int both = PROT_READ | PROT_WRITE, anonymous = MAP_PRIVATE | MAP_ANONYMOUS;
        char *p = NULL, *q = NULL;
        DO(p = mmap(NULL, BIG, both, anonymous, -1, 0));
        DO(q = mmap64(NULL, BIG, both, anonymous, -1, 0));
        DO((void) mmap(q, BIG, both, anonymous | MAP_FIXED, -1, 0));
        DO((void) mprotect(p, PAGE, PROT_READ));
        DO((void) pkey_mprotect(p, PAGE, both, -1));
        DO((void) madvise(p, BIG, MADV_DONTNEED));
        DO((void) madvise(p, BIG, MADV_FREE));
        DO((void) madvise(p, BIG, MADV_DONTFORK));
        DO((void) madvise(p, BIG, MADV_DONTDUMP));
        DO((void) madvise(p, BIG, MADV_WILLNEED));
        DO((void) posix_madvise(p, BIG, POSIX_MADV_WILLNEED));
        const struct iovec v = { p, PAGE };
        DO((void) process_madvise(-1, &v, 1, MADV_COLD, 0));
        DO((void) mlock(p, PAGE));
        DO((void) mlock2(p, PAGE, 0));
        DO((void) munlock(p, PAGE));
        DO((void) mlockall(MCL_CURRENT | MCL_ONFAULT));
        DO((void) munlockall());
        DO((void) mremap(p, BIG, BIG / 2, 0));
        DO(p = mremap(p, BIG / 2, 2 * BIG, MREMAP_MAYMOVE));
        DO((void) mremap(p, BIG, BIG, MREMAP_MAYMOVE | MREMAP_FIXED, q));
        DO((void) munmap(p, 2 * BIG));
        DO((void) syscall(SYS_munmap, q, BIG));
        int id = shmget(IPC_PRIVATE, BIG, 0600);
        DO(p = shmat(id, NULL, 0));
        (void) shmctl(id, IPC_RMID, NULL);
        (void) shmdt(p);
        DO(p = sbrk((intptr_t) BIG));
        DO((void) sbrk(-(intptr_t) BIG));
        DO((void) brk(p));
}

/* What libc does inside of its allocator. */
static void heap(void) {
        static char *p[16];
        (void) mallopt(M_MMAP_THRESHOLD, (int) BIG / 2);
        (void) mallopt(M_TRIM_THRESHOLD, (int) PAGE);
        (void) mallopt(M_TOP_PAD, 0);
        DO(p[0] = malloc(BIG));
        DO(p[0] = realloc(p[0], 8 * BIG));
        DO(free(p[0]));
        DO(p[0] = calloc(1, BIG));
        DO(free(p[0]));
        DO(p[0] = memalign(16 * PAGE, BIG));
        DO(free(p[0]));
        DO(p[0] = aligned_alloc(16 * PAGE, BIG));
        DO(free(p[0]));
        DO((void) !posix_memalign((void **) &p[0], 16 * PAGE, BIG));
        DO(free(p[0]));
        DO(p[0] = valloc(BIG));
        DO(free(p[0]));
        DO(p[0] = reallocarray(NULL, BIG, 2));
        DO(free(p[0]));
        (void) mallopt(M_TRIM_THRESHOLD, 1 << 30);
        for (unsigned i = 0; i < 16; i++) {
                p[i] = malloc(BIG / 4);
                memset(p[i], 1, BIG / 4);
        }
        for (unsigned i = 0; i < 16; i += 2) /* holes between what stays */
                free(p[i]);
        DO((void) malloc_trim(0));
}

int main(void) {
        doing = "at first";
        int r = trap_calls();
        if (r < 0) {
                printf("SKIP: no system call filter: %s\n", strerror(-r));
                return 77;
        }
        mappings();
        heap();
        doing = "at the end";
        printf("%u system calls that change mappings, %u wrong\n", all_calls, outside);
        return outside ? 1 : 0;
}

#else

int main(void) {
        printf("SKIP: the handler is written for x86-64\n");
        return 77;
}

#endif
