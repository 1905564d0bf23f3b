/* Errors of ctl/admin.h in words, with a remedy, and the exit status to return. */
#pragma once

#include "ctl/admin.h"
#include "ctl/ctl.h"

/* Complains about `error`, met while `doing` ("reading the counters"), and returns the exit status. */
int admin_explain(const struct ctl *ctl, const struct admin *a, int error, const char *doing);
/* The same for an error of admin_connect. */
int admin_explain_connect(const struct ctl *ctl, const struct admin *a, int error);
/* An unmerge that was refused for want of memory. */
int explain_headroom(const struct msg_admin_done *done, const char *doing);
/* admin_connect and, when that fails, admin_explain. Returns STATUS_OK with *a connected. */
int admin_open(const struct ctl *ctl, struct admin *a);
