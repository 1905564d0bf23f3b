/* The loop and everything that hangs on it: one per process, owned by main. All of the shell runs on the loop's thread,
 * except the run functions of jobs. */
#pragma once

#include <uv.h>

#include "common/counters.h"
#include "daemon/config.h"
#include "daemon/core/core.h"
#include "daemon/idmap.h"
#include "daemon/request.h"
#include "daemon/store.h"
#include "proto/channel.h"

struct session;
struct scanner;
struct listener;

/* What agents report, added up; of those that left it is kept. */
struct agent_totals {
        uint64_t cpu_usec, transitions, busy, waits[WAIT_BUCKETS];
};

/* What one user holds here. Lives while a connection or a lost reader of that user does. */
struct uid_account {
        uint32_t uid;
        unsigned n_sessions;
        unsigned n_lost; /* reader threads that hang on memory of this user's processes */
};

struct manager {
        uv_loop_t loop;
        uv_prepare_t prepare;   /* before the loop sleeps: hand out work */
        uv_check_t check;       /* after it woke: start of a turn */
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
        unsigned n_sessions, n_clients, max_sessions;
        struct idmap clients; /* core's client id -> struct client */
        struct idmap accounts;
        uint64_t next_serial;

        int uffd_device; /* /dev/userfaultfd: passed to every agent */
        struct agent_totals gone;
        struct channel_message message; /* the one being received */

        uint64_t started_usec, turn_usec, longest_turn_usec, tick_due_usec;
        uint64_t empty_since_usec; /* no connection since then; 0 = there is one */
        bool had_session, loop_ready;
        bool stopping;
};

/* config is copied; argv must live on. 0 or -errno, logged. */
int manager_new(const struct config *config, int argc, char **argv, int uffd_device, struct manager **ret);
/* Runs until told to stop. 0 or -errno, logged. */
int manager_run(struct manager *m);
struct manager *manager_free(struct manager *m);

/* Ends the loop in an orderly way: everybody is disconnected and keeps what it has. */
void manager_stop(struct manager *m);

struct uid_account *manager_account(struct manager *m, uint32_t uid); /* finds or creates; NULL = no memory */
void manager_account_release(struct manager *m, struct uid_account *a);
/* Starts the liveness timer if it rests. */
void manager_watch(struct manager *m);
/* Counters of the core and of the shell. */
void manager_counters(struct manager *m, struct counters *ret);
