/* merge, zero and restore on memory of this process, called directly, first alone and then under threads that write, read
 * and do system calls on the same pages. The test's main thread plays the agent. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/fault.h"
#include "daemon/sys/pagemap.h"
#include "lib/book.h"
#include "lib/notes.h"
#include "tests/lib/rig.h"

/* What page i of the block in test_merge_and_restore holds. */
static void expect(uint8_t *want, unsigned i) {
        fill(want, i == 9 ? 7 : i % CONTENTS);
        if (i == 20)
                want[0] ^= 1;
        if (i == 30)
                want[KSM_PAGE_SIZE - 1] ^= 1;
}

static void test_merge_and_restore(void **state) {
        uint8_t *b = block_new(), status[64];
        for (unsigned i = 0; i < PAGES; i++)
                fill(b + i * KSM_PAGE_SIZE, i % CONTENTS);
        fill(b + 9 * KSM_PAGE_SIZE, 7);                              /* differs from slot 9 everywhere, */
        b[20 * KSM_PAGE_SIZE] ^= 1;                                  /* in the first byte, */
        b[30 * KSM_PAGE_SIZE + KSM_PAGE_SIZE - 1] ^= 1;              /* in the last */
        const uint64_t differ = 1ULL << 9 | 1ULL << 20 | 1ULL << 30;
        (void) apply(APPLY_MERGE, b, 0, PAGES, 0, status);
        for (unsigned i = 0; i < PAGES; i++)
                assert_int_equal(status[i], differ >> i & 1 ? APPLY_CHANGED : APPLY_OK);
        assert_int_equal(file_pages(b), ~differ);
        uint8_t want[KSM_PAGE_SIZE];
        for (unsigned i = 0; i < PAGES; i++) {
                expect(want, i);
                assert_memory_equal(b + i * KSM_PAGE_SIZE, want, KSM_PAGE_SIZE);
        }
        b[3 * KSM_PAGE_SIZE + 5] ^= 1; /* copy on write */
        assert_int_equal(file_pages(b), ~differ & ~(1ULL << 3));
        (void) apply(APPLY_RESTORE, b, 0, PAGES, 0, status);
        for (unsigned i = 0; i < PAGES; i++)
                assert_int_equal(status[i], APPLY_OK);
        assert_int_equal(file_pages(b), 0);
        for (unsigned i = 0; i < PAGES; i++) {
                expect(want, i);
                if (i == 3)
                        want[5] ^= 1;
                assert_memory_equal(b + i * KSM_PAGE_SIZE, want, KSM_PAGE_SIZE);
        }
}

static void test_zero(void **state) {
        uint8_t *b = block_new(), status[64];
        memset(b, 0, BLOCK_BYTES);
        for (unsigned i = 0; i < PAGES; i++)
                b[i * KSM_PAGE_SIZE] = 1, b[i * KSM_PAGE_SIZE] = 0;
        b[4 * KSM_PAGE_SIZE + 4095] = 1;
        (void) apply(APPLY_ZERO, b, 0, PAGES, 0, status);
        struct look look;
        assert_int_equal(look_at(A.pagemap_fd, (uint64_t) b, PAGES, &look), 0);
        assert_int_equal(look.present, 1ULL << 4);
        for (unsigned i = 0; i < PAGES; i++) {
                assert_int_equal(status[i], i == 4 ? APPLY_CHANGED : APPLY_OK);
                assert_int_equal(b[i * KSM_PAGE_SIZE], 0);
        }
        assert_int_equal(b[4 * KSM_PAGE_SIZE + 4095], 1);
}

/* A discard of merged pages must read as zeros, though the file mapping holds the old bytes. */
static void test_discard_reads_zeros(void **state) {
        uint8_t *b = block_new(), status[64];
        for (unsigned i = 0; i < PAGES; i++)
                fill(b + i * KSM_PAGE_SIZE, i % CONTENTS);
        (void) apply(APPLY_MERGE, b, 0, PAGES, 0, status);
        assert_int_equal(file_pages(b), ~0ULL);
        for (unsigned round = 0; round < 3; round++) {
                pthread_t t;
                pthread_create(&t, NULL, discard, b);
                (void) join_draining(t);
                pthread_create(&t, NULL, touch, b);
                assert_int_equal((uint64_t) join_draining(t), 0);
        }
        assert_false(A.raw);
        /* Restored, the pages are zeros still. */
        (void) apply(APPLY_RESTORE, b, 0, PAGES, 0, status);
        assert_int_equal((uint64_t) touch(b), 0);
        assert_int_equal(book_any_merged((uint64_t) b, (uint64_t) b + BLOCK_BYTES), 0);
}

static void test_fork_child_reads_the_same(void **state) {
        uint8_t *b = block_new(), status[64], want[KSM_PAGE_SIZE];
        for (unsigned i = 0; i < PAGES; i++)
                fill(b + i * KSM_PAGE_SIZE, i % CONTENTS);
        (void) apply(APPLY_MERGE, b, 0, PAGES / 2, 0, status);
        int go[2];
        assert_int_equal(pipe(go), 0);
        pid_t pid = fork();
        if (!pid) {
                (void) !read(go[0], want, 1);
                for (unsigned i = 0; i < PAGES; i++) {
                        fill(want, i % CONTENTS);
                        if (memcmp(b + i * KSM_PAGE_SIZE, want, KSM_PAGE_SIZE) != 0)
                                _exit(1);
                }
                _exit(0);
        }
        /* Shared by fork: the kernel does not certify them, and to copy them would cost what merging saves ... */
        (void) apply(APPLY_MERGE, b, PAGES / 2, PAGES / 2, PAGES / 2, status);
        for (unsigned i = PAGES / 2; i < PAGES; i++)
                assert_int_equal(status[i], APPLY_PINNED_OR_FORKED);
        assert_int_equal(write(go[1], "", 1), 1);
        close(go[0]);
        close(go[1]);
        int wait_status;
        assert_int_equal(waitpid(pid, &wait_status, 0), pid);
        assert_int_equal(wait_status, 0);
        /* ... until the child is gone. */
        (void) apply(APPLY_MERGE, b, PAGES / 2, PAGES / 2, PAGES / 2, status);
        assert_int_equal(file_pages(b), ~0ULL);
}

/* Advice is no permission: what the program did not register, or what must not be shared, stays as it is. */
static void test_only_what_is_registered(void **state) {
        uint8_t *b = block_new(), status[64];
        for (unsigned i = 0; i < PAGES; i++)
                fill(b + i * KSM_PAGE_SIZE, i % CONTENTS);
        const uint64_t at = (uint64_t) b;
        assert_int_equal(registry_unregister(&A, at + 8 * KSM_PAGE_SIZE, at + 16 * KSM_PAGE_SIZE, true), 0);
        assert_int_equal(rangeset_add(&A.excluded, at + 24 * KSM_PAGE_SIZE, at + 32 * KSM_PAGE_SIZE), 0);
        for (unsigned round = 0; round < 2; round++) {
                (void) apply(round ? APPLY_MERGE : APPLY_ZERO, b, 0, PAGES, 0, status);
                for (unsigned i = 0; i < PAGES; i++) {
                        bool left = (i >= 8 && i < 16) || (i >= 24 && i < 32);
                        assert_int_equal(status[i] == APPLY_VMA_GONE, left || (round && i % CONTENTS == 0));
                }
        }
        assert_int_equal(file_pages(b) & 0xff00ff00, 0);
        assert_true(file_pages(b));
        assert_int_equal(rangeset_remove(&A.excluded, at, at + BLOCK_BYTES), 0);
}

/* Notes of the program are read first; a process that has locked all its memory is left alone. */
static void test_notes_come_first(void **state) {
        uint8_t *b = block_new(), status[64];
        for (unsigned i = 0; i < PAGES; i++)
                fill(b + i * KSM_PAGE_SIZE, i % CONTENTS);
        A.suspended = true;
        (void) apply(APPLY_MERGE, b, 0, PAGES, 0, status);
        assert_int_equal(file_pages(b), 0);
        A.suspended = false;
        const uint64_t at = (uint64_t) b;
        notes_put((struct note) { .kind = NOTE_UNMAPPED, .start = at + 8 * KSM_PAGE_SIZE, .end = at + 16 * KSM_PAGE_SIZE });
        notes_put((struct note) { .kind = NOTE_EXCLUDE, .start = at + 24 * KSM_PAGE_SIZE, .end = at + 32 * KSM_PAGE_SIZE });
        (void) apply(APPLY_MERGE, b, 0, PAGES, 0, status);
        for (unsigned i = 0; i < PAGES; i++)
                assert_int_equal(status[i], i / 8 == 1 || i / 8 == 3 ? APPLY_VMA_GONE : APPLY_OK);
        assert_int_equal(file_pages(b), ~0xff00ff00ULL);
        assert_int_equal(rangeset_remove(&A.excluded, at, at + BLOCK_BYTES), 0);
}

/* Whatever becomes of a page, later writes to it are seen. */
static void test_tracked(void **state) {
        uint8_t *b = block_new(), status[64];
        for (unsigned i = 0; i < PAGES; i++)
                fill(b + i * KSM_PAGE_SIZE, i % 3 ? i % CONTENTS : 100);
        assert_int_equal(tracked_pages(b), ~0ULL);
        assert_int_equal(fault_arm("uffd_register:fail:1:12", NULL), 0); /* the guard's: ENOMEM */
        (void) apply(APPLY_MERGE, b, 0, PAGES, 0, status);
        (void) fault_arm(NULL, NULL);
        assert_int_equal(file_pages(b), 0);
        assert_int_equal(tracked_pages(b), ~0ULL);
        (void) apply(APPLY_MERGE, b, 0, PAGES, 0, status);
        assert_true(file_pages(b));
        assert_int_equal(tracked_pages(b), ~0ULL);
        (void) apply(APPLY_RESTORE, b, 0, PAGES, 0, status);
        assert_int_equal(file_pages(b), 0);
        assert_int_equal(tracked_pages(b), ~0ULL);
        for (unsigned i = 0; i < PAGES; i++)
                fill(b + i * KSM_PAGE_SIZE, i & 1);
        (void) apply(APPLY_ZERO, b, 0, PAGES, 0, status);
        memset(b, 1, BLOCK_BYTES);
        assert_int_equal(tracked_pages(b), ~0ULL);
        assert_false(A.retrack);
}

/* The daemon's scan for what was written. */
static uint64_t scan_written(const uint8_t *b) {
        struct page_region regions[PAGES];
        uint64_t first = (uint64_t) b >> KSM_PAGE_SHIFT, end, found = 0;
        size_t n;
        assert_int_equal(pagemap_scan(A.pagemap_fd, first, PAGES, PAGEMAP_WRITTEN, regions, PAGES, &n, &end), 0);
        assert_int_equal(end, first + PAGES);
        for (size_t i = 0; i < n; i++)
                found |= run_bits((unsigned) ((regions[i].start >> KSM_PAGE_SHIFT) - first), (unsigned) ((regions[i].end - regions[i].start) >> KSM_PAGE_SHIFT));
        return found;
}

/* What was merged has not been written: a scan finds nothing new, and then exactly what is, each time once. */
static void test_merged_is_not_written(void **state) {
        uint8_t *b = block_merged();
        struct look look;
        assert_int_equal(look_at(A.pagemap_fd, (uint64_t) b, PAGES, &look), 0);
        assert_int_equal(look.present & look.file, ~0ULL);
        assert_int_equal(scan_written(b), 0);
        *(volatile uint8_t *) page_at(b, 9) = 1;
        assert_int_equal(scan_written(b), 1ULL << 9);
        assert_int_equal(scan_written(b), 0);
        *(volatile uint8_t *) page_at(b, 9) = 2;
        *(volatile uint8_t *) page_at(b, 63) = 2;
        assert_int_equal(scan_written(b), 1ULL << 9 | 1ULL << 63);
        assert_int_equal(look_at(A.pagemap_fd, (uint64_t) b, PAGES, &look), 0);
        assert_int_equal(look.file, ~(1ULL << 9 | 1ULL << 63));
        assert_int_equal(scan_written(b), 0);
}

/* A slot that the daemon did not say the segment has is not mapped, whatever the file holds there. */
static void test_only_what_is_published(void **state) {
        uint8_t *b = block_new();
        fill(b, (SEGMENT_SLOTS - 1 + SHIFT) % CONTENTS);
        fill(b + KSM_PAGE_SIZE, (SEGMENT_SLOTS - 2 + SHIFT) % CONTENTS);
        assert_int_equal(apply_one(b, 2, SEGMENT_SLOTS - 1), APPLY_ERROR);
        assert_int_equal(apply_one(b, 3, 0), APPLY_ERROR); /* no such segment */
        assert_int_equal(file_pages(b), 0);
        assert_int_equal(apply_one(b + KSM_PAGE_SIZE, 2, SEGMENT_SLOTS - 2), APPLY_OK);
        assert_int_equal(slot_of(b + KSM_PAGE_SIZE, 2), SEGMENT_SLOTS - 2);
}

/* Slots that follow each other by number only are two runs. */
static void test_two_segments(void **state) {
        uint8_t *b = block_new(), status[64], want[KSM_PAGE_SIZE];
        struct extent_element x[PAGES];
        for (unsigned i = 0; i < PAGES; i++) {
                x[i] = (struct extent_element) { .page = ((uint64_t) b >> KSM_PAGE_SHIFT) + i, .n_pages = 1, .segment = 1 + i % 3 / 2,
                                                 .slot = i };
                fill(b + i * KSM_PAGE_SIZE, (i + (i % 3 / 2) * SHIFT) % CONTENTS);
        }
        (void) transition_apply(&A, APPLY_MERGE, x, PAGES, status);
        for (unsigned i = 0; i < PAGES; i++) {
                assert_int_equal(status[i], APPLY_OK);
                assert_int_equal(slot_of(b + i * KSM_PAGE_SIZE, 1 + i % 3 / 2), i);
                fill(want, (i + (i % 3 / 2) * SHIFT) % CONTENTS);
                assert_memory_equal(b + i * KSM_PAGE_SIZE, want, KSM_PAGE_SIZE);
        }
}

/* Neighbours with slots that are not: of equal content, so only the mapping tells. */
static void test_scattered_slots(void **state) {
        uint8_t *b = block_new(), status[64];
        struct extent_element x[PAGES];
        for (unsigned i = 0; i < PAGES; i++) {
                unsigned slot = i % 8 + (i / 8 * 3 % 8) * 16;
                x[i] = (struct extent_element) { .page = ((uint64_t) b >> KSM_PAGE_SHIFT) + i, .n_pages = 1, .segment = 1, .slot = slot };
                fill(b + i * KSM_PAGE_SIZE, slot % CONTENTS);
        }
        for (unsigned tries = 0; tries == 0 || (tries < BUSY_TRIES && memchr(status, APPLY_BUSY, sizeof(status))); tries++)
                (void) transition_apply(&A, APPLY_MERGE, x, PAGES, status);
        for (unsigned i = 0; i < PAGES; i++) {
                assert_int_equal(status[i], APPLY_OK);
                assert_int_equal(slot_of(b + i * KSM_PAGE_SIZE, 1), x[i].slot);
        }
}

/* Of a block of which two runs merge all else is as before: not written, and protected. */
static void test_beside_runs_is_not_written(void **state) {
        uint8_t *b = block_new(), status[64];
        const struct extent_element x[] = {
                { .page = ((uint64_t) b >> KSM_PAGE_SHIFT) + 4, .n_pages = 10, .segment = 1, .slot = 4 },
                { .page = ((uint64_t) b >> KSM_PAGE_SHIFT) + 30, .n_pages = 10, .segment = 1, .slot = 30 },
        };
        const uint64_t merged = run_bits(4, 10) | run_bits(30, 10);
        for (unsigned i = 0; i < PAGES; i++)
                fill(page_at(b, i), i % CONTENTS);
        assert_int_equal(scan_written(b), ~0ULL);
        for (unsigned tries = 0; tries == 0 || (tries < BUSY_TRIES && memchr(status, APPLY_BUSY, sizeof(status))); tries++)
                (void) transition_apply(&A, APPLY_MERGE, x, ARRAY_SIZE(x), status);
        assert_int_equal(file_pages(b), merged);
        assert_int_equal(tracked_pages(b), ~0ULL);
        assert_int_equal(scan_written(b), 0);
        *(volatile uint8_t *) page_at(b, 20) = 1;
        *(volatile uint8_t *) page_at(b, 63) = 1;
        assert_int_equal(scan_written(b), 1ULL << 20 | 1ULL << 63);
}

/* What a private mapping of a segment would lose. */
static void test_executable(void **state) {
        uint8_t *b = block_new(), status[64];
        for (unsigned i = 0; i < PAGES; i++)
                fill(b + i * KSM_PAGE_SIZE, i % CONTENTS);
        assert_int_equal(mprotect(b + 8 * KSM_PAGE_SIZE, 8 * KSM_PAGE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC), 0);
        assert_int_equal(mprotect(b + 24 * KSM_PAGE_SIZE, 8 * KSM_PAGE_SIZE, PROT_READ), 0);
        (void) apply(APPLY_MERGE, b, 0, PAGES, 0, status);
        for (unsigned i = 0; i < PAGES; i++)
                assert_int_equal(status[i], i / 8 == 1 || i / 8 == 3 ? APPLY_VMA_GONE : APPLY_OK);
        struct vma v;
        assert_int_equal(vma_query(A.maps_fd, (uint64_t) b + 8 * KSM_PAGE_SIZE, false, &v), 0);
        assert_int_equal(vma_prot(&v), PROT_READ | PROT_WRITE | PROT_EXEC);
        assert_int_equal(file_pages(b), ~0xff00ff00ULL);
}

/* -- the same under fire ------------------------------------------------------------------------------------------- */

#define FIRE_BLOCKS (768 / FIRE_PART)
#define FIRE_SECONDS 5
#define FIRE_MERGES (1000 / FIRE_PART) /* or longer, on a machine that is busy; a tenth at least */
#define FIRE_BOUND_USEC 60000000ULL
static uint8_t *fire[FIRE_BLOCKS];
static _Atomic unsigned current; /* the block in transition: half of all operations go there */
static uint8_t shadow[2][FIRE_BLOCKS * PAGES]; /* content; 255: see tag */
static uint64_t tag[2][FIRE_BLOCKS * PAGES];
static _Atomic bool stop;
static _Atomic uint64_t operations, differences;

/* Each writer owns every n-th page, keeps what it should hold, and checks before every write. */
static void *writer(void *p) {
        unsigned self = (unsigned) (uintptr_t) p;
        uint64_t x = 88172645463325252ULL + self;
        int pipe_fd[2];
        uint8_t want[KSM_PAGE_SIZE], got[KSM_PAGE_SIZE];
        if (pipe(pipe_fd) < 0)
                abort();
        while (!atomic_load(&stop)) {
                x ^= x << 13, x ^= x >> 7, x ^= x << 17;
                unsigned k = (unsigned) (x >> 8) % (FIRE_BLOCKS * PAGES / 2) * 2 + self;
                if (x >> 3 & 1)
                        k = atomic_load(&current) * PAGES + k % PAGES;
                uint8_t *page = fire[k / PAGES] + (size_t) (k % PAGES) * KSM_PAGE_SIZE;
                fill(want, shadow[self][k] == 255 ? 0 : shadow[self][k]);
                if (shadow[self][k] == 255)
                        *(uint64_t *) (want + 8) = tag[self][k];
                const uint8_t *seen = page;
                if (x & 1) { /* the kernel reads it */
                        if (write(pipe_fd[1], page, KSM_PAGE_SIZE) != KSM_PAGE_SIZE ||
                            read(pipe_fd[0], got, KSM_PAGE_SIZE) != KSM_PAGE_SIZE)
                                abort();
                        seen = got;
                }
                if (memcmp(seen, want, KSM_PAGE_SIZE) != 0)
                        atomic_fetch_add(&differences, 1);
                if (x >> 1 & 1) {
                        shadow[self][k] = (uint8_t) (k % CONTENTS);
                        fill(want, k % CONTENTS);
                } else {
                        shadow[self][k] = 255;
                        tag[self][k] = x;
                        fill(want, 0);
                        *(uint64_t *) (want + 8) = x;
                }
                if (x >> 2 & 1) { /* the kernel writes it */
                        if (write(pipe_fd[1], want, KSM_PAGE_SIZE) != KSM_PAGE_SIZE ||
                            read(pipe_fd[0], page, KSM_PAGE_SIZE) != KSM_PAGE_SIZE)
                                abort();
                } else
                        memcpy(page, want, KSM_PAGE_SIZE);
                atomic_fetch_add(&operations, 1);
        }
        return NULL;
}

static void test_lost_writes(void **state) {
        pthread_t t[2];
        uint64_t merged = 0, restored = 0;
        for (unsigned i = 0; i < FIRE_BLOCKS; i++) {
                fire[i] = block_new();
                for (unsigned k = 0; k < PAGES; k++) {
                        fill(fire[i] + k * KSM_PAGE_SIZE, k % CONTENTS);
                        shadow[k & 1][i * PAGES + k] = (uint8_t) (k % CONTENTS);
                }
        }
        assert_int_equal(fault_arm("any:random:1:100", NULL), 0);
        for (unsigned i = 0; i < 2; i++)
                pthread_create(&t[i], NULL, writer, (void *) (uintptr_t) i);
        uint64_t until = now_usec() + FIRE_SECONDS * 1000000ULL;
        for (unsigned round = 0;
             now_usec() < until || (merged <= FIRE_MERGES && now_usec() < until + FIRE_BOUND_USEC); round++) {
                uint8_t status[64];
                uint8_t *b = fire[round / 3 % FIRE_BLOCKS];
                uint32_t kind = round % 3 == 0 ? APPLY_ZERO : round % 3 == 1 ? APPLY_MERGE : APPLY_RESTORE;
                atomic_store(&current, round / 3 % FIRE_BLOCKS);
                (void) apply_once(kind, b, 0, PAGES, 0, status);
                for (unsigned i = 0; i < PAGES; i++)
                        if (status[i] == APPLY_OK)
                                (*(kind == APPLY_RESTORE ? &restored : &merged))++;
        }
        atomic_store(&stop, true);
        for (unsigned i = 0; i < 2; i++)
                (void) join_draining(t[i]);
        (void) fault_arm(NULL, NULL);
        printf("%llu operations, %llu pages merged or zeroed, %llu restored, %llu differences\n",
               (unsigned long long) operations, (unsigned long long) merged, (unsigned long long) restored,
               (unsigned long long) differences);
        assert_int_equal(differences, 0);
        assert_true(merged > FIRE_MERGES / 10);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_merge_and_restore),
                cmocka_unit_test(test_zero),
                cmocka_unit_test(test_discard_reads_zeros),
                cmocka_unit_test(test_fork_child_reads_the_same),
                cmocka_unit_test(test_only_what_is_registered),
                cmocka_unit_test(test_notes_come_first),
                cmocka_unit_test(test_tracked),
                cmocka_unit_test(test_merged_is_not_written),
                cmocka_unit_test(test_only_what_is_published),
                cmocka_unit_test(test_two_segments),
                cmocka_unit_test(test_scattered_slots),
                cmocka_unit_test(test_beside_runs_is_not_written),
                cmocka_unit_test(test_executable),
                cmocka_unit_test(test_lost_writes),
        };
        return cmocka_run_group_tests(tests, rig_setup, NULL);
}
