/* MADV_DONTNEED of merged pages against restore, fork and what else meets an empty page table entry: never the old bytes. */
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
#include <sys/wait.h>
#include <unistd.h>

#include "common/fault.h"
#include "daemon/sys/pagemap.h"
#include "lib/agent.h"
#include "lib/agent_start.h"
#include "lib/book.h"
#include "lib/fork_log.h"
#include "lib/maplock.h"
#include "tests/lib/rig.h"
#include "tests/support/task_state.h"

#define RUN (CONTENTS - 1U) /* slots 1 to 7: contents 1 to 7, never zeros */
#define ROUNDS 60
#define TRIES 50
#define BOUND_USEC 60000000 /* longer than any load makes a thread wait for the processor */
#define STEP_DELAY_USEC "1000" /* long enough that a reader meets every step of a transition */

static unsigned content(unsigned page) {
        return 1 + page % RUN;
}

static uint8_t *merged_block(void) {
        uint8_t *b = block_new(), status[64];
        for (unsigned i = 0; i < PAGES; i++)
                fill(b + i * KSM_PAGE_SIZE, content(i));
        /* Once more what a busy machine held up for too long. */
        for (unsigned tries = 0; tries < TRIES && file_pages(b) != ~0ULL; tries++)
                for (unsigned i = 0; i < PAGES; i += RUN)
                        (void) apply(APPLY_MERGE, b, i, MIN(RUN, (unsigned) PAGES - i), 1, status);
        assert_int_equal(file_pages(b), ~0ULL);
        return b;
}

static void drop(uint8_t *b) {
        munmap(b, BLOCK_BYTES);
        registry_forget(&A, (uint64_t) b, (uint64_t) b + BLOCK_BYTES);
}

static void assert_contents(const uint8_t *b) {
        uint8_t want[KSM_PAGE_SIZE];
        for (unsigned i = 0; i < PAGES; i++) {
                fill(want, content(i));
                assert_memory_equal(b + i * KSM_PAGE_SIZE, want, KSM_PAGE_SIZE);
        }
}

static void run(void *(*f)(void *), uint8_t *b) {
        pthread_t t;
        pthread_create(&t, NULL, f, b);
        (void) join_draining(t);
}

/* Discarded and not touched since; read while it is restored. */
static void test_restore_while_reading(void **state) {
        uint8_t status[64];
        for (unsigned round = 0; round < ROUNDS; round++) {
                uint8_t *b = merged_block();
                pthread_t t;
                run(discard, b);
                assert_int_equal(fault_arm("any:random:1:" STEP_DELAY_USEC, NULL), 0);
                pthread_create(&t, NULL, touch, b);
                (void) apply(APPLY_RESTORE, b, 0, PAGES, 0, status);
                (void) fault_arm(NULL, NULL);
                assert_int_equal((uint64_t) join_draining(t), 0);
                assert_int_equal(file_pages(b), 0);
                assert_false(book_any_merged((uint64_t) b, (uint64_t) b + BLOCK_BYTES));
                drop(b);
        }
}

/* An entry that the kernel took away (reclaim; here a discard that is forgotten) holds the segment's page still. */
static void test_restore_of_empty_entries(void **state) {
        uint8_t *b = merged_block(), status[64];
        run(discard, b);
        book_find((uint64_t) b >> (BLOCK_SHIFT + KSM_PAGE_SHIFT))->removed = 0;
        (void) apply(APPLY_RESTORE, b, 0, PAGES, 0, status);
        for (unsigned i = 0; i < PAGES; i++)
                assert_int_equal(status[i], APPLY_OK);
        assert_contents(b);
        drop(b);
}

/* Discarded, filled and merged again: what the kernel takes away from it later is not what was discarded. */
static void test_merged_again(void **state) {
        uint8_t *b = merged_block(), status[64];
        run(discard, b);
        run(touch, b);
        for (unsigned i = 0; i < PAGES; i++)
                fill(b + i * KSM_PAGE_SIZE, content(i));
        witness_dismiss(&A);
        A.witness.next_usec = 0;
        for (unsigned i = 0; i < PAGES; i += RUN)
                (void) apply(APPLY_MERGE, b, i, MIN(RUN, (unsigned) PAGES - i), 1, status);
        assert_int_equal(file_pages(b), ~0ULL);
        assert_int_equal(book_find((uint64_t) b >> (BLOCK_SHIFT + KSM_PAGE_SHIFT))->removed, 0);
        assert_contents(b);
        drop(b);
}

static void *raw_free(void *b) {
        return (void *) sys_madvise((uint64_t) b, BLOCK_BYTES, MADV_FREE);
}

/* MADV_FREE past libc is announced like a discard, and then refused. */
static void test_restore_after_refused_free(void **state) {
        uint8_t *b = merged_block(), status[64];
        pthread_t t;
        pthread_create(&t, NULL, raw_free, b);
        assert_int_equal((long) join_draining(t), -EINVAL);
        assert_true(A.raw);
        A.raw = false;
        (void) apply(APPLY_RESTORE, b, 0, PAGES, 0, status);
        assert_contents(b);
        drop(b);
}

static void fork_and_sum(uint8_t *b) {
        int wait_status;
        events_prepare_fork(&A);
        pid_t pid = fork();
        if (!pid) {
                fork_child_zeros();
                if (msync(A.scratch, KSM_PAGE_SIZE, MS_ASYNC) == 0)
                        _exit(2); /* pages on their way are not for children */
                _exit(touch(b) != NULL);
        }
        assert_int_equal(waitpid(pid, &wait_status, 0), pid);
        assert_int_equal(wait_status, 0);
}

static void *write_all(void *b) {
        memset(b, 1, BLOCK_BYTES);
        return NULL;
}

/* Private pages of a merged run that a scan has write-protected since: a discard leaves markers, which are no empty entries. */
static void test_discard_of_protected_pages(void **state) {
        uint8_t *b = merged_block();
        struct page_region regions[PAGES];
        uint64_t end;
        size_t n;
        pthread_t t;
        run(write_all, b);
        assert_int_equal(pagemap_scan(A.pagemap_fd, (uint64_t) b >> KSM_PAGE_SHIFT, PAGES, PAGEMAP_WRITTEN, regions, PAGES, &n, &end), 0);
        assert_int_equal(n, 1);
        run(discard, b);
        pthread_create(&t, NULL, touch, b);
        assert_int_equal((uint64_t) join_draining(t), 0);
        drop(b);
}

/* The same pages discarded, forked, written, discarded and forked again. They have their zeros before the fork: the child is spared. */
static void test_fork_after_second_discard(void **state) {
        uint8_t *b = merged_block();
        for (unsigned round = 0; round < 3; round++) {
                struct look look;
                run(discard, b);
                events_prepare_fork(&A);
                assert_int_equal(look_at(A.pagemap_fd, (uint64_t) b, PAGES, &look), 0);
                assert_int_equal(look.zero, ~0ULL);
                fork_and_sum(b);
                run(write_all, b);
        }
        drop(b);
}

/* A thread that forks, and is held up, or not. */
struct forker {
        uint8_t *block; /* to be discarded before the fork, or NULL */
        _Atomic pid_t tid;
        _Atomic bool prepared;
        int child_saw;
};

static void wait_for_it(struct forker *f) {
        for (uint64_t end = now_usec() + BOUND_USEC; now_usec() < end; sys_yield())
                if (atomic_load(&f->prepared) || (atomic_load(&f->tid) && strchr("SD", task_state(f->tid))))
                        return; /* D: for its event to be read */
}

static void *fork_it(void *p) {
        struct forker *f = p;
        atomic_store(&f->tid, gettid());
        if (f->block)
                (void) discard(f->block);
        agent_fork_prepare();
        atomic_store(&f->prepared, true);
        pid_t pid = fork();
        if (!pid) {
                fork_child_zeros();
                _exit(f->block && touch(f->block) != NULL);
        }
        agent_fork_parent();
        return (void *) (intptr_t) (waitpid(pid, &f->child_saw, 0) != pid);
}

/* A fork waits until the agent has finished what it does to its books. */
static void test_fork_waits_for_the_books(void **state) {
        struct forker f = { .block = NULL };
        pthread_t t;
        assert_true(control_enter(agent_control()));
        pthread_create(&t, NULL, fork_it, &f);
        wait_for_it(&f);
        bool early = atomic_load(&f.prepared);
        control_leave(agent_control());
        assert_null(join_draining(t));
        assert_false(early);
        assert_int_equal(f.child_saw, 0);
}

/* Reading a discard's event lets its caller go on, and fork, while the agent still answers what it read with it: here a fault, for long.
 * The child must know of the discard all the same. */
static void test_fork_before_the_book(void **state) {
        uint8_t *absent = merged_block(), *b = block_merged(); /* one mapping: one event */
        struct pollfd fault = { .fd = A.shared.fd, .events = POLLIN };
        struct forker f = { .block = b };
        pthread_t reader, t;
        run(discard, absent);
        book_find((uint64_t) absent >> (BLOCK_SHIFT + KSM_PAGE_SHIFT))->removed = 0; /* as if the kernel had taken the entries away */
        (void) book_take_any_removed();
        A.discards_tail = A.discards_head;
        pthread_create(&reader, NULL, touch, absent);
        assert_int_equal(poll(&fault, 1, BOUND_USEC / 1000), 1);
        pthread_create(&t, NULL, fork_it, &f);
        wait_for_it(&f);
        control_set_state(agent_control(), AGENT_RUNNING);
        assert_int_equal(fault_arm("event_fault:delay:1:200000", NULL), 0);
        agent_drain(&A);
        (void) fault_arm(NULL, NULL);
        void *failed;
        while (pthread_tryjoin_np(t, &failed) == EBUSY) { /* as the agent's loop does */
                agent_drain(&A);
                mailbox_answer_bell();
                serve_mailbox(&A);
        }
        control_set_state(agent_control(), AGENT_NONE);
        assert_null(failed);
        assert_int_equal(f.child_saw, 0);
        assert_non_null(join_draining(reader));
        assert_contents(absent);
}

struct discarder {
        uint8_t *block;
        _Atomic pid_t tid;
};

static void *discard_it(void *p) {
        struct discarder *d = p;
        atomic_store(&d->tid, gettid());
        return discard(d->block);
}

static void *touch_second(void *b) { /* the first one's slot holds zeros */
        return (void *) (uintptr_t) ((volatile uint8_t *) b)[KSM_PAGE_SIZE];
}

/* A fault on absent pages and the discard of the same pages are read together, the fault first; and the discard is done before the fault
 * is answered. */
static void test_fault_read_with_a_discard(void **state) {
        uint8_t *b = block_merged(); /* one mapping: one event */
        struct pollfd fault = { .fd = A.shared.fd, .events = POLLIN };
        struct discarder d = { .block = b };
        pthread_t reader, t;
        run(discard, b);
        book_find((uint64_t) b >> (BLOCK_SHIFT + KSM_PAGE_SHIFT))->removed = 0; /* as if the kernel had taken the entries away */
        (void) book_take_any_removed();
        A.discards_tail = A.discards_head;
        pthread_create(&reader, NULL, touch_second, b);
        assert_int_equal(poll(&fault, 1, BOUND_USEC / 1000), 1);
        pthread_create(&t, NULL, discard_it, &d);
        for (uint64_t end = now_usec() + BOUND_USEC; now_usec() < end; sys_yield())
                if (atomic_load(&d.tid) && strchr("SD", task_state(d.tid)))
                        break;
        assert_int_equal(fault_arm("uffd_fill:delay:1:200000", NULL), 0);
        agent_drain(&A);
        (void) fault_arm(NULL, NULL);
        (void) join_draining(t);
        (void) join_draining(reader);
        pthread_create(&reader, NULL, touch, b);
        assert_null(join_draining(reader));
        drop(b);
}

#define HELD_UP_USEC "100000" /* between two steps: enough for what is to come in between */
#define FORKS_BETWEEN 5U

static _Atomic bool discard_now;

/* One run: each is a mapping, and has an event of its own. */
static void *discard_when_told(void *b) {
        while (!atomic_load(&discard_now))
                sched_yield();
        map_enter();
        sys_call(SYS_madvise, (long) b, RUN * KSM_PAGE_SIZE, MADV_DONTNEED, 0, 0, 0);
        map_leave();
        return NULL;
}

static bool reads_as_zeros(const uint8_t *run) {
        static const uint8_t zeros[RUN * KSM_PAGE_SIZE];
        return memcmp(run, zeros, sizeof(zeros)) == 0;
}

static void *fork_when_discarded(void *b) {
        struct look look;
        int wait_status = -1;
        agent_fork_prepare();
        atomic_store(&discard_now, true);
        while (look_at(A.pagemap_fd, (uint64_t) b, RUN, &look) == 0 && look.present)
                sched_yield();
        pid_t pid = fork();
        if (!pid) {
                fork_child_zeros();
                _exit(!reads_as_zeros(b));
        }
        uint32_t met = atomic_load(&agent_control()->readings);
        agent_fork_parent();
        bool over = !(met & 1) || atomic_load(&agent_control()->readings) != met;
        (void) waitpid(pid, &wait_status, 0);
        return (void *) (uintptr_t) (wait_status || !over);
}

/* The discard is done and in the child's page tables; the agent has read of it and not come to note it. */
static void test_fork_between_reading_and_noting(void **state) {
        for (unsigned i = 0; i < FORKS_BETWEEN; i++) {
                uint8_t *b = merged_block();
                pthread_t discarding, forking;
                atomic_store(&discard_now, false);
                assert_int_equal(fault_arm("event_read:delay:1:" HELD_UP_USEC, NULL), 0);
                pthread_create(&discarding, NULL, discard_when_told, b);
                pthread_create(&forking, NULL, fork_when_discarded, b);
                assert_null(join_draining(forking));
                (void) join_draining(discarding);
                (void) fault_arm(NULL, NULL);
                drop(b);
        }
}

static _Atomic bool moved_back;

/* The block when it was discarded, NULL when its pages were never seen away. */
static void *raw_discard_when_moved(void *b) {
        struct look look = { 0 };
        do {
                if (atomic_load(&moved_back))
                        return NULL;
                sched_yield();
        } while (look_at(A.pagemap_fd, (uint64_t) b, PAGES, &look) == 0 && look.present);
        const struct timespec pause = { .tv_nsec = 20000000 }; /* until events have been read after the comparison */
        (void) nanosleep(&pause, NULL);
        return sys_call(SYS_madvise, (long) b, BLOCK_BYTES, MADV_DONTNEED, 0, 0, 0) == 0 ? b : NULL;
}

/* Around libc, while unequal pages are about to be moved back: that is refused until somebody reads the event. */
static void test_discard_before_moving_back(void **state) {
        static const uint8_t zeros[KSM_PAGE_SIZE];
        uint8_t *b = block_new(), status[64];
        bool discarded = false;
        for (unsigned tries = 0; tries < TRIES && !discarded; tries++) {
                pthread_t t;
                for (unsigned i = 0; i < PAGES; i++)
                        fill(b + i * KSM_PAGE_SIZE, (2 + i) % CONTENTS); /* not what the slot holds */
                atomic_store(&moved_back, false);
                assert_int_equal(fault_arm("hole_compared:delay:1:" HELD_UP_USEC, NULL), 0);
                pthread_create(&t, NULL, raw_discard_when_moved, b);
                (void) apply_once(APPLY_MERGE, b, 0, PAGES, 1, status);
                (void) fault_arm(NULL, NULL);
                atomic_store(&moved_back, true);
                discarded = join_draining(t) != NULL;
                A.raw = false;
        }
        assert_true(discarded);
        for (unsigned i = 0; i < PAGES; i++)
                assert_memory_equal(b + i * KSM_PAGE_SIZE, zeros, KSM_PAGE_SIZE);
        drop(b);
}

static _Atomic bool stop;

static void *discard_storm(void *b) {
        const struct sched_param none = { 0 };
        (void) sched_setscheduler(0, SCHED_IDLE, &none);
        while (!atomic_load(&stop))
                (void) discard(b);
        return NULL;
}

static void *spin(void *unused) {
        while (!atomic_load(&stop))
                ;
        return NULL;
}

/* Others discard elsewhere all the time, and get little of the processor between the event and the end of their call: all
 * that time the context refuses. */
static void test_fork_in_a_storm(void **state) {
        pthread_t t[4];
        uint8_t *blocks[ROUNDS], *storm = merged_block();
        for (unsigned i = 0; i < ROUNDS; i++)
                blocks[i] = merged_block();
        for (unsigned i = 0; i < 4; i++)
                pthread_create(&t[i], NULL, i < 2 ? discard_storm : spin, storm);
        for (unsigned i = 0; i < ROUNDS; i++) {
                run(discard, blocks[i]);
                fork_and_sum(blocks[i]);
        }
        atomic_store(&stop, true);
        for (unsigned i = 0; i < 4; i++)
                (void) join_draining(t[i]);
}

static int setup(void **state) {
        return rig_setup(state) < 0 ? -1 : fork_log_open(agent_control());
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_restore_while_reading),
                cmocka_unit_test(test_restore_of_empty_entries),
                cmocka_unit_test(test_merged_again),
                cmocka_unit_test(test_restore_after_refused_free),
                cmocka_unit_test(test_discard_of_protected_pages),
                cmocka_unit_test(test_fork_after_second_discard),
                cmocka_unit_test(test_fork_waits_for_the_books),
                cmocka_unit_test(test_fork_before_the_book),
                cmocka_unit_test(test_fault_read_with_a_discard),
                cmocka_unit_test(test_fork_between_reading_and_noting),
                cmocka_unit_test(test_discard_before_moving_back),
                cmocka_unit_test(test_fork_in_a_storm),
        };
        return cmocka_run_group_tests(tests, setup, NULL);
}
