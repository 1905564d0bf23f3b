/* set: change tunables of the running daemon. Everything that can be checked here is checked before the first one is
 * sent, so that a mistyped command line changes nothing. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl/explain.h"
#include "ctl/verb_list.h"

/* "NAME=VALUE" to a message. Complains and returns STATUS_USAGE when it is none. */
static int parse_assignment(const char *text, struct msg_tunable_set *ret) {
        const char *equals = strchr(text, '=');
        char name[64], range[TUNABLE_TEXT_BYTES];
        int64_t value;
        int id;

        if (!equals || equals == text || (size_t) (equals - text) >= sizeof(name)) {
                complain("'%s' is not NAME=VALUE", text);
                return STATUS_USAGE;
        }
        memcpy(name, text, (size_t) (equals - text));
        name[equals - text] = 0;
        id = tunable_find(name);
        if (id < 0) {
                complain("there is no tunable '%s'; ksmctl get --help lists them", name);
                return STATUS_USAGE;
        }
        if (tunable_parse((enum tunable_id) id, equals + 1, &value) < 0) {
                complain("%s takes %s%s%s%s, not '%s'", name, tunable_table[id].names ? "" : "a whole number from ",
                         tunable_format_range((enum tunable_id) id, range), *tunable_table[id].unit ? " " : "", tunable_table[id].unit,
                         equals + 1);
                return STATUS_USAGE;
        }
        *ret = (struct msg_tunable_set) { .id = (uint32_t) id, .value = value };
        return STATUS_OK;
}

static int set_one(const struct ctl *ctl, struct admin *a, const struct msg_tunable_set *set) {
        const struct msg_admin_done *done;
        char doing[128];
        int r = admin_call(a, MSG_TUNABLE_SET, set, MSG_ADMIN_DONE, ADMIN_TIMEOUT_MSEC);

        if (r == 0) {
                done = a->message.frame.body;
                r = -done->error;
                if (r == -ENOMEM && done->pages > 0)
                        return explain_headroom(done, "setting run");
        }
        if (r == 0)
                return STATUS_OK;
        /* Its range has been checked here: the daemon has one reason left. */
        if (r == -EINVAL && set->id == TUNABLE_pages_to_scan) {
                complain("setting pages_to_scan: the advisor sets it; 'ksmctl set advisor_mode=none' ends that");
                return STATUS_FAILED;
        }
        snprintf(doing, sizeof(doing), "setting %s", tunable_table[set->id].name);
        return admin_explain(ctl, a, r, doing);
}

static int run_set(const struct ctl *ctl, int argc, char **argv) {
        static const struct option options[] = { HELP_OPTION, { "force", no_argument, NULL, 'f' }, { 0 } };
        uint32_t flags = 0;
        struct msg_tunable_set sets[TUNABLE_MAX_];
        struct admin a = ADMIN_INIT;
        int c, n = 0, status;

        while ((c = getopt_long(argc, argv, "h", options, NULL)) >= 0) {
                if (c == 'f') {
                        flags = UNMERGE_FORCE;
                        continue;
                }
                if (c != 'h')
                        return verb_usage(&verb_set);
                verb_print_help(&verb_set);
                printf("\nTunables:\n");
                tunables_print_help(stdout);
                return STATUS_OK;
        }
        if (optind == argc || argc - optind > TUNABLE_MAX_)
                return verb_usage(&verb_set);
        for (int i = optind; i < argc; i++) {
                status = parse_assignment(argv[i], &sets[n]);
                sets[n++].flags = flags;
                if (status != STATUS_OK)
                        return status;
        }

        status = admin_open(ctl, &a);
        for (int i = 0; i < n && status == STATUS_OK; i++)
                status = set_one(ctl, &a, &sets[i]);
        admin_close(&a);
        return status;
}

const struct verb verb_set = {
        .name = "set",
        .arguments = "[--force] NAME=VALUE...",
        .summary = "change tunables until the daemon ends",
        .help =
        "Changes tunables of the running daemon, in the order given, until it ends; the configuration file keeps\n"
        "what it has. Names and limits are checked before the first one is sent: a mistyped line changes nothing.\n"
        "Only root and the daemon's own user may do this. A switch also takes no and yes, off and on.\n"
        "\n"
        "run=0 stops merging and leaves what is merged; run=2 stops and unmerges everything; run=1 starts again.\n"
        "run=2 is refused when the private copies would not fit in memory.\n"
        "\n"
        "Options:\n"
        "      --force  run=2 also when memory seems too little\n"
        "  -h, --help  this text and what each tunable means",
        .run = run_set,
};
