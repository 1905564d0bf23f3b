/* Restores of whole runs, whose entries go to another mapping of the segment while their bytes are copied: what becomes of entries that are
 * not there, of who comes meanwhile, and of the pages when it cannot be done. Bytes first; then what the kernel says of the mappings. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#include "common/fault.h"
#include "lib/book.h"
#include "tests/lib/rig.h"

#define TRIES 20U /* somebody who comes too late for the transition is a legal outcome: once more */
#define BESIDE "freeze_beside:delay:1:100000"
#define SECOND_MREMAP "sys_mremap:fail:2:12" /* ENOMEM; the first one takes the entries away, the second puts copies there */
#define COPY "uffd_fill:fail:1:14"
#define STAGING "uffd_register:fail:2:12" /* the first one is the guard */
#define READERS 3U
#define BOUND_MSEC 60000 /* longer than any load makes a thread wait for the processor */

static void assert_page(uint8_t *b, unsigned i, unsigned content) {
        uint8_t want[KSM_PAGE_SIZE];
        fill(want, content);
        assert_memory_equal(page_at(b, i), want, KSM_PAGE_SIZE);
}

static uint64_t sum_of(unsigned at, unsigned n) {
        uint8_t page[KSM_PAGE_SIZE];
        uint64_t sum = 0;
        for (unsigned i = at; i < at + n; i++) {
                fill(page, i % CONTENTS);
                for (unsigned k = 0; k < KSM_PAGE_SIZE; k++)
                        sum += page[k];
        }
        return sum;
}

/* Reads as the program would, with this thread at hand as the agent; then looks. */
static void assert_block(uint8_t *b) {
        pthread_t t;
        pthread_create(&t, NULL, touch, b);
        assert_int_equal((uint64_t) join_draining(t), sum_of(0, PAGES));
        for (unsigned i = 0; i < PAGES; i++)
                assert_page(b, i, i % CONTENTS);
}

static void assert_restored(uint8_t *b, const uint8_t *status) {
        for (unsigned i = 0; i < PAGES; i++)
                assert_int_equal(status[i], APPLY_OK);
        assert_block(b);
        assert_int_equal(file_pages(b), 0);
        assert_int_equal(tracked_pages(b), ~0ULL);
        assert_false(book_any_merged((uint64_t) b, (uint64_t) b + BLOCK_BYTES));
}

/* The next mapping of segment 1 from `at` on that is not the block's. */
static bool other_mapping(const uint8_t *b, uint64_t at, struct vma *ret) {
        for (; vma_query(A.maps_fd, at, true, ret) == 0; at = ret->end)
                if (ret->segment && ret->inode == segments_find(&A.segments, 1)->inode && ret->start - (uint64_t) b >= BLOCK_BYTES)
                        return true;
        return false;
}

static void drop(uint8_t *b) {
        struct vma v;
        assert_false(other_mapping(b, 0, &v)); /* nothing is left behind */
        munmap(b, BLOCK_BYTES);
        registry_forget(&A, (uint64_t) b, (uint64_t) b + BLOCK_BYTES);
        A.raw = false;
}

static void restore_with(const char *fault, uint8_t *b, uint8_t *status) {
        witness_dismiss(&A);
        A.witness.next_usec = 0;
        assert_int_equal(fault_arm(fault, NULL), 0);
        (void) apply_once(APPLY_RESTORE, b, 0, PAGES, 0, status);
        (void) fault_arm(NULL, NULL);
}

/* -- who comes meanwhile ------------------------------------------------------------------------------------------------ */

static _Atomic bool over;

static bool held_up(void) {
        const struct fault_page *page = atomic_load(&fault_page);
        while (!atomic_load(&page->fired)) {
                if (atomic_load(&over))
                        return false;
                sched_yield();
        }
        return true;
}

static void *read_meanwhile(void *b) {
        (void) held_up();
        return touch(b);
}

/* The word that is there. */
static void *write_meanwhile(void *page) {
        uint64_t *p = page, word = 0;
        (void) held_up();
        (void) __atomic_fetch_or(p, word, __ATOMIC_RELAXED);
        return NULL;
}

static uint64_t waits(void) {
        uint64_t n = 0;
        for (unsigned i = 0; i < WAIT_BUCKETS; i++)
                n += A.figures.waits[i];
        return n;
}

/* Both wait, as the entries are elsewhere. */
static void test_accesses_meanwhile(void **state) {
        bool waited = false;
        for (unsigned tries = 0; tries < TRIES && !waited; tries++) {
                uint8_t *b = block_merged(), status[64];
                pthread_t readers[READERS], writer;
                uint64_t before = waits();
                atomic_store(&over, false);
                assert_int_equal(fault_arm(BESIDE, NULL), 0);
                for (unsigned i = 0; i < READERS; i++)
                        pthread_create(&readers[i], NULL, read_meanwhile, b);
                pthread_create(&writer, NULL, write_meanwhile, page_at(b, 7));
                (void) apply_once(APPLY_RESTORE, b, 0, PAGES, 0, status);
                atomic_store(&over, true);
                for (unsigned i = 0; i < READERS; i++)
                        assert_int_equal((uint64_t) join_draining(readers[i]), sum_of(0, PAGES));
                (void) join_draining(writer);
                (void) fault_arm(NULL, NULL);
                waited = waits() - before > READERS;
                assert_restored(b, status);
                drop(b);
        }
        assert_true(waited);
}

/* As reclaim does it, without a word, when the entries have just been seen to be there. An agent that read them where the guard is would
 * wait for itself. */
static void *take_entries(void *b) {
        struct vma v;
        if (!held_up() || !other_mapping(b, 0, &v))
                return NULL;
        return (void *) (uintptr_t) (madvise((void *) v.start, BLOCK_BYTES, MADV_DONTNEED) == 0);
}

static void *read_word(void *p) {
        return (void *) __atomic_load_n((uint64_t *) p, __ATOMIC_RELAXED);
}

static void test_entries_taken_away(void **state) {
        bool taken = false;
        for (unsigned tries = 0; tries < TRIES && !taken; tries++) {
                uint8_t *b = block_merged(), status[64];
                pthread_t t;
                atomic_store(&over, false);
                assert_int_equal(fault_arm(BESIDE, NULL), 0);
                pthread_create(&t, NULL, take_entries, b);
                (void) apply_once(APPLY_RESTORE, b, 0, PAGES, 0, status);
                atomic_store(&over, true);
                taken = join_draining(t);
                (void) fault_arm(NULL, NULL);
                assert_restored(b, status);
                drop(b);
        }
        assert_true(taken);
}

/* Somebody looked at staging (a debugger), and when the message is read a merged page is where it was. */
static void test_message_about_staging(void **state) {
        uint8_t want[KSM_PAGE_SIZE], *p = mmap(NULL, KSM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        const uint64_t start = (uint64_t) p, end = start + KSM_PAGE_SIZE;
        struct pollfd fault = { .fd = A.spare.fd, .events = POLLIN };
        pthread_t t;
        fill(want, 3);
        assert_int_equal(context_register(&A.spare, start, end, UFFDIO_REGISTER_MODE_MISSING), 0);
        pthread_create(&t, NULL, read_word, p);
        assert_int_equal(poll(&fault, 1, BOUND_MSEC), 1);
        assert_ptr_equal(mmap(p, KSM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, segments_find(&A.segments, 1)->fd,
                              3 * KSM_PAGE_SIZE), p);
        place_share(&A, start, end);
        assert_int_equal((uint64_t) join_draining(t), *(uint64_t *) want);
        munmap(p, KSM_PAGE_SIZE);
}

/* -- when it cannot be done ------------------------------------------------------------------------------------------------ */

/* The copies could not be put there: the run is as it was, entries and all, and its discards are heard. */
static void test_not_replaced(void **state) {
        uint8_t *b = block_merged(), status[64];
        pthread_t t;
        restore_with(SECOND_MREMAP, b, status);
        for (unsigned i = 0; i < PAGES; i++)
                assert_int_equal(status[i], APPLY_BUDGET);
        assert_int_equal(file_pages(b), ~0ULL);
        assert_int_equal(tracked_pages(b), ~0ULL);
        assert_block(b);
        pthread_create(&t, NULL, discard, b);
        (void) join_draining(t);
        pthread_create(&t, NULL, touch, b);
        assert_null(join_draining(t));
        drop(b);
}

/* One page of the run was written: nothing else has its bytes. */
static void test_written_page_is_not_at_stake(void **state) {
        uint8_t *b = block_merged(), status[64];
        fill(page_at(b, 9), 3);
        restore_with(SECOND_MREMAP, b, status);
        for (unsigned i = 0; i < PAGES; i++)
                assert_page(b, i, i == 9 ? 3 : i % CONTENTS);
        drop(b);
}

static void *raw_free(void *b) {
        return (void *) sys_madvise((uint64_t) b, BLOCK_BYTES, MADV_FREE);
}

/* Announced as a discard, and refused: the book says that the pages read as zeros once their entries are gone. */
static void test_page_said_to_be_removed_is_not_at_stake(void **state) {
        uint8_t *b = block_merged(), status[64];
        pthread_t t;
        pthread_create(&t, NULL, raw_free, b);
        assert_int_equal((long) join_draining(t), -EINVAL);
        restore_with(SECOND_MREMAP, b, status);
        assert_block(b);
        drop(b);
}

static void test_not_copied(void **state) {
        static const char *const faults[] = { COPY, STAGING, "sys_mremap:fail:1:12", "sys_madvise:fail:1:12", "sys_mmap:fail:1:12" };
        for (unsigned i = 0; i < ARRAY_SIZE(faults); i++) {
                uint8_t *b = block_merged(), status[64];
                restore_with(faults[i], b, status);
                assert_block(b);
                (void) apply(APPLY_RESTORE, b, 0, PAGES, 0, status);
                assert_restored(b, status);
                drop(b);
        }
}

/* Another protection than most. */
static void test_protection_stays(void **state) {
        uint8_t *b = block_merged(), status[64];
        struct vma v;
        assert_int_equal(mprotect(b, BLOCK_BYTES, PROT_READ), 0);
        (void) apply(APPLY_RESTORE, b, 0, PAGES, 0, status);
        assert_restored(b, status);
        assert_int_equal(vma_query(A.maps_fd, (uint64_t) b, false, &v), 0);
        assert_int_equal(vma_prot(&v), PROT_READ);
        drop(b);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_accesses_meanwhile),
                cmocka_unit_test(test_entries_taken_away),
                cmocka_unit_test(test_message_about_staging),
                cmocka_unit_test(test_not_replaced),
                cmocka_unit_test(test_written_page_is_not_at_stake),
                cmocka_unit_test(test_page_said_to_be_removed_is_not_at_stake),
                cmocka_unit_test(test_not_copied),
                cmocka_unit_test(test_protection_stays),
        };
        return cmocka_run_group_tests(tests, rig_setup, NULL);
}
