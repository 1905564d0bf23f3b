#include "daemon/session.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/fault.h"
#include "common/log.h"
#include "daemon/client.h"
#include "daemon/control.h"
#include "daemon/bounds.h"
#include "daemon/door.h"

struct packet {
        struct packet *next;
        int fd; /* -1: none */
        size_t size;
        _Alignas(FRAME_ALIGN) uint8_t bytes[];
};

static void on_poll(uv_poll_t *handle, int status, int events);

/* -- output --------------------------------------------------------------------------------------------------------- */

void session_update(struct session *s) {
        if (s->closing)
                return;
        /* DISCONNECT is always in: a paused session must still be seen to leave. */
        int events = UV_DISCONNECT;
        /* An administrator who does not read his replies stops asking; an agent's answers are what makes room. */
        if (!s->paused && !s->at_door && (!s->queue_head || s->role == ROLE_AGENT))
                events |= UV_READABLE;
        if (s->queue_head && !s->stalled)
                events |= UV_WRITABLE;
        if (events == s->events)
                return;
        int r = uv_poll_start(&s->poll, events, on_poll);
        if (r < 0)
                session_close(s, LOG_WARNING, uv_strerror(r));
        else
                s->events = events;
}

static void free_packet(struct packet *p) {
        close_fd(p->fd);
        free(p);
}

/* 0 = sent, -EAGAIN = not now, other = closed. */
static int transmit(struct session *s, const void *packet, size_t size, int fd) {
        int r = channel_send_packet(s->fd, packet, size, &fd, fd >= 0);
        if (r == -ETOOMANYREFS) { /* too many fds in flight to peers of this user that do not read */
                s->stalled = true;
                return -EAGAIN;
        }
        if (r == 0 || r == -EAGAIN)
                return r;
        if (r == -EPIPE || r == -ECONNRESET || r == -ENOTCONN)
                session_close(s, LOG_DEBUG, NULL);
        else
                session_close(s, LOG_WARNING, strerror(-r));
        return r;
}

static void flush(struct session *s) {
        while (s->queue_head && !s->closing && account_may_go_on(s->manager, s->account, now_usec())) {
                struct packet *p = s->queue_head;
                if (transmit(s, p->bytes, p->size, p->fd) < 0)
                        break;
                s->queue_head = p->next;
                if (!s->queue_head)
                        s->queue_tail = &s->queue_head;
                s->queue_bytes -= p->size;
                free_packet(p);
                fault_point(FAULT_session_flushed);
        }
        session_update(s);
}

int session_send(struct session *s, enum message_type type, const void *body, const void *elements, uint32_t count,
                 int fd) {
        _Alignas(FRAME_ALIGN) uint8_t bytes[FRAME_MAX_BYTES];
        if (s->closing)
                return -ENOTCONN;
        size_t size = frame_encode(bytes, sizeof(bytes), type, body, elements, count);
        if (size == 0)
                return -EINVAL;
        if (!s->queue_head) {
                int r = transmit(s, bytes, size, fd);
                if (r != -EAGAIN)
                        return r;
        }
        struct packet *p = NULL;
        if (s->queue_bytes + size <= SESSION_QUEUE_BYTES)
                p = malloc(sizeof(*p) + size);
        if (!p) {
                session_close(s, LOG_WARNING, "does not read what it is sent");
                return -ENOBUFS;
        }
        *p = (struct packet){ .fd = fd >= 0 ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : -1, .size = size };
        if (fd >= 0 && p->fd < 0) {
                free(p);
                session_close(s, LOG_WARNING, "out of file descriptors");
                return -EMFILE;
        }
        memcpy(p->bytes, bytes, size);
        *s->queue_tail = p;
        s->queue_tail = &p->next;
        s->queue_bytes += size;
        fault_point(FAULT_session_queued);
        session_update(s);
        return s->closing ? -ENOTCONN : 0;
}

void session_pause(struct session *s, bool paused) {
        s->paused = paused;
        session_update(s);
}

/* -- end ------------------------------------------------------------------------------------------------------------ */

static void on_closed(uv_handle_t *handle) {
        struct session *s = handle->data;
        close_fd(s->fd);
        free(s);
}

void session_close(struct session *s, int level, const char *reason) {
        struct manager *m = s->manager;
        if (s->closing)
                return;
        s->closing = true;
        if (reason)
                account_log(m, s->account, level, reason, "client pid %d uid %u disconnected: %s", (int) s->peer.pid, s->peer.uid, reason);
        else
                log_debug("client pid %d uid %u left", (int) s->peer.pid, s->peer.uid);
        if (s->prev)
                s->prev->next = s->next;
        else
                m->sessions = s->next;
        if (s->next)
                s->next->prev = s->prev;
        if (m->tick_next == s)
                m->tick_next = s->next;
        if (--m->n_sessions == 0)
                m->empty_since_usec = now_usec();
        door_leave(s);
        s->account->n_sessions--;
        requests_forget_session(s);
        fault_point(FAULT_session_left);
        s->client = client_free(s->client);
        fault_point(FAULT_client_freed);
        peer_clear(&s->peer);
        while (s->queue_head) {
                struct packet *p = s->queue_head;
                s->queue_head = p->next;
                free_packet(p);
        }
        /* The peer learns now, not when the loop gets round to the handle. */
        (void) shutdown(s->fd, SHUT_RDWR);
        uv_close((uv_handle_t *) &s->poll, on_closed);
}

/* Of ours, not a fault of the peer: it may come again. */
static bool is_lack(int error) {
        return error == EUSERS || error == EMFILE || error == ENFILE || error == ENOMEM;
}

/* A socket that is closed with frames unread tells its peer ECONNRESET before, and instead of, what was sent last. */
static void discard_unread(int fd) {
        (void) shutdown(fd, SHUT_RD); /* no more of them */
        while (recv(fd, NULL, 0, MSG_DONTWAIT | MSG_TRUNC) > 0)
                ;
}

void session_refuse(struct session *s, int error, const char *reason) {
        struct msg_refused refused = { .error = error };
        (void) snprintf(refused.reason, sizeof(refused.reason), "%.*s", (int) sizeof(refused.reason) - 1, reason);
        /* Best effort: the queue of a new connection is empty. */
        if (!s->closing) {
                (void) channel_send(s->fd, MSG_REFUSED, &refused, NULL, 0, NULL, 0);
                discard_unread(s->fd);
        }
        /* A process that ended meanwhile fails every look at it, and nobody is refused anything. */
        bool has_ended = s->peer.pidfd >= 0 && !peer_is_alive(&s->peer);
        s->manager->n_refused += !has_ended && is_lack(error);
        session_close(s, has_ended ? LOG_DEBUG : LOG_WARNING, reason);
}

/* -- input ---------------------------------------------------------------------------------------------------------- */

static void dispatch(struct session *s, struct channel_message *message) {
        enum message_type type = message->frame.type;
        if (s->role == ROLE_AGENT)
                client_frame(s->client, message);
        else if (s->role == ROLE_ADMIN)
                control_frame(s, &message->frame);
        else if (type == MSG_ADMIN_HELLO) {
                s->role = ROLE_ADMIN;
                control_hello(s);
        } else {
                char text[96];
                (void) snprintf(text, sizeof(text), "protocol violation: %s before the first HELLO", message_name(type));
                session_close(s, LOG_WARNING, text);
        }
}

static void on_violation(struct session *s, enum codec_error error) {
        char text[128];
        if (error == CODEC_VERSION) {
                (void) snprintf(text, sizeof(text), "another protocol version, this is %d", PROTO_VERSION);
                session_refuse(s, EPROTONOSUPPORT, text);
                return;
        }
        (void) snprintf(text, sizeof(text), "protocol violation: %s", codec_error_string(error));
        session_close(s, LOG_WARNING, text);
}

void session_bad_frame(struct session *s, int r, enum codec_error error) {
        if (r == 0 || r == -ECONNRESET)
                session_close(s, LOG_DEBUG, NULL);
        else if (r == -EPROTO)
                on_violation(s, error);
        else
                session_close(s, LOG_WARNING, r == -EMFILE ? "out of file descriptors" : strerror(-r));
}

/* One frame. False: there is none. */
static bool receive_frame(struct session *s) {
        struct channel_message *message = &s->manager->message;
        enum codec_error error = CODEC_OK;
        if (s->role == 0) {
                int type = channel_peek_type(s->fd);
                if (type == -EAGAIN)
                        return false;
                if (type == MSG_HELLO) {
                        door_knock(s);
                        return true;
                }
        }
        int r = channel_receive_fds(s->fd, s->role ? s->role : ROLE_AGENT | ROLE_ADMIN, message, &error, CHANNEL_FDS_NONE);
        if (r == -EAGAIN)
                return false;
        if (r == 1)
                dispatch(s, message);
        else
                session_bad_frame(s, r, error);
        return true;
}

static void receive(struct session *s) {
        struct manager *m = s->manager;
        for (unsigned n = 0; n < SESSION_FRAMES_PER_TURN && !s->closing && !s->paused && !s->at_door; n++)
                if (!account_may_go_on(m, s->account, now_usec()) || !receive_frame(s))
                        break;
}

static void serve(struct session *s, int status, int events) {
        if (status < 0) { /* EPOLLERR: it left without reading what was on its way */
                session_close(s, LOG_DEBUG, NULL);
                return;
        }
        if (events & UV_WRITABLE)
                flush(s);
        if (!s->closing && (events & UV_READABLE))
                receive(s);
        /* What it sent before it left was read above while it was readable; a paused session has nothing to say. */
        if (!s->closing && (events & UV_DISCONNECT) && (s->paused || !(events & UV_READABLE)))
                session_close(s, LOG_DEBUG, NULL);
}

/* What this turn has no time for is still there in the next one, and epoll says so again. */
static void on_poll(uv_poll_t *handle, int status, int events) {
        struct session *s = handle->data;
        struct manager *m = s->manager;
        struct uid_account *a = s->account;
        uint64_t began = now_usec();
        if (s->closing || !account_may_go_on(m, a, began))
                return;
        serve(s, status, events);
        account_used(m, a, now_usec() - began);
}

/* -- life ------------------------------------------------------------------------------------------------------------ */

/* Static text why not, or NULL. */
static const char *admit(struct manager *m, const struct uid_account *a) {
        int64_t limit = MIN((int64_t) m->max_sessions, m->config.max_clients);
        bool is_trusted = a->uid == 0 || a->uid == geteuid();
        if (m->n_sessions >= (is_trusted ? limit : limit - SESSIONS_RESERVED))
                return "too many clients";
        if (a->n_sessions >= m->config.max_clients_per_uid || (!is_trusted && a->n_sessions >= limit * SESSIONS_USER_PERMILLE / 1000))
                return "too many clients of this user";
        return NULL;
}

static void free_early(struct session *s) {
        peer_clear(&s->peer);
        close_fd(s->fd);
        free(s);
}

int session_new(struct manager *m, int fd) {
        struct session *s = calloc(1, sizeof(*s));
        if (!s) {
                close_fd(fd);
                return -ENOMEM;
        }
        *s = (struct session){ .manager = m, .fd = fd, .peer.pidfd = -1, .accepted_usec = now_usec() };
        s->queue_tail = &s->queue_head;
        s->serial = ++m->next_serial;
        int r = peer_get(fd, &s->peer);
        if (r == 0) {
                s->account = account_get(m, s->peer.uid);
                r = s->account ? 0 : -ENOMEM;
        }
        if (r == 0)
                r = uv_poll_init(&m->loop, &s->poll, fd);
        if (r < 0) {
                free_early(s);
                return r;
        }
        s->poll.data = s;
        const char *refusal = admit(m, s->account);
        s->account->n_sessions++;
        s->next = m->sessions;
        if (s->next)
                s->next->prev = s;
        m->sessions = s;
        m->n_sessions++;
        m->empty_since_usec = 0;
        m->had_session = true;
        manager_watch(m);
        fault_point(FAULT_session_made);
        if (refusal)
                session_refuse(s, EUSERS, refusal);
        else
                session_update(s);
        return 0;
}

void session_tick(struct session *s, uint64_t now) {
        bool is_late = s->role == 0 && !s->at_door && now > s->accepted_usec + SESSION_HELLO_USEC;
        if (is_late && channel_peek_type(s->fd) == -EAGAIN) { /* else it is we who have not come to it */
                session_close(s, LOG_WARNING, "said nothing");
                return;
        }
        if (s->stalled) {
                s->stalled = false;
                flush(s);
        }
        if (!s->closing && s->client)
                client_tick(s->client, now);
}
