/* merge: ask for merging now, and wait for it. */
#include <inttypes.h>
#include <stdio.h>

#include "ctl/admin.h"
#include "ctl/render.h"
#include "ctl/request.h"
#include "ctl/verb_list.h"

static int run_merge(const struct ctl *ctl, int argc, char **argv) {
        struct msg_admin_done done;
        char bytes[TEXT_BYTES];
        int status = request_run(ctl, &verb_merge, MSG_ADMIN_MERGE, argc, argv, &done);

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
