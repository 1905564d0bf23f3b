#include "daemon/control.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/fault.h"
#include "common/log.h"
#include "daemon/client.h"
#include "daemon/headroom.h"
#include "daemon/session.h"

_Static_assert(COUNTER_MAX_ <= COUNTERS_MAX && TUNABLE_MAX_ <= TUNABLES_MAX, "tables fit their frames");

static bool is_privileged(const struct session *s) {
        return s->peer.uid == 0 || s->peer.uid == geteuid();
}

void control_hello(struct session *s) {
        struct msg_admin_welcome body = { .daemon_pid = (uint32_t) getpid(), .privileged = is_privileged(s) };
        (void) snprintf(body.version, sizeof(body.version), "%s", USERKSM_VERSION);
        (void) session_send(s, MSG_ADMIN_WELCOME, &body, NULL, 0, -1);
}

static void done(struct session *s, int error, uint64_t pages, uint64_t left) {
        struct msg_admin_done body = { .error = error, .pages = pages, .left = left };
        (void) session_send(s, MSG_ADMIN_DONE, &body, NULL, 0, -1);
}

void control_request_done(struct session *s, int error, uint64_t pages, uint64_t left) {
        done(s, error, pages, left);
        fault_point(FAULT_admin_told);
        session_pause(s, false);
}

static void send_stats(struct session *s) {
        struct counters counters;
        struct msg_stats_reply body = { .uptime_usec = now_usec() - s->manager->started_usec };
        manager_counters(s->manager, &counters);
        (void) session_send(s, MSG_STATS_REPLY, &body, &counters, COUNTER_MAX_, -1);
}

static void send_tunables(struct session *s) {
        const struct tunables *t = core_tunables(s->manager->core);
        struct tunable_element elements[TUNABLE_MAX_];
        struct msg_tunables_reply body = { 0 };
        for (uint32_t i = 0; i < TUNABLE_MAX_; i++)
                elements[i] = (struct tunable_element){ .id = i, .value = tunable_get(t, (enum tunable_id) i) };
        (void) session_send(s, MSG_TUNABLES_REPLY, &body, elements, TUNABLE_MAX_, -1);
}

static void fill_client(const struct client *c, struct client_element *e) {
        struct core_client_counters counters = { 0 };
        (void) core_client_counters(c->manager->core, c->id, &counters);
        *e = (struct client_element){
                .client = c->id,
                .pid = (uint32_t) c->session->peer.pid,
                .uid = c->session->peer.uid,
                .flags = c->flags,
                .domain = c->domain->id,
                .n_ranges = counters.n_ranges,
                .registered_pages = counters.registered_pages,
                .tracked_pages = counters.tracked_pages,
                .merged_pages = counters.merged_pages,
                .zero_pages = counters.zero_pages,
                .unshared_pages = counters.unshared_pages,
                .profit_bytes = counters.profit_bytes,
                .cpu_usec = c->stats.cpu_usec,
                .vmas_used = counters.vmas_used,
                .vma_budget = counters.vma_budget,
                .state = c->raw ? CLIENT_RAW : client_is_parked(c) ? CLIENT_PARKED : CLIENT_ACTIVE,
        };
        memcpy(e->comm, c->comm, sizeof(e->comm));
}

static int compare_ids(const void *a, const void *b) {
        uint32_t x = *(const uint32_t *) a, y = *(const uint32_t *) b;
        return x < y ? -1 : x > y;
}

static void send_clients(struct session *s, uint32_t after) {
        struct manager *m = s->manager;
        struct client_element elements[CLIENTS_MAX];
        struct msg_clients_reply body = { 0 };
        uint32_t n_ids = 0, n = 0, *ids = malloc((m->n_clients + 1) * sizeof(*ids));
        bool all = is_privileged(s);
        if (!ids) {
                session_close(s, LOG_WARNING, "out of memory");
                return;
        }
        IDMAP_FOREACH(&m->clients, e) {
                const struct client *c = e->value;
                if (c->id > after && (all || c->session->peer.uid == s->peer.uid))
                        ids[n_ids++] = c->id;
        }
        qsort(ids, n_ids, sizeof(*ids), compare_ids);
        for (; n < n_ids && n < CLIENTS_MAX; n++)
                fill_client(client_find(m, ids[n]), &elements[n]);
        free(ids);
        (void) session_send(s, MSG_CLIENTS_REPLY, &body, elements, n, -1);
}

/* "uid=0 unit=redis@.service": the facts of a key that are there. */
static void domain_name(const struct core_domain_counters *d, char *name, size_t capacity) {
        const char *key = d->key;
        size_t n = 0;
        for (size_t i = 0, length; i < d->key_size; i += length + 1) {
                const char *end = memchr(key + i, '\n', d->key_size - i);
                length = end ? (size_t) (end - key) - i : d->key_size - i;
                if (length == 0 || key[i + length - 1] == '=')
                        continue;
                if (n > 0 && n < capacity - 1)
                        name[n++] = ' ';
                size_t fits = MIN(length, capacity - 1 - n);
                memcpy(name + n, key + i, fits);
                n += fits;
        }
}

static bool has_process_of(const struct manager *m, uint32_t domain, uid_t uid) {
        IDMAP_FOREACH(&m->clients, e) {
                const struct client *c = e->value;
                if (c->domain->id == domain && c->session->peer.uid == uid)
                        return true;
        }
        return false;
}

static void send_domains(struct session *s, uint32_t after) {
        struct manager *m = s->manager;
        struct core_domain_counters sums[DOMAINS_MAX];
        struct domain_element elements[DOMAINS_MAX];
        unsigned n_sums = core_domain_counters(m->core, after, sums, DOMAINS_MAX), n = 0;
        struct msg_domains_reply body = { .next = n_sums == DOMAINS_MAX ? sums[n_sums - 1].domain : 0 };
        for (unsigned i = 0; i < n_sums; i++) {
                const struct core_domain_counters *d = &sums[i];
                if (!is_privileged(s) && !has_process_of(m, d->domain, s->peer.uid))
                        continue;
                elements[n] = (struct domain_element){
                        .domain = d->domain,
                        .n_clients = d->n_clients,
                        .n_segments = d->n_segments,
                        .registered_pages = d->registered_pages,
                        .tracked_pages = d->tracked_pages,
                        .merged_pages = d->merged_pages,
                        .zero_pages = d->zero_pages,
                        .unshared_pages = d->unshared_pages,
                        .volatile_pages = d->volatile_pages,
                        .shared_pages = d->shared_pages,
                        .segment_pages = d->segment_pages,
                        .dead_pages = d->dead_pages,
                };
                domain_name(d, elements[n].key, sizeof(elements[n].key));
                n++;
        }
        (void) session_send(s, MSG_DOMAINS_REPLY, &body, elements, n, -1);
}

static void send_ranges(struct session *s, const struct msg_ranges_request *request) {
        struct core_range_counters sums[CLIENT_RANGES_REPLY_MAX];
        struct client_range_element elements[CLIENT_RANGES_REPLY_MAX];
        struct msg_ranges_reply body;
        const struct client *c = client_find(s->manager, request->client);
        int n = c && (is_privileged(s) || c->session->peer.uid == s->peer.uid)
                        ? core_range_counters(s->manager->core, c->id, request->page, sums, CLIENT_RANGES_REPLY_MAX, &body.next)
                        : -ENOENT;
        if (n < 0) {
                done(s, -n, 0, 0);
                return;
        }
        for (int i = 0; i < n; i++)
                elements[i] = (struct client_range_element){
                        .page = sums[i].page,
                        .n_pages = sums[i].n_pages,
                        .tracked_pages = sums[i].tracked_pages,
                        .merged_pages = sums[i].merged_pages,
                        .zero_pages = sums[i].zero_pages,
                        .unshared_pages = sums[i].unshared_pages,
                        .flags = (sums[i].is_unmerged ? (uint32_t) RANGE_UNMERGED : 0) |
                                 (sums[i].is_continued ? (uint32_t) RANGE_CONTINUED : 0),
                };
        (void) session_send(s, MSG_RANGES_REPLY, &body, elements, (uint32_t) n, -1);
}

/* True: it does, or that does not matter. Else the refusal has been sent. */
static bool has_headroom(struct session *s, uint32_t pid, uint64_t n_pages, uint32_t flags) {
        struct headroom h;
        if (flags & UNMERGE_FORCE || headroom_check(s->manager, pid, n_pages, &h) == 0)
                return true;
        log_notice("unmerge for pid %d refused: %llu pages are needed, %llu can be had", (int) s->peer.pid,
                   (unsigned long long) h.needed_pages, (unsigned long long) h.left_pages);
        struct msg_admin_done body = { .error = ENOMEM, .pid = (uint32_t) h.pid, .pages = h.needed_pages, .left = h.left_pages };
        (void) session_send(s, MSG_ADMIN_DONE, &body, NULL, 0, -1);
        return false;
}

static void set_tunable(struct session *s, const struct msg_tunable_set *body) {
        if (!is_privileged(s)) {
                done(s, EPERM, 0, 0);
                return;
        }
        if (body->id >= TUNABLE_MAX_) {
                done(s, ENOENT, 0, 0);
                return;
        }
        const enum tunable_id id = (enum tunable_id) body->id;
        if (id == TUNABLE_run && body->value == 2 && !has_headroom(s, 0, 0, body->flags))
                return;
        int r = manager_set_tunable(s->manager, id, body->value);
        char text[TUNABLE_TEXT_BYTES];
        fault_point(FAULT_tunable_set);
        if (r == 0)
                log_info("%s set to %s by pid %d uid %u", tunable_table[id].name, tunable_format_value(id, body->value, text),
                         (int) s->peer.pid, s->peer.uid);
        done(s, -r, 0, 0);
}

/* Merge, or unmerge of a part, of the clients of one process, or of all. The reply comes with the end of the last. */
static void start_request(struct session *s, uint32_t pid, const struct msg_admin_unmerge *unmerge) {
        struct manager *m = s->manager;
        struct request *q;
        unsigned n = 0;
        if (!is_privileged(s)) {
                done(s, EPERM, 0, 0);
                return;
        }
        if (unmerge && !has_headroom(s, pid, unmerge->n_pages, unmerge->flags))
                return;
        int r = request_new(&m->requests, s, &q);
        if (r < 0) {
                done(s, -r, 0, 0);
                return;
        }
        session_pause(s, true);
        IDMAP_FOREACH(&m->clients, e) {
                const struct client *c = e->value;
                if (pid && (uint32_t) c->session->peer.pid != pid)
                        continue;
                n++;
                /* A process that changes mappings behind libc's back is not touched again, not even to restore. */
                if (c->raw)
                        r = -EOPNOTSUPP;
                else if (!unmerge)
                        r = core_merge_now(m->core, c->id, 0, 0, q->cookie, now_usec());
                else
                        r = core_unmerge(m->core, c->id, unmerge->page, unmerge->n_pages, q->cookie, now_usec());
                if (r < 0)
                        q->error = r;
                else
                        q->n_waiting++;
        }
        if (n == 0 && pid)
                q->error = -ESRCH;
        fault_point(FAULT_admin_asked);
        request_armed(&m->requests, q);
}

void control_frame(struct session *s, const struct frame *f) {
        switch (f->type) {
        case MSG_STATS_REQUEST:
                send_stats(s);
                break;
        case MSG_CLIENTS_REQUEST:
                send_clients(s, ((const struct msg_clients_request *) f->body)->after);
                break;
        case MSG_TUNABLES_REQUEST:
                send_tunables(s);
                break;
        case MSG_TUNABLE_SET:
                set_tunable(s, f->body);
                break;
        case MSG_ADMIN_MERGE:
                start_request(s, ((const struct msg_admin_merge *) f->body)->pid, NULL);
                break;
        case MSG_DOMAINS_REQUEST:
                send_domains(s, ((const struct msg_domains_request *) f->body)->after);
                break;
        case MSG_RANGES_REQUEST:
                send_ranges(s, f->body);
                break;
        case MSG_ADMIN_UNMERGE:
                start_request(s, ((const struct msg_admin_unmerge *) f->body)->pid, f->body);
                break;
        default:
                session_close(s, LOG_WARNING, "protocol violation: a second ADMIN_HELLO");
        }
}
