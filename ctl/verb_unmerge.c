/* unmerge: give processes their private copies back, and wait for it. */
#include <inttypes.h>
#include <stdio.h>

#include "ctl/admin.h"
#include "ctl/render.h"
#include "ctl/request.h"
#include "ctl/verb_list.h"

static int run_unmerge(const struct ctl *ctl, int argc, char **argv) {
        struct msg_admin_done done;
        char bytes[TEXT_BYTES];
        int status = request_run(ctl, &verb_unmerge, MSG_ADMIN_UNMERGE, argc, argv, &done);

        if (status != STATUS_OK)
                return status;
        printf("restored %" PRIu64 " pages (%s)\n", done.pages, format_pages(bytes, (int64_t) done.pages));
        if (done.left == 0)
                return STATUS_OK;
        complain("%" PRIu64 " pages (%s) are still merged: they could not be restored now (pinned for I/O, no memory, "
                 "or the process does not answer). They stay exact; try again later.",
                 done.left, format_pages(bytes, (int64_t) done.left));
        return STATUS_FAILED;
}

const struct verb verb_unmerge = {
        .name = "unmerge",
        .arguments = "PID|all",
        .summary = "restore private copies of all merged pages",
        .help =
        "Gives every merged page of the process a private copy again and takes its memory out of merging, until the\n"
        "process registers it anew. Returns when done and prints how many pages were restored; exit status 1 when\n"
        "some could not be. 'all' does it for every process that is connected now; processes that come later are\n"
        "merged. To unmerge everything and stay stopped: 'ksmctl set run=2', and run=1 to start again. A process in\n"
        "state raw is not touched, not even to restore.\n"
        "\n"
        "Needs as much free memory as was saved: 'ksmctl status' shows how much that is. Only root and the\n"
        "daemon's own user may do this.\n"
        "\n"
        "Options:\n"
        "  -h, --help  this text",
        .run = run_unmerge,
};
