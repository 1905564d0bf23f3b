/* The agent's side of a connection: its frames become inputs of the core, the core's applies become frames. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "daemon/core/core.h"
#include "daemon/bounds.h"
#include "daemon/manager.h"
#include "daemon/store.h"
#include "daemon/sys/process.h"
#include "proto/channel.h"

struct session;
struct nodes_question;

struct client {
        struct manager *manager;
        struct session *session;
        uint32_t id; /* the core's */
        uint32_t flags; /* hello_flags */
        char comm[17];
        struct process *process;
        struct store_domain *domain;

        struct client_apply {
                uint64_t op, sent_usec;
        } applies[CLIENT_APPLY_WINDOW];
        unsigned n_applies, n_merges;

        struct client_nodes {
                uint64_t op, sent_usec;
                uint32_t n_blocks;
                struct nodes_question *question; /* NULL: nobody waits any more */
        } nodes[CLIENT_NODES_WINDOW];
        unsigned n_nodes;
        uint64_t nodes_op; /* the last one */

        uint32_t *segments; /* ids that it knows, ascending */
        uint32_t n_segments, segments_capacity;

        uint64_t heard_usec;
        uint64_t ping_usec; /* when the unanswered one was sent; 0 = none */
        uint64_t ping_cookie;
        bool silent, raw; /* owes an answer; changes mappings without libc */
        struct msg_agent_stats stats;

        /* What is left of a frame for which its turn had no time, or the core not yet; in manager.unfinished, its session paused. */
        struct frame_rest *rest;
        TAILQ_ENTRY(client) rest_link;
};

/* Makes the session's client, or refuses the session: error (0: let it in) and reason (NULL: strerror) are what the look at the
 * process found. Takes the process over, which may be NULL with an error. */
void client_hello(struct session *s, const struct msg_hello *hello, struct process *process, int error, const char *reason);
/* Goes on with frames that were left over. */
void clients_go_on(struct manager *m);
/* A frame of a session that has said HELLO. */
void client_frame(struct client *c, struct channel_message *message);
/* Answers what the core still waits for, forgets the client there, lets go of its process. NULL in, NULL out. */
struct client *client_free(struct client *c);

struct client *client_find(struct manager *m, uint32_t id); /* or NULL */

/* Sends the transition, and before it the segments that the agent does not know. The core is told when it cannot be. */
void client_apply(struct manager *m, const struct core_apply *apply, uint64_t now);
void client_merge_done(struct session *s, uint64_t agent_cookie, uint64_t saved_bytes, int error);
/* The segment is gone: every agent that knows it forgets it. */
void client_drop_segment(struct manager *m, uint32_t segment);

/* True when its memory may be read the fast way now; asks for a sign of life when not. */
bool client_is_fresh(struct client *c, uint64_t now);
/* It gets no new work now. */
bool client_is_parked(const struct client *c);
/* To be called when that may have changed. */
void client_update_park(struct client *c);
/* Parks, pings and evicts. */
void client_tick(struct client *c, uint64_t now);
