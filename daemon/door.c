#include "daemon/door.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "daemon/client.h"
#include "daemon/session.h"

#define LOST_TEXT "memory or descriptors of this user's processes make threads hang"

struct door_job {
        struct worker_job base;
        struct manager *manager;
        struct uid_account *account;
        struct session *session; /* NULL: gone, or never to be an agent */
        struct peer peer;        /* with a pidfd of its own */
        struct msg_hello hello;
        int fds[FRAME_MAX_FDS];
        unsigned n_fds;
        bool is_hello;
        struct process *process;
        const char *reason;
        int error;
};

/* -- on a worker ------------------------------------------------------------------------------------------------------ */

static void run_look(struct worker_job *base, void *scratch) {
        struct door_job *j = (struct door_job *) base;
        if (j->is_hello) {
                j->error = process_new(&j->peer, j->fds[0], j->fds[1], &j->process, &j->reason);
                /* Here because /proc/PID/status holds the address space for a moment: who looks while the process exits may be the
                 * one to tear it down. */
                if (j->error == 0)
                        j->error = peer_check_eligible(&j->peer, &j->reason);
                return;
        }
        for (unsigned i = 0; i < j->n_fds; i++)
                close_fd(j->fds[i]);
}

/* -- on the loop ------------------------------------------------------------------------------------------------------ */

static void wait_for_turn(struct session *s) {
        s->at_door = true;
        TAILQ_INSERT_TAIL(&s->account->door, s, door_link);
        session_update(s);
}

static void stop_waiting(struct session *s) {
        if (s->at_door)
                TAILQ_REMOVE(&s->account->door, s, door_link);
        s->at_door = false;
}

void door_leave(struct session *s) {
        stop_waiting(s);
        if (s->door_job)
                s->door_job->session = NULL;
        s->door_job = NULL;
}

static void start(struct session *s, struct door_job *j) {
        j->base.run = run_look;
        s->account->door_busy = true;
        s->account->n_jobs++;
        workers_submit(s->manager->workers, &j->base);
}

void door_knock(struct session *s) {
        struct channel_message *message = &s->manager->message;
        enum codec_error error = CODEC_OK;
        if (s->account->n_lost > 0) {
                session_refuse(s, EUSERS, LOST_TEXT);
                return;
        }
        if (s->account->door_busy) {
                wait_for_turn(s);
                return;
        }
        struct door_job *j = calloc(1, sizeof(*j));
        if (!j) {
                session_refuse(s, ENOMEM, "out of memory");
                return;
        }
        *j = (struct door_job){ .manager = s->manager, .account = s->account, .peer = s->peer };
        j->peer.pidfd = s->peer.pidfd >= 0 ? fcntl(s->peer.pidfd, F_DUPFD_CLOEXEC, 0) : -1;
        int r = s->peer.pidfd >= 0 && j->peer.pidfd < 0
                        ? -EMFILE
                        : channel_receive_fds(s->fd, ROLE_AGENT, message, &error, CHANNEL_FDS_ALWAYS_MINE);
        while (r != -EAGAIN && j->n_fds < message->n_fds) {
                j->fds[j->n_fds] = message->fds[j->n_fds];
                j->n_fds++;
        }
        message->n_fds = 0;
        j->is_hello = r == 1 && message->frame.type == MSG_HELLO;
        if (j->is_hello) {
                memcpy(&j->hello, message->frame.body, sizeof(j->hello));
                j->session = s;
                s->door_job = j;
                s->role = ROLE_AGENT;
        }
        if (j->n_fds > 0)
                start(s, j);
        else {
                peer_clear(&j->peer);
                free(j);
        }
        if (!s->door_job)
                session_bad_frame(s, r, error);
        else
                session_pause(s, true);
}

static void free_job(struct door_job *j) {
        peer_clear(&j->peer);
        free(j);
}

/* The next of this user that still waits. */
static void open_door(struct uid_account *a) {
        struct session *s = TAILQ_FIRST(&a->door);
        a->door_busy = false;
        if (!s)
                return;
        stop_waiting(s);
        session_update(s); /* its frame is still there: polling says so again */
}

bool door_is_job(const struct worker_job *job) {
        return job->run == run_look;
}

void door_job_done(struct worker_job *base) {
        struct door_job *j = (struct door_job *) base;
        struct uid_account *a = j->account;
        struct session *s = j->session;
        if (base->given_up) {
                account_log(j->manager, a, LOG_NOTICE, "a descriptor answered", "a descriptor of uid %u's answered after all", a->uid);
                a->n_lost--;
        }
        if (s) {
                s->door_job = NULL;
                session_pause(s, false);
        }
        if (s && !s->closing)
                client_hello(s, &j->hello, j->process, j->error, j->reason);
        else
                process_unref(j->process);
        a->n_jobs--;
        free_job(j);
        open_door(a);
}

void door_job_lost(struct worker_job *base) {
        struct door_job *j = (struct door_job *) base;
        struct uid_account *a = j->account;
        struct session *s;
        a->n_lost++;
        if (j->session)
                session_close(j->session, LOG_WARNING, "its descriptors do not answer");
        while ((s = TAILQ_FIRST(&a->door)))
                session_refuse(s, EUSERS, LOST_TEXT);
}
