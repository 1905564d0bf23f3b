#include "daemon/manager.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/fault.h"
#include "common/log.h"
#include "daemon/client.h"
#include "daemon/bounds.h"
#include "daemon/door.h"
#include "daemon/listener.h"
#include "daemon/notify.h"
#include "daemon/passed.h"
#include "daemon/recover.h"
#include "daemon/scanner.h"
#include "daemon/session.h"
#include "daemon/sys/numa.h"
#include "daemon/sys/sandbox.h"
#include "daemon/sys/segment.h"

/* Reading and hashing is memory bound: more than four threads add little, and one would let a single slow client hold
 * everybody up. */
#define WORKERS_MIN 2
#define WORKERS_MAX_DEFAULT 4

/* -- work: the core's outputs ---------------------------------------------------------------------------------------- */

/* One step of everything that is due. True: something was done, look again. */
static bool step(struct manager *m, uint64_t now, uint64_t *next) {
        struct core_segment_event segment_event;
        struct core_event event;
        struct core_apply apply;
        uint64_t at;
        bool again = false;
        if (core_next_segment_event(m->core, &segment_event)) {
                if (segment_event.kind == CORE_SEGMENT_DROP)
                        client_drop_segment(m, segment_event.segment);
                store_segment_event(&m->store, &segment_event);
                again = true;
        }
        if (core_next_event(m->core, &event)) {
                request_event(&m->requests, &event);
                again = true;
        }
        at = UINT64_MAX;
        if (core_next_apply(m->core, now, CLIENT_APPLY_WINDOW, &apply, &at)) {
                client_apply(m, &apply, now);
                again = true;
        } else
                *next = MIN(*next, at);
        at = UINT64_MAX;
        if (scanner_dispatch(m->scanner, now, &at))
                again = true;
        else
                *next = MIN(*next, at);
        return again;
}

/* Hands out work until there is none, or others have waited long enough. Returns when to come back. */
static uint64_t pump(struct manager *m) {
        uint64_t now = now_usec(), end = now + PUMP_USEC;
        for (unsigned i = 0; i < PUMP_STEPS_PER_TURN && now < end; i++, now = now_usec()) {
                /* Once a turn in any case: what came in may have left the core something to clear up. */
                if (i == 0 || now >= m->tick_due_usec)
                        m->tick_due_usec = core_tick(m->core, now);
                uint64_t next = m->tick_due_usec;
                if (!step(m, now, &next))
                        return next;
        }
        return 0;
}

static void on_idle(uv_idle_t *handle) {
}

static void on_work_due(uv_timer_t *handle) {
        /* The loop woke: on_prepare does the rest. */
}

static void on_prepare(uv_prepare_t *handle) {
        struct manager *m = handle->data;
        if (m->stopping)
                return;
        clients_go_on(m);
        uint64_t next = pump(m), now = now_usec();
        if (next <= now || !TAILQ_EMPTY(&m->unfinished)) {
                (void) uv_idle_start(&m->idle, on_idle);
                (void) uv_timer_stop(&m->work_timer);
        } else {
                (void) uv_idle_stop(&m->idle);
                /* The cap keeps the sum of loop time and timeout from wrapping. */
                uint64_t msec = (MIN(next - now, 3600 * USEC_PER_SEC) + USEC_PER_MSEC - 1) / USEC_PER_MSEC;
                uv_update_time(&m->loop);
                (void) uv_timer_start(&m->work_timer, on_work_due, msec, 0);
        }
        turn_end(&m->turn, &m->loop);
}

/* Called by a finished worker through uv_async_send, so on the loop's thread again. */
static void on_jobs(uv_async_t *handle) {
        struct manager *m = handle->data;
        struct worker_job *job;
        while ((job = workers_reap(m->workers))) {
                if (store_is_job(job))
                        store_job_done(&m->store, job);
                else if (door_is_job(job))
                        door_job_done(job);
                else
                        scanner_job_done(m->scanner, job);
                if (!m->stopping && turn_is_over(&m->turn, now_usec())) {
                        (void) uv_async_send(handle); /* for those that are left */
                        break;
                }
        }
}

static void wake_loop(void *userdata) {
        struct manager *m = userdata;
        (void) uv_async_send(&m->jobs_done);
}

/* -- time and signals --------------------------------------------------------------------------------------------------- */

static void check_private(struct manager *m, uint64_t now) {
        if (!m->config.private_mode || m->n_sessions > 0)
                return;
        uint64_t limit = m->had_session ? PRIVATE_LINGER_USEC : PRIVATE_UNUSED_USEC;
        if (now > m->empty_since_usec + limit) {
                log_info("nobody is left");
                manager_stop(m);
        }
}

/* Threads that hang, and whose fault it is. */
static void check_lost(struct manager *m, uint64_t now) {
        struct worker_job *job;
        workers_relieve(m->workers, now, JOB_SLOW_USEC);
        while ((job = workers_find_slow(m->workers, now, JOB_SLOW_USEC)))
                if (!store_is_job(job) && !door_is_job(job)) /* of those a user has one at a time */
                        scanner_job_slow(m->scanner, job);
        while ((job = workers_give_up(m->workers, now, JOB_LOST_USEC))) {
                if (store_is_job(job)) /* a seal that waits for pins: nobody's fault, it comes back */
                        continue;
                if (door_is_job(job))
                        door_job_lost(job);
                else
                        scanner_job_lost(m->scanner, job);
        }
        if (workers_n_running(m->workers) == 0 && !m->stopping) {
                log_error("every worker hangs, %u threads in all: leaving, to be started anew", workers_n_lost(m->workers));
                m->failed = true;
                manager_stop(m);
        }
}

/* True: a round is over. Ten thousand clients that are all parked at once take longer than a turn may. */
static bool tick_sessions(struct manager *m, uint64_t now) {
        while (m->tick_next && !turn_is_over(&m->turn, now_usec())) {
                struct session *s = m->tick_next;
                m->tick_next = s->next;
                session_tick(s, now);
        }
        return !m->tick_next;
}

/* What the kernel migrated the core looks at in the next pass. */
static void look_for_migrations(struct manager *m) {
        uint64_t n;
        if (!core_wants_nodes(m->core))
                return;
        int r = numa_migrations(m->vmstat_fd, &n);
        if (r == -EBADMSG || (r == 0 && n == m->n_migrated))
                return;
        if (r == 0) /* else it may have */
                m->n_migrated = n;
        core_pages_migrated(m->core);
}

static void on_liveness(uv_timer_t *handle) {
        struct manager *m = handle->data;
        uint64_t now = now_usec();
        if (!m->tick_next)
                m->tick_next = m->sessions;
        if (!tick_sessions(m, now)) {
                (void) uv_timer_start(handle, on_liveness, 1, LIVENESS_TICK_USEC / USEC_PER_MSEC);
                return;
        }
        check_lost(m, now);
        room_look(&m->room, m->core, now);
        governor_look(&m->governor, now);
        look_for_migrations(m);
        listener_tick(m->listener);
        check_private(m, now);
        bool has_accounts = account_tick(m, now);
        /* Nobody there, nothing running: sleep until someone comes. */
        if (!m->config.private_mode && m->n_sessions == 0 && !has_accounts && scanner_n_running(m->scanner) == 0)
                (void) uv_timer_stop(&m->liveness_timer);
}

void manager_watch(struct manager *m) {
        if (uv_is_active((uv_handle_t *) &m->liveness_timer))
                return;
        room_look(&m->room, m->core, now_usec()); /* the last look may be long ago */
        governor_look(&m->governor, now_usec());
        (void) uv_timer_start(&m->liveness_timer, on_liveness, LIVENESS_TICK_USEC / USEC_PER_MSEC, LIVENESS_TICK_USEC / USEC_PER_MSEC);
}

static void on_watchdog(uv_timer_t *handle) {
        notify_watchdog();
}

void manager_stop(struct manager *m) {
        m->stopping = true;
        uv_stop(&m->loop);
        fault_point(FAULT_stop_asked);
}

int manager_set_tunable(struct manager *m, enum tunable_id id, int64_t value) {
        int r = core_tunable_set(m->core, id, value, now_usec());
        if (r == 0 && id == TUNABLE_merge_across_nodes && value == 0 && m->n_nodes == 1)
                log_notice("merge_across_nodes=0 changes nothing here: the machine has one NUMA node");
        return r;
}

/* The values are within their ranges. While the advisor is on it sets pages_to_scan, so its end comes first. */
static void set_tunables(struct manager *m, const struct tunables *values) {
        if (values->advisor_mode == ADVISOR_NONE)
                (void) manager_set_tunable(m, TUNABLE_advisor_mode, ADVISOR_NONE);
        for (unsigned i = 0; i < TUNABLE_MAX_; i++) {
                const enum tunable_id id = (enum tunable_id) i;
                if (tunable_get(values, id) != tunable_get(core_tunables(m->core), id))
                        (void) manager_set_tunable(m, id, tunable_get(values, id));
        }
}

static void on_stop_signal(uv_signal_t *handle, int signum) {
        log_info("%s: leaving, clients keep what they have saved", signum == SIGTERM ? "SIGTERM" : "SIGINT");
        manager_stop(handle->data);
}

/* The file is read again under the same command line. What it does not name goes back to its default, so that the
 * running daemon is what a fresh one would be. A file with an error changes nothing. */
static void on_reload(uv_signal_t *handle, int signum) {
        struct manager *m = handle->data;
        struct config fresh;
        struct config_error error;
        notify_reloading();
        if (config_load(&fresh, m->argc, m->argv, &error) != 0)
                log_error("%s; configuration stays as it was", error.text);
        else {
                fault_point(FAULT_reload_read);
                const char *fixed = config_fixed_difference(&m->config, &fresh);
                if (fixed)
                        log_warning("%s: changed only by a restart", fixed);
                log_set_max_level((int) fresh.log_level);
                m->config.log_level = fresh.log_level;
                m->config.max_clients = fresh.max_clients;
                m->config.max_clients_per_uid = fresh.max_clients_per_uid;
                m->config.fast_read = fresh.fast_read;
                set_tunables(m, &fresh.tunables);
                fault_point(FAULT_reload_applied);
                log_info("configuration read again");
        }
        notify_ready();
}

/* -- books ------------------------------------------------------------------------------------------------------------------ */

void manager_evict(struct manager *m, const struct uid_account *a, const char *reason) {
        for (struct session *s = m->sessions, *next; s; s = next) {
                next = s->next;
                if (s->account == a && s->role == ROLE_AGENT)
                        session_close(s, LOG_WARNING, reason);
        }
}

void manager_park(struct manager *m, const struct uid_account *a) {
        for (struct session *s = m->sessions; s; s = s->next)
                if (s->account == a && s->client)
                        client_update_park(s->client);
}

void manager_counters(struct manager *m, struct counters *ret) {
        struct agent_totals t = m->gone;
        struct rusage usage;
        *ret = (struct counters){ 0 };
        core_look(m->core, now_usec());
        core_counters(m->core, ret);
        IDMAP_FOREACH(&m->clients, e) {
                const struct client *c = e->value;
                t.cpu_usec += c->stats.cpu_usec;
                t.transitions += c->stats.transitions;
                t.busy += c->stats.busy;
                for (unsigned i = 0; i < WAIT_BUCKETS; i++)
                        t.waits[i] += c->stats.waits[i];
                ret->raw_syscalls += c->raw;
        }
        ret->clients = m->n_clients;
        ret->agent_busy = (int64_t) t.busy;
        ret->agents_cpu_usec = (int64_t) t.cpu_usec;
        ret->transitions = (int64_t) t.transitions;
        int64_t *waits = (int64_t *) ret + COUNTER_wait_le_64_usec;
        for (unsigned i = 0; i < WAIT_BUCKETS; i++)
                waits[i] = (int64_t) t.waits[i];
        turn_counters(&m->turn, ret);
        ret->threads_lost = workers_n_lost(m->workers);
        ret->sessions_refused = (int64_t) m->n_refused;
        governor_counters(&m->governor, ret);
        ret->memory_left_bytes = (int64_t) MIN(m->room.left_bytes, (uint64_t) INT64_MAX);
        ret->log_suppressed = (int64_t) m->n_log_suppressed;
        if (getrusage(RUSAGE_SELF, &usage) == 0)
                ret->daemon_cpu_usec = (int64_t) ((uint64_t) (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) *
                                                          USEC_PER_SEC +
                                                  (uint64_t) (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec));
}
_Static_assert(COUNTER_wait_gt_16384_usec - COUNTER_wait_le_64_usec + 1 == WAIT_BUCKETS, "buckets stand together");

/* -- life --------------------------------------------------------------------------------------------------------------------- */

/* Raises the limit of open files as far as we may; returns how many connections it allows. */
static unsigned raise_fd_limit(void) {
        struct rlimit limit;
        if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
                return 1;
        limit.rlim_cur = limit.rlim_max;
        (void) setrlimit(RLIMIT_NOFILE, &limit);
        (void) getrlimit(RLIMIT_NOFILE, &limit);
        rlim_t reserved = MAX(limit.rlim_cur / 4, (rlim_t) FDS_RESERVED_MIN);
        rlim_t n = limit.rlim_cur > reserved ? (limit.rlim_cur - reserved) / FDS_PER_CLIENT : 1;
        return (unsigned) MIN(n, (rlim_t) UINT32_MAX);
}

/* Who wakes as SCHED_BATCH takes nobody's processor away (sched(7)). Else the threads that wake here would interrupt agents in their transitions,
 * and accesses that wait for those would wait for us (docs/agent.md). An operator who has chosen another policy keeps it. */
static void set_batch_policy(void) {
        if (sched_getscheduler(0) == SCHED_OTHER)
                (void) sched_setscheduler(0, SCHED_BATCH, &(struct sched_param){ 0 });
}

static unsigned n_workers(const struct config *config) {
        if (config->workers > 0)
                return (unsigned) config->workers;
        unsigned n = uv_available_parallelism();
        return n < WORKERS_MIN ? WORKERS_MIN : MIN(n, (unsigned) WORKERS_MAX_DEFAULT);
}

static int start_handles(struct manager *m) {
        int r = uv_loop_init(&m->loop);
        if (r < 0)
                return r;
        m->loop_ready = true;
        r = turn_init(&m->turn, &m->loop);
        if (r < 0)
                return r;
        uv_prepare_init(&m->loop, &m->prepare);
        uv_idle_init(&m->loop, &m->idle);
        uv_timer_init(&m->loop, &m->work_timer);
        uv_timer_init(&m->loop, &m->liveness_timer);
        uv_timer_init(&m->loop, &m->watchdog_timer);
        m->prepare.data = m->idle.data = m->work_timer.data = m->liveness_timer.data =
                m->watchdog_timer.data = m;
        r = uv_async_init(&m->loop, &m->jobs_done, on_jobs);
        if (r < 0)
                return r;
        m->jobs_done.data = m;
        const struct {
                uv_signal_t *handle;
                int signum;
                uv_signal_cb callback;
        } signals[] = { { &m->sigterm, SIGTERM, on_stop_signal },
                        { &m->sigint, SIGINT, on_stop_signal },
                        { &m->sighup, SIGHUP, on_reload } };
        for (size_t i = 0; i < ARRAY_SIZE(signals); i++) {
                r = uv_signal_init(&m->loop, signals[i].handle);
                if (r == 0)
                        r = uv_signal_start(signals[i].handle, signals[i].callback, signals[i].signum);
                if (r < 0)
                        return r;
                signals[i].handle->data = m;
        }
        uv_prepare_start(&m->prepare, on_prepare);
        uint64_t msec = notify_watchdog_interval_msec();
        if (msec)
                uv_timer_start(&m->watchdog_timer, on_watchdog, msec, msec);
        return 0;
}

static int start_core(struct manager *m) {
        uint64_t seed;
        if (getrandom(&seed, sizeof(seed), 0) != sizeof(seed))
                return -EIO;
        int r = core_new(NULL, seed, &m->core);
        if (r < 0)
                return r;
        m->n_nodes = numa_count();
        core_set_nodes(m->core, m->n_nodes > 1);
        core_set_processors(m->core, (unsigned) MAX(sysconf(_SC_NPROCESSORS_ONLN), 1L));
        set_tunables(m, &m->config.tunables);
        return 0;
}

/* The allow-list goes in before the workers, which inherit it. */
static int start_workers(struct manager *m) {
        if (m->config.sandbox) {
                int r = sandbox_enter();
                if (r < 0)
                        return r;
        }
        fault_point(FAULT_daemon_sandboxed);
        int r = workers_new(n_workers(&m->config), scanner_scratch_bytes(), wake_loop, m, &m->workers);
        if (r < 0)
                return r;
        m->store.workers = m->workers;
        return scanner_new(m, &m->scanner);
}

int manager_new(const struct config *config, int argc, char **argv, int uffd_device, struct manager **ret) {
        _cleanup_(passed_done) struct passed passed;
        int r = passed_take(&passed);
        if (r < 0)
                return r;
        struct manager *m = calloc(1, sizeof(*m));
        if (!m)
                return log_errno(ENOMEM, "start");
        store_init(&m->store);
        m->config = *config;
        m->argc = argc;
        m->argv = argv;
        m->uffd_device = uffd_device;
        TAILQ_INIT(&m->unfinished);
        m->started_usec = m->empty_since_usec = now_usec();
        m->max_sessions = raise_fd_limit();
        set_batch_policy();
        room_open(&m->room);
        governor_open(&m->governor, m->config.pressure_file, now_usec());
        m->vmstat_fd = numa_open_vmstat();
        r = start_handles(m);
        if (r < 0)
                log_errno(r, "event loop");
        if (r == 0) {
                r = start_core(m);
                if (r < 0)
                        log_errno(r, "core");
        }
        if (r == 0) {
                m->store.filler = segment_filler_open(uffd_device);
                if (m->store.filler < 0)
                        r = log_errno(m->store.filler, "userfaultfd");
        }
        if (r == 0)
                r = listener_new(m, take_fd(&passed.listen_fd), &m->listener);
        if (r == 0) {
                fault_point(FAULT_daemon_listening);
                r = start_workers(m);
                if (r < 0)
                        log_errno(r, "sandbox and workers");
        }
        if (r == 0)
                recover_segments(m, &passed);
        if (r < 0) {
                manager_free(m);
                return r;
        }
        *ret = m;
        return 0;
}

int manager_run(struct manager *m) {
        if (m->config.private_mode)
                manager_watch(m);
        log_info("userksmd " USERKSM_VERSION " on %s, %u workers, at most %u clients", m->config.socket,
                 workers_n_running(m->workers), (unsigned) MIN((int64_t) m->max_sessions, m->config.max_clients));
        fault_point(FAULT_daemon_ready);
        notify_ready();
        turn_start(&m->turn);
        int r = uv_run(&m->loop, UV_RUN_DEFAULT);
        notify_stopping();
        log_debug("longest turn of the loop: %llu us, %llu us of CPU time", (unsigned long long) m->turn.longest_usec,
                  (unsigned long long) m->turn.longest_cpu_usec);
        if (r < 0)
                log_errno(r, "event loop");
        return r < 0 ? r : m->failed ? -EIO : 0;
}

static void close_handle(uv_handle_t *handle, void *userdata) {
        if (!uv_is_closing(handle))
                uv_close(handle, NULL);
}

struct manager *manager_free(struct manager *m) {
        if (!m)
                return NULL;
        m->stopping = true;
        m->listener = listener_free(m->listener);
        fault_point(FAULT_stop_deaf);
        while (m->sessions)
                session_close(m->sessions, LOG_DEBUG, NULL);
        fault_point(FAULT_stop_alone);
        /* A worker that hangs on a client's memory may use its job for ever: all of it is left to the exit. */
        if (m->workers && workers_stop(m->workers) < 0)
                return NULL;
        fault_point(FAULT_stop_idle);
        if (m->scanner)
                on_jobs(&m->jobs_done);
        if (m->loop_ready) {
                uv_walk(&m->loop, close_handle, NULL);
                (void) uv_run(&m->loop, UV_RUN_DEFAULT);
                (void) uv_loop_close(&m->loop);
        }
        requests_done(&m->requests);
        m->scanner = scanner_free(m->scanner);
        m->workers = workers_free(m->workers);
        store_done(&m->store);
        close_fd(m->store.filler);
        m->core = core_free(m->core);
        fault_point(FAULT_stop_freed);
        accounts_free(m);
        idmap_clear(&m->clients);
        close_fd(m->uffd_device);
        room_close(&m->room);
        governor_close(&m->governor);
        m->vmstat_fd = close_fd(m->vmstat_fd);
        free(m);
        return NULL;
}
