/* merge, zero and restore of pages inside merged runs: copied on write, discarded, relocated, pinned. Bytes first; then what the
 * kernel says about mappings. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/book.h"
#include "tests/lib/rig.h"

static uint8_t *page_at(uint8_t *b, unsigned i) {
        return b + (size_t) i * KSM_PAGE_SIZE;
}

/* A block whose pages map slot 0 and following. */
static uint8_t *block_merged(void) {
        uint8_t *b = block_new(), status[64];
        for (unsigned i = 0; i < PAGES; i++)
                fill(page_at(b, i), i % CONTENTS);
        (void) apply(APPLY_MERGE, b, 0, PAGES, 0, status);
        assert_int_equal(file_pages(b), ~0ULL);
        return b;
}

static void assert_page(uint8_t *b, unsigned i, unsigned content) {
        uint8_t want[KSM_PAGE_SIZE];
        fill(want, content);
        assert_memory_equal(page_at(b, i), want, KSM_PAGE_SIZE);
}

/* VMAs that cover the block. */
static unsigned vmas(const uint8_t *b) {
        struct vma v;
        unsigned n = 0;
        for (uint64_t at = (uint64_t) b; vma_query(A.maps_fd, at, true, &v) == 0 && v.start < (uint64_t) b + BLOCK_BYTES; at = v.end)
                n++;
        return n;
}

/* No budget in a test, and a witness that has seen everything up to now. */
static uint32_t apply_now(uint32_t kind, const uint8_t *b, unsigned at, unsigned n, unsigned slot, uint8_t *status) {
        witness_dismiss(&A);
        A.witness.next_usec = 0;
        return apply(kind, b, at, n, slot, status);
}

static void test_copied_on_write(void **state) {
        uint8_t *b = block_merged(), status[64];
        for (unsigned i = 8; i < 24; i++)
                page_at(b, i)[7] = 1; /* another content, */
        for (unsigned i = 8; i < 16; i++)
                page_at(b, i)[7] = 0; /* the old one again, */
        fill(page_at(b, 16), 5); /* or that of another slot */
        assert_int_equal(file_pages(b), ~(0xffffULL << 8));
        (void) apply_now(APPLY_MERGE, b, 0, PAGES, 0, status);
        for (unsigned i = 0; i < PAGES; i++)
                assert_int_equal(status[i], i >= 16 && i < 24 ? APPLY_CHANGED : APPLY_OK);
        assert_int_equal(file_pages(b), ~(0xffULL << 16));
        assert_int_equal(vmas(b), 1);
        (void) apply_now(APPLY_MERGE, b, 16, 1, 5, status);
        assert_int_equal(status[16], APPLY_OK);
        for (unsigned i = 0; i < PAGES; i++) {
                if (i > 16 && i < 24)
                        assert_int_equal(page_at(b, i)[7], 1), page_at(b, i)[7] = 0;
                assert_page(b, i, i == 16 ? 5 : i % CONTENTS);
        }
        (void) apply_now(APPLY_RESTORE, b, 0, PAGES, 0, status);
        for (unsigned i = 0; i < PAGES; i++) {
                assert_int_equal(status[i], APPLY_OK);
                assert_page(b, i, i == 16 ? 5 : i % CONTENTS);
        }
        assert_int_equal(book_any_merged((uint64_t) b, (uint64_t) b + BLOCK_BYTES), 0);
        assert_false(A.raw);
}

static void test_relocate(void **state) {
        uint8_t *b = block_merged(), status[64];
        witness_dismiss(&A);
        (void) apply(APPLY_MERGE, b, 0, PAGES, 2 * PAGES, status);
        struct vma v;
        assert_int_equal(vma_query(A.maps_fd, (uint64_t) b, false, &v), 0);
        assert_int_equal(v.offset + ((uint64_t) b - v.start), 2 * BLOCK_BYTES);
        (void) apply(APPLY_MERGE, b, 0, 2, 1, status); /* unequal */
        assert_int_equal(status[0], APPLY_CHANGED);
        assert_int_equal(status[1], APPLY_CHANGED);
        for (unsigned i = 0; i < PAGES; i++)
                assert_page(b, i, i % CONTENTS);
        assert_int_equal(file_pages(b), ~0ULL);
        assert_int_equal(vmas(b), 1);
        assert_int_equal(A.witness.state, WITNESS_NONE); /* nobody needed it */
}

static void test_zero(void **state) {
        uint8_t *b = block_merged(), status[64];
        memset(page_at(b, 1), 0, 2 * KSM_PAGE_SIZE);
        page_at(b, 3)[100] = 1;
        (void) apply_now(APPLY_ZERO, b, 0, 16, 0, status);
        for (unsigned i = 0; i < 16; i++)
                assert_int_equal(status[i], i % CONTENTS == 0 || i == 1 || i == 2 ? APPLY_OK : APPLY_CHANGED);
        struct look look;
        assert_int_equal(look_at(A.pagemap_fd, (uint64_t) b, PAGES, &look), 0);
        assert_int_equal(~look.present, 0x107);
        for (unsigned i = 0; i < PAGES; i++)
                if (i == 3)
                        assert_int_equal(page_at(b, i)[100], 1);
                else
                        assert_page(b, i, i < 3 ? 0 : i % CONTENTS);
        page_at(b, 1)[0] = 1; /* tracked again */
        assert_int_equal(look_at(A.pagemap_fd, (uint64_t) b, PAGES, &look), 0);
        assert_true(look.written & 2);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_copied_on_write),
                cmocka_unit_test(test_relocate),
                cmocka_unit_test(test_zero),
        };
        return cmocka_run_group_tests(tests, rig_setup, NULL);
}
