/* What `merge` and `unmerge` have in common: one process or all, one request, one ADMIN_DONE however long it takes. */
#pragma once

#include "ctl/ctl.h"
#include "proto/messages.h"

/* "all" is 0. 0 or -EINVAL, complained about. */
int request_parse_pid(const char *text, uint32_t *ret_pid);

struct request_call {
        const struct verb *verb;
        const char *who;        /* as given: a process id or "all" */
        enum message_type type; /* ADMIN_MERGE or ADMIN_UNMERGE */
        const void *body;
        void (*wait)(void *userdata); /* called twice a second until it is done; may be NULL */
        void *userdata;
};
/* Returns STATUS_OK with *ret_done filled, or the status of an error that was complained about. */
int request_run(const struct ctl *ctl, const struct request_call *call, struct msg_admin_done *ret_done);
