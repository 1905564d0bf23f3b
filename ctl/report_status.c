/* The table of `status`, its totals, and what needs attention. */
#include <inttypes.h>
#include <string.h>

#include "common/cleanup.h"
#include "ctl/render.h"
#include "ctl/report.h"

static const char *const titles[] = { "PID", "COMMAND", "STATE", "REGISTERED", "MERGED", "ZERO", "SAVED", "PROFIT",
                                      "UID", "DOMAIN", "PRESENT", "UNIQUE", "VMAS", "CPU", "UNIT" };
#define N_COLUMNS 8
#define N_COLUMNS_WIDE ((unsigned) ARRAY_SIZE(titles))
#define TEXT_COLUMNS (6u | 1u << 14) /* COMMAND, STATE, UNIT */

static void number_cell(struct table *t, uint64_t value) {
        char text[TEXT_BYTES];

        snprintf(text, sizeof(text), "%" PRIu64, value);
        table_cell(t, text);
}

static void add_wide_cells(struct table *t, const struct client_element *client, const struct placement *place) {
        char text[TEXT_BYTES];

        number_cell(t, client->uid);
        number_cell(t, client->domain);
        table_cell(t, format_pages(text, (int64_t) client->tracked_pages));
        table_cell(t, format_pages(text, (int64_t) client->unshared_pages));
        snprintf(text, sizeof(text), "%u/%u", client->vmas_used, client->vma_budget);
        table_cell(t, text);
        table_cell(t, format_usec(text, client->cpu_usec));
        table_cell(t, place && *place->unit ? place->unit : place && *place->cgroup ? place->cgroup : "-");
}

static void add_client(struct table *t, const struct report *r, const struct client_element *client, bool wide) {
        char text[TEXT_BYTES];

        number_cell(t, client->pid);
        table_cell(t, format_name(text, client->comm, sizeof(client->comm)));
        table_cell(t, client_state_name(client->state));
        table_cell(t, format_pages(text, (int64_t) client->registered_pages));
        table_cell(t, format_pages(text, (int64_t) client->merged_pages));
        table_cell(t, format_pages(text, (int64_t) client->zero_pages));
        table_cell(t, format_bytes(text, client_saved_bytes(&r->counters, client)));
        table_cell(t, format_bytes(text, client->profit_bytes));
        if (wide)
                add_wide_cells(t, client, r->places ? &r->places[client - r->clients.clients] : NULL);
}

static void add_total(struct table *t, const struct report *r, bool wide) {
        struct client_element sum = { 0 };
        char text[TEXT_BYTES];
        int64_t saved = 0;

        for (size_t i = 0; i < r->clients.n; i++) {
                const struct client_element *client = &r->clients.clients[i];

                sum.registered_pages += client->registered_pages;
                sum.tracked_pages += client->tracked_pages;
                sum.merged_pages += client->merged_pages;
                sum.zero_pages += client->zero_pages;
                sum.unshared_pages += client->unshared_pages;
                sum.profit_bytes = add_clamped(sum.profit_bytes, client->profit_bytes);
                sum.cpu_usec += client->cpu_usec;
                sum.vmas_used += client->vmas_used;
                sum.vma_budget += client->vma_budget;
                saved = add_clamped(saved, client_saved_bytes(&r->counters, client));
        }
        table_rule(t);
        snprintf(text, sizeof(text), "%zu", r->clients.n);
        table_cell(t, text);
        table_cell(t, r->clients.n == 1 ? "process" : "processes");
        table_cell(t, "");
        table_cell(t, format_pages(text, (int64_t) sum.registered_pages));
        table_cell(t, format_pages(text, (int64_t) sum.merged_pages));
        table_cell(t, format_pages(text, (int64_t) sum.zero_pages));
        table_cell(t, format_bytes(text, saved));
        table_cell(t, format_bytes(text, sum.profit_bytes));
        if (!wide)
                return;
        table_cell(t, "");
        table_cell(t, "");
        table_cell(t, format_pages(text, (int64_t) sum.tracked_pages));
        table_cell(t, format_pages(text, (int64_t) sum.unshared_pages));
        snprintf(text, sizeof(text), "%u/%u", sum.vmas_used, sum.vma_budget);
        table_cell(t, text);
        table_cell(t, format_usec(text, sum.cpu_usec));
        table_cell(t, "");
}

static void print_totals(const struct report *r, FILE *f) {
        const struct counters *c = &r->counters;
        char a[TEXT_BYTES], b[TEXT_BYTES], d[TEXT_BYTES], e[TEXT_BYTES];

        fprintf(f, "saved %s: %s of further mappings of %s of shared pages, %s of zero pages; profit after our books "
                   "%s\n",
                format_bytes(a, saved_bytes(c)), format_pages(b, c->pages_sharing), format_pages(d, c->pages_shared),
                format_pages(e, c->ksm_zero_pages), format_bytes((char[TEXT_BYTES]) { 0 }, c->general_profit));
        fprintf(f, "userksmd %.*s, pid %u, up %s: cpu %s, agents' cpu %s, %" PRId64 " full scans\n",
                (int) sizeof(r->welcome.version), r->welcome.version, r->welcome.daemon_pid,
                format_usec(a, r->uptime_usec), format_usec(b, (uint64_t) c->daemon_cpu_usec),
                format_usec(d, (uint64_t) c->agents_cpu_usec), c->full_scans);
}

static void print_turns(const struct counters *c, FILE *f) {
        char a[TEXT_BYTES], b[TEXT_BYTES], d[TEXT_BYTES];

        fprintf(f, "its loop keeps clients waiting at most %s in 99 of 100 turns; the longest took %s, the longest of cpu time %s\n",
                format_usec(a, (uint64_t) turn_quantile_usec(c, 990, 0)), format_usec(b, (uint64_t) c->turn_longest_usec),
                format_usec(d, (uint64_t) c->turn_cpu_longest_usec));
}

/* -- what needs attention ----------------------------------------------------------------------------------- */

static size_t count_state(const struct report *r, enum client_state state) {
        size_t n = 0;

        for (size_t i = 0; i < r->clients.n; i++)
                n += r->clients.clients[i].state == (uint32_t) state;
        return n;
}

/* Nine tenths of the VMA budget: from here on short runs are no longer merged. */
static size_t count_full_budgets(const struct report *r) {
        size_t n = 0;

        for (size_t i = 0; i < r->clients.n; i++) {
                const struct client_element *client = &r->clients.clients[i];
                n += client->vma_budget > 0 && client->vmas_used >= client->vma_budget / 10 * 9;
        }
        return n;
}

static void print_run_state(const struct report *r, FILE *f) {
        if (!r->tunables.known[TUNABLE_run] || r->tunables.values.run == 1)
                return;
        fprintf(f, "! merging is off (run=%" PRId64 "): %s; 'ksmctl set run=1' starts it\n", r->tunables.values.run,
                r->tunables.values.run == 2 ? "everything is unmerged" : "what is merged stays merged");
}

static void print_processes_in_trouble(const struct report *r, FILE *f) {
        size_t raw = count_state(r, CLIENT_RAW), parked = count_state(r, CLIENT_PARKED), full = count_full_budgets(r);

        if (raw > 0)
                fprintf(f, "! %zu raw: mappings are changed by system calls without libc; what is merged there stays "
                           "exact, nothing more is merged\n",
                        raw);
        if (parked > 0)
                fprintf(f, "! %zu parked: no answer from the agent for a second; is the process stopped (SIGSTOP, "
                           "frozen "
                           "cgroup, debugger)?\n",
                        parked);
        if (full > 0)
                fprintf(f, "! %zu at the limit of VMAs: raise the sysctl vm.max_map_count to merge shorter runs\n",
                        full);
}

static void print_lost_threads(const struct counters *c, FILE *f) {
        if (c->threads_lost > 0)
                fprintf(f, "! %" PRId64 " of the daemon's threads hang on memory or descriptors of a client, whose user is refused "
                           "meanwhile; see the daemon's log\n",
                        c->threads_lost);
}

static void print_refused(const struct counters *c, FILE *f) {
        if (c->sessions_refused > 0)
                fprintf(f, "! %" PRId64 " connections refused so far: no descriptors, memory or places for more; see the daemon's log\n",
                        c->sessions_refused);
}

static void print_memory(const struct counters *c, FILE *f) {
        char a[TEXT_BYTES];

        if (c->memory_short > 0)
                fprintf(f, "! the memory limit of the daemon's control group is near (%s left): nothing new is shared until there is room; raise "
                           "MemoryMax=, or lower segment_max_mbytes\n",
                        format_bytes(a, c->memory_left_bytes));
}

static void print_failures(const struct counters *c, FILE *f) {
        char a[TEXT_BYTES];
        const struct {
                int64_t pages;
                const char *why;
        } failures[] = {
                { c->failed_changed, "changed meanwhile (normal: such pages are tried again later)" },
                { c->failed_pinned_or_forked, "pinned for I/O or shared with a forked child" },
                { c->failed_vma_gone, "mapping gone or not eligible" },
                { c->failed_budget, "limit of VMAs or memory reached" },
                { c->failed_error, "unexpected error: see the daemon's log" },
        };
        bool first = true;

        for (size_t i = 0; i < ARRAY_SIZE(failures); i++) {
                if (failures[i].pages <= 0)
                        continue;
                if (first)
                        fprintf(f, "merges refused so far, by reason:\n");
                first = false;
                fprintf(f, "  %10s  %s\n", format_pages(a, failures[i].pages), failures[i].why);
        }
}

int report_print_status(const struct report *r, bool wide, FILE *f) {
        struct table t;
        int error;

        table_init(&t, titles, wide ? N_COLUMNS_WIDE : N_COLUMNS, TEXT_COLUMNS);
        for (size_t i = 0; i < r->clients.n; i++)
                add_client(&t, r, &r->clients.clients[i], wide);
        add_total(&t, r, wide);
        error = table_print(&t, f);
        table_free(&t);
        if (error < 0)
                return error;
        fputc('\n', f);
        print_totals(r, f);
        report_print_governor(r, f);
        print_turns(&r->counters, f);
        print_run_state(r, f);
        report_print_never_short(r, f);
        print_processes_in_trouble(r, f);
        print_lost_threads(&r->counters, f);
        print_refused(&r->counters, f);
        print_memory(&r->counters, f);
        print_failures(&r->counters, f);
        return 0;
}
