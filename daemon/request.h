/* Requests with an end: merge on demand and unmerge, from an agent or an administrator. The core knows them by cookie; one
 * request may cover several clients and ends with the last. */
#pragma once

#include <stdint.h>

#include "daemon/core/core.h"
#include "daemon/idmap.h"

struct session;

struct request {
        uint32_t cookie;          /* the core's; never 0 */
        struct session *session;  /* NULL: whoever asked has left */
        struct request *session_next;
        uint64_t agent_cookie;
        bool from_agent;
        unsigned n_waiting;       /* clients whose end has not come, and one while it is being set up */
        uint64_t pages, left;
        int error;                /* of the last client that failed */
        unsigned n_succeeded;
};

struct requests {
        struct idmap by_cookie;
        uint32_t last_cookie;
};

int request_new(struct requests *r, struct session *session, struct request **ret);
/* An answer of one of its clients. Sends the reply and frees the request with the last one. */
void request_event(struct requests *r, const struct core_event *e);
/* The set-up is over: no further clients will be added. */
void request_armed(struct requests *r, struct request *q);
/* The session goes: its requests run on, unanswered. */
void requests_forget_session(struct session *s);
void requests_done(struct requests *r);
