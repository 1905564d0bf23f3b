#include "daemon/client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/fault.h"
#include "common/log.h"
#include "common/probes.h"
#include "daemon/nodes.h"
#include "daemon/session.h"

/* The core repeats the protocol's values because it may not include it. */
_Static_assert((int) CORE_APPLY_MERGE == (int) APPLY_MERGE && (int) CORE_APPLY_ZERO == (int) APPLY_ZERO &&
               (int) CORE_APPLY_RESTORE == (int) APPLY_RESTORE, "apply kinds");
_Static_assert((int) CORE_NOT_ASKED == (int) APPLY_NOT_ASKED && (int) CORE_OK == (int) APPLY_OK &&
               (int) CORE_CHANGED == (int) APPLY_CHANGED &&
               (int) CORE_PINNED_OR_FORKED == (int) APPLY_PINNED_OR_FORKED &&
               (int) CORE_VMA_GONE == (int) APPLY_VMA_GONE && (int) CORE_BUDGET == (int) APPLY_BUDGET &&
               (int) CORE_BUSY == (int) APPLY_BUSY && (int) CORE_ERROR == (int) APPLY_ERROR &&
               (int) CORE_LATER == (int) APPLY_LATER && APPLY_STATUS_MAX_ == 9, "apply statuses");
_Static_assert(ARRAY_SIZE(((struct core_apply *) 0)->extents) == 64, "an apply fits one frame");

static void violation(struct client *c, const char *what) {
        char text[128];
        (void) snprintf(text, sizeof(text), "protocol violation: %s", what);
        session_close(c->session, LOG_WARNING, text);
}

/* -- the core's answer to what it hands out -------------------------------------------------------------------------- */

bool client_is_parked(const struct client *c) {
        return c->silent || c->raw || c->session->account->n_slow > 0;
}

void client_update_park(struct client *c) {
        core_client_park(c->manager->core, c->id, client_is_parked(c));
}

static void set_silent(struct client *c, bool silent) {
        if (c->silent == silent)
                return;
        c->silent = silent;
        log_debug("client pid %d uid %u %s", (int) c->session->peer.pid, c->session->peer.uid,
                  silent ? "does not answer, parked" : "answers again");
        client_update_park(c);
        fault_point(FAULT_client_parked);
}

/* The slot of id in the sorted array, or where it belongs. */
static uint32_t segment_position(const struct client *c, uint32_t id) {
        uint32_t low = 0, high = c->n_segments;
        while (low < high) {
                uint32_t middle = low + (high - low) / 2;
                if (c->segments[middle] < id)
                        low = middle + 1;
                else
                        high = middle;
        }
        return low;
}

static bool knows_segment(const struct client *c, uint32_t id) {
        uint32_t i = segment_position(c, id);
        return i < c->n_segments && c->segments[i] == id;
}

static int send_segment(struct client *c, uint32_t id) {
        if (knows_segment(c, id))
                return 0;
        struct store_segment *s = store_segment_find(&c->manager->store, id);
        if (!s || s->domain != c->domain) /* I4: never across domains, whatever the core says */
                return -ENOENT;
        if (c->n_segments == c->segments_capacity) {
                uint32_t capacity = c->segments_capacity ? 2 * c->segments_capacity : 16;
                uint32_t *bigger = realloc(c->segments, capacity * sizeof(*bigger));
                if (!bigger)
                        return -ENOMEM;
                c->segments = bigger;
                c->segments_capacity = capacity;
        }
        struct msg_segment body = { .segment = id, .n_slots = s->segment->n_slots };
        int r = session_send(c->session, MSG_SEGMENT, &body, NULL, 0, s->segment->client_fd);
        if (r < 0)
                return r;
        uint32_t i = segment_position(c, id);
        memmove(c->segments + i + 1, c->segments + i, (c->n_segments - i) * sizeof(*c->segments));
        c->segments[i] = id;
        c->n_segments++;
        fault_point(FAULT_segment_sent);
        return 0;
}

void client_drop_segment(struct manager *m, uint32_t segment) {
        struct msg_segment_drop body = { .segment = segment };
        for (struct session *s = m->sessions, *next; s; s = next) {
                next = s->next;
                struct client *c = s->client;
                if (!c || !knows_segment(c, segment))
                        continue;
                uint32_t i = segment_position(c, segment);
                c->n_segments--;
                memmove(c->segments + i, c->segments + i + 1, (c->n_segments - i) * sizeof(*c->segments));
                (void) session_send(s, MSG_SEGMENT_DROP, &body, NULL, 0, -1);
        }
}

/* The client may be freed in here when its connection fails; then client_free has answered the core for `op`, if it was in
 * the list already. */
static int try_apply(struct client *c, const struct core_apply *apply, uint64_t now) {
        struct extent_element elements[ARRAY_SIZE(apply->extents)];
        struct msg_apply body = { .op = apply->op, .kind = (uint32_t) apply->kind };
        if (c->n_applies == CLIENT_APPLY_WINDOW)
                return -EAGAIN;
        for (uint32_t i = 0; i < apply->n_extents; i++) {
                const struct core_extent *e = &apply->extents[i];
                bool merge = apply->kind == CORE_APPLY_MERGE;
                elements[i] = (struct extent_element){
                        .page = e->page,
                        .n_pages = e->n_pages,
                        .segment = merge ? e->segment : 0,
                        .slot = merge ? e->slot : 0,
                };
                int r = merge ? send_segment(c, e->segment) : 0;
                if (r < 0)
                        return r;
        }
        int r = session_send(c->session, MSG_APPLY, &body, elements, apply->n_extents, -1);
        if (r == 0) {
                c->applies[c->n_applies++] = (struct client_apply){ apply->op, now };
                fault_point(FAULT_apply_sent);
        }
        return r;
}

void client_apply(struct manager *m, const struct core_apply *apply, uint64_t now) {
        static const uint8_t nothing_done[64];
        struct client *c = client_find(m, apply->client);
        int r = c ? try_apply(c, apply, now) : -ESRCH;
        if (r < 0)
                (void) core_apply_done(m->core, apply->op, now, nothing_done, r);
}

void client_merge_done(struct session *s, uint64_t agent_cookie, uint64_t saved_bytes, int error) {
        struct msg_merge_done body = { .cookie = agent_cookie, .saved_bytes = saved_bytes, .error = error };
        if (s->client)
                s->client->n_merges--;
        (void) session_send(s, MSG_MERGE_DONE, &body, NULL, 0, -1);
        fault_point(FAULT_merge_told);
}

/* -- life ------------------------------------------------------------------------------------------------------------ */

struct client *client_find(struct manager *m, uint32_t id) {
        return idmap_get(&m->clients, id);
}

static int register_client(struct client *c, const struct msg_hello *hello) {
        struct manager *m = c->manager;
        struct session *s = c->session;
        char key[PEER_KEY_BYTES];
        uint32_t domain;
        ssize_t size = peer_domain_key(s->fd, &s->peer, s->serial, key);
        if (size < 0)
                return (int) size;
        int r = core_domain(m->core, key, (size_t) size, &domain);
        if (r < 0)
                return r;
        r = store_domain_open(&m->store, domain, key, (size_t) size, &c->domain);
        if (r < 0)
                return r;
        const struct core_client_config config = { .max_map_count = hello->max_map_count, .n_vmas = hello->n_vmas };
        r = core_client_add(m->core, domain, &config, &c->id);
        if (r < 0)
                return r;
        r = idmap_put(&m->clients, c->id, c);
        if (r < 0) {
                core_client_gone(m->core, c->id);
                return r;
        }
        m->n_clients++;
        client_update_park(c);
        return 0;
}

void client_hello(struct session *s, const struct msg_hello *hello, struct process *process, int error, const char *reason) {
        struct manager *m = s->manager;
        struct client *c = NULL;
        fault_point(FAULT_hello_come);
        if (hello->page_size != KSM_PAGE_SIZE) {
                error = -EINVAL;
                reason = "page size is not 4096";
        }
        if (error == 0) {
                c = calloc(1, sizeof(*c));
                error = c ? 0 : -ENOMEM;
        }
        if (!c) {
                process_unref(process);
                session_refuse(s, -error, reason ? reason : strerror(-error));
                return;
        }
        *c = (struct client){ .manager = m, .session = s, .flags = hello->flags, .heard_usec = now_usec(), .process = process };
        memcpy(c->comm, hello->comm, sizeof(hello->comm));
        fault_point(FAULT_hello_held);
        error = register_client(c, hello);
        if (error < 0) {
                process_unref(c->process);
                store_domain_unref(c->domain);
                free(c);
                session_refuse(s, -error, strerror(-error));
                return;
        }
        s->client = c;
        peer_clear(&s->peer); /* the process has its own pidfd; pid and uid stay for the log */
        log_debug("client %u: pid %d uid %u (%s) domain %u", c->id, (int) s->peer.pid, s->peer.uid, c->comm,
                  c->domain->id);
        probe_ksm_enter(c->id, s->peer.pid);
        fault_point(FAULT_hello_known);
        bool report = c->flags & HELLO_REPORTS && m->store.segments.n > 0;
        struct msg_welcome welcome = { .client = c->id, .flags = report ? WELCOME_REPORT : 0 };
        (void) session_send(s, MSG_WELCOME, &welcome, NULL, 0, m->uffd_device);
        fault_point(FAULT_welcomed);
}

static void keep_totals(struct client *c) {
        struct agent_totals *t = &c->manager->gone;
        t->cpu_usec += c->stats.cpu_usec;
        t->transitions += c->stats.transitions;
        t->busy += c->stats.busy;
        for (unsigned i = 0; i < WAIT_BUCKETS; i++)
                t->waits[i] += c->stats.waits[i];
}

struct client *client_free(struct client *c) {
        static const uint8_t nothing_done[64];
        if (!c)
                return NULL;
        struct manager *m = c->manager;
        uint64_t now = now_usec();
        for (unsigned i = 0; i < c->n_applies; i++)
                (void) core_apply_done(m->core, c->applies[i].op, now, nothing_done, -ESRCH);
        nodes_give_up(c, -ESRCH);
        probe_ksm_exit(c->id, c->session->peer.pid);
        core_client_gone(m->core, c->id);
        (void) idmap_remove(&m->clients, c->id);
        m->n_clients--;
        if (c->rest)
                TAILQ_REMOVE(&m->unfinished, c, rest_link);
        free(c->rest);
        keep_totals(c);
        atomic_store_explicit(&c->process->closing, true, memory_order_relaxed);
        process_unref(c->process);
        store_domain_unref(c->domain);
        free(c->segments);
        free(c);
        return NULL;
}

/* -- frames ---------------------------------------------------------------------------------------------------------- */

struct frame_rest {
        enum message_type type;
        struct msg_applied applied;     /* APPLIED */
        uint32_t next, count, n_vmas;   /* frames of ranges */
        struct range_element elements[];
};

/* The session waits until all of the frame is done. */
static void keep_rest(struct client *c, const struct frame_rest *rest, const struct range_element *elements) {
        c->rest = malloc(sizeof(*rest) + rest->count * sizeof(*elements));
        if (!c->rest) {
                session_close(c->session, LOG_WARNING, "out of memory");
                return;
        }
        *c->rest = *rest;
        if (rest->count > 0)
                memcpy(c->rest->elements, elements, rest->count * sizeof(*elements));
        TAILQ_INSERT_TAIL(&c->manager->unfinished, c, rest_link);
        session_pause(c->session, true);
}

/* One element. -EAGAIN: not now. */
static int apply_range(struct client *c, enum message_type type, const struct range_element *e) {
        struct core *core = c->manager->core;
        uint64_t page = e->start >> KSM_PAGE_SHIFT, n_pages = e->length >> KSM_PAGE_SHIFT;
        int r = type == MSG_RANGE_ADD   ? core_range_add(core, c->id, page, n_pages)
                : type == MSG_RANGE_DEL ? core_range_remove(core, c->id, page, n_pages)
                                        : core_pages_gone(core, c->id, page, n_pages);
        /* A range that is not known is a race of the agent with itself; without memory it is not merged. */
        if (r < 0 && r != -ENOENT && r != -EAGAIN)
                account_log(c->manager, c->session->account, r == -ENOMEM ? LOG_WARNING : LOG_DEBUG, strerror(-r),
                            "client pid %d: %s: %s", (int) c->session->peer.pid, message_name((uint16_t) type), strerror(-r));
        return r;
}

/* Elements from *next on, as far as the turn has time: a frame may ask for a tenth of a second's work. True: all are done. */
static bool apply_ranges(struct client *c, enum message_type type, const struct range_element *e, uint32_t count,
                         uint32_t *next) {
        struct uid_account *a = c->session->account;
        uint64_t before = now_usec();
        for (; *next < count; ++*next) {
                if (apply_range(c, type, &e[*next]) == -EAGAIN)
                        return false;
                uint64_t now = now_usec();
                account_used(c->manager, a, now - before);
                before = now;
                if (!account_may_go_on(c->manager, a, now))
                        return ++*next == count;
        }
        return true;
}

static void ranges_applied(struct client *c, enum message_type type, uint32_t n_vmas) {
        struct core *core = c->manager->core;
        struct core_client_counters counters;
        fault_point(FAULT_ranges_come);
        if (type != MSG_RANGE_ADD)
                return;
        core_client_set_vmas(core, c->id, n_vmas);
        if (core_client_counters(core, c->id, &counters) == 0 && counters.n_ranges > CLIENT_RANGES_MAX)
                session_close(c->session, LOG_WARNING, "too many ranges");
}

static void on_ranges(struct client *c, const struct frame *f) {
        enum message_type type = (enum message_type) f->type;
        uint32_t next = 0, n_vmas = type == MSG_RANGE_ADD ? ((const struct msg_range_add *) f->body)->n_vmas : 0;
        if (apply_ranges(c, type, f->elements, f->count, &next)) {
                ranges_applied(c, type, n_vmas);
                return;
        }
        const struct frame_rest rest = { .type = type, .count = f->count - next, .n_vmas = n_vmas };
        keep_rest(c, &rest, (const struct range_element *) f->elements + next);
}

/* Or n_applies. */
static unsigned find_apply(const struct client *c, uint64_t op) {
        unsigned i = 0;
        while (i < c->n_applies && c->applies[i].op != op)
                i++;
        return i;
}

/* One that was asked for. False: not now. */
static bool applied(struct client *c, const struct msg_applied *body) {
        fault_point(FAULT_applied_come);
        if (core_apply_done(c->manager->core, body->op, now_usec(), body->status, 0) == -EAGAIN)
                return false;
        c->applies[find_apply(c, body->op)] = c->applies[c->n_applies - 1];
        c->n_applies--;
        fault_point(FAULT_applied_known);
        return true;
}

static void on_applied(struct client *c, const struct msg_applied *body) {
        if (find_apply(c, body->op) == c->n_applies)
                violation(c, "APPLIED for a transition that was not asked for");
        else if (!applied(c, body))
                keep_rest(c, &(struct frame_rest){ .type = MSG_APPLIED, .applied = *body }, NULL);
}

static bool rest_done(struct client *c, struct frame_rest *rest) {
        if (rest->type == MSG_APPLIED)
                return applied(c, &rest->applied);
        return apply_ranges(c, rest->type, rest->elements, rest->count, &rest->next);
}

static void go_on(struct client *c) {
        struct frame_rest *rest = c->rest;
        struct session *s = c->session;
        struct manager *m = c->manager;
        TAILQ_REMOVE(&m->unfinished, c, rest_link);
        if (!rest_done(c, rest)) {
                TAILQ_INSERT_TAIL(&m->unfinished, c, rest_link);
                return;
        }
        c->rest = NULL;
        c->heard_usec = now_usec(); /* what it said meanwhile was not heard for our sake */
        session_pause(s, false);
        if (!s->closing && rest->type != MSG_APPLIED)
                ranges_applied(c, rest->type, rest->n_vmas);
        free(rest);
}

void clients_go_on(struct manager *m) {
        struct client *last = TAILQ_LAST(&m->unfinished, client_queue), *c;
        while ((c = TAILQ_FIRST(&m->unfinished))) {
                bool is_last = c == last;
                if (turn_is_over(&m->turn, now_usec()))
                        break;
                if (account_may_go_on(m, c->session->account, now_usec()))
                        go_on(c);
                else {
                        TAILQ_REMOVE(&m->unfinished, c, rest_link);
                        TAILQ_INSERT_TAIL(&m->unfinished, c, rest_link);
                }
                if (is_last)
                        break;
        }
}

static void on_runs(struct client *c, const struct frame *f) {
        const struct run_element *e = f->elements;
        for (uint32_t i = 0; i < f->count; i++) {
                struct store_segment *s = store_segment_by_inode(&c->manager->store, e[i].inode);
                if (s && s->domain == c->domain) /* I4 */
                        (void) core_run_adopt(c->manager->core, c->id, e[i].page, e[i].n_pages, s->id, e[i].slot);
        }
        fault_point(FAULT_runs_come);
}

static void on_merge_request(struct client *c, const struct msg_merge_request *body) {
        struct manager *m = c->manager;
        struct request *q;
        if (c->n_merges == CLIENT_MERGES_MAX) {
                violation(c, "too many merge requests at once");
                return;
        }
        c->n_merges++;
        int r = request_new(&m->requests, c->session, &q);
        if (r < 0) {
                client_merge_done(c->session, body->cookie, 0, -r);
                return;
        }
        q->from_agent = true;
        q->agent_cookie = body->cookie;
        /* As for administrators (control.c): a request of a client that is left alone would never end. */
        if (c->raw)
                r = -EOPNOTSUPP;
        else
                r = core_merge_now(m->core, c->id, body->start >> KSM_PAGE_SHIFT, body->length >> KSM_PAGE_SHIFT,
                                   q->cookie, now_usec());
        if (r < 0)
                q->error = r;
        else
                q->n_waiting++;
        fault_point(FAULT_merge_asked);
        request_armed(&m->requests, q);
}

static void on_stats(struct client *c, const struct msg_agent_stats *body) {
        bool sane = body->cpu_usec <= CLIENT_TOTAL_MAX && body->transitions <= CLIENT_TOTAL_MAX &&
                    body->busy <= CLIENT_TOTAL_MAX;
        for (unsigned i = 0; i < WAIT_BUCKETS; i++)
                sane = sane && body->waits[i] <= CLIENT_TOTAL_MAX;
        if (!sane) {
                violation(c, "impossible totals");
                return;
        }
        c->stats = *body;
        c->flags &= ~(uint32_t) HELLO_MERGE_ANY;
        c->flags |= body->flags & AGENT_MERGE_ANY ? HELLO_MERGE_ANY : 0;
        core_client_set_vmas(c->manager->core, c->id, body->n_vmas);
        fault_point(FAULT_stats_come);
        if (body->flags & AGENT_RAW && !c->raw) {
                c->raw = true;
                account_log(c->manager, c->session->account, LOG_NOTICE, "changes mappings without libc",
                            "client pid %d uid %u (%s) changes mappings without libc: left alone from now on",
                            (int) c->session->peer.pid, c->session->peer.uid, c->comm);
                client_update_park(c);
                core_requests_cancel(c->manager->core, c->id, -EOPNOTSUPP);
        }
}

void client_frame(struct client *c, struct channel_message *message) {
        const struct frame *f = &message->frame;
        c->heard_usec = now_usec();
        set_silent(c, false);
        switch (f->type) {
        case MSG_RANGE_ADD:
        case MSG_RANGE_DEL:
        case MSG_GONE:
                on_ranges(c, f);
                break;
        case MSG_RUNS:
                on_runs(c, f);
                break;
        case MSG_MERGE_REQUEST:
                on_merge_request(c, f->body);
                break;
        case MSG_AGENT_STATS:
                on_stats(c, f->body);
                break;
        case MSG_APPLIED:
                on_applied(c, f->body);
                break;
        case MSG_NODES:
                if (nodes_told(c, f) < 0)
                        violation(c, "NODES that were not asked for");
                break;
        case MSG_PONG:
                if (c->ping_usec == 0 || ((const struct msg_ping *) f->body)->cookie != c->ping_cookie)
                        violation(c, "PONG without a PING");
                else
                        c->ping_usec = 0;
                fault_point(FAULT_pong_come);
                break;
        default:
                violation(c, "a second HELLO");
        }
}

/* -- signs of life ----------------------------------------------------------------------------------------------------- */

static void ping(struct client *c, uint64_t now) {
        if (c->ping_usec)
                return;
        struct msg_ping body = { .cookie = ++c->ping_cookie };
        c->ping_usec = now;
        (void) session_send(c->session, MSG_PING, &body, NULL, 0, -1);
        fault_point(FAULT_ping_sent);
}

bool client_is_fresh(struct client *c, uint64_t now) {
        if (now < c->heard_usec + CLIENT_FAST_READ_USEC)
                return true;
        ping(c, now);
        return false;
}

void client_tick(struct client *c, uint64_t now) {
        if (c->rest) /* it is us who owe something */
                return;
        if (c->n_nodes > 0 && now > c->nodes[0].sent_usec + CLIENT_PARK_USEC) /* whatever else it says: a job waits */
                nodes_give_up(c, -ETIMEDOUT);
        uint64_t owed_since = c->ping_usec ? c->ping_usec : UINT64_MAX;
        for (unsigned i = 0; i < c->n_applies; i++)
                owed_since = MIN(owed_since, c->applies[i].sent_usec);
        if (c->n_nodes > 0) /* in the order of asking */
                owed_since = MIN(owed_since, c->nodes[0].sent_usec);
        if (owed_since == UINT64_MAX) {
                if (now > c->heard_usec + CLIENT_IDLE_PING_USEC)
                        ping(c, now);
        } else if (now > owed_since + CLIENT_EVICT_USEC)
                session_close(c->session, LOG_WARNING, "did not answer for 30 s");
        else if (now > MAX(owed_since, c->heard_usec) + CLIENT_PARK_USEC)
                set_silent(c, true);
}
