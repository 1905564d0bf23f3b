/* run: a command under the shim, with a daemon found or brought along, and a report of what it saved.
 *
 * One loop over three sources: signals (for the child, or of its end), the daemon's answers, a tick. The command comes
 * first: nothing that happens to the daemon or to the report holds it up or changes its exit status. */
#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ctl/explain.h"
#include "ctl/paths.h"
#include "ctl/render.h"
#include "ctl/run_child.h"
#include "ctl/run_diagnose.h"
#include "ctl/run_private.h"
#include "ctl/run_sysfs.h"
#include "ctl/run_watch.h"
#include "ctl/verb_list.h"

#define TICK_MSEC 500
/* Until the handshake: so that a command of a tenth of a second is seen too. */
#define FIRST_TICK_MSEC 50
/* An agent connects some milliseconds after main starts; a program that takes longer to get there is rare. */
#define HANDSHAKE_WARN_USEC 3000000

/* Programs written for kernel KSM wait for full scans, which take it tenths of a second. */
static const char *const sysfs_pace[PRIVATE_OPTIONS] = { "--pass_millisecs=100", "--settle_millisecs=100" };

struct run {
        const struct ctl *ctl;
        bool quiet, private_only, no_private, sysfs;
        char *const *command;
        struct admin admin;
        struct private_daemon private_daemon;
        struct sysfs_server sysfs_server;
        struct child child;
        struct watch watch;
        uint64_t started_usec;
        bool warned, reported_loss;
};

static uint64_t now_usec(void) {
        struct timespec t;

        clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t) t.tv_sec * 1000000 + (uint64_t) t.tv_nsec / 1000;
}

/* -- before: a daemon ---------------------------------------------------------------------------------------- */

/* A daemon that is not there, or not for us. A hung or foreign one is an error: it should be looked at. */
static bool means_no_daemon(int error) {
        return error == -ENOENT || error == -ECONNREFUSED || error == -EACCES || error == -ENOTDIR;
}

/* STATUS_OK with run->admin connected and *ret_socket set, or a status after complaining. */
static int find_a_daemon(struct run *run, const char **ret_socket) {
        int r = -ENOENT;

        if (!run->private_only) {
                r = admin_connect(&run->admin, run->ctl->socket_path);
                *ret_socket = run->ctl->socket_path;
                if (r == 0)
                        return STATUS_OK;
                if (run->no_private || run->ctl->socket_given || !means_no_daemon(r))
                        return admin_explain_connect(run->ctl, &run->admin, r);
        }
        *ret_socket = run->private_daemon.socket_path;
        return private_daemon_start(&run->private_daemon, run->sysfs ? sysfs_pace : NULL, &run->admin);
}

/* The command may change its directory: a relative path would lead elsewhere. */
static void name_socket(const char *path, char ret[PATH_MAX]) {
        if (path[0] == '@' || !realpath(path, ret))
                snprintf(ret, PATH_MAX, "%s", path);
}

/* -- meanwhile ------------------------------------------------------------------------------------------------ */

/* Also when it was connected and is no more: `env -i` runs under the library and then execs without it. That the
 * command itself is not merged does no harm when something that it started is (a launcher). */
static void warn_if_not_connected(struct run *run, uint64_t now) {
        uint64_t since_usec = run->watch.seen ? run->watch.last.taken_usec : run->started_usec;
        char why[512];

        if (run->warned || run->watch.lost || now < since_usec + HANDSHAKE_WARN_USEC)
                return;
        run->warned = true;
        diagnose_process(run->child.pid, why, sizeof(why));
        complain("warning: %s (pid %d) is not connected to userksmd after %d s, nothing is merged: %s", run->command[0],
                 (int) run->child.pid, HANDSHAKE_WARN_USEC / 1000000, why);
}

static void warn_if_lost(struct run *run) {
        if (!run->watch.lost || run->reported_loss)
                return;
        run->reported_loss = true;
        complain("warning: the daemon went away; the command goes on unharmed, and what is merged stays merged");
}

static int supervise(struct run *run) {
        uint64_t next_tick_usec = 0;
        int status = RUN_STATUS_OURS;

        for (;;) {
                struct pollfd p[] = {
                        { .fd = run->child.signal_fd, .events = POLLIN },
                        { .fd = run->watch.lost ? -1 : run->admin.fd, .events = POLLIN },
                };
                uint64_t now = now_usec();
                int timeout_msec = now >= next_tick_usec ? 0 : (int) ((next_tick_usec - now + 999) / 1000);

                if (poll(p, 2, timeout_msec) < 0 && errno != EINTR)
                        return status;
                if (p[1].revents)
                        watch_input(&run->watch, now_usec());
                if (p[0].revents && child_signals(&run->child, &status))
                        return status;
                now = now_usec();
                if (now >= next_tick_usec) {
                        watch_tick(&run->watch);
                        warn_if_not_connected(run, now);
                        next_tick_usec = now + (run->watch.seen || run->warned ? TICK_MSEC : FIRST_TICK_MSEC) * 1000ULL;
                }
                warn_if_lost(run);
        }
}

/* -- after ---------------------------------------------------------------------------------------------------- */

static void report(const struct run *run) {
        const struct watch *w = &run->watch;
        char duration[TEXT_BYTES], peak[TEXT_BYTES], at[TEXT_BYTES], end[TEXT_BYTES], merged[TEXT_BYTES],
                zero[TEXT_BYTES],
                cpu[TEXT_BYTES];

        if (run->quiet)
                return;
        format_usec(duration, now_usec() - run->started_usec);
        if (!w->seen) {
                complain("%s ran %s; nothing was merged: it was not seen connected to userksmd", run->command[0],
                         duration);
                return;
        }
        complain("%s ran %s under userksmd\n"
                 "  at the peak  %s saved, %s into the run, in %u process%s (%s merged, %s zero)\n"
                 "  at the end   %s saved in %u process%s; agents' cpu %s%s",
                 run->command[0], duration, format_bytes(peak, w->peak.saved_bytes),
                 format_usec(at, w->peak.taken_usec > 0 ? w->peak.taken_usec - run->started_usec : 0),
                 w->peak.n_processes, w->peak.n_processes == 1 ? "" : "es", format_bytes(merged, w->peak.merged_bytes),
                 format_bytes(zero, w->peak.zero_bytes), format_bytes(end, w->last.saved_bytes), w->last.n_processes,
                 w->last.n_processes == 1 ? "" : "es", format_usec(cpu, w->last.agents_cpu_usec),
                 w->raw ? "\n  a process changed its mappings without libc: merging stopped there" : "");
}

/* -- the verb -------------------------------------------------------------------------------------------------- */

/* 0, or -errno with the status to exit with. */
static int start_command(struct run *run, const char *shim, const char *socket_path, int *ret_status) {
        char library[PATH_MAX];
        int r;

        *ret_status = RUN_STATUS_OURS;
        if (run->sysfs && find_sysfs_library(library) < 0) {
                complain("--sysfs: the library to preload was not found: looked at %s", library);
                return -ENOENT;
        }
        if (run->sysfs && sysfs_server_start(&run->sysfs_server, socket_path) != STATUS_OK)
                return -ECANCELED;
        r = child_environment(shim, run->sysfs ? library : NULL, socket_path, run->sysfs ? CHILD_MERGE_ASKED : CHILD_MERGE_ANY);
        if (r < 0)
                return r;
        return child_start(&run->child, run->command, run->sysfs ? sysfs_server_enter : NULL, &run->sysfs_server, ret_status);
}

static int run_command(struct run *run) {
        char shim[PATH_MAX], absolute_path[PATH_MAX];
        const char *socket_path;
        int r, status;

        if (find_shim(shim) < 0) {
                complain("the library to preload was not found: looked at %s", shim);
                return RUN_STATUS_OURS;
        }
        if (find_a_daemon(run, &socket_path) != STATUS_OK)
                return RUN_STATUS_OURS;
        name_socket(socket_path, absolute_path);
        r = start_command(run, shim, absolute_path, &status);
        sysfs_server_done(&run->sysfs_server);
        if (r < 0) {
                complain("cannot run %s: %s", run->command[0], strerror(-r));
                private_daemon_done(&run->private_daemon, false);
                return status;
        }

        run->started_usec = now_usec();
        watch_init(&run->watch, &run->admin, run->child.pid, run->private_only || run->private_daemon.keeper > 0);
        status = supervise(run);
        report(run);
        private_daemon_done(&run->private_daemon, true);
        watch_done(&run->watch);
        admin_close(&run->admin);
        child_done(&run->child);
        return status;
}

static int run_run(const struct ctl *ctl, int argc, char **argv) {
        static const struct option options[] = {
                HELP_OPTION,
                { "quiet", no_argument, NULL, 'q' },
                { "private", no_argument, NULL, 'p' },
                { "no-private", no_argument, NULL, 'n' },
                { "sysfs", no_argument, NULL, 's' },
                { 0 },
        };
        struct run run = {
                .ctl = ctl,
                .admin = ADMIN_INIT,
                .private_daemon = PRIVATE_DAEMON_INIT,
                .sysfs_server = SYSFS_SERVER_INIT,
        };
        int c;

        while ((c = getopt_long(argc, argv, "+hq", options, NULL)) >= 0)
                switch (c) {
                case 'h':
                        verb_print_help(&verb_run);
                        return STATUS_OK;
                case 'q':
                        run.quiet = true;
                        break;
                case 'p':
                        run.private_only = true;
                        break;
                case 'n':
                        run.no_private = true;
                        break;
                case 's':
                        run.sysfs = true;
                        run.warned = true; /* when it asks for merging is its own business */
                        break;
                default:
                        (void) verb_usage(&verb_run);
                        return RUN_STATUS_OURS;
                }
        if (optind == argc || (run.private_only && run.no_private)) {
                (void) verb_usage(&verb_run);
                return RUN_STATUS_OURS;
        }
        run.command = argv + optind;
        return run_command(&run);
}

const struct verb verb_run = {
        .name = "run",
        .arguments = "[OPTION...] [--] COMMAND...",
        .summary = "run a command with its memory merged",
        .help =
        "Runs COMMAND with the library libuserksm-preload.so in front of libc, in merge-any mode: every private\n"
        "anonymous mapping of it and of the processes it starts takes part in merging. The command computes the same\n"
        "as without.\n"
        "\n"
        "The daemon is the one at --socket, $USERKSM_SOCKET or the default place. When none runs there (and --socket\n"
        "was not given), a private one is started for this run; it merges the run's processes among each other, and\n"
        "ends by itself when the last of them has ended.\n"
        "\n"
        "ksmctl checks that the processes really connect, and says why not after 3 seconds: a static program, a\n"
        "setuid one, an emptied environment, another libc. Signals HUP, INT, QUIT, TERM, USR1, USR2, WINCH and PWR\n"
        "are passed on. At the end three lines on stderr say what was saved at the peak and at the end.\n"
        "\n"
        "Options:\n"
        "  -q, --quiet       no report at the end\n"
        "      --private     always a daemon of its own\n"
        "      --no-private  fail when no daemon runs\n"
        "      --sysfs       for programs written for kernel KSM: they find userksm at /sys/kernel/mm/ksm (docs/sysfs.md),\n"
        "                    and what they do not ask for, by madvise or prctl, is not merged\n"
        "  -h, --help        this text\n"
        "\n"
        "Environment of COMMAND: LD_PRELOAD (the library is put in front of what is there), USERKSM_SOCKET, and without\n"
        "--sysfs USERKSM_MERGE_ANY=1.\n"
        "\n"
        "Exit status: that of COMMAND; 128+N when signal N ended it; 125 when ksmctl failed and COMMAND was not\n"
        "started (no daemon, no library, wrong options); 126 when COMMAND cannot be executed; 127 when it was not\n"
        "found.",
        .run = run_run,
};
