/* Sums by domain and range: they add up to what the client and the totals say, in however many pieces they come. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/core/internal.h"
#include "tests/sim/world.h"

#define SPARSE_PAGES (UINT64_C(1) << 33) /* 32 TiB */

static struct core *core;

static uint32_t client_new(uint32_t domain) {
        const struct core_client_config config = { 0 };
        uint32_t client;
        assert_int_equal(core_client_add(core, domain, &config, &client), 0);
        return client;
}

static uint32_t domain_new(const char *key) {
        uint32_t domain;
        assert_int_equal(core_domain(core, key, strlen(key), &domain), 0);
        return domain;
}

/* Every scan of a client finds its run, if that lies in the window. */
static void scan_all(const struct core_run *by_client, size_t n, uint32_t first) {
        struct core_scan scan;
        uint64_t next;
        for (uint64_t now = 1000000; core_next_scan(core, now, &scan, &next); now++) {
                size_t i = id_index(scan.client) - id_index(first);
                assert_true(i < n);
                core_scan_done(core, scan.op, now, &by_client[i], 1, scan.page + scan.n_pages, 0);
        }
}

static void add_up(uint32_t client, unsigned max, struct core_range_counters *ret_sum, unsigned *ret_ranges, unsigned *ret_calls) {
        struct core_range_counters *part = calloc(max, sizeof(*part));
        uint64_t page = 0;
        *ret_sum = (struct core_range_counters){ 0 };
        *ret_ranges = *ret_calls = 0;
        do {
                uint64_t at = page;
                int n = core_range_counters(core, client, page, part, max, &page);
                assert_true(n >= 0 && (n > 0 || page == 0));
                for (int i = 0; i < n; i++) {
                        assert_true(part[i].page >= at && part[i].n_pages > 0);
                        at = part[i].page + part[i].n_pages;
                        ret_sum->n_pages += part[i].n_pages;
                        ret_sum->tracked_pages += part[i].tracked_pages;
                        *ret_ranges += !part[i].is_continued;
                }
                assert_true(page == 0 || page >= at);
                ++*ret_calls;
        } while (page);
        free(part);
}

static void assert_client(uint32_t client, unsigned max, unsigned most_calls) {
        struct core_client_counters counters;
        struct core_range_counters sum;
        unsigned n_ranges, n_calls;
        assert_int_equal(core_client_counters(core, client, &counters), 0);
        add_up(client, max, &sum, &n_ranges, &n_calls);
        assert_int_equal(sum.n_pages, counters.registered_pages);
        assert_int_equal(sum.tracked_pages, counters.tracked_pages);
        assert_int_equal(n_ranges, counters.n_ranges);
        assert_true(n_calls <= most_calls);
        print_message("%u ranges in %u calls\n", n_ranges, n_calls);
}

static void test_ranges(void **state) {
        assert_int_equal(core_new(NULL, 1, &core), 0);
        uint32_t client = client_new(domain_new("a"));
        const struct core_run run = { .page = 1000, .n_pages = 10000, .categories = CORE_WRITTEN };
        /* Edges inside blocks: what is next to each other in a block belongs to different ranges. */
        for (uint64_t i = 0; i < 300; i++)
                assert_int_equal(core_range_add(core, client, 1000 + i * 40, i % 7 + 30), 0);
        scan_all(&run, 1, client);
        assert_client(client, 1, 300);
        assert_client(client, 64, 5);
        uint64_t next;
        struct core_range_counters r;
        assert_int_equal(core_range_counters(core, client, 1010, &r, 1, &next), 1); /* in the middle of one */
        assert_int_equal(r.page, 1010);
        assert_int_equal(r.n_pages, 20);
        assert_int_equal(r.tracked_pages, 20);
        assert_int_equal(next, 1030);
        assert_int_equal(core_range_counters(core, client + 1, 0, &r, 1, &next), -ENOENT);
        core = core_free(core);
}

/* More blocks than one call visits, in a range of more block numbers than many calls could: it comes in pieces, and ends. */
static void test_large(void **state) {
        assert_int_equal(core_new(NULL, 1, &core), 0);
        uint32_t client = client_new(domain_new("a"));
        const struct core_run run = { .page = 64, .n_pages = 40000 * BLOCK_PAGES, .categories = CORE_WRITTEN };
        assert_int_equal(core_range_add(core, client, 64, run.n_pages), 0);
        scan_all(&run, 1, client);
        assert_client(client, 16, 4);
        core_client_gone(core, client);
        client = client_new(domain_new("a"));
        const struct core_run page = { .page = SPARSE_PAGES / 2, .n_pages = 1, .categories = CORE_WRITTEN };
        for (unsigned i = 0; i < 3; i++)
                assert_int_equal(core_range_add(core, client, 64 + i * (SPARSE_PAGES + 64), SPARSE_PAGES), 0);
        scan_all(&page, 1, client);
        assert_client(client, 16, 1);
        core = core_free(core);
}

static void test_domains(void **state) {
        enum { N = 9 };
        struct core_domain_counters d[N + 1];
        uint32_t first = 0;
        struct core_run runs[2 * N];
        assert_int_equal(core_new(NULL, 1, &core), 0);
        for (unsigned i = 0; i < 2 * N; i++) { /* two processes in each */
                uint32_t client = client_new(domain_new((const char[]){ (char) ('a' + i % N), 0 }));
                first = first ?: client;
                runs[i] = (struct core_run){ .page = 0, .n_pages = i + 1, .categories = CORE_WRITTEN };
                assert_int_equal(core_range_add(core, client, 0, 100 + i), 0);
        }
        scan_all(runs, 2 * N, first);
        assert_int_equal(core_domain_counters(core, 0, d, N + 1), N);
        uint64_t registered = 0, tracked = 0;
        for (unsigned i = 0; i < N; i++) {
                assert_int_equal(*(const char *) d[i].key, 'a' + i);
                assert_int_equal(d[i].key_size, 1);
                assert_int_equal(d[i].n_clients, 2);
                assert_int_equal(d[i].registered_pages, 200 + i + N + i);
                assert_int_equal(d[i].volatile_pages, i + 1 + N + i + 1);
                registered += d[i].registered_pages;
                tracked += d[i].tracked_pages;
        }
        struct counters totals;
        core_counters(core, &totals);
        assert_int_equal(registered, totals.registered_pages);
        assert_int_equal(tracked, totals.tracked_pages);
        /* The same ones, four at a time. */
        struct core_domain_counters part[4];
        unsigned seen = 0;
        for (unsigned n; (n = core_domain_counters(core, seen ? d[seen - 1].domain : 0, part, 4)); seen += n)
                for (unsigned i = 0; i < n; i++)
                        assert_int_equal(part[i].domain, d[seen + i].domain);
        assert_int_equal(seen, N);
        core = core_free(core);
}

/* A new domain in the place of an old one: the list goes by ids all the same. */
static void test_domains_in_order(void **state) {
        enum { N = 9, OLD = 2 };
        struct core_domain_counters part[4];
        uint32_t clients[N], last = 0;
        unsigned seen = 0;
        assert_int_equal(core_new(NULL, 1, &core), 0);
        for (unsigned i = 0; i < N; i++)
                clients[i] = client_new(domain_new((const char[]){ (char) ('a' + i), 0 }));
        for (unsigned i = 0; i < OLD; i++)
                core_client_gone(core, clients[i]);
        for (unsigned i = 0; i < 4; i++)
                (void) core_tick(core, (i + 1) * 1000000);
        for (unsigned i = 0; i < OLD; i++)
                (void) client_new(domain_new((const char[]){ (char) ('x' + i), 0 }));
        for (unsigned n; (n = core_domain_counters(core, last, part, 4)); seen += n)
                for (unsigned i = 0; i < n; i++) {
                        assert_true(part[i].domain > last);
                        last = part[i].domain;
                }
        assert_int_equal(seen, N);
        core = core_free(core);
}

/* Returns its dead pages. */
static uint64_t assert_domain_is_the_total(const struct world *w) {
        struct core_domain_counters d;
        struct counters c = world_counters(w);
        assert_int_equal(core_domain_counters(w->core, 0, &d, 1), 1);
        assert_int_equal(d.unshared_pages, c.pages_unshared);
        assert_int_equal(d.shared_pages, c.pages_shared);
        assert_int_equal(d.volatile_pages, c.pages_volatile);
        assert_int_equal(d.dead_pages * 4096, c.dead_bytes);
        assert_int_equal(d.segment_pages * 4096, c.segment_bytes);
        return d.dead_pages;
}

/* At every moment of a merge, and of its end page by page. */
static void test_domain_is_the_total(void **state) {
        struct world *w = world_new(1, NULL);
        uint32_t domain = world_domain(w, "a");
        uint64_t dead = 0, partners = 0;
        for (unsigned i = 0; i < 2; i++)
                world_process(w, domain, 0, 256);
        for (unsigned i = 0; i < 512; i++)
                world_write(w, i % 2, i / 2, 1 + i / 2);
        for (unsigned step = 0; step < 4000; step++) {
                if (step > 2000 && step % 8 == 0)
                        world_write(w, step / 8 % 2, (step - 2000) / 16 % 256, 10000 + step);
                w->now_usec += 20000;
                (void) core_tick(w->core, w->now_usec);
                world_step(w);
                dead = MAX(dead, assert_domain_is_the_total(w));
                partners = MAX(partners, w->core->states[PAGE_PARTNER]);
        }
        assert_true(dead > 0 && partners > 0);
        world_free(w);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_ranges),
                cmocka_unit_test(test_large),
                cmocka_unit_test(test_domains),
                cmocka_unit_test(test_domains_in_order),
                cmocka_unit_test(test_domain_is_the_total),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
