/* What comes while a run is frozen: discards, writers who are on their way, old messages; and what cannot be frozen or restored at all. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <liburing.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include "common/fault.h"
#include "lib/book.h"
#include "lib/maplock.h"
#include "tests/lib/rig.h"

#define BOUND_MSEC 60000 /* longer than any load makes a thread wait for the processor */
#define LATE_USEC 2000000U
#define COMPARED "freeze_compared:delay:1:200000"

static void apply_now(uint32_t kind, const uint8_t *b, unsigned at, unsigned n, unsigned slot, uint8_t *status) {
        witness_dismiss(&A);
        A.witness.next_usec = 0;
        (void) apply(kind, b, at, n, slot, status);
}

static void rewrite(uint8_t *page) {
        volatile uint8_t *p = page;
        *p = *p;
}

static void assert_page(uint8_t *b, unsigned i, unsigned content) {
        uint8_t want[KSM_PAGE_SIZE];
        fill(want, content);
        assert_memory_equal(page_at(b, i), want, KSM_PAGE_SIZE);
}

/* Or nearly: on a busy machine all may be over by then, which is as legal. */
static void wait_until_frozen(void) {
        const struct timespec pause = { .tv_nsec = 50000000 };
        for (uint64_t end = now_usec() + LATE_USEC; !in_transition() && now_usec() < end;)
                ;
        (void) nanosleep(&pause, NULL);
}

/* Looks when the transition is over: what it finds while the page changes from one context to the next, nobody can say (limits.md, calls
 * around libc during a transition). */
static void *discard_one(void *page) {
        wait_until_frozen();
        if (sys_madvise((uint64_t) page, KSM_PAGE_SIZE, MADV_DONTNEED) != 0)
                return (void *) -1L;
        while (in_transition())
                sched_yield();
        return (void *) (uintptr_t) ((volatile uint8_t *) page)[12];
}

/* Past the mapping lock, when the bytes have been compared: the page is zeros from then on, and not what the slot holds. */
static void test_discard_after_compare(void **state) {
        uint8_t *b = block_merged(), status[64];
        pthread_t t;
        assert_true(page_at(b, 5)[12] != 0);
        pthread_create(&t, NULL, discard_one, page_at(b, 5));
        assert_int_equal(fault_arm(COMPARED, NULL), 0);
        apply_now(APPLY_MERGE, b, 4, 2, PAGES + 4, status);
        (void) fault_arm(NULL, NULL);
        assert_null(join_draining(t));
        A.raw = false;
        pthread_create(&t, NULL, touch, page_at(b, 0));
        (void) join_draining(t);
        for (unsigned i = 0; i < PAGES; i++)
                assert_page(b, i, i == 5 ? 0 : i % CONTENTS);
}

static void *read_one(void *page) {
        return (void *) (uintptr_t) __atomic_load_n((uint8_t *) page, __ATOMIC_RELAXED);
}

static void *write_one(void *page) {
        wait_until_frozen();
        __atomic_store_n((uint8_t *) page, 200, __ATOMIC_RELAXED);
        return NULL;
}

/* Somebody reads a discarded page, and its message is read only when the block is frozen. By then it is answered: what is done for it
 * must not let writers in between comparison and replacement. */
static void test_message_from_before(void **state) {
        uint8_t *b = block_merged(), status[64];
        struct pollfd fault = { .fd = A.shared.fd, .events = POLLIN };
        pthread_t t, reader, writer;
        pthread_create(&t, NULL, discard, b);
        (void) join_draining(t);
        pthread_create(&reader, NULL, read_one, page_at(b, 5));
        assert_int_equal(poll(&fault, 1, BOUND_MSEC), 1);
        pthread_create(&writer, NULL, write_one, page_at(b, 5));
        assert_int_equal(fault_arm(COMPARED, NULL), 0);
        apply_now(APPLY_MERGE, b, 5, 1, CONTENTS, status); /* zeros, too */
        (void) fault_arm(NULL, NULL);
        (void) join_draining(writer);
        (void) join_draining(reader);
        assert_int_equal(page_at(b, 5)[0], 200);
        assert_false(A.raw);
        pthread_create(&t, NULL, touch, b);
        assert_int_equal((uint64_t) join_draining(t), 200);
}

/* What may be pinned stays in the mapping of its run; but not in our userfaultfd, when the program wants its own there. */
static void test_release_of_pinned(void **state) {
        uint8_t *b = block_merged();
        struct io_uring ring;
        struct iovec v = { page_at(b, 3), 4 * KSM_PAGE_SIZE };
        if (io_uring_queue_init(4, &ring, 0) < 0)
                skip();
        assert_int_equal(io_uring_register_buffers(&ring, &v, 1), 0);
        assert_false(is_free(b));
        assert_int_equal(registry_release(&A, (uint64_t) b, (uint64_t) b + BLOCK_BYTES), 0);
        assert_true(is_free(b));
        for (unsigned i = 0; i < PAGES; i++)
                assert_page(b, i, i % CONTENTS);
        io_uring_queue_exit(&ring);
}

/* A run of which the program marked a part: a witness is shown that part, and afterwards it is as it was, and so are its neighbours. */
static void test_witness_and_dontfork(void **state) {
        uint8_t *b = block_merged(), status[64];
        const uint64_t start = (uint64_t) b, end = (uint64_t) page_at(b, 16);
        assert_int_equal(rangeset_add(&A.dontfork, start, end), 0);
        assert_int_equal(madvise(b, 16 * KSM_PAGE_SIZE, MADV_DONTFORK), 0);
        rewrite(page_at(b, 9));
        rewrite(page_at(b, 40));
        apply_now(APPLY_MERGE, b, 0, PAGES, 0, status);
        assert_int_equal(status[9], APPLY_OK);
        assert_int_equal(status[40], APPLY_OK);
        assert_int_equal(file_pages(b), ~0ULL);
        pid_t pid = fork();
        if (!pid) {
                for (unsigned i = 0; i < PAGES; i++)
                        if ((msync(page_at(b, i), KSM_PAGE_SIZE, MS_ASYNC) == 0) != (i >= 16))
                                _exit(1);
                _exit(0);
        }
        int wait_status;
        assert_int_equal(waitpid(pid, &wait_status, 0), pid);
        assert_int_equal(wait_status, 0);
        assert_int_equal(rangeset_remove(&A.dontfork, start, end), 0);
}

/* -- under a system call filter, which stays: last ------------------------------------------------------------------------ */

#define PAGEMAP_PROTECTED (1ULL << 57)

static const uint8_t *volatile frozen_page;
static volatile unsigned brks_when_frozen;

/* brk takes mmap_lock for writing, so whoever writes through /proc/PID/mem has ended then, and who comes later finds the page protected.
 * That it is the kernel says. */
static void on_brk(int number, siginfo_t *info, void *context) {
        uint64_t entry = 0;
        if (A.current && frozen_page &&
            sys_pread(A.pagemap_fd, &entry, sizeof(entry), (uint64_t) frozen_page >> KSM_PAGE_SHIFT << 3) == sizeof(entry) &&
            entry & PAGEMAP_PROTECTED)
                brks_when_frozen++;
#if defined(__x86_64__)
        ((ucontext_t *) context)->uc_mcontext.gregs[REG_RAX] = -ENOMEM;
#endif
}

/* Catches brk; all else goes on. */
static int install_filter(void) {
        struct sock_filter code[] = {
                BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
                BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_brk, 0, 1),
                BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
                BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        };
        const struct sock_fprog program = { sizeof(code) / sizeof(*code), code };
        const struct sigaction on = { .sa_sigaction = on_brk, .sa_flags = SA_SIGINFO };
        if (sigaction(SIGSYS, &on, NULL) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
                return -errno;
        return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0 ? -errno : 0;
}

/* Who found its page before the protection is waited for, after the protection; for merge and restore alike. */
static void test_foreign_writers_are_waited_for(void **state) {
        static const uint32_t kinds[] = { APPLY_MERGE, APPLY_RESTORE };
        uint8_t *b = block_merged(), status[64];
#if !defined(__x86_64__)
        skip();
#endif
        if (install_filter() < 0)
                skip();
        for (unsigned k = 0; k < 2; k++) {
                brks_when_frozen = 0;
                frozen_page = page_at(b, 7);
                (void) apply(kinds[k], b, 0, PAGES, 2 * PAGES, status);
                frozen_page = NULL;
                assert_int_equal(status[7], APPLY_OK);
                assert_true(brks_when_frozen > 0);
        }
        for (unsigned i = 0; i < PAGES; i++)
                assert_page(b, i, i % CONTENTS);
}

/* A process with a filter has no witness: its fork might be what the filter kills for. So a page that was copied on write stays. */
static void test_no_witness_under_a_filter(void **state) {
        uint8_t *b = block_merged(), status[64];
        if (prctl(PR_GET_SECCOMP) == 0)
                skip();
        A.witness.seccomp = SECCOMP_UNKNOWN; /* as a thread that begins with it */
        rewrite(page_at(b, 5));
        apply_now(APPLY_MERGE, b, 0, PAGES, 0, status);
        assert_int_equal(status[5], APPLY_PINNED_OR_FORKED);
        assert_int_equal(A.witness.state, WITNESS_NONE);
        assert_int_equal(file_pages(b), ~(1ULL << 5));
        for (unsigned i = 0; i < PAGES; i++)
                assert_page(b, i, i % CONTENTS);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_discard_after_compare),
                cmocka_unit_test(test_message_from_before),
                cmocka_unit_test(test_release_of_pinned),
                cmocka_unit_test(test_witness_and_dontfork),
                cmocka_unit_test(test_foreign_writers_are_waited_for),
                cmocka_unit_test(test_no_witness_under_a_filter),
        };
        return cmocka_run_group_tests(tests, rig_setup, NULL);
}
