/* Runs that are told apart by node, and cut where there is no room: nothing is lost or named twice. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/uapi.h"
#include "daemon/placing.h"

static struct placing *p;
static struct core_run runs[SCAN_RUNS_MAX];

static void test_split(void **state) {
        static const int16_t nodes[] = { 0, 0, 1, 1, 1, -1, 1 };
        static const struct core_run expected[] = {
                { .page = 100, .n_pages = 2, .categories = CORE_FILE, .node = 0 },
                { .page = 102, .n_pages = 1, .categories = CORE_FILE, .node = 1 },
                { .page = 103, .n_pages = 2, .categories = CORE_WRITTEN, .node = 1 }, /* the neighbour, but not the same */
                { .page = 200, .n_pages = 1, .categories = CORE_FILE, .node = -1 },
                { .page = 201, .n_pages = 1, .categories = CORE_FILE, .node = 1 },
        };
        size_t n = 3;
        uint64_t end = 1000;
        runs[0] = (struct core_run){ .page = 100, .n_pages = 3, .categories = CORE_FILE };
        runs[1] = (struct core_run){ .page = 103, .n_pages = 2, .categories = CORE_WRITTEN };
        runs[2] = (struct core_run){ .page = 200, .n_pages = 2, .categories = CORE_FILE };
        placing_name_runs(p, runs, &n, &end);
        assert_int_equal(p->n_pages, 7);
        assert_int_equal(p->pages[4], 104);
        assert_int_equal(p->pages[6], 201);
        assert_int_equal(p->nodes[6], -1);
        memcpy(p->nodes, nodes, sizeof(nodes));
        placing_split_runs(p, runs, &n, &end);
        assert_int_equal(n, ARRAY_SIZE(expected));
        assert_memory_equal(runs, expected, sizeof(expected));
        assert_int_equal(end, 1000);
}

static void test_nothing(void **state) {
        size_t n = 0;
        uint64_t end = 7;
        placing_name_runs(p, runs, &n, &end);
        placing_ask_kernel(p, getpid());
        placing_split_runs(p, runs, &n, &end);
        assert_int_equal(n, 0);
        assert_int_equal(end, 7);
}

/* More pages than one job may ask for: the look ends there, at the begin of a run or within. */
static void test_too_many_pages(void **state) {
        for (unsigned over = 0; over < 2; over++) {
                size_t n = 3;
                uint64_t end = UINT64_MAX;
                runs[0] = (struct core_run){ .page = 0, .n_pages = PLACING_PAGES_MAX - over };
                runs[1] = (struct core_run){ .page = 1 << 20, .n_pages = 10 };
                runs[2] = (struct core_run){ .page = 1 << 21, .n_pages = 10 };
                placing_name_runs(p, runs, &n, &end);
                assert_int_equal(p->n_pages, PLACING_PAGES_MAX);
                assert_int_equal(n, 1 + over);
                assert_int_equal(end, (1 << 20) + over);
                assert_int_equal(runs[over].n_pages, over ? 1 : PLACING_PAGES_MAX);
        }
}

/* Each page on another node than the one before. */
static void test_too_many_runs(void **state) {
        size_t n = 1;
        uint64_t end = UINT64_MAX;
        runs[0] = (struct core_run){ .page = 5, .n_pages = PLACING_PAGES_MAX };
        placing_name_runs(p, runs, &n, &end);
        for (size_t i = 0; i < p->n_pages; i++)
                p->nodes[i] = (int16_t) (i % 2);
        placing_split_runs(p, runs, &n, &end);
        assert_int_equal(n, SCAN_RUNS_MAX);
        assert_int_equal(end, 5 + SCAN_RUNS_MAX);
        assert_int_equal(runs[n - 1].page, end - 1);
        assert_int_equal(runs[n - 1].node, 1);
}

/* A process that is not visible from here must not be taken for ourselves, which pid 0 means to the kernel. */
static void test_invisible_process(void **state) {
        uint64_t page = (uint64_t) (uintptr_t) p >> KSM_PAGE_SHIFT;
        placing_name_pages(p, &page, 1);
        placing_ask_kernel(p, 0);
        assert_true(p->error < 0);
        assert_int_equal(p->nodes[0], -1);
}

static int allocate(void **state) {
        p = malloc(sizeof(*p));
        return p ? 0 : -1;
}

static int release(void **state) {
        free(p);
        return 0;
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_split),
                cmocka_unit_test(test_nothing),
                cmocka_unit_test(test_too_many_pages),
                cmocka_unit_test(test_too_many_runs),
                cmocka_unit_test(test_invisible_process),
        };

        return cmocka_run_group_tests(tests, allocate, release);
}
