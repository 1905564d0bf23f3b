/* status: who is merged, how much that saves, and what is wrong. */
#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "ctl/explain.h"
#include "ctl/render.h"
#include "ctl/report.h"
#include "ctl/verb_list.h"

#define WATCH_DEFAULT_SEC 2.0
#define WATCH_MIN_SEC 0.1 /* redrawing faster only makes the terminal flicker */
#define WATCH_MAX_SEC 86400.0

struct status_options {
        bool wide, json, watch;
        double watch_sec;
};

static int fetch(struct admin *a, struct report *ret) {
        int r;

        *ret = (struct report) { .welcome = a->welcome };
        r = admin_counters(a, &ret->counters, &ret->uptime_usec);
        if (r == 0)
                r = admin_tunables(a, &ret->tunables);
        if (r == 0)
                r = admin_clients(a, &ret->clients);
        return r;
}

/* One picture. Returns an error of the connection. */
static int show(struct admin *a, const struct status_options *o) {
        struct report report;
        int r = fetch(a, &report);

        if (r < 0)
                return r;
        if (o->watch && isatty(STDOUT_FILENO))
                fputs("\033[H\033[2J", stdout);
        if (o->json)
                r = report_print_json(&report, REPORT_WITH_PROCESSES, stdout);
        else
                r = report_print_status(&report, o->wide, stdout);
        client_list_free(&report.clients);
        if (r == 0 && fflush(stdout) != 0)
                exit(STATUS_OSERR); /* the reader of a pipe has gone */
        return r;
}

static int parse(int argc, char **argv, struct status_options *o) {
        static const struct option options[] = {
                HELP_OPTION,
                { "json", no_argument, NULL, 'j' },
                { "watch", optional_argument, NULL, 'w' },
                { "wide", no_argument, NULL, 'W' },
                { 0 },
        };
        char *end;
        int c;

        while ((c = getopt_long(argc, argv, "hw::W", options, NULL)) >= 0)
                switch (c) {
                case 'h':
                        verb_print_help(&verb_status);
                        exit(STATUS_OK);
                case 'j':
                        o->json = true;
                        break;
                case 'W':
                        o->wide = true;
                        break;
                case 'w':
                        o->watch = true;
                        if (!optarg)
                                break;
                        o->watch_sec = strtod(optarg, &end);
                        if (*end || end == optarg ||
                            !(o->watch_sec >= WATCH_MIN_SEC && o->watch_sec <= WATCH_MAX_SEC)) {
                                complain("--watch takes seconds between %g and %g, not '%s'", WATCH_MIN_SEC,
                                         WATCH_MAX_SEC, optarg);
                                return STATUS_USAGE;
                        }
                        break;
                default:
                        return verb_usage(&verb_status);
                }
        return optind < argc ? verb_usage(&verb_status) : STATUS_OK;
}

static int run_status(const struct ctl *ctl, int argc, char **argv) {
        struct status_options o = { .watch_sec = WATCH_DEFAULT_SEC };
        struct admin a = ADMIN_INIT;
        int status = parse(argc, argv, &o), r;

        if (status == STATUS_OK)
                status = admin_open(ctl, &a);
        if (status != STATUS_OK)
                return status;
        for (;;) {
                struct timespec pause = {
                        .tv_sec = (time_t) o.watch_sec,
                        .tv_nsec = (long) ((o.watch_sec - floor(o.watch_sec)) * 1e9),
                };

                r = show(&a, &o);
                if (r < 0 || !o.watch)
                        break;
                nanosleep(&pause, NULL);
        }
        status = r < 0 ? admin_explain(ctl, &a, r, "reading the status") : STATUS_OK;
        admin_close(&a);
        return status;
}

const struct verb verb_status = {
        .name = "status",
        .arguments = "[--watch[=SECONDS]] [--wide] [--json]",
        .summary = "processes, what each saves, totals, what is wrong",
        .help =
        "Shows every connected process and what merging saves.\n"
        "\n"
        "Columns:\n"
        "  PID, COMMAND  the process; the name is what it calls itself\n"
        "  STATE         active; raw: it changes its mappings without libc, merging in it has stopped;\n"
        "                parked: it did not answer within a second (stopped, or starved), no new work for it\n"
        "  REGISTERED    address space that may be merged\n"
        "  MERGED        memory that maps shared pages now\n"
        "  ZERO          memory given back because it held only zeros\n"
        "  SAVED         the process's part of what is saved: every mapping of a shared page bears an equal part\n"
        "                of its cost, as PSS does; the parts add up to the total\n"
        "  PROFIT        what the process itself would have to hold more, less the daemon's books for it;\n"
        "                negative: merging costs more than it brings here\n"
        "With --wide also UID, DOMAIN (who shares with whom), PRESENT (memory in use in the registered space),\n"
        "UNIQUE (looked at, no equal found), VMAS (mappings that merged runs take, of how many allowed), CPU\n"
        "(time of the agent thread).\n"
        "\n"
        "Below the table: totals, then what needs attention, each with what to do about it.\n"
        "\n"
        "Options:\n"
        "  -w, --watch[=SECONDS]  again every SECONDS (default 2) until interrupted\n"
        "  -W, --wide             more columns\n"
        "      --json             the same as one JSON object (with --watch one a line)\n"
        "  -h, --help             this text",
        .run = run_status,
};
