/* The command of `run` as our child: its environment, signals passed on, its status as ours. */
#pragma once

#include <signal.h>
#include <sys/types.h>

/* Statuses of env(1), nohup(1) and timeout(1), so that they can be told from the command's own. */
#define RUN_STATUS_OURS 125      /* ksmctl itself failed; the command did not run */
#define RUN_STATUS_CANNOT_RUN 126
#define RUN_STATUS_NOT_FOUND 127
#define RUN_STATUS_SIGNAL 128 /* + number of the signal that killed the command */

struct child {
        pid_t pid; /* not reaped: cannot be reused */
        int signal_fd; /* SIGCHLD and the signals that are passed on */
};

enum child_merge { CHILD_MERGE_ANY, CHILD_MERGE_ASKED }; /* all that it maps, or what it asks for */

/* Puts shim_path, and other_path if not NULL, in front of LD_PRELOAD and sets USERKSM_SOCKET and USERKSM_MERGE_ANY for our children. 0
 * or -errno: -EINVAL when a path has a character that LD_PRELOAD takes as a separator. */
int child_environment(const char *shim_path, const char *other_path, const char *socket_path, enum child_merge merge);

/* Forks and execs argv. 0; -errno of exec or fork: nothing runs and c is unusable; in *ret_status the status to exit
 * with. The child starts with the signal mask and dispositions that ksmctl was started with. prepare, if not NULL, is called
 * in it before it execs; an error of it (0 or -errno) counts as one of exec, with RUN_STATUS_OURS. */
int child_start(struct child *c, char *const *argv, int (*prepare)(void *userdata), void *userdata, int *ret_status);

/* To be called when signal_fd is readable. 1: the child has ended, *ret_status is what to exit with; 0: not yet. */
int child_signals(struct child *c, int *ret_status);
void child_done(struct child *c);
