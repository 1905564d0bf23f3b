/* One connection: who is there, what it may say, what is queued for it.
 *
 * The first frame decides the role: an agent (client.h) or an administrator (control.h). What breaks the protocol ends the
 * connection with one log line that names pid, uid and reason; nobody else notices. Nothing here blocks: a frame that the
 * socket does not take is queued up to a bound, and who does not read loses the connection.
 *
 * session_close tears down at once but frees the object later, from the loop: callers may go on holding the pointer until
 * they return to the loop, and must look at `closing`. */
#pragma once

#include <sys/queue.h>
#include <uv.h>

#include "daemon/manager.h"
#include "daemon/sys/peer.h"
#include "proto/channel.h"

struct client;
struct door_job;
struct request;

struct session {
        struct manager *manager;
        struct session *prev, *next;
        uv_poll_t poll;
        int fd;
        int events; /* polled for now */
        struct peer peer;
        struct uid_account *account;
        uint64_t serial; /* unique in the daemon's life */
        uint64_t accepted_usec;
        unsigned role; /* ROLE_AGENT, ROLE_ADMIN; 0: nothing said yet */
        struct client *client; /* agents only */
        struct packet *queue_head, **queue_tail;
        size_t queue_bytes;
        struct request *requests; /* that will be answered here */
        struct door_job *door_job; /* its descriptors are looked at */
        TAILQ_ENTRY(session) door_link;
        bool at_door; /* waits until the user's door is free */
        bool paused;  /* a reply is due, or work of it is left over: nothing is read until then */
        bool stalled; /* the kernel took no more fds: tried again by the liveness tick */
        bool closing;
};

/* Takes the fd over, also on failure. */
int session_new(struct manager *m, int fd);
/* Sends or queues. 0, or -errno: the session is closed (logged). fds stay the caller's. */
int session_send(struct session *s, enum message_type type, const void *body, const void *elements, uint32_t count,
                 int fd);
/* Stops reading until resumed: replies come in order, and a reader that does not read stops asking. */
void session_pause(struct session *s, bool paused);
/* Polls for what makes sense now: after a change of what that is. */
void session_update(struct session *s);
/* channel_receive returned something other than a frame. */
void session_bad_frame(struct session *s, int r, enum codec_error error);

/* Ends the connection. reason: for the log at the given level, with pid and uid; NULL = the peer left by itself. */
void session_close(struct session *s, int level, const char *reason);
/* Says why, then closes. */
void session_refuse(struct session *s, int error, const char *reason);
/* Called by the liveness tick. */
void session_tick(struct session *s, uint64_t now);
