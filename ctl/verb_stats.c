/* stats: the counters, for programs. */
#include <getopt.h>
#include <stdlib.h>

#include "ctl/explain.h"
#include "ctl/report.h"
#include "ctl/verb_list.h"

static int run_stats(const struct ctl *ctl, int argc, char **argv) {
        static const struct option options[] = { HELP_OPTION, { "json", no_argument, NULL, 'j' }, { 0 } };
        struct admin a = ADMIN_INIT;
        struct report report = { 0 };
        bool json = false;
        int c, r, status;

        while ((c = getopt_long(argc, argv, "h", options, NULL)) >= 0)
                switch (c) {
                case 'h':
                        verb_print_help(&verb_stats);
                        report_print_counter_help(stdout);
                        return STATUS_OK;
                case 'j':
                        json = true;
                        break;
                default:
                        return verb_usage(&verb_stats);
                }
        if (optind < argc)
                return verb_usage(&verb_stats);

        status = admin_open(ctl, &a);
        if (status != STATUS_OK)
                return status;
        report.welcome = a.welcome;
        r = admin_counters(&a, &report.counters, &report.uptime_usec);
        if (r == 0)
                r = json ? report_print_json(&report, REPORT_COUNTERS_ONLY, stdout) :
                           report_print_counters(&report, stdout);
        status = r < 0 ? admin_explain(ctl, &a, r, "reading the counters") : STATUS_OK;
        admin_close(&a);
        return status;
}

const struct verb verb_stats = {
        .name = "stats",
        .arguments = "[--json]",
        .summary = "all counters, for programs",
        .help =
        "Prints every counter of the daemon, one \"name value\" a line, or as one JSON object.\n"
        "\n"
        "Names and meanings up to general_profit are those of /sys/kernel/mm/ksm; counters of pages count pages\n"
        "of 4 KiB, names with _bytes and _usec say their unit. New counters are added at the end; a counter that\n"
        "an older daemon does not have is 0. docs/operations.md says how to read them.\n"
        "\n"
        "The JSON object has version, pid, uptime_usec, page_bytes, saved_bytes, turn_p50_usec, turn_p99_usec,\n"
        "turn_cpu_p99_usec and counters (an object by name).\n"
        "'ksmctl status --json' has the processes too.\n"
        "\n"
        "Options:\n"
        "      --json  JSON instead of lines\n"
        "  -h, --help  this text and what each counter means",
        .run = run_stats,
};
