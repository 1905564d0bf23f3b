#include "ctl/request.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl/explain.h"

#define WAIT_MSEC 500

int request_parse_pid(const char *text, uint32_t *ret_pid) {
        char *end;
        long value;

        if (strcmp(text, "all") == 0) {
                *ret_pid = 0;
                return 0;
        }
        errno = 0;
        value = strtol(text, &end, 10);
        if (end == text || *end || errno != 0 || value < 1 || value > INT_MAX) {
                complain("'%s' is neither a process id nor 'all'", text);
                return -EINVAL;
        }
        *ret_pid = (uint32_t) value;
        return 0;
}

static int call_and_wait(struct admin *a, const struct request_call *call) {
        int r = admin_send(a, call->type, call->body);

        while (r == 0) {
                r = admin_receive(a, call->wait ? WAIT_MSEC : ADMIN_NO_TIMEOUT);
                if (r == 0)
                        return a->message.frame.type == MSG_ADMIN_DONE ? 0 : -EPROTO;
                if (r == -ETIMEDOUT && call->wait) {
                        call->wait(call->userdata);
                        r = 0;
                }
        }
        return r;
}

int request_run(const struct ctl *ctl, const struct request_call *call, struct msg_admin_done *ret_done) {
        struct admin a = ADMIN_INIT;
        char doing[64];
        int r, status;

        status = admin_open(ctl, &a);
        if (status != STATUS_OK)
                return status;
        r = call_and_wait(&a, call);
        if (r == 0) {
                memcpy(ret_done, a.message.frame.body, sizeof(*ret_done));
                r = -ret_done->error;
        }
        if (r < 0) {
                snprintf(doing, sizeof(doing), "%s of %s%s", call->verb->name, strcmp(call->who, "all") == 0 ? "" : "process ", call->who);
                status = r == -ENOMEM && ret_done->pages > 0 ? explain_headroom(ret_done, doing) : admin_explain(ctl, &a, r, doing);
        }
        admin_close(&a);
        return status;
}
