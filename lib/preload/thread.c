/* Threads and processes: a new thread says where its stack is before it does anything else (libc gives stacks back by
 * calls of its own, outside of the lock), and libc's own mappings around a spawn or a dlclose are bracketed.
 *
 * dlopen is not interposed: it looks at its caller for RUNPATH, and it unmaps nothing that could have been merged. */
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "lib/preload/preload.h"

/* Also attaches the thread to the mapping lock here, at leisure: a vfork child shares its parent's word and must find it. */
static void note_own_stack(void) {
        int saved = errno;
        pthread_attr_t attr;
        void *addr;
        size_t size, guard;
        if (pthread_getattr_np(pthread_self(), &attr) == 0) {
                enter(); /* no transition while the note is half written */
                if (pthread_attr_getstack(&attr, &addr, &size) == 0 && pthread_attr_getguardsize(&attr, &guard) == 0)
                        agent_note_stack(page_floor((uint64_t) addr - guard), page_ceil(size + guard));
                leave();
                (void) pthread_attr_destroy(&attr);
        }
        errno = saved;
}

/* -- the end of the last thread ------------------------------------------------------------------------------------
 *
 * libc ends the process when its last thread ends by pthread_exit (or by returning in a forked child's thread); the agent's
 * threads would keep it alive. So the program's threads are counted, and the last one calls exit(0) as libc would, from the
 * last round of its thread-specific destructors. */

static pthread_key_t last_key;
static bool has_last_key;
static _Atomic int n_threads = 1;

/* Threads that libc made for itself (timers, asynchronous I/O) are not counted, so the kernel is asked as well. */
static bool only_agent_is_left(void) {
        struct stat st;
        bool is_leader = gettid() == getpid();
        nlink_t expected = 2 + 1 + AGENT_THREADS + !is_leader; /* . and .., this thread, a leader that has ended is still there */
        return stat("/proc/self/task", &st) == 0 && st.st_nlink <= expected;
}

static void on_thread_end(void *round) {
        if ((uintptr_t) round < PTHREAD_DESTRUCTOR_ITERATIONS) {
                (void) pthread_setspecific(last_key, (void *) ((uintptr_t) round + 1));
                return;
        }
        if (atomic_fetch_sub(&n_threads, 1) == 1 && agent_running() && only_agent_is_left())
                exit(0);
}

static void on_fork_child(void) {
        atomic_store(&n_threads, 1);
}

static void count_this_thread(void) {
        if (has_last_key)
                (void) pthread_setspecific(last_key, (void *) 1);
}

void thread_count_init(void) {
        has_last_key = pthread_key_create(&last_key, on_thread_end) == 0;
        count_this_thread();
        (void) pthread_atfork(NULL, NULL, on_fork_child);
}

/* -- threads ------------------------------------------------------------------------------------------------------- */

struct thread_start {
        void *(*routine)(void *);
        void *argument;
};

static void *thread_main(void *p) {
        struct thread_start start = *(struct thread_start *) p;
        free(p);
        count_this_thread();
        note_own_stack();
        return start.routine(start.argument);
}

SHIM_EXPORT int pthread_create(pthread_t *ret, const pthread_attr_t *attr, void *(*routine)(void *), void *argument) {
        if (agent_making_thread)
                return REAL(pthread_create)(ret, attr, routine, argument);
        struct thread_start *start = malloc(sizeof(*start));
        if (!start)
                return EAGAIN;
        *start = (struct thread_start) { routine, argument };
        atomic_fetch_add(&n_threads, 1);
        enter();
        int r = REAL(pthread_create)(ret, attr, thread_main, start);
        leave();
        if (r != 0) {
                atomic_fetch_sub(&n_threads, 1);
                free(start);
        }
        return r;
}

struct c11_start {
        thrd_start_t routine;
        void *argument;
};

static int c11_main(void *p) {
        struct c11_start start = *(struct c11_start *) p;
        free(p);
        count_this_thread();
        note_own_stack();
        return start.routine(start.argument);
}

SHIM_EXPORT int thrd_create(thrd_t *ret, thrd_start_t routine, void *argument) {
        struct c11_start *start = malloc(sizeof(*start));
        if (!start)
                return thrd_nomem;
        *start = (struct c11_start) { routine, argument };
        atomic_fetch_add(&n_threads, 1);
        enter();
        int r = REAL(thrd_create)(ret, c11_main, start);
        leave();
        if (r != thrd_success) {
                atomic_fetch_sub(&n_threads, 1);
                free(start);
        }
        return r;
}

SHIM_EXPORT int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
                            const posix_spawnattr_t *attr, char *const argv[], char *const envp[]) {
        enter();
        int r = REAL(posix_spawn)(pid, path, actions, attr, argv, envp);
        leave();
        return r;
}

SHIM_EXPORT int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions,
                             const posix_spawnattr_t *attr, char *const argv[], char *const envp[]) {
        enter();
        int r = REAL(posix_spawnp)(pid, file, actions, attr, argv, envp);
        leave();
        return r;
}

SHIM_EXPORT int dlclose(void *handle) {
        enter();
        int r = REAL(dlclose)(handle);
        leave();
        return r;
}
