/* The list of a client's ranges: against a map of pages, without memory, and what a change costs when there are many. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "daemon/core/internal.h"
#include "tests/support/frames.h"

#define PAGES 4096

struct failing {
        unsigned count, fail_at;
};

static void *failing_realloc(void *userdata, void *p, size_t size) {
        struct failing *f = userdata;
        return ++f->count == f->fail_at ? NULL : realloc(p, size);
}
static void failing_free(void *userdata, void *p) {
        free(p);
}

struct subject {
        struct failing failing;
        struct core *core;
        struct client *client;
        uint8_t model[PAGES]; /* 0 nothing, 1 registered, 2 unmerged */
};

static void begin(struct subject *s) {
        const struct core_allocator a = { failing_realloc, failing_free, &s->failing };
        const struct core_client_config config = { 0 };
        uint32_t domain, client;
        memset(s, 0, sizeof(*s));
        assert_int_equal(core_new(&a, 1, &s->core), 0);
        assert_int_equal(core_domain(s->core, "a", 1, &domain), 0);
        assert_int_equal(core_client_add(s->core, domain, &config, &client), 0);
        s->client = client_get(s->core, client);
}

static void end(struct subject *s) {
        core_client_gone(s->core, s->client->id);
        (void) core_tick(s->core, 1000000);
        assert_null(core_check(s->core));
        core_free(s->core);
}

static void assert_as_model(const struct subject *s) {
        uint64_t page = 0;
        for (const struct range *r; (r = range_find(s->client, page)); page = r->end) {
                for (uint64_t i = page; i < r->start; i++)
                        assert_int_equal(s->model[i], 0);
                for (uint64_t i = r->start; i < r->end; i++)
                        assert_int_equal(s->model[i], r->is_unmerged ? 2 : 1);
        }
        for (; page < PAGES; page++)
                assert_int_equal(s->model[page], 0);
        assert_null(core_check(s->core));
}

static void random_change(struct subject *s, uint64_t *seed, unsigned longest) {
        uint64_t start = random_below(seed, PAGES), what = random_below(seed, 10);
        uint64_t stop = MIN(start + 1 + random_below(seed, longest), (uint64_t) PAGES);
        int r = what < 6   ? range_put(s->core, s->client, start, stop, what == 5)
                : what < 9 ? range_cut(s->core, s->client, start, stop)
                           : range_mark_unmerged(s->core, s->client, start, stop);
        if (r < 0) { /* marking is the one that may have done a part: never with one failure, it moves little */
                assert_int_equal(r, -ENOMEM);
                return;
        }
        for (uint64_t i = start; i < stop; i++)
                s->model[i] = what < 5 ? 1 : what == 5 ? 2 : what < 9 ? 0 : s->model[i] ? 2 : 0;
}

/* Short ones make many chunks, long ones empty them again. */
static void test_random_changes(void **state) {
        for (uint64_t first = 1; first <= 8; first++) {
                uint64_t seed = first * 0x9E3779B97F4A7C15;
                struct subject s;
                print_message("seed %llu\n", (unsigned long long) first);
                begin(&s);
                for (unsigned i = 0; i < 4000; i++) {
                        random_change(&s, &seed, i % 1000 < 900 ? 3 : 700);
                        if (i % 16 == 0)
                                assert_as_model(&s);
                }
                assert_as_model(&s);
                end(&s);
        }
}

static void test_no_memory(void **state) {
        unsigned failed = 0;
        for (unsigned at = 1;; at++) {
                struct subject s;
                uint64_t seed = 77;
                begin(&s);
                s.failing.count = 0;
                s.failing.fail_at = at;
                for (unsigned i = 0; i < 1500; i++) {
                        uint64_t start = random_below(&seed, PAGES);
                        if (range_put(s.core, s.client, start, start + 1, false) == 0)
                                s.model[start] = 1;
                        else
                                failed++;
                }
                assert_as_model(&s);
                bool reached = s.failing.count >= at;
                s.failing.fail_at = 0;
                end(&s);
                if (!reached)
                        break;
        }
        print_message("%u changes failed\n", failed);
        assert_true(failed > 8);
}

static double cpu_sec(void) {
        struct timespec t;
        (void) clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
        return (double) t.tv_sec + (double) t.tv_nsec / 1e9;
}

/* Microseconds a change when there are n ranges: cut and put again in turn, all over. */
static double cost_of_change(uint32_t n) {
        enum { CHANGES = 20000 };
        struct subject s;
        begin(&s);
        for (uint64_t i = 0; i < n; i++)
                assert_int_equal(range_put(s.core, s.client, 4 * i, 4 * i + 2, false), 0);
        assert_int_equal(s.client->n_ranges, n);
        double before = cpu_sec();
        for (uint64_t i = 0; i < CHANGES; i++) {
                uint64_t page = 4 * (i * 7919 % n);
                assert_int_equal(range_cut(s.core, s.client, page, page + 2), 0);
                assert_int_equal(range_put(s.core, s.client, page, page + 2, false), 0);
        }
        double usec = (cpu_sec() - before) * 1e6 / (2 * CHANGES);
        end(&s);
        return usec;
}

/* One array of all would make it 256 times: 1.5 MiB moved for each change. */
static void test_cost_of_many(void **state) {
        double few = cost_of_change(512), many = cost_of_change(131072);
        print_message("a change costs %.2f us among 512 ranges, %.2f us among 131072\n", few, many);
        assert_true(many < 40 * few);
}

/* One between any two of so many that it splits their chunk. */
static void test_split_anywhere(void **state) {
        for (uint64_t n = 100; n <= 130; n++)
                for (uint64_t at = 0; at < n; at++) {
                        struct subject s;
                        begin(&s);
                        for (uint64_t i = 0; i < n; i++)
                                assert_int_equal(range_put(s.core, s.client, 4 * i, 4 * i + 1, false), 0);
                        assert_int_equal(range_put(s.core, s.client, 4 * at + 2, 4 * at + 3, false), 0);
                        assert_null(core_check(s.core));
                        assert_int_equal(s.client->n_ranges, n + 1);
                        assert_int_equal(range_find(s.client, 4 * at + 1)->start, 4 * at + 2);
                        end(&s);
                }
}

/* All of them at once, and every second page of them made unmerged and joined again. */
static void test_all_at_once(void **state) {
        const uint32_t n = 131072;
        struct subject s;
        begin(&s);
        for (uint64_t i = 0; i < n; i++)
                assert_int_equal(range_put(s.core, s.client, 3 * i, 3 * i + 2, false), 0);
        double before = cpu_sec();
        assert_int_equal(range_mark_unmerged(s.core, s.client, 1, UINT64_C(1) << 40), 0);
        print_message("%u ranges unmerged in %.1f ms\n", n, (cpu_sec() - before) * 1e3);
        assert_int_equal(s.client->n_ranges, n + 1);
        before = cpu_sec();
        assert_int_equal(range_put(s.core, s.client, 0, 3 * (uint64_t) n, false), 0);
        print_message("joined in %.1f ms\n", (cpu_sec() - before) * 1e3);
        assert_int_equal(s.client->n_ranges, 1);
        assert_int_equal(s.client->registered_pages, 3 * (uint64_t) n);
        assert_null(core_check(s.core));
        end(&s);
}

/* More of large intervals than are forgotten at once: the caller waits, and nothing was done. */
static void test_forgetting_has_a_bound(void **state) {
        const uint64_t part = UINT64_C(1) << 14;
        struct core_run run = { .n_pages = 16 * (UINT64_C(1) << 14), .categories = CORE_WRITTEN };
        struct core_scan scan;
        struct subject s;
        uint64_t next;
        unsigned n_now = 0;
        begin(&s);
        assert_int_equal(core_range_add(s.core, s.client->id, 0, run.n_pages), 0);
        for (uint64_t now = 1000000; s.client->n_blocks < run.n_pages / BLOCK_PAGES; now++)
                while (core_next_scan(s.core, now, &scan, &next))
                        core_scan_done(s.core, scan.op, now, &run, 1, scan.page + scan.n_pages, 0);
        for (uint64_t i = 0; i < 16; i++) {
                int r = core_range_remove(s.core, s.client->id, i * part, part);
                uint64_t left = (16 - i) * part;
                if (r == 0) {
                        n_now++;
                        continue;
                }
                assert_int_equal(r, -EAGAIN);
                assert_int_equal(s.client->registered_pages, left);
                assert_int_equal(core_pages_gone(s.core, s.client->id, i * part, part), -EAGAIN);
                do
                        (void) core_tick(s.core, 2000000);
                while ((r = core_range_remove(s.core, s.client->id, i * part, part)) == -EAGAIN);
                assert_int_equal(r, 0);
        }
        print_message("%u of 16 without waiting\n", n_now);
        assert_in_range(n_now, 8, 15);
        struct core_client_counters counters;
        for (unsigned i = 0; i < 16; i++)
                (void) core_tick(s.core, 3000000);
        assert_int_equal(core_client_counters(s.core, s.client->id, &counters), 0);
        assert_int_equal(counters.tracked_pages, 0);
        end(&s);
}

/* Each registered page is walked once a pass and no other, in few scans; a full result ends the walk where it says. */
static void test_scattered_ranges_in_few_scans(void **state) {
        enum { N = 1000, STRIDE = 100, LENGTH = 30 };
        static uint8_t walked[N * STRIDE + 1];
        struct core_scan scan;
        struct subject s;
        uint64_t next, now = 1000000;
        begin(&s);
        for (uint64_t i = 0; i < N; i++)
                assert_int_equal(core_range_add(s.core, s.client->id, i * STRIDE, LENGTH), 0);
        /* Of what an administrator has unmerged nothing is walked. */
        assert_int_equal(range_mark_unmerged(s.core, s.client, 500 * STRIDE, 510 * STRIDE), 0);
        for (unsigned pass = 1; pass <= 40; pass++, now += 2000000) {
                unsigned n_scans = 0, n_cut = 0;
                memset(walked, 0, sizeof(walked));
                while (core_next_scan(s.core, now, &scan, &next)) {
                        uint64_t stop = scan.page + scan.n_pages;
                        if (scan.n_gaps > 2 && n_scans++ % 7 == 3) { /* no room for more results, in a window or between two */
                                stop = scan.gaps[1].page - n_scans % 2;
                                n_cut++;
                        }
                        for (uint64_t page = scan.page, g = 0; page < stop && !s.client->is_looking; page++) {
                                if (g < scan.n_gaps && page == scan.gaps[g].page)
                                        page += scan.gaps[g++].n_pages;
                                walked[page] += page < stop;
                        }
                        core_scan_done(s.core, scan.op, now, NULL, 0, stop, 0);
                }
                assert_int_equal(s.client->pass, pass);
                for (uint64_t page = 0; page < N * STRIDE; page++)
                        assert_int_equal(walked[page], page % STRIDE < LENGTH && (page < 500 * STRIDE || page >= 510 * STRIDE));
                assert_in_range(n_scans, N / CORE_SCAN_GAPS, 2 * (N / CORE_SCAN_GAPS + 2 + n_cut)); /* a look follows some */
                assert_true(n_cut > 0);
        }
        end(&s);
}

/* One block of the second range is written all the time: a window that begins in the first does not take it along. */
static void test_window_ends_before_what_is_hot(void **state) {
        enum { PASSES = 40, HOT = 128 };
        const struct core_run run = { .page = HOT, .n_pages = BLOCK_PAGES, .categories = CORE_WRITTEN };
        struct core_scan scan;
        struct subject s;
        uint64_t next, now = 1000000;
        unsigned n_walked = 0;
        begin(&s);
        assert_int_equal(core_range_add(s.core, s.client->id, 0, 30), 0);
        assert_int_equal(core_range_add(s.core, s.client->id, 100, 200), 0);
        for (unsigned pass = 1; pass <= PASSES; pass++, now += 100000000)
                while (core_next_scan(s.core, now, &scan, &next)) {
                        bool is_walked = scan.page <= HOT && scan.page + scan.n_pages >= HOT + BLOCK_PAGES;
                        n_walked += is_walked && scan.rewrite_protect;
                        core_scan_done(s.core, scan.op, now, &run, is_walked, scan.page + scan.n_pages, 0);
                }
        assert_int_equal(s.client->pass, PASSES);
        print_message("walked in %u of %u passes\n", n_walked, PASSES);
        assert_in_range(n_walked, 3, PASSES / 2);
        end(&s);
}

/* Windows grow by what they walk, not by what lies between their ranges. */
static void test_windows_over_gaps_grow(void **state) {
        struct core_scan scan;
        struct subject s;
        uint64_t next, now = 1000000, before;
        begin(&s);
        before = s.client->window_pages;
        for (uint64_t i = 0; i < 64; i++)
                assert_int_equal(core_range_add(s.core, s.client->id, i * before, before / 4), 0);
        for (unsigned pass = 1; pass <= 4; pass++, now += 2000000)
                while (core_next_scan(s.core, now, &scan, &next))
                        core_scan_done(s.core, scan.op, now, NULL, 0, scan.page + scan.n_pages, 0);
        assert_true(s.client->window_pages > before);
        end(&s);
}

/* An answer about what is being forgotten waits, so that it is not forgotten with what came before it; one that says that nothing was
 * done does not. */
static void test_answers_wait_for_forgetting(void **state) {
        const uint8_t done[64] = { [0 ... 63] = CORE_OK };
        struct core_run run = { .n_pages = 256 * BLOCK_PAGES, .categories = CORE_WRITTEN };
        struct core_read_result zeros[CORE_READ_PAGES];
        struct core_scan scan;
        struct core_read read;
        struct core_apply apply, second;
        struct subject s;
        uint64_t next, now = 1000000;
        for (unsigned i = 0; i < CORE_READ_PAGES; i++)
                zeros[i] = (struct core_read_result){ .status = CORE_READ_ALL_ZERO };
        begin(&s);
        assert_int_equal(core_range_add(s.core, s.client->id, 0, run.n_pages), 0);
        for (bool is_first = true; !core_next_apply(s.core, now, 2, &apply, &next); now += 100000) {
                assert_true(now < 100000000);
                while (core_next_scan(s.core, now, &scan, &next)) {
                        core_scan_done(s.core, scan.op, now, &run, is_first, scan.page + scan.n_pages, 0);
                        is_first = false;
                }
                while (core_next_read(s.core, now, &read, &next))
                        core_read_done(s.core, read.op, now, zeros);
        }
        assert_true(core_next_apply(s.core, now, 2, &second, &next));
        assert_int_equal(core_range_remove(s.core, s.client->id, 0, run.n_pages), 0);
        assert_int_equal(core_apply_done(s.core, second.op, now, done, -ECONNRESET), 0);
        assert_int_equal(core_apply_done(s.core, apply.op, now, done, 0), -EAGAIN);
        assert_int_equal(s.client->n_applies, 1);
        unsigned n = 0;
        while (core_apply_done(s.core, apply.op, now, done, 0) == -EAGAIN) {
                (void) core_tick(s.core, now);
                assert_true(n++ < 100);
        }
        assert_int_equal(s.client->n_applies, 0);
        assert_null(core_check(s.core));
        end(&s);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_random_changes),
                cmocka_unit_test(test_no_memory),
                cmocka_unit_test(test_cost_of_many),
                cmocka_unit_test(test_split_anywhere), cmocka_unit_test(test_all_at_once),
                cmocka_unit_test(test_forgetting_has_a_bound),
                cmocka_unit_test(test_answers_wait_for_forgetting),
                cmocka_unit_test(test_scattered_ranges_in_few_scans),
                cmocka_unit_test(test_window_ends_before_what_is_hot),
                cmocka_unit_test(test_windows_over_gaps_grow),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
