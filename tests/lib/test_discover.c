/* When discovery asks the kernel for all mappings, and what it finds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sys/mman.h>

#include "lib/maplock.h"
#include "tests/lib/rig.h"

#define SECOND 1000000U
#define DEAR_WALK_USEC 3000U /* some seven thousand mappings */

/* True: a walk is made so much time after the last one, which took so long. */
static bool walks_after(uint64_t usec, uint64_t cost_usec) {
        struct discovery *d = &A.discovery;
        uint64_t before = d->walked_usec;
        d->at_usec = 0;
        d->cost_usec = cost_usec;
        discover_step(&A, before + usec);
        return d->walked_usec != before;
}

/* At rest: all that was new is known, and the books of the walk have found room. */
static void start(void) {
        A.merge_any = true;
        discover_anew(&A);
        discover_step(&A, now_usec());
        assert_true(walks_after(60 * SECOND, 0));
        assert_false(walks_after(0, 0));
}

static void call(void) {
        map_enter();
        map_leave();
}

static void *grow(size_t bytes) {
        void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        assert_ptr_not_equal(p, MAP_FAILED);
        return p;
}

/* Costs nothing while the program makes no calls, however many mappings it has; but what is done around libc is found, later. */
static void test_at_rest(void **state) {
        start();
        assert_false(walks_after(9 * SECOND, DEAR_WALK_USEC));
        assert_true(walks_after(11 * SECOND, DEAR_WALK_USEC));
        assert_false(walks_after(SECOND, 1));
}

static void test_a_call_was_made(void **state) {
        start();
        call();
        assert_true(walks_after(SECOND, 100));
        call();
        assert_false(walks_after(SECOND, DEAR_WALK_USEC));
        assert_true(walks_after(7 * SECOND, DEAR_WALK_USEC)); /* 0.05 % are 6 s */
        call();
        assert_true(walks_after(11 * SECOND, 1000 * DEAR_WALK_USEC)); /* whatever it costs */
}

static void test_the_size_has_changed(void **state) {
        uint8_t *p;
        start();
        p = grow(BLOCK_BYTES);
        assert_false(rangeset_contains(&A.ranges, (uint64_t) p, (uint64_t) p + BLOCK_BYTES));
        assert_true(walks_after(SECOND, DEAR_WALK_USEC));
        assert_true(rangeset_contains(&A.ranges, (uint64_t) p, (uint64_t) p + BLOCK_BYTES));
        assert_int_equal(munmap(p, BLOCK_BYTES), 0);
        assert_false(walks_after(SECOND, 10 * DEAR_WALK_USEC)); /* 1 % are 3 s */
        assert_true(walks_after(4 * SECOND, 10 * DEAR_WALK_USEC));
}

/* Asked once a second at most. */
static void test_pause(void **state) {
        start();
        uint8_t *p = grow(BLOCK_BYTES);
        uint64_t now = now_usec(), before = A.discovery.walked_usec;
        A.discovery.at_usec = now + 1;
        discover_step(&A, now);
        assert_int_equal(A.discovery.walked_usec, before);
        assert_int_equal(munmap(p, BLOCK_BYTES), 0);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_at_rest),
                cmocka_unit_test(test_a_call_was_made),
                cmocka_unit_test(test_the_size_has_changed),
                cmocka_unit_test(test_pause),
        };
        return cmocka_run_group_tests(tests, rig_setup, NULL);
}
