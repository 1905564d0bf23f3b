/* The mapping lock by itself: what it needs of the kernel, who is inside, who waits, and what threads and processes leave behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/maplock.h"
#include "lib/sys.h"
#include "tests/support/task_state.h"

#define SPIN_USEC 200U
#define BOUND_USEC 20000000ULL /* longer than any load makes a thread wait for the processor */
#define THREADS 192U           /* more than one look for dead threads' words */

static void nothing(void *unused) {
        (void) unused;
}

static bool acquire(void) {
        return map_lock_acquire(SPIN_USEC, nothing, NULL);
}

/* And lets go of it. */
static bool can_acquire(void) {
        bool acquired = acquire();
        if (acquired)
                map_lock_release();
        return acquired;
}

/* The barrier orders a thread's store against its own load, which nothing else does. A process that has not registered for it is
 * refused by the kernel, and so by the lock. */
static void test_nothing_without_barrier(void **state) {
        bool acquired = can_acquire();
        assert_int_equal(map_active, 0);
        assert_int_equal(map_lock_init(), 0);
        assert_false(acquired);
        assert_true(acquire());
        assert_int_equal(map_active, 1);
        map_lock_release();
        assert_int_equal(map_active, 0);
}

static void *end_inside(void *unused) {
        map_enter();
        return unused;
}

static void *pass_through(void *unused) {
        map_enter();
        map_leave();
        return unused;
}

static void run(void *(*f)(void *)) {
        pthread_t t;
        assert_int_equal(pthread_create(&t, NULL, f, NULL), 0);
        assert_int_equal(pthread_join(t, NULL), 0);
}

/* A thread that ended inside keeps the agent away only until its word is another thread's. */
static void test_thread_that_ended_inside(void **state) {
        run(end_inside);
        assert_true(map_lock_any_inside());
        assert_false(can_acquire());
        for (unsigned i = 0; i < THREADS; i++)
                run(pass_through);
        assert_false(map_lock_any_inside());
        assert_true(can_acquire());
}

/* Brackets are counted when the outermost one is left: by that a discard inside of one is told from one outside of libc. */
static void test_brackets(void **state) {
        uint64_t before = map_lock_exits();
        map_enter();
        map_enter();
        assert_true(map_inside());
        assert_false(can_acquire());
        map_leave();
        assert_true(map_lock_any_inside());
        assert_int_equal(map_lock_exits(), before);
        map_leave();
        assert_false(map_inside());
        assert_int_equal(map_lock_exits(), before + 1);
        run(pass_through);
        assert_int_equal(map_lock_exits(), before + 2);
        assert_true(can_acquire());
}

struct visitor {
        bool interrupted;
        _Atomic pid_t tid;
        _Atomic bool entered;
};

static void *visit(void *p) {
        struct visitor *v = p;
        if (v->interrupted) { /* a signal handler, with the thread below it between raising its word and looking */
                (void) map_slot_attach();
                atomic_store(&map_slot_self->word, 1);
        }
        atomic_store(&v->tid, gettid());
        map_enter();
        atomic_store(&v->entered, true);
        map_leave();
        if (v->interrupted)
                map_leave();
        return NULL;
}

/* Held off while the lock is held, and woken after it. */
static void hold_off(bool interrupted) {
        struct visitor v = { .interrupted = interrupted };
        pthread_t t;
        assert_true(acquire());
        assert_int_equal(pthread_create(&t, NULL, visit, &v), 0);
        uint64_t end = now_usec() + BOUND_USEC;
        while (!atomic_load(&v.entered) && (!atomic_load(&v.tid) || task_state(v.tid) != 'S') && now_usec() < end)
                sys_yield();
        bool early = atomic_load(&v.entered), inside = map_lock_any_inside();
        map_lock_release();
        assert_false(early);
        assert_false(inside);
        while (!atomic_load(&v.entered) && now_usec() < end)
                sys_yield();
        assert_true(v.entered);
        assert_int_equal(pthread_join(t, NULL), 0);
        assert_false(map_lock_any_inside());
}

static void test_held_off(void **state) {
        hold_off(false);
}

static void test_signal_handler_held_off(void **state) {
        hold_off(true);
}

static int gate[2];

static void *stay_inside(void *ret_inside) {
        char c;
        map_enter();
        atomic_store((_Atomic bool *) ret_inside, true);
        (void) !read(gate[0], &c, 1);
        map_leave();
        return NULL;
}

/* In the child of a fork only the thread that forked is there. */
static void test_child(void **state) {
        _Atomic bool inside = false;
        pthread_t t;
        int status;
        assert_int_equal(pipe(gate), 0);
        assert_int_equal(pthread_create(&t, NULL, stay_inside, &inside), 0);
        while (!atomic_load(&inside))
                sys_yield();
        pid_t pid = fork();
        if (!pid) {
                map_lock_fork_child();
                if (map_lock_any_inside())
                        _exit(1);
                _exit(can_acquire() ? 0 : 2);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
        assert_true(map_lock_any_inside());
        assert_int_equal(write(gate[1], "", 1), 1);
        assert_int_equal(pthread_join(t, NULL), 0);
        close(gate[0]);
        close(gate[1]);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_nothing_without_barrier), cmocka_unit_test(test_thread_that_ended_inside),
                cmocka_unit_test(test_brackets),                cmocka_unit_test(test_held_off),
                cmocka_unit_test(test_signal_handler_held_off), cmocka_unit_test(test_child),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
