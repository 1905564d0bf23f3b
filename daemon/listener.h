/* The listening socket: handed over by the service manager (LISTEN_FDS), or made here. */
#pragma once

struct manager;
struct listener;

/* 0 or -errno, logged. A socket file that nobody listens on is replaced; -EADDRINUSE when somebody does. */
int listener_new(struct manager *m, struct listener **ret);
/* Stops accepting and removes the socket file if it is ours. The handle closes with the loop's next turn. */
struct listener *listener_free(struct listener *l);
/* Accepting was suspended for want of fds or memory: try again. */
void listener_tick(struct listener *l);
