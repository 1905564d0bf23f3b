/* merge: ask for merging now, and wait for it. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>

#include "ctl/admin.h"
#include "ctl/render.h"
#include "ctl/request.h"
#include "ctl/verb_list.h"

static int run_merge(const struct ctl *ctl, int argc, char **argv) {
        static const struct option options[] = { HELP_OPTION, { 0 } };
        struct msg_admin_merge body = { 0 };
        struct msg_admin_done done = { 0 };
        char bytes[TEXT_BYTES];
        int c, status;

        while ((c = getopt_long(argc, argv, "h", options, NULL)) >= 0) {
                if (c != 'h')
                        return verb_usage(&verb_merge);
                verb_print_help(&verb_merge);
                return STATUS_OK;
        }
        if (argc - optind != 1)
                return verb_usage(&verb_merge);
        if (request_parse_pid(argv[optind], &body.pid) < 0)
                return STATUS_USAGE;
        status = request_run(ctl, &(struct request_call){ .verb = &verb_merge, .who = argv[optind], .type = MSG_ADMIN_MERGE, .body = &body },
                             &done);
        if (status == STATUS_OK)
                printf("merged %" PRIu64 " pages (%s)\n", done.pages, format_pages(bytes, (int64_t) done.pages));
        return status;
}

const struct verb verb_merge = {
        .name = "merge",
        .arguments = "PID|all",
        .summary = "merge now what can be merged in a process",
        .help =
        "Scans the process's registered memory at once, ahead of other work, and merges what has an equal\n"
        "elsewhere and was not written for merge_now_settle_millisecs (10 ms). Returns when that is done and\n"
        "prints how many pages were merged. 'all' does it for every connected process.\n"
        "\n"
        "The process must be connected already: 'ksmctl run', or a program that uses libuserksm. Interrupting\n"
        "ksmctl does not interrupt the merge. Only root and the daemon's own user may do this.\n"
        "\n"
        "Options:\n"
        "  -h, --help  this text",
        .run = run_merge,
};
