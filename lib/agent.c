/* The agent thread: its start, its loop, its end in a forked child. The calls of program threads are in agent_calls.c. */
#include "lib/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#include "lib/agent_loop.h"
#include "lib/agent_start.h"
#include "lib/book.h"
#include "lib/maplock.h"
#include "lib/notes.h"
#include "lib/sys.h"
#include "lib/transition.h"

/* The agent's frames are small; what counts is the program's static TLS, which glibc places in the stack too. */
#define AGENT_STACK_BYTES (512U << 10)
#define POLL_MAX_USEC 1000000U
/* While a fork is under way the agent only answers events; forks are short. */
#define POLL_FORK_USEC 500U
#define RETRACK_PAUSE_USEC 1000000U

static struct agent agent;
static struct agent_control control;

/* -- start (a program thread) -------------------------------------------------------------------------------------- */

/* The writable data of every shared object: libc's and this library's are the agent's own memory, and libc unmaps the others
 * (dlclose) by calls of its own. The program itself may be merged. */
static int note_object(struct dl_phdr_info *info, size_t size, void *userdata) {
        bool *first = userdata;
        if (*first) { /* the program: always first */
                *first = false;
                return 0;
        }
        for (unsigned i = 0; i < info->dlpi_phnum; i++) {
                const ElfW(Phdr) *p = &info->dlpi_phdr[i];
                if (p->p_type != PT_LOAD || !(p->p_flags & PF_W))
                        continue;
                uint64_t start = (info->dlpi_addr + p->p_vaddr) & ~(KSM_PAGE_SIZE - 1);
                uint64_t end = (info->dlpi_addr + p->p_vaddr + p->p_memsz + KSM_PAGE_SIZE - 1) & ~(KSM_PAGE_SIZE - 1);
                notes_put((struct note) { .kind = NOTE_EXCLUDE, .start = start, .end = end });
        }
        return 0;
}

void agent_note_objects(void) {
        bool first = true;
        (void) dl_iterate_phdr(note_object, &first);
}

static int create_thread(void) {
        sigset_t all, old;
        pthread_attr_t attr;
        pthread_t thread;
        sigfillset(&all);
        control.stack = own_alloc(AGENT_STACK_BYTES);
        if (!control.stack)
                return -EAGAIN;
        pthread_attr_init(&attr);
        pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
        int r = pthread_attr_setstack(&attr, control.stack, AGENT_STACK_BYTES);
        if (r == 0) {
                pthread_sigmask(SIG_SETMASK, &all, &old);
                r = pthread_create(&thread, &attr, agent_main, NULL);
                pthread_sigmask(SIG_SETMASK, &old, NULL);
        }
        pthread_attr_destroy(&attr);
        if (r != 0) {
                own_free(control.stack, AGENT_STACK_BYTES);
                control.stack = NULL;
                return -EAGAIN;
        }
        return 0;
}

static void wait_for_state(uint32_t state, uint64_t deadline_usec) {
        uint32_t s;
        while ((s = atomic_load(&control.state)) < state && s != AGENT_FAILED) {
                uint64_t now = now_usec();
                if (deadline_usec && now >= deadline_usec)
                        return;
                uint64_t left = deadline_usec ? deadline_usec - now : 0;
                struct timespec ts = { (time_t) (left / 1000000), (long) (left % 1000000 * 1000) };
                (void) sys_futex_wait(&control.state, s, deadline_usec ? &ts : NULL);
        }
}

static void set_state(uint32_t state) {
        atomic_store(&control.state, state);
        (void) sys_futex_wake(&control.state, INT32_MAX);
}

static int take_path(const char *socket_path) {
        if (!socket_path)
                socket_path = getenv("USERKSM_SOCKET");
        if (!socket_path || !*socket_path)
                socket_path = SOCKET_DEFAULT;
        if (strlen(socket_path) >= sizeof(control.path))
                return -ENAMETOOLONG;
        memmove(control.path, socket_path, strlen(socket_path) + 1);
        return 0;
}

static pthread_once_t atfork_once = PTHREAD_ONCE_INIT;

int agent_start(const char *socket_path, unsigned flags) {
        uint32_t expected = AGENT_NONE;
        if (!fork_same_process(&control))
                agent_fork_child();
        if (!atomic_compare_exchange_strong(&control.state, &expected, AGENT_STARTING)) {
                wait_for_state(AGENT_RUNNING, 0);
                if (flags & HELLO_MERGE_ANY && agent_running()) {
                        struct request r = { .kind = REQUEST_MERGE_ANY, .start = 1 };
                        return mailbox_call(&r, 0);
                }
                return agent_running() ? 0 : -EAGAIN;
        }
        int r = take_path(socket_path);
        if (r < 0) {
                set_state(AGENT_NONE);
                return r;
        }
        const char *delay = getenv("USERKSM_TEST_DELAY_USEC");
        agent.delay_usec = delay ? (uint32_t) atoi(delay) : 0;
        agent.flags = control.flags = flags;
        agent.merge_any = flags & HELLO_MERGE_ANY;
        r = fork_mark_process(&control);
        if (r < 0) {
                set_state(AGENT_NONE);
                return r;
        }
        /* A forked child has inherited them; ld.so's lock may be held for ever there. */
        if (!control.objects_noted)
                agent_note_objects();
        control.objects_noted = true;
        pthread_once(&atfork_once, fork_register);
        r = create_thread();
        if (r < 0) {
                set_state(AGENT_NONE);
                return r;
        }
        wait_for_state(AGENT_RUNNING, 0);
        return agent_running() ? 0 : -EAGAIN;
}

bool agent_running(void) {
        return atomic_load(&control.state) == AGENT_RUNNING && fork_same_process(&control);
}

bool agent_merge_any(void) {
        return agent.flags & HELLO_MERGE_ANY;
}

const char *agent_socket_path(void) {
        return control.path;
}

struct agent_control *agent_control(void) {
        return &control;
}

/* -- contexts ------------------------------------------------------------------------------------------------------ */

/* Runs inherited by a forked child, or kept over a lost device: their discards must be heard again. */
static int share_again(struct agent *a) {
        struct book_walk w = { .start = 0, .end = UINT64_MAX };
        uint64_t block, mask;
        while (book_walk_next(&w, &block, &mask)) {
                uint64_t base = block << (BLOCK_SHIFT + KSM_PAGE_SHIFT);
                for (unsigned i = 0, n; next_run(mask, &i, &n); i += n) {
                        struct vma v;
                        uint64_t at = page_address(base, i), end = page_address(base, i + n);
                        for (; at < end && vma_query(a->maps_fd, at, true, &v) == 0 && v.start < end; at = v.end) {
                                if (!v.segment)
                                        continue;
                                int r = context_register(&a->shared, MAX(v.start, at), MIN(v.end, end),
                                                         UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MINOR);
                                if (r < 0)
                                        return r;
                        }
                }
        }
        return 0;
}

static int open_scratch(struct agent *a) {
        a->scratch = own_alloc(BLOCK_BYTES);
        if (!a->scratch)
                return -ENOMEM;
        uint64_t start = (uint64_t) a->scratch;
        /* DONTFORK: a forked child must not share pages that are on their way. */
        (void) sys_madvise(start, BLOCK_BYTES, MADV_DONTFORK);
        (void) sys_madvise(start, BLOCK_BYTES, MADV_NOHUGEPAGE);
        return context_register(&a->spare, start, start + BLOCK_BYTES, UFFDIO_REGISTER_MODE_MISSING);
}

static void close_contexts(struct agent *a) {
        context_close(&a->track);
        context_close(&a->shared);
        context_close(&a->guard);
        context_close(&a->spare);
        own_free(a->scratch, BLOCK_BYTES);
        a->scratch = NULL;
}

int agent_open_contexts(struct agent *a, int device_fd) {
        if (a->contexts_open)
                return 0;
        const uint64_t track = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
        int r = context_open(&a->track, device_fd, track);
        if (r == 0)
                r = context_open(&a->shared, device_fd,
                                 track | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_EVENT_REMOVE);
        if (r == 0)
                r = context_open(&a->guard, device_fd,
                                 UFFD_FEATURE_MOVE | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_EVENT_REMOVE |
                                         UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
        if (r == 0)
                r = context_open(&a->spare, device_fd, UFFD_FEATURE_MOVE);
        if (r == 0)
                r = open_scratch(a);
        if (r == 0)
                r = map_lock_init();
        if (r == 0)
                r = watch_start(&a->watch, &a->spare, (uint64_t) a->scratch);
        if (r < 0) {
                close_contexts(a);
                return r;
        }
        a->contexts_open = true;
        if (share_again(a) < 0)
                a->raw = true; /* discards there would not be heard: nothing more is merged */
        control_ready(&control);
        return 0;
}

/* -- the loop ------------------------------------------------------------------------------------------------------ */

void delay_point(struct agent *a) {
        static uint32_t state = 2463534242U;
        if (!a->delay_usec)
                return;
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        if (state & 3) /* mostly not at all, so that steps are also met back to back */
                return;
        const struct timespec ts = { .tv_nsec = (long) (state % (a->delay_usec + 1)) * 1000 };
        (void) sys_call(SYS_nanosleep, (long) &ts, 0, 0, 0, 0, 0);
}

void agent_consume_notes(struct agent *a) {
        struct note n;
        while (notes_get(&n)) {
                switch (n.kind) {
                case NOTE_UNMAPPED:
                        registry_forget(a, n.start, n.end);
                        break;
                case NOTE_EXCLUDE:
                        (void) rangeset_add(&a->excluded, n.start, n.end);
                        break;
                case NOTE_MOVED:
                        registry_move(a, n.start, n.end, n.to, n.to_end);
                        break;
                case NOTE_DONTFORK:
                        (void) rangeset_add(&a->dontfork, n.start, n.end);
                        break;
                case NOTE_DOFORK:
                        (void) rangeset_remove(&a->dontfork, n.start, n.end);
                        break;
                }
        }
}

static int serve(struct agent *a, struct request *r) {
        uint64_t end = r->start + r->length;
        switch (r->kind) {
        case REQUEST_REGISTER:
                return registry_register(a, r->start, end, true);
        case REQUEST_ADVISE_MERGEABLE:
                return registry_register(a, r->start, end, false);
        case REQUEST_UNREGISTER:
                return registry_unregister(a, r->start, end, true);
        case REQUEST_ADVISE_UNMERGEABLE:
                return registry_unregister(a, r->start, end, false);
        case REQUEST_RESTORE:
                return transition_restore_range(a, r->start, end);
        case REQUEST_EXCLUDE:
                return registry_exclude(a, r->start, end);
        case REQUEST_RELEASE:
                return registry_release(a, r->start, end);
        case REQUEST_STATS:
                r->stats.registered_bytes = rangeset_bytes(&a->ranges);
                r->stats.merged_bytes = book_merged_pages() << KSM_PAGE_SHIFT;
                r->stats.agent_cpu_usec = thread_cpu_usec();
                r->stats.transitions = a->figures.transitions;
                r->stats.busy = a->figures.busy;
                r->stats.connected = a->welcomed;
                r->stats.raw_syscalls = a->raw;
                return 0;
        case REQUEST_MERGE_ANY:
                if (!r->start)
                        discover_stop(a);
                a->merge_any = r->start;
                a->flags = control.flags = r->start ? a->flags | HELLO_MERGE_ANY : a->flags & ~(uint32_t) HELLO_MERGE_ANY;
                a->discover_at_usec = a->walk_at_usec = 0;
                return 0;
        case REQUEST_SUSPEND:
                a->suspended = r->start;
                return 0;
        case REQUEST_UNSHARE:
                freeze_unshare_plain(a);
                return 0;
        case REQUEST_FORK:
                events_prepare_fork(a);
                return 0;
        case REQUEST_MERGE:
                if (!rangeset_overlaps(&a->ranges, r->start, end))
                        return -ENOENT;
                return link_request_merge(a, mailbox_index(r), r->start, r->length);
        }
        return -EINVAL;
}

static void serve_mailbox(struct agent *a) {
        for (struct request *r; (r = mailbox_next());) {
                agent_drain(a);
                agent_consume_notes(a); /* what the caller did before it called */
                int result = serve(a, r);
                if (r->kind == REQUEST_MERGE && result == 0)
                        continue; /* MERGE_DONE ends it */
                mailbox_finish(r, result);
        }
}

/* Everything that changes the agent's books; not while the program forks, or the child would inherit half a change. */
static void work(struct agent *a) {
        agent_consume_notes(a);
        if (notes_take_lost())
                a->retrack = true;
        serve_mailbox(a);
        uint64_t now = now_usec();
        if (a->link_fd >= 0)
                link_readable(a);
        link_step(a, now);
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
        if (a->merge_any && a->welcomed)
                next = MIN(next, a->discover_at_usec);
        if (mailbox_bell_fd() < 0)
                next = MIN(next, now + MAILBOX_POLL_USEC);
        return next;
}

static void loop(struct agent *a) {
        bool forking = false;
        for (;;) {
                struct pollfd fds[] = {
                        { .fd = mailbox_bell_fd(), .events = POLLIN },
                        { .fd = a->contexts_open ? a->shared.fd : -1, .events = POLLIN },
                        { .fd = a->contexts_open ? a->guard.fd : -1, .events = POLLIN },
                        { .fd = forking ? -1 : a->link_fd, .events = POLLIN },
                };
                uint64_t now = now_usec(), next = next_usec(a, now);
                uint64_t wait_usec = forking ? POLL_FORK_USEC : next > now ? next - now : 0;
                const struct timespec ts = { (time_t) (wait_usec / 1000000), (long) (wait_usec % 1000000 * 1000) };
                (void) sys_call(SYS_ppoll, (long) fds, ARRAY_SIZE(fds), (long) &ts, 0, 0, 0);
                agent_drain(a);
                if (fds[0].revents)
                        mailbox_answer_bell();
                forking = !control_enter(&control);
                if (!forking) {
                        work(a);
                        control_leave(&control);
                }
        }
}

static int open_self(struct agent *a) {
        const struct {
                int *fd;
                const char *path;
        } files[] = {
                { &a->maps_fd, "/proc/self/maps" },   { &a->smaps_fd, "/proc/self/smaps" },
                { &a->statm_fd, "/proc/self/statm" }, { &a->pagemap_fd, "/proc/self/pagemap" },
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
        (void) prctl(PR_SET_NAME, "userksm");
        a->link_fd = a->track.fd = a->shared.fd = a->guard.fd = a->spare.fd = -1;
        /* A table of its own, empty: the program's closefrom cannot reach our fds, its children do not inherit them, and its
         * pipes do not stay open because of us. */
        int r = (int) sys_call(SYS_close_range, 0, ~0U, CLOSE_RANGE_UNSHARE, 0, 0, 0);
        if (r == 0)
                r = open_self(a);
        if (r == 0)
                r = open_memory(a);
        if (r < 0) {
                set_state(AGENT_FAILED);
                return NULL;
        }
        (void) mailbox_open(); /* without the bell: polling */
        set_state(AGENT_RUNNING);
        loop(a);
        return NULL;
}

/* -- a forked child ------------------------------------------------------------------------------------------------ */

void agent_reset_in_child(void) {
        struct agent *a = &agent;
        struct rangeset ranges = a->ranges, found = a->found, excluded = a->excluded, dontfork = a->dontfork;
        uint32_t flags = a->flags;
        bool suspended = a->suspended, special_known = a->special_known;
        own_free(a->segments.v, a->segments.capacity * sizeof(*a->segments.v));
        own_free(a->expected, BLOCK_BYTES);
        own_free(a->text, TEXT_BUFFER_BYTES);
        own_free(a->message, sizeof(*a->message));
        own_free(a->watch.stack, WATCH_STACK_BYTES);
        own_free(control.stack, AGENT_STACK_BYTES);
        *a = (struct agent) { .ranges = ranges, .found = found, .excluded = excluded, .dontfork = dontfork,
                              .flags = flags, .merge_any = flags & HELLO_MERGE_ANY, .suspended = suspended,
                              .special_known = special_known };
        control.stack = NULL;
        mailbox_fork_child();
}
