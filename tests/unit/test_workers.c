/* The pool: every job comes back once, a hung one is replaced, stopping gives back what was not begun. And the id map
 * against a plain array. */
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/eventfd.h>

#include <cmocka.h>

#include "daemon/idmap.h"
#include "daemon/sys/clock.h"
#include "daemon/sys/workers.h"

#define JOBS 500
/* Long enough for the busiest machine, never waited for in full. */
#define BOUND_MSEC 20000

struct test_job {
        struct worker_job base;
        atomic_int runs;
        atomic_bool has_begun;
        int gate; /* eventfd to wait for; -1 = none */
};

static void run(struct worker_job *base, void *scratch) {
        struct test_job *j = (struct test_job *) base;
        uint64_t v;
        atomic_store(&j->has_begun, true);
        if (scratch)
                memset(scratch, 1, 64);
        if (j->gate >= 0)
                (void) !read(j->gate, &v, sizeof(v));
        atomic_fetch_add(&j->runs, 1);
}

static void wake(void *userdata) {
        uint64_t one = 1;
        (void) !write(*(int *) userdata, &one, sizeof(one));
}

static struct worker_job *reap_one(struct workers *p, int fd) {
        struct worker_job *job;
        while (!(job = workers_reap(p))) {
                struct pollfd wait = { .fd = fd, .events = POLLIN };
                uint64_t v;
                assert_int_equal(poll(&wait, 1, BOUND_MSEC), 1);
                assert_int_equal(read(fd, &v, sizeof(v)), sizeof(v));
        }
        return job;
}

static void test_all_come_back(void **state) {
        static struct test_job jobs[JOBS];
        int fd = eventfd(0, EFD_CLOEXEC);
        struct workers *p;
        assert_int_equal(workers_new(3, 64, wake, &fd, &p), 0);
        for (unsigned i = 0; i < JOBS; i++) {
                jobs[i] = (struct test_job){ .base.run = run, .gate = -1 };
                workers_submit(p, &jobs[i].base);
        }
        for (unsigned i = 0; i < JOBS; i++)
                (void) reap_one(p, fd);
        assert_null(workers_reap(p));
        for (unsigned i = 0; i < JOBS; i++)
                assert_int_equal(jobs[i].runs, 1);
        p = workers_free(p);
        close_fd(fd);
}

static void relieve(struct workers *p, unsigned n_gone) {
        uint64_t deadline = now_usec() + BOUND_MSEC * USEC_PER_MSEC;
        do {
                workers_relieve(p, now_usec(), 1000);
                assert_true(now_usec() < deadline);
        } while (workers_n_replaced(p) != n_gone);
}

static unsigned count_threads(void) {
        unsigned n = 0;
        DIR *d = opendir("/proc/self/task");
        assert_non_null(d);
        for (struct dirent *e; (e = readdir(d));)
                n += e->d_name[0] != '.';
        (void) closedir(d);
        return n;
}

/* One that was joined is listed for a moment more. */
static void wait_for_threads(unsigned at_most) {
        uint64_t deadline = now_usec() + BOUND_MSEC * USEC_PER_MSEC;
        while (count_threads() > at_most)
                assert_true(now_usec() < deadline);
}

static void wait_for_begin(struct test_job *j) {
        uint64_t deadline = now_usec() + BOUND_MSEC * USEC_PER_MSEC;
        while (!atomic_load(&j->has_begun))
                assert_true(now_usec() < deadline);
}

static void test_slow_worker_is_replaced(void **state) {
        int fd = eventfd(0, EFD_CLOEXEC), gate = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE);
        struct test_job slow[3], other = { .base.run = run, .gate = -1 };
        struct workers *p;
        assert_int_equal(workers_new(1, 64, wake, &fd, &p), 0);
        for (unsigned i = 0; i < ARRAY_SIZE(slow); i++) {
                slow[i] = (struct test_job){ .base.run = run, .gate = gate };
                workers_submit(p, &slow[i].base);
        }
        workers_submit(p, &other.base);
        relieve(p, 3); /* one after the other: each new worker takes the next of them */
        assert_ptr_equal(reap_one(p, fd), &other.base);
        assert_int_equal(workers_n_running(p), 1);
        assert_int_equal(workers_n_lost(p), 0);
        unsigned n_threads = count_threads();
        /* Back before anybody gave them up: nothing is lost, and there is again what there was. */
        for (unsigned i = 0; i < ARRAY_SIZE(slow); i++)
                wake(&gate);
        for (unsigned i = 0; i < ARRAY_SIZE(slow); i++)
                assert_false(((struct test_job *) reap_one(p, fd))->base.given_up);
        relieve(p, 0);
        assert_int_equal(workers_n_running(p), 1);
        wait_for_threads(n_threads - ARRAY_SIZE(slow));
        workers_submit(p, &other.base);
        assert_ptr_equal(reap_one(p, fd), &other.base);
        p = workers_free(p);
        close_fd(fd);
        close_fd(gate);
}

/* Threads cost a stack each: with so many at jobs that hang, the pool only shrinks. */
static void test_replaced_have_a_bound(void **state) {
        int fd = eventfd(0, EFD_CLOEXEC), gate = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE);
        static struct test_job slow[WORKERS_LOST_MAX + 1];
        struct workers *p;
        assert_int_equal(workers_new(1, 64, wake, &fd, &p), 0);
        for (unsigned i = 0; i < ARRAY_SIZE(slow); i++) {
                slow[i] = (struct test_job){ .base.run = run, .gate = gate };
                workers_submit(p, &slow[i].base);
        }
        relieve(p, WORKERS_LOST_MAX);
        wait_for_begin(&slow[WORKERS_LOST_MAX]);
        workers_relieve(p, now_usec() + 100 * USEC_PER_SEC, 1000);
        assert_int_equal(workers_n_replaced(p), WORKERS_LOST_MAX);
        for (unsigned i = 0; i < ARRAY_SIZE(slow); i++)
                wake(&gate);
        for (unsigned i = 0; i < ARRAY_SIZE(slow); i++)
                (void) reap_one(p, fd);
        relieve(p, 0);
        assert_int_equal(workers_n_running(p), 1);
        p = workers_free(p);
        close_fd(fd);
        close_fd(gate);
}

static void test_lost_worker_is_replaced(void **state) {
        int fd = eventfd(0, EFD_CLOEXEC), gate = eventfd(0, EFD_CLOEXEC);
        struct test_job hung = { .base.run = run, .gate = gate }, other = { .base.run = run, .gate = -1 };
        struct workers *p;
        assert_int_equal(workers_new(1, 64, wake, &fd, &p), 0);
        workers_submit(p, &hung.base);
        workers_submit(p, &other.base);
        wait_for_begin(&hung);
        assert_null(workers_find_slow(p, now_usec(), 1000 * USEC_PER_SEC));
        assert_null(workers_give_up(p, now_usec(), 1000 * USEC_PER_SEC));
        /* The only worker hangs: nothing else runs until it has been relieved, later its job is given up. */
        relieve(p, 1);
        struct worker_job *given_up = NULL;
        uint64_t deadline = now_usec() + BOUND_MSEC * USEC_PER_MSEC;
        while (!(given_up = workers_give_up(p, now_usec(), 1000)))
                assert_true(now_usec() < deadline);
        assert_ptr_equal(given_up, &hung.base);
        assert_int_equal(workers_n_lost(p), 1);
        assert_int_equal(workers_n_running(p), 1);
        assert_ptr_equal(reap_one(p, fd), &other.base);
        /* Each job is slow once, and given up once. */
        assert_ptr_equal(workers_find_slow(p, now_usec() + 100 * USEC_PER_SEC, 1000), &hung.base);
        assert_true(hung.base.slow);
        assert_null(workers_find_slow(p, now_usec() + 100 * USEC_PER_SEC, 1000));
        assert_null(workers_give_up(p, now_usec() + 100 * USEC_PER_SEC, 1000));
        assert_int_equal(workers_n_lost(p), 1);
        assert_int_equal(workers_stop(p), -EBUSY);
        /* It comes back after all, and its thread ends. */
        wake(&gate);
        assert_ptr_equal(reap_one(p, fd), &hung.base);
        assert_true(hung.base.given_up);
        assert_int_equal(workers_n_lost(p), 0);
        p = workers_free(p);
        close_fd(fd);
        close_fd(gate);
}

/* The pool stops while its worker hangs: what waits in the queue is never run, and says so. */
static void test_stop_cancels(void **state) {
        int fd = eventfd(0, EFD_CLOEXEC), gate = eventfd(0, EFD_CLOEXEC);
        struct test_job hung = { .base.run = run, .gate = gate }, queued = { .base.run = run, .gate = -1 };
        struct workers *p;
        assert_int_equal(workers_new(1, 64, wake, &fd, &p), 0);
        workers_submit(p, &hung.base);
        wait_for_begin(&hung);
        assert_ptr_equal(workers_give_up(p, now_usec() + 100 * USEC_PER_SEC, 1000), &hung.base);
        workers_submit(p, &queued.base);
        assert_int_equal(workers_stop(p), -EBUSY);
        wake(&gate);
        assert_ptr_equal(reap_one(p, fd), &hung.base);
        assert_int_equal(workers_stop(p), 0);
        assert_ptr_equal(workers_reap(p), &queued.base);
        assert_true(queued.base.cancelled);
        assert_int_equal(queued.runs, 0);
        p = workers_free(p);
        close_fd(fd);
        close_fd(gate);
}

static void test_stop_gives_back(void **state) {
        int fd = eventfd(0, EFD_CLOEXEC), gate = eventfd(0, EFD_CLOEXEC);
        struct test_job running = { .base.run = run, .gate = gate }, queued = { .base.run = run, .gate = -1 };
        struct test_job late = { .base.run = run, .gate = -1 };
        struct workers *p;
        assert_int_equal(workers_new(1, 64, wake, &fd, &p), 0);
        workers_submit(p, &running.base);
        while (!atomic_load(&running.has_begun))
                ;
        workers_submit(p, &queued.base);
        wake(&gate); /* workers_stop waits for the running one; whether the queued one still runs is a race */
        assert_int_equal(workers_stop(p), 0);
        workers_submit(p, &late.base);
        unsigned n = 0;
        while (workers_reap(p))
                n++;
        assert_int_equal(n, 3);
        assert_int_equal(running.runs, 1);
        assert_int_equal(queued.runs, queued.base.cancelled ? 0 : 1);
        assert_int_equal(late.runs, 1);
        p = workers_free(p);
        close_fd(fd);
        close_fd(gate);
}

#define KEYS 512
static void test_idmap(void **state) {
        struct idmap m = { 0 };
        static char values[KEYS];
        bool in[KEYS] = { false };
        uint32_t n = 0, random = 12345;
        for (unsigned i = 0; i < 100000; i++) {
                random = random * 1664525 + 1013904223;
                uint32_t k = (random >> 8) % KEYS, key = k * 0x10001; /* collide in the low bits */
                assert_ptr_equal(idmap_get(&m, key), in[k] ? &values[k] : NULL);
                if ((random >> 24) & 1) {
                        assert_int_equal(idmap_put(&m, key, &values[k]), in[k] ? -EEXIST : 0);
                        n += !in[k];
                        in[k] = true;
                } else {
                        assert_ptr_equal(idmap_remove(&m, key), in[k] ? &values[k] : NULL);
                        n -= in[k];
                        in[k] = false;
                }
                assert_int_equal(m.n, n);
        }
        uint32_t found = 0;
        IDMAP_FOREACH(&m, e)
                found += in[(char *) e->value - values];
        assert_int_equal(found, n);
        idmap_clear(&m);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_all_come_back),
                cmocka_unit_test(test_slow_worker_is_replaced),
                cmocka_unit_test(test_replaced_have_a_bound),
                cmocka_unit_test(test_lost_worker_is_replaced),
                cmocka_unit_test(test_stop_cancels),
                cmocka_unit_test(test_stop_gives_back),
                cmocka_unit_test(test_idmap),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
