#include "ctl/request.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl/explain.h"

_Static_assert(sizeof(struct msg_admin_merge) == sizeof(struct msg_admin_unmerge), "one body for both requests");

static int parse_pid(const char *text, uint32_t *ret_pid) {
        char *end;
        long value;

        if (strcmp(text, "all") == 0) {
                *ret_pid = 0;
                return 0;
        }
        errno = 0;
        value = strtol(text, &end, 10);
        if (end == text || *end || errno != 0 || value < 1 || value > INT_MAX)
                return -EINVAL;
        *ret_pid = (uint32_t) value;
        return 0;
}

int request_run(const struct ctl *ctl, const struct verb *verb, enum message_type type, int argc, char **argv,
                struct msg_admin_done *ret_done) {
        static const struct option options[] = { HELP_OPTION, { 0 } };
        struct msg_admin_merge request = { 0 };
        struct admin a = ADMIN_INIT;
        char doing[64];
        int c, r, status;

        while ((c = getopt_long(argc, argv, "h", options, NULL)) >= 0) {
                if (c != 'h')
                        return verb_usage(verb);
                verb_print_help(verb);
                exit(STATUS_OK);
        }
        if (argc - optind != 1)
                return verb_usage(verb);
        if (parse_pid(argv[optind], &request.pid) < 0) {
                complain("'%s' is neither a process id nor 'all'", argv[optind]);
                return STATUS_USAGE;
        }

        status = admin_open(ctl, &a);
        if (status != STATUS_OK)
                return status;
        r = admin_call(&a, type, &request, MSG_ADMIN_DONE, ADMIN_NO_TIMEOUT);
        if (r == 0) {
                memcpy(ret_done, a.message.frame.body, sizeof(*ret_done));
                r = -ret_done->error;
        }
        if (r < 0) {
                snprintf(doing, sizeof(doing), "%s of %s%s", verb->name, request.pid ? "process " : "", argv[optind]);
                status = admin_explain(ctl, &a, r, doing);
        }
        admin_close(&a);
        return status;
}
