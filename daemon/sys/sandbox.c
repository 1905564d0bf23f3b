#include "daemon/sys/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <seccomp.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "common/cleanup.h"
#include "common/uapi.h"

/* Without conditions. What the loop, the pool, malloc, stdio and getrandom need; names rather than numbers, so that
 * a libc that uses the newer variant of a call still works. */
static const int allowed[] = {
        /* loop and threads */
        SCMP_SYS(epoll_create1), SCMP_SYS(epoll_ctl), SCMP_SYS(epoll_pwait), SCMP_SYS(epoll_wait), SCMP_SYS(eventfd2),
        SCMP_SYS(poll), SCMP_SYS(ppoll), SCMP_SYS(futex), SCMP_SYS(clone), SCMP_SYS(clone3), SCMP_SYS(set_robust_list),
        SCMP_SYS(rseq), SCMP_SYS(exit), SCMP_SYS(exit_group), SCMP_SYS(sched_yield), SCMP_SYS(membarrier),
        SCMP_SYS(sched_getaffinity), SCMP_SYS(set_tid_address), SCMP_SYS(pipe2), SCMP_SYS(clock_gettime),
        SCMP_SYS(clock_nanosleep), SCMP_SYS(nanosleep), SCMP_SYS(gettimeofday), SCMP_SYS(restart_syscall),
        SCMP_SYS(getpid), SCMP_SYS(gettid), SCMP_SYS(getuid), SCMP_SYS(geteuid), SCMP_SYS(getgid),
        SCMP_SYS(getegid), SCMP_SYS(getrandom),
        SCMP_SYS(getrusage), SCMP_SYS(uname),
        /* signals */
        SCMP_SYS(rt_sigaction), SCMP_SYS(rt_sigprocmask), SCMP_SYS(rt_sigreturn), SCMP_SYS(sigaltstack),
        SCMP_SYS(tgkill),
        /* memory */
        SCMP_SYS(brk), SCMP_SYS(munmap), SCMP_SYS(mremap), SCMP_SYS(madvise), SCMP_SYS(memfd_create),
        SCMP_SYS(ftruncate), SCMP_SYS(fchmod), SCMP_SYS(process_vm_readv),
        /* files and sockets already open */
        SCMP_SYS(read), SCMP_SYS(readv), SCMP_SYS(pread64), SCMP_SYS(preadv), SCMP_SYS(write), SCMP_SYS(writev), SCMP_SYS(pwrite64),
        SCMP_SYS(close), SCMP_SYS(lseek), SCMP_SYS(dup), SCMP_SYS(accept4), SCMP_SYS(sendmsg), SCMP_SYS(sendto),
        SCMP_SYS(recvmsg), SCMP_SYS(recvfrom), SCMP_SYS(shutdown), SCMP_SYS(getsockopt), SCMP_SYS(setsockopt), SCMP_SYS(getsockname),
        SCMP_SYS(fstat), SCMP_SYS(newfstatat), SCMP_SYS(statx), SCMP_SYS(stat), SCMP_SYS(lstat), SCMP_SYS(fstatfs),
        SCMP_SYS(readlink), SCMP_SYS(readlinkat), SCMP_SYS(unlink), SCMP_SYS(unlinkat), SCMP_SYS(access),
        SCMP_SYS(faccessat2),
};

/* fcntl commands: status flags, duplication, seals. */
static const int allowed_fcntl[] = { F_GETFL, F_SETFL, F_GETFD, F_SETFD, F_DUPFD_CLOEXEC, F_ADD_SEALS, F_GET_SEALS };
/* Socket kinds: the notification socket of the service manager. */
static const int allowed_ioctl_low[] = { FIONBIO, FIONREAD, FIOCLEX, TCGETS };
/* What finds pages, and what fills segments. Faults are never answered. */
static const scmp_datum_t allowed_ioctl[] = { PAGEMAP_SCAN, UFFDIO_REGISTER, UFFDIO_COPY };

static int add_conditional(scmp_filter_ctx ctx) {
        int r = 0;
        for (size_t i = 0; i < ARRAY_SIZE(allowed_fcntl) && r == 0; i++)
                r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(fcntl), 1,
                                     SCMP_A1(SCMP_CMP_EQ, (scmp_datum_t) allowed_fcntl[i]));
        for (size_t i = 0; i < ARRAY_SIZE(allowed_ioctl_low) && r == 0; i++)
                r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1,
                                     SCMP_A1(SCMP_CMP_EQ, (scmp_datum_t) allowed_ioctl_low[i]));
        for (size_t i = 0; i < ARRAY_SIZE(allowed_ioctl) && r == 0; i++)
                r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1, SCMP_A1(SCMP_CMP_EQ, allowed_ioctl[i]));
        /* Files are only ever opened for reading, and nothing is mapped executable. */
        if (r == 0)
                r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(openat), 1,
                                     SCMP_A2(SCMP_CMP_MASKED_EQ, O_ACCMODE | O_CREAT | O_TRUNC, O_RDONLY));
        if (r == 0)
                r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(open), 1,
                                     SCMP_A1(SCMP_CMP_MASKED_EQ, O_ACCMODE | O_CREAT | O_TRUNC, O_RDONLY));
        if (r == 0)
                r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1, SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
        if (r == 0)
                r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1,
                                     SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
        /* Pages are asked for their node, never moved to one (no list of nodes); and memory of ours may prefer a node: no other policy, and
         * nothing that is there already is moved. */
        if (r == 0)
                r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(move_pages), 1, SCMP_A3(SCMP_CMP_EQ, 0));
        if (r == 0)
                r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(mbind), 2, SCMP_A2(SCMP_CMP_EQ, MPOL_PREFERRED),
                                     SCMP_A5(SCMP_CMP_EQ, 0));
        /* sd_notify sends one datagram from a socket made for it; a Unix socket probe needs the same. */
        if (r == 0)
                r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(socket), 1, SCMP_A0(SCMP_CMP_EQ, 1 /* AF_UNIX */));
        if (r == 0)
                r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(connect), 0);
        /* glibc names its thread stacks; PR_SET_VMA is all of prctl that is left. */
        if (r == 0)
                r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(prctl), 1,
                                     SCMP_A0(SCMP_CMP_EQ, 0x53564d41 /* PR_SET_VMA */));
        return r;
}

int sandbox_enter(void) {
        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
                return -errno;
        scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_KILL_PROCESS);
        if (!ctx) /* no memory, or the system call seccomp itself is denied: libseccomp asks it which actions there are */
                return -EPERM;
        int r = 0;
        for (size_t i = 0; i < ARRAY_SIZE(allowed) && r == 0; i++)
                r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, allowed[i], 0);
        if (r == 0)
                r = add_conditional(ctx);
        if (r == 0)
                r = seccomp_load(ctx);
        seccomp_release(ctx);
        return r;
}
