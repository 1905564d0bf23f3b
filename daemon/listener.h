/* The listening socket: handed over by the service manager (LISTEN_FDS), or made here. */
#pragma once

struct manager;
struct listener;

/* passed_fd: a listening socket of the service manager, or -1; taken over, also on failure. 0 or -errno, logged. A socket file that nobody listens on is replaced; -EADDRINUSE when somebody does. */
int listener_new(struct manager *m, int passed_fd, struct listener **ret);
/* Stops accepting and removes the socket file if it is ours. The handle closes with the loop's next turn. */
struct listener *listener_free(struct listener *l);
/* Accepting was suspended for want of fds or memory: try again. */
void listener_tick(struct listener *l);
