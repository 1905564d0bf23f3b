/* What is registered, excluded, released, and what becomes of it when memory goes or moves. Judged by the kernel: which pages lie in
 * segments, and whether another userfaultfd may have the memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/agent.h"
#include "tests/lib/rig.h"

static uint64_t end_of(const uint8_t *b) {
        return (uint64_t) b + BLOCK_BYTES;
}

static void assert_bytes(const uint8_t *b) {
        uint8_t want[KSM_PAGE_SIZE];
        for (unsigned i = 0; i < PAGES; i++) {
                fill(want, i % CONTENTS);
                assert_memory_equal(b + i * KSM_PAGE_SIZE, want, KSM_PAGE_SIZE);
        }
}

static bool is_registered(const uint8_t *b) {
        return rangeset_contains(&A.ranges, (uint64_t) b, end_of(b));
}

static void test_unregister(void **state) {
        uint8_t *b = block_merged();
        assert_false(is_free(b));
        assert_int_equal(registry_unregister(&A, (uint64_t) b, end_of(b), true), 0);
        assert_int_equal(file_pages(b), 0);
        assert_false(is_registered(b));
        assert_true(is_free(b));
        assert_bytes(b);
        assert_int_equal(registry_unregister(&A, (uint64_t) b, end_of(b), true), -ENOENT);
        assert_int_equal(registry_unregister(&A, (uint64_t) b, end_of(b), false), 0);
}

static void test_exclude(void **state) {
        uint8_t *b = block_merged();
        assert_int_equal(registry_exclude(&A, (uint64_t) b, end_of(b)), 0);
        assert_int_equal(file_pages(b), 0);
        assert_false(is_registered(b));
        assert_true(is_free(b));
        assert_bytes(b);
        assert_int_equal(registry_register(&A, (uint64_t) b, end_of(b), true), -EPERM);
        assert_int_equal(registry_register(&A, (uint64_t) b, end_of(b), false), 0);
        assert_false(is_registered(b));
        /* What is mapped there next is another thing. */
        assert_ptr_equal(mmap(b, BLOCK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), b);
        registry_forget(&A, (uint64_t) b, end_of(b));
        assert_int_equal(registry_register(&A, (uint64_t) b, end_of(b), true), 0);
        assert_true(is_registered(b));
}

static void test_release(void **state) {
        uint8_t *b = block_merged();
        assert_int_equal(registry_release(&A, (uint64_t) b, end_of(b)), 0);
        assert_int_equal(file_pages(b), 0);
        assert_true(is_free(b));
        assert_bytes(b);
}

/* A policy of its own would be lost, and pages on the wrong node shared; a stack is a mapping that the kernel names; and what is executable
 * or cannot be read is not for us. */
static void test_never_registered(void **state) {
        uint8_t *b = block_new();
        const unsigned long nodes = 1;
        uint64_t stack = (uint64_t) __builtin_frame_address(0) & ~(KSM_PAGE_SIZE - 1);
        assert_int_equal(registry_register(&A, stack, stack + KSM_PAGE_SIZE, true), -EINVAL);
        assert_int_equal(registry_register(&A, stack, stack + KSM_PAGE_SIZE, false), 0);
        assert_false(rangeset_overlaps(&A.ranges, stack, stack + KSM_PAGE_SIZE));
        assert_int_equal(registry_unregister(&A, (uint64_t) b, end_of(b), true), 0);
        static const int prots[] = { PROT_READ | PROT_WRITE | PROT_EXEC, PROT_NONE };
        for (unsigned k = 0; k < ARRAY_SIZE(prots); k++) {
                assert_int_equal(mprotect(b, BLOCK_BYTES, prots[k]), 0);
                assert_int_equal(registry_register(&A, (uint64_t) b, end_of(b), true), -EINVAL);
                assert_int_equal(registry_register(&A, (uint64_t) b, end_of(b), false), 0);
                assert_false(is_registered(b));
                assert_true(is_free(b));
        }
        assert_int_equal(mprotect(b, BLOCK_BYTES, PROT_READ | PROT_WRITE), 0);
        if (syscall(SYS_mbind, b, BLOCK_BYTES, 2 /* MPOL_BIND */, &nodes, sizeof(nodes) * 8, 0) < 0)
                skip(); /* a kernel without NUMA */
        assert_int_equal(registry_register(&A, (uint64_t) b, end_of(b), true), -EPERM);
        assert_int_equal(registry_register(&A, (uint64_t) b, end_of(b), false), 0);
        assert_false(is_registered(b));
        assert_true(is_free(b));
}

static uint8_t *moved(uint8_t *b) {
        uint8_t *place = mmap(NULL, 2 * BLOCK_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        uint8_t *to = (uint8_t *) (((uintptr_t) place + BLOCK_BYTES - 1) & ~(BLOCK_BYTES - 1));
        assert_ptr_equal(mremap(b, BLOCK_BYTES, BLOCK_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, to), to);
        registry_move(&A, (uint64_t) b, end_of(b), (uint64_t) to, end_of(to), false);
        return to;
}

static void test_move(void **state) {
        uint8_t *b = block_new(), status[64], *to = moved(b);
        assert_false(is_registered(b));
        assert_true(is_registered(to));
        for (unsigned i = 0; i < PAGES; i++)
                fill(to + i * KSM_PAGE_SIZE, i % CONTENTS);
        (void) apply(APPLY_MERGE, to, 0, PAGES, 0, status);
        assert_int_equal(file_pages(to), ~0ULL);
}

static void test_move_excluded(void **state) {
        uint8_t *b = block_new();
        assert_int_equal(registry_exclude(&A, (uint64_t) b, end_of(b)), 0);
        uint8_t *to = moved(b);
        assert_int_equal(registry_register(&A, (uint64_t) to, end_of(to), true), -EPERM);
        assert_true(rangeset_contains(&A.excluded, (uint64_t) to, end_of(to)));
        assert_false(rangeset_overlaps(&A.excluded, (uint64_t) b, end_of(b)));
}

/* Of a block in pieces only those that were DONTFORK are so at the new place: a child has the others. */
static void test_move_dontfork(void **state) {
        uint8_t *b = block_new(), status[64];
        agent_note_advice((uint64_t) page_at(b, 8), 8 * KSM_PAGE_SIZE, MADV_DONTFORK);
        agent_consume_notes(&A);
        uint8_t *to = moved(b);
        for (unsigned i = 0; i < PAGES; i++)
                fill(page_at(to, i), i % CONTENTS);
        (void) apply(APPLY_MERGE, to, 0, PAGES, 0, status);
        assert_int_equal(file_pages(to), ~0ULL);
        pid_t pid = fork();
        if (!pid) {
                for (unsigned i = 0; i < PAGES; i++)
                        if ((msync(page_at(to, i), KSM_PAGE_SIZE, MS_ASYNC) == 0) != (i < 8 || i >= 16))
                                _exit(1);
                _exit(0);
        }
        int wait_status;
        assert_int_equal(waitpid(pid, &wait_status, 0), pid);
        assert_int_equal(wait_status, 0);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_unregister), cmocka_unit_test(test_exclude), cmocka_unit_test(test_release),
                cmocka_unit_test(test_move),       cmocka_unit_test(test_move_excluded), cmocka_unit_test(test_move_dontfork),
                cmocka_unit_test(test_never_registered),
        };
        return cmocka_run_group_tests(tests, rig_setup, NULL);
}
