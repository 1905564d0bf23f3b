/* The process behind a client, as far as the daemon may touch it: the two fds that it handed over.
 *
 * The fds are bound to the mm of the process that opened them: they outlive an exec or an exit, and then read nothing.
 * They are the consent; the pid is for display and for the fast read path only.
 *
 * Threads: created, referenced and released on the loop's thread. A worker uses the fds while its job holds a
 * reference, so an fd number never changes its meaning under it; `closing` tells it that nobody waits any more. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <sys/types.h>

#include "common/cleanup.h"
#include "daemon/sys/peer.h"

struct process {
        unsigned n_refs;
        int pagemap_fd, mem_fd, pidfd;
        pid_t pid;               /* 0: not visible from here */
        uid_t uid;
        atomic_bool closing;     /* the client is gone: finish early */
        atomic_bool fast_denied; /* process_vm_readv is not permitted for this process */
};

/* Takes the fds over, also on failure. They must be what they claim: read-only descriptors of /proc/N/pagemap and
 * /proc/N/mem of one N, on a real procfs. -EINVAL: they are not (*ret_reason: static text for a person); -ENOMEM. */
int process_new(const struct peer *peer, int pagemap_fd, int mem_fd, struct process **ret, const char **ret_reason);
struct process *process_ref(struct process *p);
/* Closes the fds with the last reference. Returns NULL. */
struct process *process_unref(struct process *p);
DEFINE_CLEANUP(struct process *, process_unref)

/* False: it has other rights than its user now (an exec of a setuid program), or is not dumpable (of root's processes that cannot be
 * told, nor does it keep root out). Who gave its consent before may not have what is there now compared with what he guesses. Asked after reading by pid: the kernel lets nobody read between the change of
 * the memory and that of the rights. */
bool process_is_its_users(const struct process *p);
/* True once the process was reaped or is a zombie: its memory is gone, or going. */
bool process_has_exited(const struct process *p);
