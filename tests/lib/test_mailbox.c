/* Requests whose callers give up: the slot comes back, once, and a late answer meets nobody. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "lib/agent_loop.h"
#include "lib/mailbox.h"
#include "lib/sys.h"

#define TIMEOUT_USEC 2000U
#define BOUND_USEC 20000000ULL /* longer than any load makes a thread wait for the processor */

static void *merge_for_ever(void *result) {
        struct request r = { .kind = REQUEST_MERGE };
        *(int *) result = mailbox_call(&r, 0);
        return NULL;
}

static void *merge_with_timeout(void *result) {
        struct request r = { .kind = REQUEST_MERGE };
        __atomic_store_n((int *) result, mailbox_call(&r, TIMEOUT_USEC), __ATOMIC_RELEASE);
        return NULL;
}

static struct request *next_request(void) {
        struct request *r;
        while (!(r = mailbox_next()))
                sys_yield();
        return r;
}

/* A request that will time out, taken before it did: on a busy machine the caller may be faster, then another one tries. */
static struct request *next_with_timeout(pthread_t *t, int *result) {
        for (uint64_t end = now_usec() + BOUND_USEC;;) {
                struct request *r = NULL;
                *result = 0;
                pthread_create(t, NULL, merge_with_timeout, result);
                while (!(r = mailbox_next()) && !__atomic_load_n(result, __ATOMIC_ACQUIRE)) {
                        assert_true(now_usec() < end); /* no slot is left */
                        sys_yield();
                }
                if (r)
                        return r;
                pthread_join(*t, NULL);
        }
}

/* A daemon that never answers: more callers than slots give up, then somebody is served all the same. */
static void test_given_up(void **state) {
        uint32_t cookie = 0;
        pthread_t t;
        int result;
        for (unsigned i = 0; i < REQUESTS + 1; i++) {
                struct request *r = next_with_timeout(&t, &result);
                cookie = mailbox_cookie(r);
                mailbox_park(r);
                pthread_join(t, NULL);
                assert_int_equal(result, -ETIMEDOUT);
        }
        pthread_create(&t, NULL, merge_for_ever, &result);
        struct request *r = next_request();
        mailbox_park(r);
        assert_null(mailbox_unpark(cookie)); /* the late answer */
        assert_ptr_equal(mailbox_unpark(mailbox_cookie(r)), r);
        mailbox_finish(r, -ENOENT);
        pthread_join(t, NULL);
        assert_int_equal(result, -ENOENT);
}

/* Given up while the agent is at it: both ways of letting go of it give the slot back. */
static void test_given_up_when_taken(void **state) {
        pthread_t t;
        int result;
        for (unsigned i = 0; i < 2 * (REQUESTS + 1); i++) {
                struct request *r = next_with_timeout(&t, &result);
                pthread_join(t, NULL);
                assert_int_equal(result, -ETIMEDOUT);
                if (i & 1)
                        mailbox_finish(r, 0);
                else
                        mailbox_park(r);
                assert_null(mailbox_unpark_any());
        }
}

/* The connection fails while a request is being passed on: it is not parked yet, and is finished once. */
static void test_connection_lost_before_parking(void **state) {
        pthread_t t;
        int result;
        pthread_create(&t, NULL, merge_for_ever, &result);
        struct request *r = next_request();
        assert_null(mailbox_unpark_any()); /* what link_close does */
        mailbox_finish(r, -ENOTCONN);
        pthread_join(t, NULL);
        assert_int_equal(result, -ENOTCONN);
}

/* The daemon dies before it answers: whoever waits is told. */
static void test_connection_lost(void **state) {
        static struct agent a = { .link_fd = -1 };
        pthread_t t[3];
        int result[3] = { 0 };
        for (unsigned i = 0; i < 3; i++) {
                pthread_create(&t[i], NULL, merge_for_ever, &result[i]);
                mailbox_park(next_request());
        }
        link_close(&a);
        const struct timespec end = { .tv_sec = time(NULL) + (time_t) (BOUND_USEC / 1000000) };
        for (unsigned i = 0; i < 3; i++) {
                assert_int_equal(pthread_timedjoin_np(t[i], NULL, &end), 0);
                assert_int_equal(result[i], -ENOTCONN);
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_given_up),
                cmocka_unit_test(test_given_up_when_taken),
                cmocka_unit_test(test_connection_lost_before_parking),
                cmocka_unit_test(test_connection_lost),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
