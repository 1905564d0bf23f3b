/* The index against a plain array: insert, find, remove and replace through growth, splits and tombstones. And pools. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/core/index.h"

#define IDS 200000

static uint64_t hashes[IDS];
static bool is_in[IDS];

static void *plain_realloc(void *userdata, void *p, size_t size) {
        return realloc(p, size);
}
static void plain_free(void *userdata, void *p) {
        free(p);
}
static struct memory memory = { .allocator = { plain_realloc, plain_free, NULL } };

static void fetch(void *owner, uint32_t id) {
}

static uint64_t mix(uint64_t x) {
        x += UINT64_C(0x9e3779b97f4a7c15);
        x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
        x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
        return x ^ x >> 31;
}

static bool is_id(void *userdata, uint32_t id) {
        return id == *(uint32_t *) userdata;
}

static void insert(struct index *x, uint32_t id) {
        is_in[id] = true;
        assert_int_equal(index_insert(x, hashes[id], id), 0);
}

static void test_random(void **state) {
        struct index x;
        uint64_t n = 0;

        memset(is_in, 0, sizeof(is_in));
        index_init(&x, &memory, fetch, NULL);
        for (uint32_t i = 0; i < IDS; i++)
                hashes[i] = mix(i % 3 ? i : i / 6); /* some share a hash */
        for (uint64_t step = 0; step < 1000000; step++) {
                uint32_t id = (uint32_t) (mix(step) % IDS);

                assert_int_equal(index_find(&x, hashes[id], is_id, &id), is_in[id] ? id : NIL);
                if (is_in[id]) {
                        assert_true(index_remove(&x, hashes[id], id));
                        assert_false(index_remove(&x, hashes[id], id));
                        is_in[id] = false;
                        n--;
                } else if (mix(step + IDS) % 4) {
                        insert(&x, id);
                        n++;
                }
                assert_int_equal(x.n_entries, n);
        }
        index_done(&x);
        assert_int_equal(memory.bytes, 0);
}

static void test_bytes_per_entry(void **state) {
        struct index x;

        memset(is_in, 0, sizeof(is_in));
        index_init(&x, &memory, fetch, NULL);
        for (uint32_t i = 0; i < IDS; i++) {
                hashes[i] = mix(i);
                insert(&x, i);
                if (i > 10000)
                        assert_true(index_bytes(&x) <= 13 * (uint64_t) i);
        }
        print_message("%.1f bytes an entry at %d\n", (double) index_bytes(&x) / IDS, IDS);
        for (uint32_t i = 0; i < IDS; i++)
                assert_int_equal(index_find(&x, hashes[i], is_id, &i), i);
        index_done(&x);
        assert_int_equal(memory.bytes, 0);
}

static void test_replace(void **state) {
        struct index x;
        uint32_t id = 2;

        memset(is_in, 0, sizeof(is_in));
        index_init(&x, &memory, fetch, NULL);
        hashes[1] = hashes[2] = mix(1);
        insert(&x, 1);
        is_in[2] = true;
        assert_true(index_replace(&x, hashes[1], 1, 2));
        assert_false(index_replace(&x, hashes[1], 1, 2));
        assert_int_equal(index_find(&x, hashes[2], is_id, &id), 2);
        index_done(&x);
}

static void test_pool(void **state) {
        struct pool p;
        uint32_t ids[300], id;

        pool_init(&p, &memory, 24, 250);
        for (unsigned i = 0; i < 250; i++)
                assert_int_equal(pool_alloc(&p, &ids[i]), 0);
        assert_int_equal(pool_alloc(&p, &id), -ENOSPC);
        for (unsigned i = 0; i < 250; i += 2)
                pool_free(&p, ids[i]);
        assert_false(pool_has(&p, ids[0]));
        assert_true(pool_has(&p, ids[1]));
        assert_int_equal(pool_next(&p, 0), ids[1]);
        for (unsigned i = 1; i < 250; i += 2)
                pool_free(&p, ids[i]);
        assert_int_equal(p.n_items, 0);
        assert_int_equal(pool_next(&p, 0), NIL);
        assert_int_equal(memory.bytes, p.capacity * sizeof(struct pool_entry)); /* chunks are given back */
        pool_done(&p);
        assert_int_equal(memory.bytes, 0);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_random),
                cmocka_unit_test(test_bytes_per_entry),
                cmocka_unit_test(test_replace),
                cmocka_unit_test(test_pool),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
