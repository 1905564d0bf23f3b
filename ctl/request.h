/* What `merge` and `unmerge` have in common: one process or all, one request, one ADMIN_DONE however long it takes. */
#pragma once

#include "ctl/ctl.h"
#include "proto/messages.h"

/* type: ADMIN_MERGE or ADMIN_UNMERGE. Returns STATUS_OK with *ret_done filled, or the status of an error that was
 * complained about. `--help` prints the verb's help and exits. */
int request_run(const struct ctl *ctl, const struct verb *verb, enum message_type type, int argc, char **argv,
                struct msg_admin_done *ret_done);
