/* Counters for programs: plain lines and JSON. Names, order and units come from COUNTERS and are never listed here. */
#include <errno.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <string.h>

#include "common/cleanup.h"
#include "ctl/render.h"
#include "ctl/report.h"

static const char *const counter_names[] = {
#define X(name, unit, text) #name,
        COUNTERS(X)
#undef X
};

void report_print_counter_help(FILE *f) {
        static const char *const texts[] = {
#define X(name, unit, text) text,
                COUNTERS(X)
#undef X
        };

        fprintf(f, "\nCounters:\n");
        for (size_t i = 0; i < COUNTER_MAX_; i++)
                fprintf(f, "  %-24s %s\n", counter_names[i], texts[i]);
}

int report_print_counters(const struct report *r, FILE *f) {
        for (size_t i = 0; i < COUNTER_MAX_; i++)
                fprintf(f, "%s %" PRId64 "\n", counter_names[i], ((const int64_t *) &r->counters)[i]);
        return 0;
}

/* json-c takes ownership of value; a NULL value (no memory) is noted in *error. */
static void put(struct json_object *o, const char *key, struct json_object *value, int *error) {
        if (!value || !o || json_object_object_add(o, key, value) < 0) {
                json_object_put(value);
                *error = -ENOMEM;
        }
}

static void put_int(struct json_object *o, const char *key, int64_t value, int *error) {
        put(o, key, json_object_new_int64(value), error);
}

static void put_text(struct json_object *o, const char *key, const char *text, int *error) {
        put(o, key, json_object_new_string(text), error);
}

static struct json_object *counters_object(const struct counters *c, int *error) {
        struct json_object *o = json_object_new_object();

        for (size_t i = 0; i < COUNTER_MAX_; i++)
                put_int(o, counter_names[i], ((const int64_t *) c)[i], error);
        return o;
}

static void append(struct json_object *array, struct json_object *o, int *error) {
        if (!array || !o || json_object_array_add(array, o) < 0) {
                json_object_put(o);
                *error = -ENOMEM;
        }
}

static void put_pages(struct json_object *o, const char *key, uint64_t pages, int *error) {
        put_int(o, key, pages_to_bytes((int64_t) pages), error);
}

static struct json_object *ranges_array(const struct range_list *l, int *error) {
        struct json_object *array = json_object_new_array();

        for (size_t i = 0; i < l->n; i++) {
                const struct client_range_element *e = &l->ranges[i];
                struct json_object *o = json_object_new_object();

                put_pages(o, "start", e->page, error);
                put_pages(o, "bytes", e->n_pages, error);
                put_pages(o, "tracked_bytes", e->tracked_pages, error);
                put_pages(o, "merged_bytes", e->merged_pages, error);
                put_pages(o, "zero_bytes", e->zero_pages, error);
                put_pages(o, "unshared_bytes", e->unshared_pages, error);
                put(o, "mergeable", json_object_new_boolean((e->flags & RANGE_UNMERGED) == 0), error);
                append(array, o, error);
        }
        return array;
}

static struct json_object *domains_array(const struct domain_list *l, int *error) {
        struct json_object *array = json_object_new_array();

        for (size_t i = 0; i < l->n; i++) {
                const struct domain_element *d = &l->domains[i];
                struct json_object *o = json_object_new_object();
                char key[sizeof(d->key) + 1];

                put_int(o, "domain", d->domain, error);
                put_text(o, "key", make_printable(key, sizeof(key), d->key, sizeof(d->key)), error);
                put_int(o, "processes", d->n_clients, error);
                put_int(o, "segments", d->n_segments, error);
                put_pages(o, "registered_bytes", d->registered_pages, error);
                put_pages(o, "tracked_bytes", d->tracked_pages, error);
                put_pages(o, "merged_bytes", d->merged_pages, error);
                put_pages(o, "shared_bytes", d->shared_pages, error);
                put_pages(o, "zero_bytes", d->zero_pages, error);
                put_pages(o, "unshared_bytes", d->unshared_pages, error);
                put_pages(o, "volatile_bytes", d->volatile_pages, error);
                put_pages(o, "store_bytes", d->segment_pages, error);
                put_pages(o, "dead_bytes", d->dead_pages, error);
                append(array, o, error);
        }
        return array;
}

/* The kernel's names, in its units, beside ours. */
static void put_ksm_stat(struct json_object *o, const struct client_element *client, int *error) {
        put_int(o, "ksm_rmap_items", (int64_t) client->tracked_pages, error);
        put_int(o, "ksm_zero_pages", (int64_t) client->zero_pages, error);
        put_int(o, "ksm_merging_pages", (int64_t) client->merged_pages, error);
        put_int(o, "ksm_process_profit", client->profit_bytes, error);
        put(o, "mergeable", json_object_new_boolean(client->n_ranges > 0), error);
}

static void put_placement(struct json_object *o, const struct placement *place, int *error) {
        if (*place->unit)
                put_text(o, "unit", place->unit, error);
        if (*place->cgroup)
                put_text(o, "cgroup", place->cgroup, error);
}

static struct json_object *process_object(const struct report *r, size_t i, int *error) {
        const struct client_element *client = &r->clients.clients[i];
        struct json_object *o = json_object_new_object();
        char text[TEXT_BYTES];

        put_int(o, "pid", client->pid, error);
        put_text(o, "command", format_name(text, client->comm, sizeof(client->comm)), error);
        put_text(o, "state", client_state_name(client->state), error);
        put_int(o, "client", client->client, error);
        put_int(o, "uid", client->uid, error);
        put_int(o, "domain", client->domain, error);
        put(o, "shim", json_object_new_boolean((client->flags & HELLO_SHIM) != 0), error);
        put(o, "merge_any", json_object_new_boolean((client->flags & HELLO_MERGE_ANY) != 0), error);
        put_int(o, "ranges", client->n_ranges, error);
        put_int(o, "registered_bytes", pages_to_bytes((int64_t) client->registered_pages), error);
        put_int(o, "tracked_bytes", pages_to_bytes((int64_t) client->tracked_pages), error);
        put_int(o, "merged_bytes", pages_to_bytes((int64_t) client->merged_pages), error);
        put_int(o, "zero_bytes", pages_to_bytes((int64_t) client->zero_pages), error);
        put_int(o, "unshared_bytes", pages_to_bytes((int64_t) client->unshared_pages), error);
        put_int(o, "saved_bytes", client_saved_bytes(&r->counters, client), error);
        put_int(o, "profit_bytes", client->profit_bytes, error);
        put_int(o, "agent_cpu_usec", (int64_t) client->cpu_usec, error);
        put_int(o, "vmas_used", client->vmas_used, error);
        put_int(o, "vma_budget", client->vma_budget, error);
        put_ksm_stat(o, client, error);
        if (r->places)
                put_placement(o, &r->places[i], error);
        if (r->ranges)
                put(o, "range_list", ranges_array(&r->ranges[i], error), error);
        return o;
}

static struct json_object *processes_array(const struct report *r, int *error) {
        struct json_object *array = json_object_new_array();

        for (size_t i = 0; i < r->clients.n; i++)
                append(array, process_object(r, i, error), error);
        return array;
}

int report_print_json(const struct report *r, enum report_parts parts, FILE *f) {
        struct json_object *o = json_object_new_object();
        char version[sizeof(r->welcome.version) + 1] = { 0 };
        const char *text;
        int error = 0;

        memcpy(version, r->welcome.version, sizeof(r->welcome.version));
        put_text(o, "version", version, &error);
        put_int(o, "pid", r->welcome.daemon_pid, &error);
        put_int(o, "uptime_usec", (int64_t) r->uptime_usec, &error);
        put_int(o, "page_bytes", KSM_PAGE_SIZE, &error);
        put_int(o, "saved_bytes", saved_bytes(&r->counters), &error);
        put_int(o, "turn_p50_usec", turn_quantile_usec(&r->counters, 500, 0), &error);
        put_int(o, "turn_p99_usec", turn_quantile_usec(&r->counters, 990, 0), &error);
        put_int(o, "turn_cpu_p99_usec", turn_quantile_usec(&r->counters, 990, 1), &error);
        put(o, "counters", counters_object(&r->counters, &error), &error);
        if (parts == REPORT_WITH_PROCESSES)
                put(o, "processes", processes_array(r, &error), &error);
        if (r->with_domains)
                put(o, "domains", domains_array(&r->domains, &error), &error);
        text = error == 0 ? json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE) :
                            NULL;
        if (text)
                fprintf(f, "%s\n", text);
        else
                error = -ENOMEM;
        json_object_put(o);
        return error;
}
