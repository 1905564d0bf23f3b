/* A daemon of one's own for the length of a run: the embedded default.
 *
 * Between ksmctl and the daemon stands a keeper, a fork of ksmctl in a session of its own: it waits for the daemon and
 * then removes the directory of its socket, also when ksmctl was killed. The daemon (--private) ends by itself some
 * seconds after its last client left; the terminal's signals do not reach it, and it holds none of our output streams
 * open. */
#pragma once

#include <sys/types.h>

#include "ctl/admin.h"
#include "ctl/ctl.h"

#define PRIVATE_OPTIONS 2

struct private_daemon {
        pid_t keeper; /* our child; -1: none */
        char directory[64], socket_path[80];
        const char *const *options;
        int log_fd; /* what the daemon wrote to stderr */
};
#define PRIVATE_DAEMON_INIT { .keeper = -1, .log_fd = -1 }

/* Starts it, with options besides its own (NULL: none), and connects. Returns STATUS_OK, or a status after complaining (with what the daemon
 * said). */
int private_daemon_start(struct private_daemon *p, const char *const *options, struct admin *a);
/* started: a command ran under it. What that left behind may still be connecting, so the daemon is left alone and ends
 * with its last client. Else it is stopped and waited for. Does nothing when there is none. */
void private_daemon_done(struct private_daemon *p, bool started);
