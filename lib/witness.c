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
#include "lib/agent_start.h"
#include "lib/state.h"
#include "lib/sys.h"
#include "lib/vma.h"

/* After the last question. What the program writes meanwhile it pays a copy for. */
#define WITNESS_IDLE_USEC 20000U
/* A process of many mappings pays tens of milliseconds for it, and may have thousands of blocks to ask about: it lives in proportion, but
 * less long than what is new takes to settle. */
#define WITNESS_LIFE_FACTOR 10U
#define WITNESS_LIFE_MAX_USEC 500000U
/* Making it takes at most this share of the time: the address space is locked meanwhile. */
#define WITNESS_COST_FACTOR 50U
/* After a refusal by the kernel (RLIMIT_NPROC, pids of the cgroup, memory). */
#define WITNESS_RETRY_USEC 1000000U
#define WITNESS_REAP_USEC 1000U
/* Memory that is not registered is forked with the rest: 256 MiB of page tables take a millisecond or two. */
#define WITNESS_OTHERS_PAGES 65536U
#define UNDO_TRIES 100000U

#define PAGEMAP_PRESENT (1ULL << 63)
#define PAGEMAP_EXCLUSIVE (1ULL << 56)

/* -- what it need not see -------------------------------------------------------------------------------------------- */

/* Plain memory is what UFFDIO_MOVE certifies: shared with a witness it could not be moved, would have to be copied when it is
 * written, and would make the fork long. So it is DONTFORK for as long as the fork takes. Not where the program's own DONTFORK
 * memory is next to it: the two would fuse, and taking them apart again may fail. Runs that the program marked so (QEMU's guest
 * memory) are the other way round. */
static void keep_out(struct agent *a, uint64_t start, uint64_t end) {
        if (rangeset_overlaps(&a->dontfork, start - 1, end + 1) || rangeset_add(&a->witness.kept_out, start, end) < 0)
                return;
        (void) sys_madvise(start, end - start, MADV_DONTFORK);
}

/* Only those pages: with DOFORK they fuse with their neighbours, and the next mapping seen may be all of them together. */
static void let_in(struct agent *a, uint64_t start, uint64_t end) {
        const struct interval *x = rangeset_from(&a->dontfork, start);
        for (; x && x < a->dontfork.v + a->dontfork.n && x->start < end; x++) {
                uint64_t from = MAX(x->start, start), to = MIN(x->end, end);
                if (rangeset_add(&a->witness.let_in, from, to) == 0)
                        (void) sys_madvise(from, to - from, MADV_DOFORK);
        }
}

/* Returns how many pages at most the fork copies although nobody wants them: memory that is not registered. */
static uint64_t prepare(struct agent *a) {
        struct vma v;
        uint64_t others = 0, start = 0, end = 0; /* of plain registered memory without a gap */
        for (uint64_t at = 0; vma_query(a->maps_fd, at, true, &v) == 0; at = v.end) {
                bool plain = vma_is_candidate(&v) && rangeset_contains(&a->ranges, v.start, v.end);
                if (end && (!plain || v.start != end)) {
                        keep_out(a, start, end);
                        end = 0;
                }
                if (plain) {
                        start = end ? start : v.start;
                        end = v.end;
                } else if (v.segment)
                        let_in(a, v.start, v.end);
                else if (vma_prot(&v) & PROT_WRITE && !(v.flags & PROCMAP_QUERY_VMA_SHARED))
                        others += (v.end - v.start) >> KSM_PAGE_SHIFT;
        }
        if (end)
                keep_out(a, start, end);
        return others;
}

static bool fork_again(struct agent *a, uint64_t start, uint64_t end) {
        struct vma v;
        bool all = true;
        if (sys_madvise(start, end - start, MADV_DOFORK) == 0)
                return true;
        /* Unmapped in part by a program that does so without libc: one by one. */
        for (uint64_t at = start; at < end && vma_query(a->maps_fd, at, true, &v) == 0 && v.start < end; at = v.end)
                if (vma_is_candidate(&v))
                        all &= sys_madvise(MAX(v.start, start), MIN(v.end, end) - MAX(v.start, start), MADV_DOFORK) == 0;
        return all;
}

/* Whole mappings are changed back, so nothing is split and no memory needed; but the program's next fork depends on it. */
static void undo(struct agent *a) {
        struct witness *w = &a->witness;
        for (uint32_t i = 0; i < w->kept_out.n; i++)
                for (unsigned tries = 0; !fork_again(a, w->kept_out.v[i].start, w->kept_out.v[i].end); tries++) {
                        if (tries > UNDO_TRIES)
                                __builtin_trap(); /* a forked child would miss memory: would corrupt */
                        sys_yield();
                }
        for (uint32_t i = 0; i < w->let_in.n; i++)
                (void) sys_madvise(w->let_in.v[i].start, w->let_in.v[i].end - w->let_in.v[i].start, MADV_DONTFORK);
        rangeset_clear(&w->kept_out);
        rangeset_clear(&w->let_in);
}

static uint64_t private_rss_pages(struct agent *a) {
        char text[128] = "";
        uint64_t field[3] = { 0 };
        if (sys_pread(a->statm_fd, text, sizeof(text) - 1, 0) <= 0)
                return UINT64_MAX;
        const char *p = text;
        for (unsigned i = 0; i < ARRAY_SIZE(field); i++, p += *p == ' ')
                while (*p >= '0' && *p <= '9')
                        field[i] = field[i] * 10 + (uint64_t) (*p++ - '0');
        return field[1] - MIN(field[1], field[2]);
}

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

static bool has_no_filter(struct agent *a, const char *status_path) {
        static const char key[] = "\nSeccomp:\t";
        int fd = (int) sys_open(status_path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
                return false;
        long n = sys_read(fd, a->text, TEXT_BUFFER_BYTES - 1);
        a->text[n > 0 ? n : 0] = 0;
        sys_close(fd);
        const char *found = strstr(a->text, key);
        return found && found[sizeof(key) - 1] == '0';
}

/* A thread has the filters of the one that made it, its own, and those that are put on all threads. So a leader without any, if it made
 * us, says that we have none. A thread's own directory in /proc is better not looked at: docs/kernel.md, "Not tested here". */
bool witness_filtered(struct agent *a) {
        struct witness *w = &a->witness;
        if (w->seccomp == SECCOMP_UNKNOWN) {
                bool none = (agent_control()->made_by_leader && has_no_filter(a, "/proc/self/status")) ||
                            has_no_filter(a, "/proc/thread-self/status");
                w->seccomp = none ? SECCOMP_NONE : SECCOMP_FILTER;
        }
        return w->seccomp != SECCOMP_NONE;
}

int witness_call(struct agent *a, bool pressing) {
        struct witness *w = &a->witness;
        uint64_t now = now_usec();
        if (w->state == WITNESS_ALIVE && (pressing || now < w->until_usec)) {
                w->until_usec = MIN(now + WITNESS_IDLE_USEC, w->end_usec);
                return 0;
        }
        if (!pressing && now < w->next_usec)
                return -EAGAIN;
        if (witness_filtered(a))
                return -EPERM;
        if (!dismiss(w, pressing))
                return -EAGAIN;
        uint64_t others = prepare(a);
        int r = pressing || MIN(others, private_rss_pages(a)) <= WITNESS_OTHERS_PAGES ? spawn(w) : -E2BIG;
        undo(a);
        uint64_t made = now_usec();
        if (r < 0) {
                w->next_usec = made + WITNESS_RETRY_USEC;
                return -EAGAIN;
        }
        w->state = WITNESS_ALIVE;
        w->until_usec = made + WITNESS_IDLE_USEC;
        w->end_usec = made + MIN((made - now) * WITNESS_LIFE_FACTOR + WITNESS_IDLE_USEC, WITNESS_LIFE_MAX_USEC);
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
