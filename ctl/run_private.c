#include "ctl/run_private.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "ctl/paths.h"

/* From exec to the first accepted connection: kernel probe and self-checks included, some 50 ms on a quiet machine. */
#define START_TIMEOUT_MSEC 10000
#define START_POLL_MSEC 10
/* From SIGTERM to its end: it has nothing to save. */
#define STOP_TIMEOUT_MSEC 5000

/* What must not be inherited: a supervisor's notifications meant for the program, and merging in the daemon itself. */
static const char *const dropped_environment[] = { "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS",
                                                   "LISTEN_PID", "LISTEN_FDNAMES", "LD_PRELOAD", "USERKSM_MERGE_ANY" };

static void exec_daemon(const char *daemon_path, const struct private_daemon *p, const sigset_t *mask) {
        for (size_t i = 0; i < ARRAY_SIZE(dropped_environment); i++)
                unsetenv(dropped_environment[i]);
        sigprocmask(SIG_SETMASK, mask, NULL);
        execl(daemon_path, daemon_path, "--private", "--socket", p->socket_path, p->options ? p->options[0] : NULL,
              p->options ? p->options[1] : NULL, (char *) NULL);
        fprintf(stderr, "cannot execute %s: %s\n", daemon_path, strerror(errno));
        _exit(STATUS_OSERR);
}

/* Waits for the daemon; passes SIGTERM on. */
static int keep(pid_t daemon, const sigset_t *signals) {
        int status, number;

        while (waitpid(daemon, &status, WNOHANG) != daemon)
                if (sigwait(signals, &number) == 0 && number != SIGCHLD)
                        (void) kill(daemon, number);
        return WIFEXITED(status) ? WEXITSTATUS(status) : STATUS_FAILED;
}

static void keeper_main(const struct private_daemon *p, const char *daemon_path) {
        int null_fd = open("/dev/null", O_RDWR), status = STATUS_OSERR;
        sigset_t signals, none;
        pid_t daemon;

        setsid();
        sigemptyset(&none);
        sigemptyset(&signals);
        sigaddset(&signals, SIGCHLD);
        sigaddset(&signals, SIGTERM);
        sigprocmask(SIG_SETMASK, &signals, NULL);
        dup2(null_fd, STDIN_FILENO);
        dup2(null_fd, STDOUT_FILENO);
        dup2(p->log_fd, STDERR_FILENO);
        syscall(SYS_close_range, 3u, ~0u, 0u);
        (void) chdir("/");

        daemon = fork();
        if (daemon == 0)
                exec_daemon(daemon_path, p, &none);
        if (daemon > 0)
                status = keep(daemon, &signals);
        unlink(p->socket_path);
        rmdir(p->directory);
        _exit(status);
}

/* A private directory of ours in the first place that takes one. */
static int make_directory(struct private_daemon *p) {
        const char *const places[] = { getenv("XDG_RUNTIME_DIR"), "/run", getenv("TMPDIR"), "/tmp" };

        for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
                if (!places[i] || places[i][0] != '/')
                        continue;
                if (snprintf(p->directory, sizeof(p->directory), "%s/userksm-XXXXXX", places[i]) >=
                    (int) sizeof(p->directory))
                        continue;
                if (!mkdtemp(p->directory)) /* mode 0700 */
                        continue;
                snprintf(p->socket_path, sizeof(p->socket_path), "%s/sock", p->directory);
                return 0;
        }
        return -ENOENT;
}

static void complain_with_log(const struct private_daemon *p, const char *what) {
        char text[1024];
        ssize_t n = pread(p->log_fd, text, sizeof(text) - 1, 0);

        while (n > 0 && text[n - 1] == '\n')
                n--;
        text[MAX(n, (ssize_t) 0)] = 0;
        complain("the private userksmd %s%s%s\n(the command was not started; 'ksmctl check' says what is missing)",
                 what,
                 n > 0 ? ":\n" : "", text);
}

/* Connects as soon as the daemon listens. The keeper's end is the daemon's. */
static int wait_until_up(struct private_daemon *p, struct admin *a) {
        struct pollfd keeper = { .fd = (int) syscall(SYS_pidfd_open, p->keeper, 0), .events = POLLIN };
        int r = -ETIMEDOUT;

        for (int waited = 0; waited < START_TIMEOUT_MSEC; waited += START_POLL_MSEC) {
                r = admin_connect(a, p->socket_path);
                if (r != -ENOENT && r != -ECONNREFUSED)
                        break;
                if (poll(&keeper, 1, START_POLL_MSEC) > 0) {
                        r = -ECHILD;
                        break;
                }
        }
        close_fd(keeper.fd);
        return r;
}

int private_daemon_start(struct private_daemon *p, const char *const *options, struct admin *a) {
        char daemon_path[PATH_MAX];
        int r;

        if (find_daemon(daemon_path) < 0) {
                complain("no daemon runs, and no userksmd was found to start: looked at %s", daemon_path);
                return STATUS_UNAVAILABLE;
        }
        if (make_directory(p) < 0) {
                complain("no directory for the socket of a private daemon: neither $XDG_RUNTIME_DIR, /run, $TMPDIR nor "
                         "/tmp "
                         "takes one");
                return STATUS_OSERR;
        }
        p->options = options;
        p->log_fd = memfd_create("userksmd.log", MFD_CLOEXEC);
        p->keeper = fork();
        if (p->keeper == 0)
                keeper_main(p, daemon_path);
        if (p->keeper < 0 || p->log_fd < 0) {
                complain("cannot start a private daemon: %m");
                rmdir(p->directory);
                return STATUS_OSERR;
        }
        r = wait_until_up(p, a);
        if (r == 0)
                return STATUS_OK;
        complain_with_log(p, r == -ECHILD    ? "ended at once" :
                             r == -ETIMEDOUT ? "did not come up within 10 s" :
                                               "does not take our connection");
        private_daemon_done(p, false);
        return STATUS_UNAVAILABLE;
}

static void stop(const struct private_daemon *p) {
        struct pollfd keeper = { .fd = (int) syscall(SYS_pidfd_open, p->keeper, 0), .events = POLLIN };

        (void) kill(p->keeper, SIGTERM);
        if (poll(&keeper, 1, STOP_TIMEOUT_MSEC) == 0)
                complain("the private userksmd (%s) does not end; it is left alone", p->directory);
        close_fd(keeper.fd);
}

void private_daemon_done(struct private_daemon *p, bool started) {
        if (p->keeper > 0 && !started)
                stop(p);
        if (p->keeper > 0)
                (void) waitpid(p->keeper, NULL, WNOHANG);
        p->keeper = -1;
        p->log_fd = close_fd(p->log_fd);
}
