#include "ctl/run_child.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"

/* What people and supervisors send to stop, reload or poke a program. Those of job control (TSTP, CONT, TTIN) act on
 * both of us as they are. */
static const int passed_on[] = { SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH, SIGPWR };

int child_environment(const char *shim_path, const char *other_path, const char *socket_path, enum child_merge merge) {
        const char *before = getenv("LD_PRELOAD");
        char value[3 * 4096];

        if (strpbrk(shim_path, ": \t\n") || (other_path && strpbrk(other_path, ": \t\n")))
                return -EINVAL;
        if (snprintf(value, sizeof(value), "%s%s%s%s%s", shim_path, other_path ? ":" : "", other_path ? other_path : "",
                     before && *before ? ":" : "", before ? before : "") >= (int) sizeof(value))
                return -E2BIG;
        if (setenv("LD_PRELOAD", value, 1) < 0 || setenv("USERKSM_SOCKET", socket_path, 1) < 0)
                return -errno;
        if ((merge == CHILD_MERGE_ANY ? setenv("USERKSM_MERGE_ANY", "1", 1) : unsetenv("USERKSM_MERGE_ANY")) < 0)
                return -errno;
        return 0;
}

/* What the child reports: errno of exec, or -errno of what was to be done before. */
static void exec_child(const sigset_t *mask, const struct sigaction *child_action, int error_fd, char *const *argv, int error) {
        sigaction(SIGCHLD, child_action, NULL);
        sigprocmask(SIG_SETMASK, mask, NULL);
        if (error == 0) {
                execvp(argv[0], argv);
                error = errno;
        }
        if (write(error_fd, &error, sizeof(error)) != sizeof(error))
                _exit(RUN_STATUS_OURS);
        _exit(RUN_STATUS_CANNOT_RUN);
}

int child_start(struct child *c, char *const *argv, int (*prepare)(void *userdata), void *userdata, int *ret_status) {
        _cleanup_close_ int read_end = -1, write_end = -1;
        struct sigaction default_action = { .sa_handler = SIG_DFL }, ignore = { .sa_handler = SIG_IGN }, child_action;
        sigset_t mask, old;
        int pipe_fds[2], error = 0, r;
        ssize_t n;

        *c = (struct child) { .pid = -1, .signal_fd = -1 };
        *ret_status = RUN_STATUS_OURS;
        if (pipe2(pipe_fds, O_CLOEXEC) < 0)
                return -errno;
        read_end = pipe_fds[0], write_end = pipe_fds[1];
        sigemptyset(&mask);
        sigaddset(&mask, SIGCHLD);
        for (size_t i = 0; i < ARRAY_SIZE(passed_on); i++)
                sigaddset(&mask, passed_on[i]);
        sigprocmask(SIG_BLOCK, &mask, &old);
        /* Whoever started us may ignore it, and then there would be nothing to wait for. */
        sigaction(SIGCHLD, &default_action, &child_action);
        c->signal_fd = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
        if (c->signal_fd < 0)
                return -errno;

        c->pid = fork();
        if (c->pid < 0) {
                r = -errno;
                child_done(c);
                return r;
        }
        if (c->pid == 0)
                exec_child(&old, &child_action, write_end, argv, prepare ? prepare(userdata) : 0);
        /* A report that nobody reads must not end us before the command. */
        sigaction(SIGPIPE, &ignore, NULL);
        write_end = close_fd(write_end);
        /* End of file: exec closed the pipe. */
        do
                n = read(read_end, &error, sizeof(error));
        while (n < 0 && errno == EINTR);
        if (n != sizeof(error))
                return 0;
        waitpid(c->pid, NULL, 0);
        child_done(c);
        if (error < 0)
                return error;
        *ret_status = error == ENOENT || error == ENOTDIR ? RUN_STATUS_NOT_FOUND : RUN_STATUS_CANNOT_RUN;
        return -error;
}

int child_signals(struct child *c, int *ret_status) {
        struct signalfd_siginfo info;
        int status;

        while (read(c->signal_fd, &info, sizeof(info)) == sizeof(info)) {
                if (info.ssi_signo == SIGCHLD)
                        continue;
                /* From the terminal (SI_KERNEL) it went to the whole foreground group: the child has it already. */
                if (info.ssi_code == SI_KERNEL)
                        continue;
                (void) kill(c->pid, (int) info.ssi_signo); /* a zombie takes it too: not an error */
        }
        /* The keeper of a private daemon is our child as well: only this one counts. */
        if (waitpid(c->pid, &status, WNOHANG) != c->pid)
                return 0;
        *ret_status = WIFSIGNALED(status) ? RUN_STATUS_SIGNAL + WTERMSIG(status) : WEXITSTATUS(status);
        return 1;
}

void child_done(struct child *c) {
        c->signal_fd = close_fd(c->signal_fd);
}
