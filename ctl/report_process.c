/* One process, as lines for programs and people, and its ranges; domains. */
#include <inttypes.h>
#include <string.h>

#include "common/cleanup.h"
#include "ctl/render.h"
#include "ctl/report.h"

static const char *yes_no(bool yes) {
        return yes ? "yes" : "no";
}

/* The first six are those of /proc/PID/ksm_stat, as the kernel writes them. */
static void print_process(const struct report *r, size_t i, FILE *f) {
        const struct client_element *client = &r->clients.clients[i];
        const struct placement *place = r->places ? &r->places[i] : NULL;
        char text[TEXT_BYTES];

        fprintf(f, "ksm_rmap_items %" PRIu64 "\nksm_zero_pages %" PRIu64 "\nksm_merging_pages %" PRIu64 "\nksm_process_profit %" PRId64 "\n",
                client->tracked_pages, client->zero_pages, client->merged_pages, client->profit_bytes);
        fprintf(f, "ksm_merge_any: %s\nksm_mergeable: %s\n", yes_no(client->flags & HELLO_MERGE_ANY), yes_no(client->n_ranges > 0));
        fprintf(f, "registered_pages %" PRIu64 "\nunshared_pages %" PRIu64 "\nsaved_bytes %" PRId64 "\nranges %u\n", client->registered_pages,
                client->unshared_pages, client_saved_bytes(&r->counters, client), client->n_ranges);
        fprintf(f, "pid %u\ncommand %s\nstate %s\nuid %u\nclient %u\ndomain %u\n", client->pid,
                format_name(text, client->comm, sizeof(client->comm)), client_state_name(client->state), client->uid, client->client,
                client->domain);
        fprintf(f, "unit %s\ncgroup %s\n", place && *place->unit ? place->unit : "-", place && *place->cgroup ? place->cgroup : "-");
}

static int print_ranges(const struct range_list *l, FILE *f) {
        static const char *const titles[] = { "START", "SIZE", "PRESENT", "MERGED", "ZERO", "UNIQUE", "STATE" };
        struct table t;
        char text[TEXT_BYTES];
        int r;

        table_init(&t, titles, ARRAY_SIZE(titles), 1u << 6);
        for (size_t i = 0; i < l->n; i++) {
                const struct client_range_element *e = &l->ranges[i];

                snprintf(text, sizeof(text), "%" PRIx64, e->page << KSM_PAGE_SHIFT);
                table_cell(&t, text);
                table_cell(&t, format_pages(text, (int64_t) e->n_pages));
                table_cell(&t, format_pages(text, (int64_t) e->tracked_pages));
                table_cell(&t, format_pages(text, (int64_t) e->merged_pages));
                table_cell(&t, format_pages(text, (int64_t) e->zero_pages));
                table_cell(&t, format_pages(text, (int64_t) e->unshared_pages));
                table_cell(&t, e->flags & RANGE_UNMERGED ? "unmerged" : "mergeable");
        }
        r = table_print(&t, f);
        table_free(&t);
        return r;
}

int report_print_processes(const struct report *r, FILE *f) {
        for (size_t i = 0; i < r->clients.n; i++) {
                int error = 0;

                if (i > 0)
                        fputc('\n', f);
                print_process(r, i, f);
                if (!r->ranges)
                        continue;
                fputc('\n', f);
                error = print_ranges(&r->ranges[i], f);
                if (error < 0)
                        return error;
        }
        return 0;
}

static void add_domain(struct table *t, const struct domain_element *d) {
        char text[TEXT_BYTES];
        int64_t saved = add_clamped(subtract_clamped((int64_t) d->merged_pages, (int64_t) d->shared_pages), (int64_t) d->zero_pages);

        snprintf(text, sizeof(text), "%u", d->domain);
        table_cell(t, text);
        snprintf(text, sizeof(text), "%u", d->n_clients);
        table_cell(t, text);
        table_cell(t, format_pages(text, (int64_t) d->registered_pages));
        table_cell(t, format_pages(text, (int64_t) d->tracked_pages));
        table_cell(t, format_pages(text, (int64_t) d->merged_pages));
        table_cell(t, format_pages(text, (int64_t) d->shared_pages));
        table_cell(t, format_pages(text, (int64_t) d->zero_pages));
        table_cell(t, format_pages(text, saved));
        table_cell(t, format_pages(text, (int64_t) d->segment_pages));
        table_cell(t, format_name(text, d->key, sizeof(d->key)));
}

int report_print_domains(const struct report *r, FILE *f) {
        static const char *const titles[] = { "DOMAIN", "PROCESSES", "REGISTERED", "PRESENT", "MERGED",
                                              "SHARED", "ZERO",      "SAVED",      "STORE",   "WHO" };
        struct domain_element sum = { 0 };
        struct table t;
        int error;

        table_init(&t, titles, ARRAY_SIZE(titles), 1u << 9);
        for (size_t i = 0; i < r->domains.n; i++) {
                const struct domain_element *d = &r->domains.domains[i];

                add_domain(&t, d);
                sum.domain++;
                sum.n_clients += d->n_clients;
                sum.registered_pages += d->registered_pages;
                sum.tracked_pages += d->tracked_pages;
                sum.merged_pages += d->merged_pages;
                sum.shared_pages += d->shared_pages;
                sum.zero_pages += d->zero_pages;
                sum.segment_pages += d->segment_pages;
        }
        table_rule(&t);
        strcpy(sum.key, "domains in all");
        add_domain(&t, &sum);
        error = table_print(&t, f);
        table_free(&t);
        return error;
}
