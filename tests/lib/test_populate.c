/* Raw discards (around libc and the mapping lock) that are heard while entries of merged runs are made: what they have taken away must not
 * come back, and what is placed afterwards must not be what they have yet to take away. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#include "common/fault.h"
#include "lib/agent_loop.h"
#include "lib/book.h"
#include "tests/lib/rig.h"
#include "tests/support/task_state.h"

#define BOUND_USEC 60000000U /* longer than any load makes a thread wait for the processor */
#define TRIES 20U            /* a discard that comes too late for the transition is a legal outcome: once more */
#define SECOND_RUN (CONTENTS - 1U)
#define THIRD_RUN (2 * SECOND_RUN)
#define HEARD "event_discard:delay:1:100000" /* enough for whoever was heard to be through */

static void assert_page(uint8_t *b, unsigned i, unsigned content) {
        uint8_t want[KSM_PAGE_SIZE];
        fill(want, content);
        assert_memory_equal(page_at(b, i), want, KSM_PAGE_SIZE);
}

/* What other threads read. */
static void assert_reads(uint8_t *b, uint64_t zeros) {
        pthread_t t;
        pthread_create(&t, NULL, touch, b);
        (void) join_draining(t);
        for (unsigned i = 0; i < PAGES; i++)
                assert_page(b, i, zeros >> i & 1 ? 0 : 1 + i % (CONTENTS - 1));
}

/* Contents 1 to 7 in turn, never zeros: runs of seven slots. */
static uint8_t *plain_block(void) {
        uint8_t *b = block_new();
        for (unsigned i = 0; i < PAGES; i++)
                fill(page_at(b, i), 1 + i % (CONTENTS - 1));
        return b;
}

/* The block as it is, or shifted by whole segments of contents: other slots with the same bytes. */
static void ask_once(uint32_t kind, const uint8_t *b, unsigned shift, uint8_t *status) {
        struct extent_element x[BLOCK_PAGES];
        uint32_t count = 0;
        for (unsigned i = 0, k; i < PAGES; i += k) {
                unsigned slot = 1 + i % (CONTENTS - 1);
                k = MIN(CONTENTS - slot, PAGES - i);
                x[count++] = (struct extent_element) { .page = ((uint64_t) b >> KSM_PAGE_SHIFT) + i, .n_pages = k,
                                                       .segment = kind == APPLY_MERGE, .slot = kind == APPLY_MERGE ? slot + shift : 0 };
        }
        (void) transition_apply(&A, kind, x, count, status);
}

static uint8_t *merged_block(void) {
        uint8_t *b = plain_block(), status[64];
        for (unsigned tries = 0; tries < BUSY_TRIES && file_pages(b) != ~0ULL; tries++)
                ask_once(APPLY_MERGE, b, 0, status);
        assert_int_equal(file_pages(b), ~0ULL);
        return b;
}

static void drop(uint8_t *b) {
        munmap(b, BLOCK_BYTES);
        registry_forget(&A, (uint64_t) b, (uint64_t) b + BLOCK_BYTES);
        A.raw = false;
}

/* -- discards ----------------------------------------------------------------------------------------------------- */

struct discarder {
        uint8_t *page;
        unsigned n;
        _Atomic pid_t tid;
        pthread_t thread;
        bool begun;
};

static void *discard_raw(void *p) {
        struct discarder *d = p;
        atomic_store(&d->tid, gettid());
        return (void *) sys_call(SYS_madvise, (long) d->page, (long) d->n << KSM_PAGE_SHIFT, MADV_DONTNEED, 0, 0, 0);
}

/* Returns when it waits for its event to be read. */
static void begin_discard(struct discarder *d) {
        assert_int_equal(pthread_create(&d->thread, NULL, discard_raw, d), 0);
        d->begun = true;
        for (uint64_t end = now_usec() + BOUND_USEC; now_usec() < end; sched_yield())
                /* Not for the mapping's lock: then it is not heard of yet. */
                if (atomic_load(&d->tid) && task_waits_in(d->tid, "userfaultfd"))
                        return;
}

/* Somebody who, while the agent stands at a fault point, sees discards in one or two runs on their way; then lets the agent be late. */
struct meanwhile {
        struct discarder discards[2];
        _Atomic bool over, in_time;
};

static void *while_held_up(void *p) {
        struct meanwhile *m = p;
        struct fault_page *page = atomic_load(&fault_page);
        while (!atomic_load(&page->fired)) {
                if (atomic_load(&m->over))
                        return NULL;
                sched_yield();
        }
        uint64_t fills = atomic_load(&page->reached[FAULT_uffd_fill]);
        for (unsigned i = 0; i < 2; i++)
                if (m->discards[i].page)
                        begin_discard(&m->discards[i]);
        atomic_store(&m->in_time, atomic_load(&page->reached[FAULT_uffd_fill]) == fills);
        (void) fault_arm(HEARD, NULL); /* counts anew */
        return NULL;
}

/* True when all discards were on their way before the first entry was made. */
static bool apply_meanwhile(const char *held_up, struct meanwhile *m, uint32_t kind, const uint8_t *b, unsigned shift, uint8_t *status) {
        pthread_t t;
        assert_int_equal(fault_arm(held_up, NULL), 0);
        pthread_create(&t, NULL, while_held_up, m);
        ask_once(kind, b, shift, status);
        atomic_store(&m->over, true);
        (void) join_draining(t);
        (void) fault_arm(NULL, NULL);
        for (unsigned i = 0; i < 2; i++)
                if (m->discards[i].begun)
                        assert_null(join_draining(m->discards[i].thread));
        return atomic_load(&m->in_time);
}

static uint64_t discarded(const struct meanwhile *m, const uint8_t *b) {
        uint64_t pages = 0;
        for (unsigned i = 0; i < 2; i++)
                if (m->discards[i].begun)
                        pages |= run_bits((unsigned) ((m->discards[i].page - b) / (long) KSM_PAGE_SIZE), m->discards[i].n);
        return pages;
}

/* -- what is discarded while entries are made ---------------------------------------------------------------------- */

/* A run is placed and in `shared`; before it has its entries, pages of it are discarded. */
static void test_run_just_placed(void **state) {
        bool in_time = false;
        for (unsigned tries = 0; tries < TRIES && !in_time; tries++) {
                uint8_t *b = plain_block(), status[64];
                struct meanwhile m = { .discards = { { .page = page_at(b, SECOND_RUN + 1), .n = 3 } } };
                in_time = apply_meanwhile("hole_shared:delay:2:200000", &m, APPLY_MERGE, b, 0, status);
                assert_reads(b, discarded(&m, b));
                drop(b);
        }
        assert_true(in_time);
}

/* The same, and of the run that is to be placed next. */
static void test_run_still_to_be_placed(void **state) {
        bool in_time = false;
        for (unsigned tries = 0; tries < TRIES && !in_time; tries++) {
                uint8_t *b = plain_block(), status[64];
                struct meanwhile m = { .discards = { { .page = page_at(b, SECOND_RUN + 1), .n = 3 },
                                                     { .page = page_at(b, THIRD_RUN + 2), .n = 2 } } };
                in_time = apply_meanwhile("hole_shared:delay:2:200000", &m, APPLY_MERGE, b, 0, status);
                if (in_time) { /* else it may have come when the run was in no context */
                        assert_reads(b, discarded(&m, b));
                        assert_int_equal(status[THIRD_RUN + 2], APPLY_BUSY);
                        assert_int_equal(status[THIRD_RUN + 1], APPLY_OK);
                }
                drop(b);
        }
        assert_true(in_time);
}

/* Pages that are merged already, into other slots. */
static void test_run_placed_again(void **state) {
        bool in_time = false;
        for (unsigned tries = 0; tries < TRIES && !in_time; tries++) {
                uint8_t *b = merged_block(), status[64];
                struct meanwhile m = { .discards = { { .page = page_at(b, SECOND_RUN + 1), .n = 3 } } };
                in_time = apply_meanwhile("freeze_tracked:delay:1:200000", &m, APPLY_MERGE, b, CONTENTS, status);
                assert_reads(b, discarded(&m, b));
                drop(b);
        }
        assert_true(in_time);
}

/* Entries that the kernel took away are made before a restore; then that is for another time. */
static void test_run_to_be_restored(void **state) {
        bool in_time = false;
        for (unsigned tries = 0; tries < TRIES && !in_time; tries++) {
                uint8_t *b = merged_block(), status[64];
                struct meanwhile m = { .discards = { { .page = page_at(b, 1), .n = 3 } } };
                pthread_t t;
                pthread_create(&t, NULL, discard, b);
                (void) join_draining(t);
                book_find((uint64_t) b >> (BLOCK_SHIFT + KSM_PAGE_SHIFT))->removed = 0; /* as if the kernel had */
                A.discards_tail = A.discards_head;
                in_time = apply_meanwhile("uffd_fill:delay:1:200000", &m, APPLY_RESTORE, b, 0, status);
                if (in_time) {
                        assert_reads(b, discarded(&m, b));
                        assert_int_equal(status[0], APPLY_BUSY);
                        assert_int_equal(status[SECOND_RUN], APPLY_OK);
                }
                drop(b);
        }
        assert_true(in_time);
}

/* -- what is heard, and done only later ---------------------------------------------------------------------------- */

static int cpu;

static void run_here_only(void) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(cpu, &set);
        (void) sched_setaffinity(0, sizeof(set), &set);
}

/* On the agent's processor, which it gets when the agent has nothing to do. */
static void *discard_idly(void *p) {
        const struct sched_param none = { 0 };
        run_here_only();
        (void) sched_setscheduler(0, SCHED_IDLE, &none);
        return discard_raw(p);
}

/* The event is from before the run was frozen, and read afterwards; the zap comes when the transition is over. */
static void test_discard_after_the_event(void **state) {
        uint8_t *b = merged_block(), status[64];
        struct discarder d = { .page = page_at(b, SECOND_RUN + 1), .n = 3 };
        cpu_set_t all;
        assert_int_equal(sched_getaffinity(0, sizeof(all), &all), 0);
        cpu = sched_getcpu();
        assert_int_equal(pthread_create(&d.thread, NULL, discard_idly, &d), 0);
        for (uint64_t end = now_usec() + BOUND_USEC; now_usec() < end; sched_yield())
                if (atomic_load(&d.tid) && strchr("SD", task_state(d.tid)))
                        break;
        run_here_only();
        ask_once(APPLY_MERGE, b, CONTENTS, status);
        (void) sched_setaffinity(0, sizeof(all), &all);
        for (unsigned i = 0; i < PAGES; i++)
                if (run_bits(SECOND_RUN + 1, 3) >> i & 1)
                        assert_int_not_equal(status[i], APPLY_OK);
        assert_null(join_draining(d.thread));
        assert_reads(b, run_bits(SECOND_RUN + 1, 3));
        drop(b);
}

static int begin(void **state) {
        A.raw = false;
        return 0;
}

#define TEST(f) cmocka_unit_test_setup(f, begin)

int main(void) {
        const struct CMUnitTest tests[] = {
                TEST(test_run_just_placed),
                TEST(test_run_still_to_be_placed),
                TEST(test_run_placed_again),
                TEST(test_run_to_be_restored),
                TEST(test_discard_after_the_event),
        };
        return cmocka_run_group_tests(tests, rig_setup, NULL);
}
