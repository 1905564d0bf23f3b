/* A connection of ksmctl or userksm-sysfs to the daemon: requests and replies, with time limits.
 *
 * Errors are negative errno values as documented; ctl/explain.h has words for them. One thread at a time; no output. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "common/counters.h"
#include "common/tunables.h"
#include "proto/channel.h"

#define DEFAULT_SOCKET_PATH "/run/userksm/userksm.sock"

/* A daemon that answers at all answers reads at once; its loop is never blocked this long. */
#define ADMIN_TIMEOUT_MSEC 10000
#define ADMIN_NO_TIMEOUT (-1) /* merge and unmerge end when the work does */

struct admin {
        int fd;
        struct msg_admin_welcome welcome;
        struct msg_refused refused; /* set when a call returned -EKEYREJECTED */
        struct channel_message message; /* the last frame received; pointers into it hold until the next call */
};
#define ADMIN_INIT { .fd = -1 }

/* 0; -errno of connect(2); -ETIMEDOUT: nobody answered; -EKEYREJECTED: refused, a->refused says why; -EPROTO: no
 * userksmd's protocol, or another version; -ECONNRESET: closed on us. */
int admin_connect(struct admin *a, const char *path);
void admin_close(struct admin *a);

int admin_send(struct admin *a, enum message_type type, const void *body);
/* Waits for one frame, in a->message. 0 or as admin_connect. */
int admin_receive(struct admin *a, int timeout_msec);
/* Sends, and waits for a reply of that type. An ADMIN_DONE in its place is returned as the error it carries. */
int admin_call(struct admin *a, enum message_type type, const void *body, enum message_type reply, int timeout_msec);

void admin_decode_welcome(const struct frame *f, struct msg_admin_welcome *ret);

/* Counters that this daemon does not have are 0. ret_uptime_usec may be NULL. */
int admin_counters(struct admin *a, struct counters *ret, uint64_t *ret_uptime_usec);
void admin_decode_counters(const struct frame *f, struct counters *ret);

/* A tunable that this daemon does not have is marked unknown. */
struct tunable_values {
        struct tunables values;
        bool known[TUNABLE_MAX_];
};
int admin_tunables(struct admin *a, struct tunable_values *ret);
void admin_decode_tunables(const struct frame *f, struct tunable_values *ret);

struct client_list {
        struct client_element *clients;
        size_t n, allocated;
};
int client_list_append(struct client_list *l, const struct frame *clients_reply);
void client_list_free(struct client_list *l);
int admin_clients(struct admin *a, struct client_list *ret);

struct domain_list {
        struct domain_element *domains;
        size_t n, allocated;
};
int domain_list_append(struct domain_list *l, const struct frame *domains_reply);
void domain_list_free(struct domain_list *l);
int admin_domains(struct admin *a, struct domain_list *ret);

/* Pieces of a range are put together again. */
struct range_list {
        struct client_range_element *ranges;
        size_t n, allocated;
};
int range_list_append(struct range_list *l, const struct frame *ranges_reply);
void range_list_free(struct range_list *l);
/* -ENOENT: no such client. */
int admin_ranges(struct admin *a, uint32_t client, struct range_list *ret);
