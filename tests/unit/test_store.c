/* What the shell keeps for domains and segments: secrets of their own, and nothing goes while a job uses it. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "daemon/store.h"
#include "tests/unit/device.h"

#define SLOTS 16
#define KEY "uid=1"

/* A pool that was stopped runs what is submitted at once. */
static int setup(void **state) {
        struct workers *p;
        if (workers_new(1, 64, NULL, NULL, &p) < 0 || workers_stop(p) < 0)
                return -1;
        *state = p;
        return 0;
}

static int teardown(void **state) {
        *state = workers_free(*state);
        return 0;
}

static void reap(struct store *s) {
        struct worker_job *job;
        while ((job = workers_reap(s->workers))) {
                assert_true(store_is_job(job));
                store_job_done(s, job);
        }
}

/* I4: who shares no domain cannot compare by hashes either. */
static void test_secrets(void **state) {
        static const uint8_t page[KSM_PAGE_SIZE] = "bytes";
        struct store s;
        struct store_domain *a, *b, *again;
        store_init(&s);
        assert_int_equal(store_domain_open(&s, 1, KEY, strlen(KEY), &a), 0);
        assert_int_equal(store_domain_open(&s, 2, KEY, strlen(KEY), &b), 0);
        assert_int_equal(store_domain_open(&s, 1, KEY, strlen(KEY), &again), 0);
        assert_ptr_equal(a, again);
        assert_memory_not_equal(&a->secret, &b->secret, sizeof(a->secret));
        assert_true(digest_page(&a->secret, page) != digest_page(&b->secret, page));
        const uint64_t old = digest_page(&a->secret, page);
        store_domain_unref(again);
        store_domain_unref(a);
        store_domain_unref(b);
        assert_int_equal(s.domains.n, 0);
        /* Made anew, it has another. */
        assert_int_equal(store_domain_open(&s, 1, KEY, strlen(KEY), &a), 0);
        assert_true(digest_page(&a->secret, page) != old);
        store_domain_unref(a);
        /* Who shares with nobody has no key that would mean the same to the next daemon. */
        assert_int_equal(store_domain_open(&s, 3, "alone=5", strlen("alone=5"), &a), 0);
        assert_int_equal(a->key_size, 0);
        store_domain_unref(a);
        store_done(&s);
}

/* I2: a slot that is being written keeps its segment mapped and unsealed. */
static void test_pinned(void **state) {
        static const uint8_t page[KSM_PAGE_SIZE];
        _cleanup_close_ int device = open_device();
        _cleanup_close_ int filler = segment_filler_open(device);
        for (unsigned drops = 0; drops < 2; drops++) {
                struct store s;
                struct store_domain *d;
                struct store_segment *segment, *again;
                const struct core_segment_event e = { .segment = 7, .kind = drops ? CORE_SEGMENT_DROP : CORE_SEGMENT_SEAL };
                store_init(&s);
                s.workers = *state;
                s.filler = filler;
                assert_int_equal(store_domain_open(&s, 1, KEY, strlen(KEY), &d), 0);
                assert_int_equal(store_segment_open(&s, 7, d, SLOTS, -1, &segment), 0);
                assert_int_equal(store_segment_open(&s, 7, d, SLOTS, -1, &again), 0);
                assert_ptr_equal(segment, again);
                assert_ptr_equal(store_segment_by_inode(&s, segment->segment->inode), segment);
                store_segment_pin(segment);
                store_segment_event(&s, &e);
                reap(&s);
                assert_non_null(segment->segment);
                assert_non_null(segment->segment->slots);
                assert_int_equal(segment_file_fill(segment->segment, 1, page, 1), 1);
                assert_int_equal(store_segment_find(&s, 7) == NULL, drops);
                store_segment_unpin(segment);
                reap(&s);
                if (!drops) {
                        assert_null(segment->segment->slots);
                        assert_ptr_equal(store_segment_find(&s, 7), segment);
                }
                store_domain_unref(d);
                assert_int_equal(s.domains.n, !drops);
                store_done(&s);
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_secrets),
                cmocka_unit_test(test_pinned),
        };
        return cmocka_run_group_tests(tests, setup, teardown);
}
