/* fork: the child must find whole books and no page in transition, and gets an agent of its own.
 *
 * prepare (in the forking thread): discarded pages get their zeros, then the gate keeps the agent from changing its books, then
 *   the mapping lock keeps transitions away (a fork with a hole open would give the child zeros). The agent goes on
 *   answering events: the forking thread may fault.
 * parent: both are let go.
 * child: only this thread exists. The mappings are there without contexts; merged pages stay, copy-on-write as ever. An agent is
 *   started by the first wrapped call (agent_ensure_after_fork), not here: most children exec at once, and other atfork
 *   handlers (malloc's) have not run yet. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "lib/agent.h"
#include "lib/agent_start.h"
#include "lib/book.h"
#include "lib/fork_log.h"
#include "lib/mailbox.h"
#include "lib/maplock.h"
#include "lib/notes.h"
#include "lib/sys.h"
#include "lib/transition.h"
#include "lib/vma.h"

/* An agent that does not answer this long is broken; the fork goes on. */
#define FORK_ANSWER_USEC 2000000U
/* Then notes may be lost: the agent sees to it (notes.h). */
#define NOTES_ANSWER_USEC 100000U
/* How long a child with inherited merged pages waits for its agent to watch them. A daemon that is there answers in a few
 * milliseconds. Without one discards in the child would not be heard: then it gets plain copies of its merged pages. */
#define CHILD_READY_USEC 100000U

/* A child of a fork that ran no handler (_Fork, raw clone) must not believe that it has an agent. In a vfork child the page
 * is the parent's, and so is the agent. */
int fork_mark_process(struct agent_control *c) {
        int error = fork_log_open(c);
        if (error < 0)
                return error;
        if (!c->alive) {
                c->alive = own_alloc(KSM_PAGE_SIZE);
                if (!c->alive)
                        return -EAGAIN;
                long r = sys_madvise((uint64_t) c->alive, KSM_PAGE_SIZE, MADV_WIPEONFORK);
                if (r < 0)
                        return (int) r;
        }
        atomic_store(c->alive, 1);
        atomic_store(&c->alive[1], 1);
        agent_calm = &c->alive[1];
        return 0;
}

bool fork_same_process(const struct agent_control *c) {
        return !c->alive || atomic_load_explicit(c->alive, memory_order_relaxed);
}

/* prepare ran in this thread: it holds the mapping lock across the fork. */
static __thread bool prepared __attribute__((tls_model("initial-exec")));

static bool had_agent(const struct agent_control *c) {
        return atomic_load(&c->state) == AGENT_RUNNING;
}

void agent_fork_prepare(void) {
        struct agent_control *c = agent_control();
        if (had_agent(c) && book_some_removed()) {
                struct request r = { .kind = REQUEST_FORK };
                (void) mailbox_call(&r, FORK_ANSWER_USEC);
        }
        fault_point(FAULT_fork_settled);
        uint32_t gate = atomic_fetch_add(&c->gate, 1) + 1;
        while (gate & GATE_WORKING) {
                (void) sys_futex_wait(&c->gate, gate, NULL);
                gate = atomic_load(&c->gate);
        }
        fault_point(FAULT_fork_gated);
        map_enter();
        prepared = true;
        fault_point(FAULT_fork_locked);
}

void agent_fork_parent(void) {
        struct agent_control *c = agent_control();
        prepared = false;
        fork_log_wait(c);
        map_leave();
        atomic_fetch_sub(&c->gate, 1);
        fault_point(FAULT_fork_parent);
}

int fork_child_discard(int maps_fd, uint64_t start, uint64_t end) {
        struct vma v;
        for (uint64_t at = start; at < end && vma_query(maps_fd, at, true, &v) == 0 && v.start < end; at = v.end) {
                uint64_t from = MAX(at, v.start), to = MIN(v.end, end);
                if (v.segment) {
                        long r = sys_mmap(from, to - from, vma_prot(&v), MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
                        if (sys_is_error(r))
                                return (int) r;
                }
                book_forget(from, to);
        }
        return 0;
}

/* Discards go on in other threads of the parent until the kernel copies the page tables, so only the copy shows which of them
 * the parent's agent had no chance to answer: the book, together with the log, has them (an event is read before its zap), their
 * entry is empty. */
void fork_child_zeros(void) {
        fork_log_inherit(agent_control());
        if (!book_take_any_removed())
                return;
        int pagemap_fd = (int) sys_open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
        int maps_fd = (int) sys_open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
        struct book_walk w = { .start = 0, .end = UINT64_MAX };
        uint64_t block, mask;
        while (pagemap_fd >= 0 && maps_fd >= 0 && book_walk_next(&w, &block, &mask)) {
                uint64_t base = block << (BLOCK_SHIFT + KSM_PAGE_SHIFT), removed = mask & book_find(block)->removed;
                struct look look;
                if (!removed || look_at(pagemap_fd, base, BLOCK_PAGES, &look) < 0)
                        continue;
                removed &= ~look.present & ~look.swapped;
                for (unsigned i = 0, n; next_run(removed, &i, &n); i += n)
                        (void) fork_child_discard(maps_fd, page_address(base, i), page_address(base, i + n));
        }
        if (pagemap_fd >= 0)
                sys_close(pagemap_fd);
        if (maps_fd >= 0)
                sys_close(maps_fd);
}

static void start_anew(bool libc_knows) {
        struct agent_control *c = agent_control();
        bool had = had_agent(c);
        /* Done already: another handler made a call that needed it. */
        if (c->alive && atomic_load(c->alive))
                return;
        map_lock_fork_child();
        if (prepared)
                map_leave();
        prepared = false;
        atomic_store(&c->gate, 0);
        if (c->alive)
                atomic_store(c->alive, 1);
        if (atomic_load(&c->state) == AGENT_NONE || atomic_load(&c->state) == AGENT_RETIRED) {
                atomic_store(&c->readings, 0);
                c->log = NULL; /* the parent's, and a retired agent makes no system call */
                return;
        }
        fork_child_zeros();
        fault_point(FAULT_child_zeros);
        agent_reset_in_child(libc_knows);
        atomic_store(&c->ready, 0);
        atomic_store(&c->state, AGENT_NONE);
        if (had)
                atomic_store(&c->fork_pending, 1);
        atomic_store(agent_calm, !had);
        fault_point(FAULT_child_reset);
}

void agent_fork_child(void) {
        start_anew(false);
}

static void child_of_libc(void) {
        start_anew(true);
}

void fork_register(void) {
        (void) pthread_atfork(agent_fork_prepare, agent_fork_parent, child_of_libc);
}

bool control_enter(struct agent_control *c) {
        uint32_t expected = 0;
        return atomic_compare_exchange_strong(&c->gate, &expected, GATE_WORKING);
}

void control_leave(struct agent_control *c) {
        if (atomic_fetch_and(&c->gate, ~GATE_WORKING) != GATE_WORKING)
                (void) sys_futex_wake(&c->gate, INT32_MAX);
}

bool agent_has_contexts(void) {
        return atomic_load(&agent_control()->ready);
}

void control_ready(struct agent_control *c) {
        atomic_store(&c->ready, 1);
        (void) sys_futex_wake(&c->ready, INT32_MAX);
}

static _Atomic uint32_t calm_before_any_agent = 1;
_Atomic uint32_t *agent_calm = &calm_before_any_agent;

void agent_attend(void) {
        struct agent_control *c = agent_control();
        if (!fork_same_process(c))
                agent_fork_child();
        if (notes_crowded() && agent_running()) {
                if (map_inside())
                        return;
                struct request r = { .kind = REQUEST_NOTES };
                (void) mailbox_call(&r, NOTES_ANSWER_USEC);
        }
        atomic_store(agent_calm, 1);
        if (!atomic_exchange(&c->fork_pending, 0))
                return;
        int saved = errno;
        int r = agent_start(c->path, c->flags);
        fault_point(FAULT_child_started);
        if (r == 0 && book_any_merged(0, UINT64_MAX)) {
                uint64_t deadline = now_usec() + CHILD_READY_USEC;
                while (!atomic_load(&c->ready) && now_usec() < deadline) {
                        const struct timespec ts = { .tv_nsec = 1000000 };
                        (void) sys_futex_wait(&c->ready, 0, &ts);
                }
                if (!atomic_load(&c->ready)) {
                        struct request unshare = { .kind = REQUEST_UNSHARE };
                        (void) mailbox_call(&unshare, 0);
                }
        }
        fault_point(FAULT_child_watched);
        errno = saved;
}
