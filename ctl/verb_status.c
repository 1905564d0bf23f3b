/* status: who is merged, how much that saves, and what is wrong. */
#include <errno.h>
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
        bool wide, json, watch, ranges, domains;
        uint32_t pid; /* 0: all */
        double watch_sec;
};

static void report_free(struct report *r) {
        for (size_t i = 0; r->ranges && i < r->clients.n; i++)
                range_list_free(&r->ranges[i]);
        free(r->ranges);
        free(r->places);
        domain_list_free(&r->domains);
        client_list_free(&r->clients);
}

static void keep_process(struct client_list *l, uint32_t pid) {
        size_t n = 0;

        for (size_t i = 0; i < l->n; i++)
                if (l->clients[i].pid == pid)
                        l->clients[n++] = l->clients[i];
        l->n = n;
}

static int fetch_places(struct report *ret) {
        ret->places = calloc(ret->clients.n + 1, sizeof(*ret->places));
        if (!ret->places)
                return -ENOMEM;
        for (size_t i = 0; i < ret->clients.n; i++)
                placement_of(ret->clients.clients[i].pid, &ret->places[i]);
        return 0;
}

static int fetch_ranges(struct admin *a, struct report *ret) {
        ret->ranges = calloc(ret->clients.n + 1, sizeof(*ret->ranges));
        if (!ret->ranges)
                return -ENOMEM;
        for (size_t i = 0; i < ret->clients.n; i++) {
                int r = admin_ranges(a, ret->clients.clients[i].client, &ret->ranges[i]);

                if (r < 0 && r != -ENOENT) /* it has left meanwhile */
                        return r;
        }
        return 0;
}

static int fetch(struct admin *a, const struct status_options *o, struct report *ret) {
        int r;

        *ret = (struct report) { .welcome = a->welcome, .with_domains = o->domains };
        r = admin_counters(a, &ret->counters, &ret->uptime_usec);
        if (r == 0)
                r = admin_tunables(a, &ret->tunables);
        if (r == 0)
                r = admin_clients(a, &ret->clients);
        if (r == 0 && o->pid)
                keep_process(&ret->clients, o->pid);
        if (r == 0)
                r = fetch_places(ret);
        if (r == 0 && o->ranges)
                r = fetch_ranges(a, ret);
        if (r == 0 && o->domains)
                r = admin_domains(a, &ret->domains);
        return r;
}

static int print(const struct report *r, const struct status_options *o) {
        if (o->json)
                return report_print_json(r, REPORT_WITH_PROCESSES, stdout);
        if (o->pid)
                return report_print_processes(r, stdout);
        return o->domains ? report_print_domains(r, stdout) : report_print_status(r, o->wide, stdout);
}

/* One picture. Returns an error of the connection, or -ESRCH. */
static int show(struct admin *a, const struct status_options *o) {
        struct report report;
        int r = fetch(a, o, &report);

        if (r == 0 && o->pid && report.clients.n == 0)
                r = -ESRCH;
        if (r < 0) {
                report_free(&report);
                return r;
        }
        if (o->watch && isatty(STDOUT_FILENO))
                fputs("\033[H\033[2J", stdout);
        r = print(&report, o);
        report_free(&report);
        if (r == 0 && fflush(stdout) != 0)
                exit(STATUS_OSERR); /* the reader of a pipe has gone */
        return r;
}

static bool parse_pid(const char *text, uint32_t *ret) {
        char *end;
        long pid;

        errno = 0;
        pid = strtol(text, &end, 10);
        if (errno || end == text || *end || pid <= 0 || pid > INT32_MAX)
                return false;
        *ret = (uint32_t) pid;
        return true;
}

static int parse(int argc, char **argv, struct status_options *o) {
        static const struct option options[] = {
                HELP_OPTION,
                { "domains", no_argument, NULL, 'd' },
                { "json", no_argument, NULL, 'j' },
                { "ranges", no_argument, NULL, 'r' },
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
                case 'd':
                        o->domains = true;
                        break;
                case 'j':
                        o->json = true;
                        break;
                case 'r':
                        o->ranges = true;
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
        if (optind < argc && !parse_pid(argv[optind++], &o->pid))
                return verb_usage(&verb_status);
        /* Of all processes they are for programs; domains have no table beside that of one process. */
        if (optind < argc || (!o->json && ((o->ranges && !o->pid) || (o->domains && o->pid))))
                return verb_usage(&verb_status);
        return STATUS_OK;
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
        if (r == -ESRCH && o.pid) {
                complain("process %u is not connected to the daemon, or not yours", o.pid);
                admin_close(&a);
                return STATUS_NO_PROCESS;
        }
        status = r < 0 ? admin_explain(ctl, &a, r, "reading the status") : STATUS_OK;
        admin_close(&a);
        return status;
}

const struct verb verb_status = {
        .name = "status",
        .arguments = "[PID [--ranges] | --domains] [--watch[=SECONDS]] [--wide] [--json]",
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
        "With a PID: everything about that process, a fact a line; the first six lines are those of the kernel's\n"
        "/proc/PID/ksm_stat, in the same format and units. With --ranges also what each of its ranges holds.\n"
        "With --domains: the sums of each merge domain; SHARED: distinct pages that MERGED maps, STORE: memory of\n"
        "the daemon that holds them, WHO: what processes of the domain have in common.\n"
        "With --wide also UID, DOMAIN (who shares with whom), PRESENT (memory in use in the registered space),\n"
        "UNIQUE (looked at, no equal found), VMAS (mappings that merged runs take, of how many allowed), CPU\n"
        "(time of the agent thread), UNIT (systemd's unit, else the control group).\n"
        "\n"
        "Below the table: totals, then what needs attention, each with what to do about it.\n"
        "\n"
        "Options:\n"
        "  -w, --watch[=SECONDS]  again every SECONDS (default 2) until interrupted\n"
        "  -W, --wide             more columns\n"
        "      --ranges           sums of each range (with --json of all processes: range_list)\n"
        "      --domains          sums of each merge domain (with --json: domains)\n"
        "      --json             the same as one JSON object (with --watch one a line)\n"
        "  -h, --help             this text",
        .run = run_status,
};
