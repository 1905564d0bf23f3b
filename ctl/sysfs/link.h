/* What the tree asks of the daemon: one connection, made when needed and made again when it broke.
 *
 * Any thread may call; calls wait for each other. Errors that are not the daemon's answer (it is gone, hangs, refuses us, speaks
 * another protocol) are -EIO, said once in the log when they begin and once when they end. */
#pragma once

#include <pthread.h>
#include <stdbool.h>

#include "ctl/admin.h"

struct link {
        const char *socket_path;
        pthread_mutex_t lock;
        struct admin admin;
        bool is_down; /* and the log says so */
};

void link_init(struct link *l, const char *socket_path);
void link_done(struct link *l);

/* 0 or -EIO. */
int link_counters(struct link *l, struct counters *ret);
int link_tunables(struct link *l, struct tunable_values *ret);
int link_clients(struct link *l, struct client_list *ret);
int link_domains(struct link *l, struct domain_list *ret); /* ascending */
/* 0, -EIO, or the daemon's answer: -EINVAL outside the tunable's range, -EPERM we are neither root nor its user. */
int link_set(struct link *l, enum tunable_id id, int64_t value);
/* The daemon tries again what was refused after 1, 2, 4, 8 s: nothing new in so long is not going to come soon. */
#define LINK_STUCK_USEC 20000000
/* After run=2: waits until nothing is merged any more. 0; -EINTR: is_interrupted said so; -EBUSY: what is left could not be restored
 * for LINK_STUCK_USEC (pinned, or of processes that are stopped), the daemon goes on trying; -EIO. Also 0 when somebody
 * else has set run to another value. */
int link_wait_unmerged(struct link *l, bool (*is_interrupted)(void *userdata), void *userdata);
