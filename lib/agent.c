/* The agent thread: its loop, and what a forked child inherits of it. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include "common/fault.h"
#include "lib/agent.h"
#include "lib/agent_loop.h"
#include "lib/agent_start.h"
#include "lib/moved.h"
#include "lib/notes.h"
#include "lib/book.h"
#include "lib/sys.h"

#define POLL_MAX_USEC 1000000U
/* While a fork is under way the agent only answers events; forks are short. */
#define POLL_FORK_USEC 500U
/* Discards to settle, but threads were inside mapping calls. */
#define POLL_HURRY_USEC 500U

static struct agent agent;

/* libc ends a process with its last thread; the agent's keep it alive. Under the shim the last thread sees to that. Here is the net
 * for what it cannot count: the leader has ended (a zombie) and there is nobody else. What atexit would do is lost; the
 * program's descriptors are closed already, and the alternative is a process that never ends. */
static void end_if_alone(struct agent *a, uint64_t now) {
        char text[512];
        struct stat st;
        if (now < a->alone_at_usec)
                return;
        a->alone_at_usec = now + POLL_MAX_USEC;
        if (stat("/proc/self/task", &st) < 0 || st.st_nlink > 2 + 1 + AGENT_THREADS)
                return;
        long n = sys_pread(a->stat_fd, text, sizeof(text) - 1, 0);
        if (n <= 0)
                return;
        text[n] = 0;
        const char *state = strrchr(text, ')');
        if (state && state[1] == ' ' && state[2] == 'Z')
                (void) sys_call(SYS_exit_group, 0, 0, 0, 0, 0, 0);
}

/* Everything that changes the agent's books; not while the program forks, or the child would inherit half a change. */
static void work(struct agent *a) {
        moved_settle(a);
        agent_consume_notes(a);
        if (notes_take_lost())
                a->retrack = true;
        serve_mailbox(a);
        uint64_t now = now_usec();
        bool had_bell = mailbox_bell_fd() >= 0;
        if (a->link_fd >= 0)
                link_readable(a);
        link_step(a, now);
        if (!had_bell && mailbox_bell_fd() >= 0)
                serve_mailbox(a); /* who has posted since the look above had no bell to ring */
        witness_step(a, now);
        a->hurry = a->contexts_open && (!events_settle_discards(a) || a->moved.n);
        if (a->welcomed) {
                discover_step(a, now);
                if (a->retrack) {
                        a->retrack = false;
                        (void) registry_retrack(a);
                }
        }
}

static uint64_t next_usec(const struct agent *a, uint64_t now) {
        uint64_t next = now + POLL_MAX_USEC;
        next = MIN(next, link_next_usec(a));
        next = MIN(next, witness_next_usec(a));
        if (a->merge_any && a->welcomed)
                next = MIN(next, a->discovery.at_usec);
        if (a->hurry)
                next = MIN(next, now + POLL_HURRY_USEC);
        if (mailbox_bell_fd() < 0 && a->link_fd >= 0)
                next = MIN(next, now + MAILBOX_POLL_USEC);
        return next;
}

static void loop(struct agent *a) {
        struct agent_control *c = agent_control();
        bool forking = false;
        for (;;) {
                struct pollfd fds[] = {
                        { .fd = mailbox_bell_fd(), .events = POLLIN },
                        { .fd = a->contexts_open ? a->shared.fd : -1, .events = POLLIN },
                        { .fd = a->contexts_open ? a->guard.fd : -1, .events = POLLIN },
                        { .fd = a->contexts_open ? a->spare.fd : -1, .events = POLLIN },
                        { .fd = forking ? -1 : a->link_fd, .events = POLLIN },
                };
                uint64_t now = now_usec(), next = next_usec(a, now);
                uint64_t wait_usec = forking ? POLL_FORK_USEC : next > now ? next - now : 0;
                const struct timespec ts = { (time_t) (wait_usec / 1000000), (long) (wait_usec % 1000000 * 1000) };
                if (a->contexts_open || a->link_fd >= 0)
                        (void) sys_call(SYS_ppoll, (long) fds, ARRAY_SIZE(fds), (long) &ts, 0, 0, 0);
                else
                        mailbox_sleep(wait_usec);
                agent_drain(a);
                end_if_alone(a, now_usec());
                if (fds[0].revents)
                        mailbox_answer_bell();
                forking = !control_enter(c);
                if (!forking) {
                        work(a);
                        control_leave(c);
                }
                while (a->retired)
                        mailbox_refuse();
        }
}

static int open_self(struct agent *a) {
        const struct {
                int *fd;
                const char *path;
        } files[] = {
                { &a->maps_fd, "/proc/self/maps" },   { &a->smaps_fd, "/proc/self/smaps" },
                { &a->statm_fd, "/proc/self/statm" }, { &a->stat_fd, "/proc/self/stat" }, { &a->pagemap_fd, "/proc/self/pagemap" },
                { &a->mem_fd, "/proc/self/mem" },
        };
        for (unsigned i = 0; i < ARRAY_SIZE(files); i++) {
                long fd = sys_open(files[i].path, O_RDONLY | O_CLOEXEC);
                if (fd < 0)
                        return (int) fd;
                *files[i].fd = (int) fd;
        }
        return 0;
}

static int open_memory(struct agent *a) {
        a->expected = own_alloc(BLOCK_BYTES);
        a->text = own_alloc(TEXT_BUFFER_BYTES);
        a->message = own_alloc(sizeof(*a->message));
        return a->expected && a->text && a->message ? 0 : -ENOMEM;
}

void *agent_main(void *userdata) {
        struct agent *a = &agent;
        struct agent_control *c = agent_control();
        a->flags = c->flags;
        a->merge_any = c->flags & HELLO_MERGE_ANY;
        (void) prctl(PR_SET_NAME, "userksm");
        a->link_fd = a->track.fd = a->shared.fd = a->guard.fd = a->spare.fd = -1;
        /* A table of its own, empty: the program's closefrom cannot reach our fds, its children do not inherit them, and its
         * pipes do not stay open because of us. */
        int r = (int) sys_call(SYS_close_range, 0, ~0U, CLOSE_RANGE_UNSHARE, 0, 0, 0);
        fault_point(FAULT_agent_table);
        if (r == 0)
                r = open_self(a);
        if (r == 0)
                r = open_memory(a);
        if (r == 0)
                r = watch_start(&a->watch);
        if (r < 0) {
                control_set_state(c, AGENT_FAILED);
                return NULL;
        }
        fault_point(FAULT_agent_ready);
        control_set_state(c, AGENT_RUNNING);
        fault_point(FAULT_agent_running);
        loop(a);
        return NULL;
}

/* -- a forked child ------------------------------------------------------------------------------------------------ */

/* DONTFORK memory is not there. */
static void forget_dontfork(struct agent *a) {
        for (uint32_t i = 0; i < a->dontfork.n; i++) {
                struct interval x = a->dontfork.v[i];
                book_forget(x.start, x.end);
                (void) rangeset_remove(&a->ranges, x.start, x.end);
                (void) rangeset_remove(&a->found, x.start, x.end);
                (void) rangeset_remove(&a->excluded, x.start, x.end);
                (void) rangeset_remove(&a->stacks, x.start, x.end);
                (void) rangeset_remove(&a->huge, x.start, x.end);
                (void) rangeset_remove(&a->nohuge, x.start, x.end);
        }
        rangeset_clear(&a->dontfork);
}

void agent_reset_in_child(bool libc_knows) {
        struct agent *a = &agent;
        struct rangeset ranges = a->ranges, found = a->found, excluded = a->excluded, dontfork = a->dontfork;
        struct rangeset stacks = a->stacks, huge = a->huge, nohuge = a->nohuge;
        bool suspended = a->suspended, special_known = a->special_known;
        own_free(a->segments.v, a->segments.capacity * sizeof(*a->segments.v));
        rangeset_clear(&a->released); /* not inherited */
        own_free(a->expected, BLOCK_BYTES);
        own_free(a->text, TEXT_BUFFER_BYTES);
        own_free(a->message, sizeof(*a->message));
        own_forget(a->scratch); /* MADV_DONTFORK */
        if (libc_knows) {
                own_free(a->watch.stack, WATCH_STACK_BYTES);
                own_free(agent_control()->stack, AGENT_STACK_BYTES);
        } else { /* still in libc's list of threads */
                own_forget(a->watch.stack);
                own_forget(agent_control()->stack);
        }
        *a = (struct agent) { .ranges = ranges, .found = found, .excluded = excluded, .dontfork = dontfork,
                              .stacks = stacks, .huge = huge, .nohuge = nohuge,
                              .suspended = suspended, .special_known = special_known };
        agent_control()->stack = NULL;
        mailbox_fork_child();
        /* What the parent's agent had not read: the books are the child's until its own agent runs. */
        notes_fork_child();
        agent_consume_notes(a);
        forget_dontfork(a);
}
