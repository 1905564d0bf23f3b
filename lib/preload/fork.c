/* Forks that run no atfork handlers: _Fork, clone without CLONE_VM, and the same by number. A fork in the middle of a
 * transition would give the child a hole. fork itself needs no wrapper (lib/fork.c registers handlers); vfork and threads
 * share the parent's memory, its lock words and its agent. */
#include <errno.h>
#include <sched.h>
#include <stdarg.h>

#include "lib/preload/preload.h"

SHIM_EXPORT pid_t _Fork(void) {
        real__Fork_fn f = REAL(_Fork);
        if (!f) {
                errno = ENOSYS;
                return -1;
        }
        agent_fork_prepare();
        pid_t pid = f();
        if (pid == 0)
                agent_fork_child();
        else
                agent_fork_parent();
        return pid;
}

/* On the parent's stack, of which the child has a copy. */
struct clone_start {
        int (*function)(void *);
        void *argument;
};

static int clone_main(void *p) {
        struct clone_start start = *(struct clone_start *) p;
        agent_fork_child();
        return start.function(start.argument);
}

SHIM_EXPORT int clone(int (*function)(void *), void *stack, int flags, void *argument, ...) {
        va_list ap;
        va_start(ap, argument);
        void *parent_tid = va_arg(ap, void *), *tls = va_arg(ap, void *), *child_tid = va_arg(ap, void *);
        va_end(ap);
        if ((flags & CLONE_VM) || !function || !stack)
                return REAL(clone)(function, stack, flags, argument, parent_tid, tls, child_tid);
        struct clone_start start = { function, argument };
        agent_fork_prepare();
        int pid = REAL(clone)(clone_main, stack, flags, &start, parent_tid, tls, child_tid);
        agent_fork_parent();
        return pid;
}

long fork_by_number(long nr, const unsigned long a[6]) {
        agent_fork_prepare();
        long pid = REAL(syscall)(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
        if (pid == 0)
                agent_fork_child();
        else
                agent_fork_parent();
        return pid;
}
