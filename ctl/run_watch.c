#include "ctl/run_watch.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "ctl/render.h"

/* Deeper than any sane tree of processes; ends the walk if /proc changes under it. */
#define ANCESTORS_MAX 128

void watch_init(struct watch *w, struct admin *admin, pid_t root, bool all) {
        *w = (struct watch) { .admin = admin, .root = root, .all = all };
}

void watch_done(struct watch *w) {
        free(w->known);
        client_list_free(&w->clients);
        w->known = NULL;
}

/* Field 4 of /proc/PID/stat; the command before it may hold spaces and parentheses. 0 when there is none. */
static pid_t parent_of(pid_t pid) {
        char path[64], text[512];
        const char *p;
        size_t n;
        int parent;
        FILE *f;

        snprintf(path, sizeof(path), "/proc/%d/stat", (int) pid);
        f = fopen(path, "re");
        if (!f)
                return 0;
        n = fread(text, 1, sizeof(text) - 1, f);
        fclose(f);
        text[n] = 0;
        p = strrchr(text, ')');
        return p && sscanf(p + 1, " %*c %d", &parent) == 1 ? (pid_t) parent : 0;
}

static bool is_descendant(pid_t pid, pid_t root) {
        for (unsigned i = 0; i < ANCESTORS_MAX && pid > 1; i++) {
                if (pid == root)
                        return true;
                pid = parent_of(pid);
        }
        return false;
}

static bool is_known(const struct watch *w, uint32_t id) {
        for (size_t i = 0; i < w->n_known; i++)
                if (w->known[i] == id)
                        return true;
        return false;
}

/* Without memory it stays unknown, and is asked for again at the next sample. */
static void remember(struct watch *w, uint32_t id) {
        if (w->n_known == w->n_known_allocated) {
                size_t allocated = MAX((size_t) 64, 2 * w->n_known_allocated);
                uint32_t *p = reallocarray(w->known, allocated, sizeof(*p));

                if (!p)
                        return;
                w->known = p;
                w->n_known_allocated = allocated;
        }
        w->known[w->n_known++] = id;
}

static bool is_ours(struct watch *w, const struct client_element *client) {
        if (w->all || is_known(w, client->client))
                return true;
        if (!is_descendant((pid_t) client->pid, w->root))
                return false;
        remember(w, client->client);
        return true;
}

static void finish_sample(struct watch *w, uint64_t now_usec) {
        struct watch_sample s = { .taken_usec = now_usec };

        for (size_t i = 0; i < w->clients.n; i++) {
                const struct client_element *client = &w->clients.clients[i];

                if (!is_ours(w, client))
                        continue;
                s.n_processes++;
                s.saved_bytes = add_clamped(s.saved_bytes, client_saved_bytes(&w->counters, client));
                s.merged_bytes = add_clamped(s.merged_bytes, pages_to_bytes((int64_t) client->merged_pages));
                s.zero_bytes = add_clamped(s.zero_bytes, pages_to_bytes((int64_t) client->zero_pages));
                s.profit_bytes = add_clamped(s.profit_bytes, client->profit_bytes);
                s.agents_cpu_usec += client->cpu_usec;
                w->raw |= client->state == CLIENT_RAW;
        }
        if (s.n_processes > 0) {
                if (!w->seen || s.saved_bytes > w->peak.saved_bytes)
                        w->peak = s;
                w->last = s;
                w->seen = true;
        }
        w->clients.n = 0;
        w->pending = false;
}

static void lose(struct watch *w) {
        w->lost = true;
        w->pending = false;
        admin_close(w->admin);
}

static void request_clients(struct watch *w, uint32_t after) {
        struct msg_clients_request request = { .after = after };

        if (admin_send(w->admin, MSG_CLIENTS_REQUEST, &request) < 0)
                lose(w);
}

void watch_tick(struct watch *w) {
        struct msg_stats_request request = { 0 };

        if (w->lost || w->pending)
                return;
        w->pending = true;
        if (admin_send(w->admin, MSG_STATS_REQUEST, &request) < 0)
                lose(w);
        else
                request_clients(w, 0);
}

static int take_clients(struct watch *w, const struct frame *f, uint64_t now_usec) {
        const struct client_element *client = f->elements;
        int r;

        if (f->count > 0 && w->clients.n > 0 && client[0].client <= w->clients.clients[w->clients.n - 1].client)
                return -EPROTO;
        r = client_list_append(&w->clients, f);
        if (r < 0)
                return r;
        if (f->count == CLIENTS_MAX)
                request_clients(w, client[f->count - 1].client);
        else
                finish_sample(w, now_usec);
        return 0;
}

void watch_input(struct watch *w, uint64_t now_usec) {
        const struct frame *f = &w->admin->message.frame;
        int r = admin_receive(w->admin, 0);

        if (r == -ETIMEDOUT)
                return;
        if (r == 0 && f->type == MSG_STATS_REPLY)
                admin_decode_counters(f, &w->counters);
        else if (r == 0 && f->type == MSG_CLIENTS_REPLY)
                r = take_clients(w, f, now_usec);
        else if (r == 0)
                r = -EPROTO;
        if (r < 0)
                lose(w);
}
