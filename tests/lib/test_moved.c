/* Merged memory that a program moves by mremap around libc: what it reads is what it would read on plain memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/book.h"
#include "lib/moved.h"
#include "tests/lib/rig.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

#define SOME 8U /* pages */

struct call {
        uint8_t *from, *to; /* to: NULL for a discard */
        unsigned n, new_n;
        int flags;
};

/* Of a program that has not been seen to call around libc yet. */
static uint8_t *merged_new(void) {
        A.raw = false;
        return block_merged();
}

static void *call_around_libc(void *p) {
        const struct call *c = p;
        if (!c->to)
                return (void *) sys_call(SYS_madvise, (long) c->from, (long) (c->n * KSM_PAGE_SIZE), MADV_DONTNEED, 0, 0, 0);
        long r = sys_call(SYS_mremap, (long) c->from, (long) (c->n * KSM_PAGE_SIZE), (long) (c->new_n * KSM_PAGE_SIZE),
                          MREMAP_MAYMOVE | MREMAP_FIXED | c->flags, (long) c->to, 0);
        return (void *) (r - (long) c->to);
}

static void *in_thread(void *(*f)(void *), void *argument) {
        pthread_t t;
        assert_int_equal(pthread_create(&t, NULL, f, argument), 0);
        return join_draining(t);
}

static void move(uint8_t *from, unsigned n, uint8_t *to, unsigned new_n, int flags) {
        struct call c = { from, to, n, new_n, flags };
        A.raw = false;
        assert_null(in_thread(call_around_libc, &c));
        assert_true(A.raw);
}

static void discard_page(uint8_t *page) {
        struct call c = { .from = page, .n = 1 };
        assert_null(in_thread(call_around_libc, &c));
}

/* As reclaim and migration do: the entry is gone, the page is still the segment's. */
static void lose_page(uint8_t *page) {
        uint64_t start = (uint64_t) page, end = start + KSM_PAGE_SIZE;
        assert_int_equal(context_unregister(&A.shared, start, end), 0);
        assert_int_equal(sys_madvise(start, KSM_PAGE_SIZE, MADV_DONTNEED), 0);
        assert_int_equal(context_register(&A.shared, start, end, UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MINOR), 0);
}

struct pages {
        const uint8_t *from;
        unsigned n;
        uint8_t bytes[2 * PAGES * KSM_PAGE_SIZE];
};

static void *read_them(void *p) {
        struct pages *r = p;
        memcpy(r->bytes, r->from, r->n * KSM_PAGE_SIZE);
        return NULL;
}

/* Page i holds content (first + i) % CONTENTS, but where zeros says otherwise. */
static void assert_reads(const uint8_t *from, unsigned n, unsigned first, uint64_t zeros) {
        static struct pages r;
        uint8_t want[KSM_PAGE_SIZE];
        r.from = from;
        r.n = n;
        (void) in_thread(read_them, &r);
        for (unsigned i = 0; i < n; i++) {
                fill(want, zeros >> i & 1 ? 0 : (first + i) % CONTENTS);
                assert_memory_equal(r.bytes + i * KSM_PAGE_SIZE, want, KSM_PAGE_SIZE);
        }
}

/* Memory that could be merged, but for what the program has done. */
static void assert_left_alone(void) {
        uint8_t *b = block_new(), status[64];
        for (unsigned i = 0; i < PAGES; i++)
                fill(page_at(b, i), i % CONTENTS);
        (void) apply_once(APPLY_MERGE, b, 0, PAGES, 0, status);
        assert_int_equal(file_pages(b), 0);
        for (unsigned i = 0; i < PAGES; i++)
                assert_int_equal(status[i], APPLY_VMA_GONE);
}

/* Not where blocks begin, so that the pages come to lie elsewhere in their blocks. */
static uint8_t *place_new(void) {
        uint8_t *p = mmap(NULL, 4 * BLOCK_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        assert_ptr_not_equal(p, MAP_FAILED);
        return (uint8_t *) (((uint64_t) p + BLOCK_BYTES) & ~(BLOCK_BYTES - 1)) + 3 * KSM_PAGE_SIZE;
}

/* Discarded before the move, between move and settling, and later; by turns settled at once and not. */
static void test_moved(void **state) {
        for (unsigned settled = 0; settled < 2; settled++) {
                uint8_t *b = merged_new(), *to = place_new();
                discard_page(page_at(b, 5));
                move(b, PAGES, to, PAGES, 0);
                if (settled)
                        moved_settle(&A);
                assert_int_equal(book_any_merged((uint64_t) to, (uint64_t) to + BLOCK_BYTES), settled);
                discard_page(page_at(to, 9));
                lose_page(page_at(to, 10));
                assert_reads(to, PAGES, 0, 1ULL << 5 | 1ULL << 9);
                moved_settle(&A);
                lose_page(page_at(to, 11));
                assert_left_alone();
                discard_page(page_at(to, 12));
                assert_reads(to, PAGES, 0, 1ULL << 5 | 1ULL << 9 | 1ULL << 12);
                discard_page(page_at(to, 5)); /* filled with zeros by now, and empty again */
                assert_reads(to, PAGES, 0, 1ULL << 5 | 1ULL << 9 | 1ULL << 12);
        }
}

static void test_dontunmap(void **state) {
        for (unsigned settled = 0; settled < 2; settled++) {
                uint8_t *b = merged_new(), *to = place_new(), *further = place_new();
                move(b, PAGES, to, PAGES, MREMAP_DONTUNMAP);
                if (settled)
                        moved_settle(&A);
                assert_reads(b, PAGES, 0, ~0ULL);
                assert_reads(to, PAGES, 0, 0);
                move(to, PAGES, further, PAGES, MREMAP_DONTUNMAP);
                assert_reads(to, PAGES, 0, ~0ULL);
                assert_reads(further, PAGES, 0, 0);
                moved_settle(&A);
        }
}

static void test_there_and_back(void **state) {
        for (unsigned settled = 0; settled < 2; settled++) {
                uint8_t *b = merged_new(), *to = place_new();
                discard_page(page_at(b, 5));
                move(b, PAGES, to, PAGES, 0);
                if (settled)
                        moved_settle(&A);
                discard_page(page_at(to, 9));
                (void) book_take_any_removed();
                move(to, PAGES, b, PAGES, 0);
                assert_true(book_some_removed()); /* a fork has to ask */
                assert_reads(b, PAGES, 0, 1ULL << 5 | 1ULL << 9);
                move(b, PAGES, to, PAGES, 0);
                lose_page(page_at(to, 10));
                assert_reads(to, PAGES, 0, 1ULL << 5 | 1ULL << 9);
                moved_settle(&A);
                discard_page(page_at(to, 20));
                assert_reads(to, PAGES, 0, 1ULL << 5 | 1ULL << 9 | 1ULL << 20);
        }
}

/* What lies behind the run in its segment must not be seen. */
static void test_grown(void **state) {
        uint8_t *b = merged_new(), *to = place_new();
        move(b, SOME, to, 2 * SOME, 0);
        assert_reads(to, 2 * SOME, 0, 0xff00);
        moved_settle(&A);
        discard_page(page_at(to, 1));
        assert_reads(to, 2 * SOME, 0, 0xff02);
        assert_reads(page_at(b, SOME), PAGES - SOME, SOME, 0);
}

/* Two runs that fuse where they are moved to: the second is no growth of the first. */
static void test_moved_side_by_side(void **state) {
        uint8_t *b = merged_new(), *to = place_new();
        move(page_at(b, SOME), SOME, page_at(to, SOME), SOME, 0);
        move(b, SOME, to, SOME, 0);
        lose_page(page_at(to, SOME + 1));
        assert_reads(to, 2 * SOME, 0, 0);
        moved_settle(&A);
        assert_reads(to, 2 * SOME, 0, 0);
}

static void test_settled_is_as_merged_there(void **state) {
        uint8_t *b = merged_new(), *to = place_new();
        int status;
        discard_page(page_at(b, 5));
        move(b, PAGES, to, PAGES, 0);
        events_prepare_fork(&A); /* of a fork that came before */
        moved_settle(&A);
        assert_int_equal(A.moved.n, 0);
        /* A child has no userfaultfd. */
        assert_true(book_some_removed());
        events_prepare_fork(&A);
        pid_t pid = fork();
        if (!pid) {
                uint8_t want[KSM_PAGE_SIZE] = { 0 };
                _exit(memcmp(page_at(to, 5), want, KSM_PAGE_SIZE) != 0);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
        assert_int_equal(transition_restore_range(&A, (uint64_t) to, (uint64_t) to + BLOCK_BYTES), 0);
        assert_int_equal(file_pages(to), 0);
        assert_reads(to, PAGES, 0, 1ULL << 5);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_moved),
                cmocka_unit_test(test_dontunmap),
                cmocka_unit_test(test_there_and_back),
                cmocka_unit_test(test_grown),
                cmocka_unit_test(test_moved_side_by_side),
                cmocka_unit_test(test_settled_is_as_merged_there),
        };
        return cmocka_run_group_tests(tests, rig_setup, NULL);
}
