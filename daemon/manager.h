/* The loop and everything that hangs on it: one per process, owned by main. All of the shell runs on the loop's thread,
 * except the run functions of jobs. */
#pragma once

#include <uv.h>

#include "common/counters.h"
#include "daemon/account.h"
#include "daemon/config.h"
#include "daemon/core/core.h"
#include "daemon/governor.h"
#include "daemon/idmap.h"
#include "daemon/request.h"
#include "daemon/room.h"
#include "daemon/store.h"
#include "daemon/turn.h"
#include "proto/channel.h"

struct session;
struct scanner;
struct listener;

/* What agents report, added up; of those that left it is kept. */
struct agent_totals {
        uint64_t cpu_usec, transitions, busy, waits[WAIT_BUCKETS];
};

struct manager {
        uv_loop_t loop;
        uv_prepare_t prepare;   /* before the loop sleeps: hand out work */
        uv_async_t jobs_done;   /* workers: there is something to reap */
        uv_idle_t idle;         /* active: there is more work, do not sleep */
        uv_timer_t work_timer;  /* when the core next has work */
        uv_timer_t liveness_timer;
        uv_timer_t watchdog_timer;
        uv_signal_t sigterm, sigint, sighup;

        struct config config;
        int argc; /* for reload */
        char **argv;

        struct core *core;
        struct store store;
        struct workers *workers;
        struct scanner *scanner;
        struct listener *listener;
        struct requests requests;

        struct session *sessions; /* all, newest first */
        struct session *tick_next; /* whom the liveness tick comes to next; NULL: between two rounds */
        TAILQ_HEAD(client_queue, client) unfinished; /* clients with the rest of a frame */
        unsigned n_sessions, n_clients, max_sessions;
        struct idmap clients; /* core's client id -> struct client */
        struct idmap accounts;
        uint64_t next_serial;

        int uffd_device; /* /dev/userfaultfd: passed to every agent */
        struct agent_totals gone;
        struct channel_message message; /* the one being received */

        struct turn turn;
        struct log_limit log;
        uint64_t n_log_suppressed;
        uint64_t n_refused; /* connections, for lack of something */
        struct room room;
        struct governor governor;
        unsigned n_nodes; /* with memory, at the start */
        int vmstat_fd;       /* where the kernel counts migrations */
        uint64_t n_migrated; /* that it had counted at the last look */
        uint64_t started_usec, tick_due_usec;
        uint64_t empty_since_usec; /* no connection since then; 0 = there is one */
        bool had_session, loop_ready;
        bool stopping, failed;
};

/* config is copied; argv must live on. 0 or -errno, logged. */
int manager_new(const struct config *config, int argc, char **argv, int uffd_device, struct manager **ret);
/* Runs until told to stop. 0 or -errno, logged. */
int manager_run(struct manager *m);
struct manager *manager_free(struct manager *m);

/* Ends the loop in an orderly way: everybody is disconnected and keeps what it has. */
void manager_stop(struct manager *m);

/* Ends the connections of all agents of a user. */
void manager_evict(struct manager *m, const struct uid_account *a, const char *reason);
/* Whether the user's clients get work has changed. */
void manager_park(struct manager *m, const struct uid_account *a);
/* Starts the liveness timer if it rests. */
void manager_watch(struct manager *m);
/* A tunable's new value, on whoever's behalf: 0, or as core_tunable_set. What of it needs a word is said in the log. */
int manager_set_tunable(struct manager *m, enum tunable_id id, int64_t value);
/* Counters of the core and of the shell. */
void manager_counters(struct manager *m, struct counters *ret);
