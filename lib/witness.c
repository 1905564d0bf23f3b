#include "lib/witness.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "lib/state.h"
#include "lib/sys.h"

/* Long enough for some hundred transitions under one witness, short enough that what the program writes meanwhile, and pays a copy
 * for, is little. */
#define WITNESS_LIFE_USEC 20000U
/* Making it takes at most this share of the time: the address space is locked meanwhile. */
#define WITNESS_COST_FACTOR 50U
/* After a refusal by the kernel (RLIMIT_NPROC, pids of the cgroup, memory). */
#define WITNESS_RETRY_USEC 1000000U
#define WITNESS_REAP_USEC 1000U

#define PAGEMAP_PRESENT (1ULL << 63)
#define PAGEMAP_EXCLUSIVE (1ULL << 56)

/* -- the process ------------------------------------------------------------------------------------------------- */

/* Runs in the child, which has the agent's stack and little else. All signals are blocked, as in the agent. */
__attribute__((noreturn)) static void witness_main(long parent) {
        (void) sys_call(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0, 0);
        while (sys_call(SYS_getppid, 0, 0, 0, 0, 0, 0) == parent)
                (void) sys_call(SYS_ppoll, 0, 0, 0, 0, 0, 0);
        for (;;)
                (void) sys_call(SYS_exit_group, 0, 0, 0, 0, 0, 0);
}

static int spawn(struct witness *w) {
        const long flags = CLONE_FILES | CLONE_FS | CLONE_UNTRACED | CLONE_PIDFD; /* no exit signal */
        long self = sys_call(SYS_getpid, 0, 0, 0, 0, 0, 0);
        long pid = sys_call(SYS_clone, flags, 0, (long) &w->fd, 0, 0, 0);
        if (pid == 0)
                witness_main(self);
        return pid < 0 ? (int) pid : 0;
}

/* True when it is gone. Somebody else may have reaped it (__WALL): that is all right, too. */
static bool reap(struct witness *w, bool wait) {
        siginfo_t info = { 0 };
        long r;
        do
                r = sys_call(SYS_waitid, P_PIDFD, w->fd, (long) &info, WEXITED | __WCLONE | (wait ? 0 : WNOHANG), 0, 0);
        while (r == -EINTR);
        if (r == 0 && info.si_pid == 0)
                return false; /* on its way */
        sys_close(w->fd);
        w->state = WITNESS_NONE;
        fault_point(FAULT_witness_gone);
        return true;
}

static bool dismiss(struct witness *w, bool wait) {
        if (w->state == WITNESS_ALIVE) {
                (void) sys_call(SYS_pidfd_send_signal, w->fd, SIGKILL, 0, 0, 0, 0);
                w->state = WITNESS_DYING;
        }
        return w->state == WITNESS_NONE || reap(w, wait);
}

void witness_dismiss(struct agent *a) {
        (void) dismiss(&a->witness, true);
}

void witness_step(struct agent *a, uint64_t now) {
        struct witness *w = &a->witness;
        if (w->state == WITNESS_DYING || (w->state == WITNESS_ALIVE && now >= w->until_usec))
                (void) dismiss(w, false);
}

uint64_t witness_next_usec(const struct agent *a) {
        const struct witness *w = &a->witness;
        return w->state == WITNESS_NONE ? UINT64_MAX
               : w->state == WITNESS_ALIVE ? w->until_usec : now_usec() + WITNESS_REAP_USEC;
}

/* -- asking ---------------------------------------------------------------------------------------------------------- */

/* Filters of this thread; it had them when it was made, and gets no more: see agent_retire. */
static bool filtered(struct agent *a) {
        static const char key[] = "\nSeccomp:\t";
        struct witness *w = &a->witness;
        if (w->seccomp != SECCOMP_UNKNOWN)
                return w->seccomp != SECCOMP_NONE;
        w->seccomp = SECCOMP_FILTER;
        int fd = (int) sys_open("/proc/thread-self/status", O_RDONLY | O_CLOEXEC);
        if (fd < 0)
                return true;
        long n = sys_read(fd, a->text, TEXT_BUFFER_BYTES - 1);
        a->text[n > 0 ? n : 0] = 0;
        sys_close(fd);
        const char *found = strstr(a->text, key);
        if (found && found[sizeof(key) - 1] == '0')
                w->seccomp = SECCOMP_NONE;
        return w->seccomp != SECCOMP_NONE;
}

int witness_call(struct agent *a, bool pressing) {
        struct witness *w = &a->witness;
        uint64_t now = now_usec();
        if (w->state == WITNESS_ALIVE && (pressing || now < w->until_usec))
                return 0;
        if (!pressing && now < w->next_usec)
                return -EAGAIN;
        if (filtered(a))
                return -EPERM;
        if (!dismiss(w, pressing))
                return -EAGAIN;
        int r = spawn(w);
        uint64_t made = now_usec();
        if (r < 0) {
                w->next_usec = made + WITNESS_RETRY_USEC;
                return -EAGAIN;
        }
        w->state = WITNESS_ALIVE;
        w->until_usec = made + WITNESS_LIFE_USEC;
        w->next_usec = made + (made - now) * WITNESS_COST_FACTOR;
        fault_point(FAULT_witness_made);
        return 0;
}

uint64_t witness_shared(struct agent *a, uint64_t base, uint64_t mask) {
        uint64_t entries[BLOCK_PAGES], shared = 0;
        if (a->witness.state != WITNESS_ALIVE ||
            sys_pread(a->pagemap_fd, entries, sizeof(entries), base >> KSM_PAGE_SHIFT << 3) != sizeof(entries))
                return 0;
        for (unsigned i = 0; i < BLOCK_PAGES; i++)
                if ((entries[i] & (PAGEMAP_PRESENT | PAGEMAP_EXCLUSIVE)) == PAGEMAP_PRESENT)
                        shared |= 1ULL << i;
        return shared & mask;
}
