/* The door: where descriptors come in.
 *
 * A client passes two descriptors with HELLO, and they may be of anything: of a file of its own FUSE mount, say, whose server does
 * not answer. Then even close(2) waits for that server, for ever. So descriptors are received only with the first frame of a
 * connection and only if that is a HELLO (with any other frame the kernel drops them unseen); they are looked at, and closed if
 * they are not what they must be, on a worker; and one user has at most one such look at a time, so that who makes it hang hangs
 * himself: his other connections wait behind it, and are refused when the worker counts as lost. Descriptors of /proc, which alone
 * get past the door, do not wait.
 *
 * Loop's thread only. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/sys/workers.h"

struct session;

/* What has come is a HELLO: receives it, or leaves it until this user's door is free. */
void door_knock(struct session *s);
/* The session goes. */
void door_leave(struct session *s);

bool door_is_job(const struct worker_job *job);
void door_job_done(struct worker_job *job);
/* The job hangs: it was given up. */
void door_job_lost(struct worker_job *job);
