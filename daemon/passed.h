/* What the service manager hands over at the start (sd_listen_fds): the listening socket of userksmd.socket, and the segments that an
 * earlier daemon gave it to keep (daemon/notify.h). Told apart by what they are and by name. */
#pragma once

struct passed {
        int listen_fd; /* -1: none */
        int *segment_fds;
        unsigned n_segments;
};

/* 0; -EINVAL: a socket that userksmd cannot listen on, or a second one; other -errno; logged. What else an other version may have
 * left is closed, with a line in the log. */
int passed_take(struct passed *ret);
/* Closes what nobody took: each fd is set to -1 by who takes it. */
void passed_done(struct passed *p);
