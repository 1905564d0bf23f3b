/* merge, zero and restore of pages inside merged runs: copied on write, discarded, relocated, pinned. Bytes first; then what the
 * kernel says about mappings. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/fault.h"
#include "lib/book.h"
#include "lib/maplock.h"
#include "tests/lib/rig.h"

#define FIRE_BOUND_USEC 60000000ULL

static void assert_page(uint8_t *b, unsigned i, unsigned content) {
        uint8_t want[KSM_PAGE_SIZE];
        fill(want, content);
        assert_memory_equal(page_at(b, i), want, KSM_PAGE_SIZE);
}

/* Copied on write, with the bytes that it had. */
static void rewrite(uint8_t *page) {
        volatile uint8_t *p = page;
        *p = *p;
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

/* The same bytes elsewhere: a page that maps another slot, or another segment, is moved there. */
static void test_other_segment(void **state) {
        uint8_t *b = block_merged();
        for (unsigned i = SHIFT; i < 16; i++) {
                assert_int_equal(slot_of(page_at(b, i), 1), i);
                assert_int_equal(apply_one(page_at(b, i), 2, i - SHIFT + CONTENTS), APPLY_OK);
                assert_int_equal(slot_of(page_at(b, i), 2), i - SHIFT + CONTENTS);
                assert_int_equal(apply_one(page_at(b, i), 1, i - SHIFT + CONTENTS), APPLY_CHANGED); /* same number, other bytes */
                assert_int_equal(slot_of(page_at(b, i), 2), i - SHIFT + CONTENTS);
                assert_page(b, i, i % CONTENTS);
        }
        /* The same number in the other segment, with the same bytes. */
        fill(page_at(b, 20), (20 + SHIFT) % CONTENTS);
        (void) witness_dismiss(&A);
        A.witness.next_usec = 0;
        assert_int_equal(apply_one(page_at(b, 20), 2, 20), APPLY_OK);
        assert_int_equal(slot_of(page_at(b, 20), 2), 20);
        assert_page(b, 20, (20 + SHIFT) % CONTENTS);
}

/* What became read-only stays so, and what the book does not know is left alone. */
static void test_not_ours(void **state) {
        uint8_t *b = block_merged(), status[64];
        struct vma v;
        assert_int_equal(mprotect(page_at(b, 8), 8 * KSM_PAGE_SIZE, PROT_READ), 0);
        book_forget((uint64_t) page_at(b, 24), (uint64_t) page_at(b, 32));
        (void) apply_now(APPLY_MERGE, b, 0, PAGES, 2 * PAGES, status);
        for (unsigned i = 0; i < PAGES; i++) {
                bool left = i / 8 == 1 || i / 8 == 3;
                assert_int_equal(status[i], left ? APPLY_VMA_GONE : APPLY_OK);
                assert_int_equal(slot_of(page_at(b, i), 1), left ? i : 2 * PAGES + i);
                assert_page(b, i, i % CONTENTS);
        }
        assert_int_equal(vma_query(A.maps_fd, (uint64_t) page_at(b, 8), false, &v), 0);
        assert_int_equal(vma_prot(&v), PROT_READ);
        assert_int_equal(mprotect(page_at(b, 8), 8 * KSM_PAGE_SIZE, PROT_READ | PROT_WRITE), 0);
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
        assert_int_equal(book_find((uint64_t) b / BLOCK_BYTES)->merged & 0xffff, 0xffff & ~0x107);
        page_at(b, 1)[0] = 1; /* tracked again */
        assert_int_equal(look_at(A.pagemap_fd, (uint64_t) b, PAGES, &look), 0);
        assert_true(look.written & 2);
}

/* Plain memory and merged runs in one request; a page that is in place already; one that is not registered. */
static void test_both_kinds_in_a_block(void **state) {
        uint8_t *b = block_new(), status[64];
        for (unsigned i = 0; i < PAGES; i++)
                fill(page_at(b, i), i % CONTENTS);
        (void) apply(APPLY_MERGE, b, 16, 16, 16, status);
        rewrite(page_at(b, 20));
        (void) apply_now(APPLY_MERGE, b, 0, PAGES, 0, status);
        for (unsigned i = 0; i < PAGES; i++) {
                assert_int_equal(status[i], APPLY_OK);
                assert_page(b, i, i % CONTENTS);
        }
        assert_int_equal(file_pages(b), ~0ULL);
        assert_int_equal(mprotect(b, BLOCK_BYTES, PROT_READ), 0);
        (void) apply_now(APPLY_MERGE, b, 0, PAGES, PAGES, status);
        assert_int_equal(status[5], APPLY_VMA_GONE);
        assert_int_equal(mprotect(b, BLOCK_BYTES, PROT_READ | PROT_WRITE), 0);
        assert_int_equal(rangeset_remove(&A.ranges, (uint64_t) page_at(b, 8), (uint64_t) page_at(b, 9)), 0);
        (void) apply_now(APPLY_MERGE, b, 8, 2, PAGES + 1, status);
        assert_int_equal(status[8], APPLY_VMA_GONE);
        assert_int_equal(status[9], APPLY_CHANGED); /* that slot holds another content */
        for (unsigned i = 0; i < PAGES; i++)
                assert_page(b, i, i % CONTENTS);
}

static void *discard_half(void *p) {
        map_enter();
        sys_madvise((uint64_t) p, BLOCK_BYTES / 2, MADV_DONTNEED);
        map_leave();
        return NULL;
}

/* Discarded, then filled again: what is there now counts, not that it was discarded. */
static void test_discarded_and_filled(void **state) {
        uint8_t *b = block_merged(), status[64];
        pthread_t t;
        pthread_create(&t, NULL, discard, b);
        (void) join_draining(t);
        assert_true(events_settle_discards(&A));
        for (unsigned i = 1; i < 16; i++)
                fill(page_at(b, i), 7 - i % CONTENTS);
        (void) apply_now(APPLY_MERGE, b, 1, 31, 1, status); /* what was there before */
        for (unsigned i = 1; i < 32; i++)
                assert_int_equal(status[i], i >= 16 && i % CONTENTS == 0 ? APPLY_OK : APPLY_CHANGED);
        (void) apply_now(APPLY_ZERO, b, 16, 8, 0, status);
        for (unsigned i = 16; i < 24; i++)
                assert_int_equal(status[i], APPLY_OK);
        pthread_create(&t, NULL, discard_half, b + BLOCK_BYTES / 2);
        (void) join_draining(t);
        (void) apply_now(APPLY_ZERO, b, 48, 8, 0, status); /* nobody has given them their zeros yet */
        for (unsigned i = 48; i < 56; i++)
                assert_int_equal(status[i], APPLY_OK);
        (void) apply_now(APPLY_RESTORE, b, 0, PAGES, 0, status);
        for (unsigned i = 0; i < PAGES; i++)
                assert_page(b, i, i >= 1 && i < 16 ? 7 - i % CONTENTS : 0);
        assert_int_equal(file_pages(b), 0);
        assert_false(A.raw);
}

/* -- pins ---------------------------------------------------------------------------------------------------------- */

/* Of all mappings together. */
static uint64_t mapped_pages(void) {
        unsigned long pages = 0;
        FILE *f = fopen("/proc/self/statm", "re");
        assert_non_null(f);
        assert_int_equal(fscanf(f, "%lu", &pages), 1);
        fclose(f);
        return pages;
}

/* Who asks for plain memory is told what is left of it; nothing of the tries is. */
static void expect_not_restored(uint8_t *b, unsigned at, unsigned n) {
        for (unsigned round = 0; round < 2; round++) {
                uint64_t before = mapped_pages();
                assert_int_equal(transition_restore_range(&A, (uint64_t) page_at(b, at), (uint64_t) page_at(b, at + n)), 1);
                if (round) /* what the first may have set up is there */
                        assert_int_equal(mapped_pages(), before);
        }
}

/* Pages of a block that was merged, pinned for writing: so they are copies. They hold what the slots hold. */
static void expect_pinned(uint8_t *b, unsigned at, unsigned n) {
        static const uint32_t kinds[] = { APPLY_MERGE, APPLY_RESTORE, APPLY_ZERO };
        uint8_t status[64];
        for (unsigned k = 0; k < 3; k++) {
                (void) apply_now(kinds[k], b, at, n, at, status);
                for (unsigned i = at; i < at + n; i++)
                        assert_int_equal(status[i], APPLY_PINNED_OR_FORKED);
        }
        assert_int_equal(file_pages(b) & run_bits(at, n), 0);
}

static void expect_free(uint8_t *b, unsigned at, unsigned n) {
        uint8_t status[64];
        (void) apply_now(APPLY_MERGE, b, at, n, at, status);
        for (unsigned i = at; i < at + n; i++)
                assert_int_equal(status[i], APPLY_OK);
        assert_int_equal(file_pages(b) & run_bits(at, n), run_bits(at, n));
}

/* A process that holds our descriptors; and one of them back. */
static pid_t holder_new(void) {
        pid_t pid = fork();
        if (!pid)
                for (;;)
                        pause();
        return pid;
}

static void holder_end(pid_t pid, int fd) {
        int pid_fd = (int) syscall(SYS_pidfd_open, pid, 0), got = (int) syscall(SYS_pidfd_getfd, pid_fd, fd, 0);
        close(pid_fd); /* perhaps of that number */
        assert_int_equal(dup2(got, fd), fd);
        close(got);
        assert_int_equal(kill(pid, SIGKILL), 0);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
}

/* Pinned for long: also by a ring that only another process holds: a list of our descriptors would not show it. */
static void test_fixed_buffers(void **state) {
        uint8_t *b = block_merged(), page[KSM_PAGE_SIZE];
        struct io_uring ring;
        if (io_uring_queue_init(4, &ring, 0) < 0)
                skip();
        struct iovec v = { page_at(b, 3), 4 * KSM_PAGE_SIZE };
        assert_int_equal(io_uring_register_buffers(&ring, &v, 1), 0);
        assert_int_equal(file_pages(b), ~(0xfULL << 3)); /* the pin has copied them */
        pid_t holder = holder_new();
        close(ring.ring_fd);
        expect_pinned(b, 3, 4);
        holder_end(holder, ring.ring_fd);
        expect_not_restored(b, 3, 4);
        int fd = memfd_create("input", 0);
        fill(page, 77);
        for (unsigned i = 0; i < 4; i++)
                assert_int_equal(write(fd, page, sizeof(page)), sizeof(page));
        struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
        io_uring_prep_read_fixed(sqe, fd, page_at(b, 3), 4 * KSM_PAGE_SIZE, 0, 0);
        assert_int_equal(io_uring_submit_and_wait(&ring, 1), 1);
        for (unsigned i = 3; i < 7; i++)
                assert_page(b, i, 77);
        for (unsigned i = 3; i < 7; i++)
                fill(page_at(b, i), i);
        expect_pinned(b, 3, 4);
        assert_int_equal(io_uring_unregister_buffers(&ring), 0);
        io_uring_queue_exit(&ring);
        close(fd);
        expect_free(b, 3, 4);
}

struct copy {
        uint8_t *to;
        void *from;
};

static void *write_across(void *p) {
        struct copy *c = p;
        struct iovec local = { c->from, KSM_PAGE_SIZE }, remote = { c->to, KSM_PAGE_SIZE };
        return (void *) process_vm_writev(getpid(), &local, 1, &remote, 1, 0);
}

/* Pinned for a moment, which a source that is not there yet makes as long as wanted. */
static void test_write_in_flight(void **state) {
        uint8_t *b = block_merged(), page[KSM_PAGE_SIZE];
        void *source = mmap(NULL, KSM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        uint64_t at = (uint64_t) source;
        int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
        struct context c = { -1 };
        struct uffd_msg message;
        struct pollfd poll_fd = { .events = POLLIN };
        for (unsigned round = 0; round < 2; round++) { /* merged when it is pinned, then private */
                assert_int_equal(context_open(&c, device, 0), 0);
                assert_int_equal(context_register(&c, at, at + KSM_PAGE_SIZE, UFFDIO_REGISTER_MODE_MISSING), 0);
                struct copy copy = { page_at(b, 9), source };
                pthread_t t;
                pthread_create(&t, NULL, write_across, &copy);
                poll_fd.fd = c.fd;
                assert_int_equal(poll(&poll_fd, 1, 10000), 1); /* now it has the pin, and waits for its source */
                assert_int_equal(read(c.fd, &message, sizeof(message)), sizeof(message));
                assert_page(b, 9, 9 % CONTENTS);
                expect_pinned(b, 9, 1);
                fill(page, 50 + round);
                struct uffdio_copy x = { .dst = at, .src = (uint64_t) page, .len = KSM_PAGE_SIZE };
                assert_int_equal(ioctl(c.fd, UFFDIO_COPY, &x), 0);
                assert_int_equal((uint64_t) join_draining(t), KSM_PAGE_SIZE);
                assert_page(b, 9, 50 + round);
                fill(page_at(b, 9), 9 % CONTENTS);
                context_close(&c);
                assert_int_equal(madvise(source, KSM_PAGE_SIZE, MADV_DONTNEED), 0);
        }
        close(device);
        expect_free(b, 9, 1);
        munmap(source, KSM_PAGE_SIZE);
}

/* A reference without a pin, for reading: the reader has the bytes of that time, the page is replaced. */
static void test_spliced(void **state) {
        uint8_t *b = block_merged(), got[KSM_PAGE_SIZE], want[KSM_PAGE_SIZE];
        int fd[2];
        rewrite(page_at(b, 5));
        assert_int_equal(pipe(fd), 0);
        struct iovec v = { page_at(b, 5), KSM_PAGE_SIZE };
        assert_int_equal(vmsplice(fd[1], &v, 1, 0), KSM_PAGE_SIZE);
        expect_free(b, 5, 1);
        assert_int_equal(read(fd[0], got, sizeof(got)), sizeof(got));
        fill(want, 5);
        assert_memory_equal(got, want, sizeof(got));
        close(fd[0]);
        close(fd[1]);
}

/* -- forks ----------------------------------------------------------------------------------------------------------- */

static _Atomic unsigned n_signals;

static void on_child(int number) {
        (void) number;
        atomic_fetch_add(&n_signals, 1);
}

/* Nobody sees the witness, and a fork after it has everything. */
static void test_witness_is_not_seen(void **state) {
        uint8_t *b = block_merged(), *plain = block_new(), status[64];
        memset(plain, 5, BLOCK_BYTES);
        assert_int_equal(rangeset_add(&A.dontfork, (uint64_t) b, (uint64_t) b + BLOCK_BYTES), 0);
        assert_int_equal(madvise(b, BLOCK_BYTES, MADV_DONTFORK), 0); /* as QEMU does with guest memory */
        (void) signal(SIGCHLD, on_child);
        rewrite(page_at(b, 5));
        (void) apply_now(APPLY_MERGE, b, 0, PAGES, 0, status);
        assert_int_equal(status[5], APPLY_OK);
        assert_int_equal(A.witness.state, WITNESS_ALIVE);
        assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
        assert_int_equal(errno, ECHILD);
        pid_t pid = fork();
        if (!pid) /* DONTFORK as before, the rest is there */
                _exit(msync(page_at(b, 5), KSM_PAGE_SIZE, MS_ASYNC) == 0 || msync(b, KSM_PAGE_SIZE, MS_ASYNC) == 0 ||
                      plain[100] != 5);
        int wait_status;
        assert_int_equal(waitpid(pid, &wait_status, 0), pid);
        assert_int_equal(wait_status, 0);
        assert_int_equal(n_signals, 1);
        witness_dismiss(&A);
        assert_int_equal(waitpid(-1, NULL, __WALL), -1);
        assert_int_equal(errno, ECHILD);
        assert_int_equal(n_signals, 1);
        (void) signal(SIGCHLD, SIG_DFL);
        uint64_t end = (uint64_t) b + BLOCK_BYTES;
        assert_int_equal(madvise(b, BLOCK_BYTES, MADV_DOFORK), 0);
        assert_int_equal(rangeset_remove(&A.dontfork, (uint64_t) b, end), 0);
        /* Plain memory that a witness was kept away from can be moved while it lives. */
        for (unsigned i = 0; i < PAGES; i++)
                fill(page_at(plain, i), i % CONTENTS);
        rewrite(page_at(b, 5));
        (void) apply_now(APPLY_MERGE, b, 0, PAGES, 0, status);
        assert_int_equal(A.witness.state, WITNESS_ALIVE);
        (void) apply(APPLY_MERGE, plain, 0, PAGES, 0, status);
        assert_int_equal(file_pages(plain), ~0ULL);
}

/* DONTFORK travels with what is restored. */
static void test_restored_dontfork(void **state) {
        uint8_t *b = block_merged(), status[64];
        const uint64_t start = (uint64_t) page_at(b, 8), end = (uint64_t) page_at(b, 16);
        assert_int_equal(rangeset_add(&A.dontfork, start, end), 0);
        assert_int_equal(madvise(page_at(b, 8), 8 * KSM_PAGE_SIZE, MADV_DONTFORK), 0);
        (void) apply(APPLY_RESTORE, b, 0, PAGES, 0, status);
        assert_int_equal(file_pages(b), 0);
        pid_t pid = fork();
        if (!pid) {
                bool right = true;
                for (unsigned i = 0; i < PAGES; i++)
                        right &= (msync(page_at(b, i), KSM_PAGE_SIZE, MS_ASYNC) == 0) == (i < 8 || i >= 16);
                _exit(!right);
        }
        int wait_status;
        assert_int_equal(waitpid(pid, &wait_status, 0), pid);
        assert_int_equal(wait_status, 0);
        assert_int_equal(rangeset_remove(&A.dontfork, start, end), 0);
}

/* A process that is killed leaves no witness behind. The pipe ends when nobody has it any more. */
static void test_witness_dies_with_us(void **state) {
        int end[2];
        char byte;
        witness_dismiss(&A);
        assert_int_equal(pipe(end), 0);
        pid_t pid = fork();
        if (!pid) {
                rangeset_clear(&A.ranges); /* those are the parent's */
                (void) !write(end[1], witness_call(&A, true) == 0 ? "y" : "n", 1);
                (void) kill(getpid(), SIGKILL);
        }
        close(end[1]);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
        assert_int_equal(read(end[0], &byte, 1), 1);
        assert_int_equal(byte, 'y');
        struct pollfd p = { .fd = end[0] };
        assert_int_equal(poll(&p, 1, 10000), 1); /* hung up */
        assert_int_equal(read(end[0], &byte, 1), 0);
        close(end[0]);
}

/* Pages that a child of the program shares: nobody can have them pinned. Each side keeps its own. */
static void test_shared_with_a_child(void **state) {
        uint8_t *b = block_merged(), status[64];
        int go[2];
        assert_int_equal(pipe(go), 0);
        for (unsigned i = 0; i < PAGES; i++)
                rewrite(page_at(b, i));
        pid_t pid = fork();
        if (!pid) {
                uint8_t want[KSM_PAGE_SIZE];
                page_at(b, 2)[0] = 99;
                if (read(go[0], want, 1) != 1 || page_at(b, 2)[0] != 99)
                        _exit(2);
                for (unsigned i = 3; i < PAGES; i++) {
                        fill(want, i % CONTENTS);
                        if (memcmp(page_at(b, i), want, KSM_PAGE_SIZE) != 0)
                                _exit(1);
                }
                _exit(0);
        }
        expect_free(b, 0, PAGES / 2);
        (void) apply_now(APPLY_RESTORE, b, PAGES / 2, PAGES / 2, 0, status);
        memset(b, 1, BLOCK_BYTES);
        assert_int_equal(write(go[1], "", 1), 1);
        int wait_status;
        assert_int_equal(waitpid(pid, &wait_status, 0), pid);
        assert_int_equal(wait_status, 0);
        close(go[0]);
        close(go[1]);
}

/* -- writers ---------------------------------------------------------------------------------------------------------- */

/* Looks at the agent's own state from outside: a race for TSan, and meant. */
__attribute__((no_sanitize("thread"))) static void *write_after_compare(void *p) {
        while (!in_transition())
                ;
        const struct timespec pause = { .tv_nsec = 50000000 };
        (void) nanosleep(&pause, NULL);
        ((volatile uint8_t *) p)[0] = 200;
        return NULL;
}

/* A write that comes when the bytes have been compared: it waits, and is there afterwards. */
static void test_write_after_compare(void **state) {
        uint8_t status[64];
        for (unsigned round = 0; round < 3; round++) {
                uint8_t *b = block_merged();
                pthread_t t;
                if (round)
                        rewrite(page_at(b, 4));
                pthread_create(&t, NULL, write_after_compare, page_at(b, 4));
                assert_int_equal(fault_arm(round < 2 ? "freeze_compared:delay:1:200000" : "freeze_copied:delay:1:200000", NULL), 0);
                (void) apply_now(round < 2 ? APPLY_MERGE : APPLY_RESTORE, b, 4, 1, PAGES + 4, status);
                (void) fault_arm(NULL, NULL);
                assert_int_equal(status[4], APPLY_OK);
                (void) join_draining(t);
                assert_int_equal(page_at(b, 4)[0], 200);
        }
}

static void *discard_while_frozen(void *p) {
        while (!in_transition())
                ;
        const struct timespec pause = { .tv_nsec = 30000000 };
        (void) nanosleep(&pause, NULL);
        (void) fault_arm("freeze_compared:delay:1:100000", NULL); /* the zap, and the access, come before the agent goes on */
        if (sys_madvise((uint64_t) p, KSM_PAGE_SIZE, MADV_DONTNEED) != 0)
                return (void *) -1L;
        return (void *) (uintptr_t) ((volatile uint8_t *) p)[12];
}

/* Past the mapping lock, while the page is about to be merged elsewhere: zeros from then on, for who reads it at once, too. */
static void test_discard_while_frozen(void **state) {
        uint8_t *b = block_merged(), status[64];
        pthread_t t;
        assert_true(page_at(b, 5)[12] != 0);
        pthread_create(&t, NULL, discard_while_frozen, page_at(b, 5));
        assert_int_equal(fault_arm("freeze_protected:delay:1:100000", NULL), 0);
        (void) apply_now(APPLY_MERGE, b, 4, 2, PAGES + 4, status);
        (void) fault_arm(NULL, NULL);
        assert_null(join_draining(t));
        assert_true(A.raw);
        A.raw = false;
        pthread_create(&t, NULL, touch, b);
        (void) join_draining(t);
        for (unsigned i = 0; i < PAGES; i++)
                assert_page(b, i, i == 5 ? 0 : i % CONTENTS);
}

/* -- what it costs --------------------------------------------------------------------------------------------------- */

/* Budget: a second witness does not come at once, unless somebody waits for it. */
static void test_budget(void **state) {
        uint8_t *b = block_merged(), status[64];
        rewrite(page_at(b, 1));
        (void) apply_now(APPLY_MERGE, b, 1, 1, 1, status);
        assert_int_equal(status[1], APPLY_OK);
        rewrite(page_at(b, 1));
        A.witness.until_usec = UINT64_MAX; /* however slow this machine is */
        (void) apply(APPLY_MERGE, b, 1, 1, 1, status); /* newer than the witness */
        assert_int_equal(status[1], APPLY_PINNED_OR_FORKED);
        A.witness.until_usec = 1; /* long ago */
        A.witness.next_usec = 0;
        uint64_t bound = now_usec() + FIRE_BOUND_USEC;
        do /* not while the old one dies */
                (void) apply(APPLY_MERGE, b, 1, 1, 1, status);
        while (status[1] == APPLY_LATER && now_usec() < bound);
        assert_int_equal(status[1], APPLY_OK);
        rewrite(page_at(b, 1));
        witness_dismiss(&A);
        A.witness.next_usec = UINT64_MAX;
        (void) apply(APPLY_MERGE, b, 0, 3, 0, status);
        assert_int_equal(status[0], APPLY_OK); /* in place, needs none */
        assert_int_equal(status[1], APPLY_LATER);
        assert_int_equal(transition_restore_range(&A, (uint64_t) b, (uint64_t) b + BLOCK_BYTES), 0);
        assert_int_equal(file_pages(b), 0);
        A.witness.next_usec = 0;
}

/* -- under fire ---------------------------------------------------------------------------------------------------- */

#define FIRE_BLOCKS 48
#define FIRE_USEC 6000000ULL
#define FIRE_REPLACED (1000 / FIRE_PART) /* copied on write and merged again; or longer, on a machine that is busy; a tenth at least */
#define WRITERS 3U

static uint8_t *fire[FIRE_BLOCKS];
static _Atomic unsigned current; /* the block in transition: half of all operations go there */
static _Atomic bool stop;
static _Atomic uint64_t operations, differences, pinned_reads;

struct writer {
        unsigned self;
        uint64_t random;
        uint8_t shadow[FIRE_BLOCKS * PAGES]; /* contents; 0xff of none: never used */
        struct io_uring ring;
        bool has_ring;
        int file, pipe[2]; /* file: page s holds content s */
};

static uint32_t draw(struct writer *w, uint32_t n) {
        w->random ^= w->random << 13, w->random ^= w->random >> 7, w->random ^= w->random << 17;
        return (uint32_t) (w->random >> 20) % n;
}

static void read_fixed(struct writer *w, uint8_t *page, unsigned content) {
        struct iovec v = { page, KSM_PAGE_SIZE };
        if (!w->has_ring || io_uring_register_buffers(&w->ring, &v, 1) != 0) {
                fill(page, content);
                return;
        }
        const struct timespec pause = { .tv_nsec = draw(w, 300000) };
        (void) nanosleep(&pause, NULL); /* the page lies there, pinned, with settled bytes */
        struct io_uring_sqe *sqe = io_uring_get_sqe(&w->ring);
        struct io_uring_cqe *cqe;
        io_uring_prep_read_fixed(sqe, w->file, page, KSM_PAGE_SIZE, content * KSM_PAGE_SIZE, 0);
        if (io_uring_submit_and_wait(&w->ring, 1) != 1 || io_uring_wait_cqe(&w->ring, &cqe) != 0 ||
            cqe->res != (int) KSM_PAGE_SIZE)
                abort();
        io_uring_cqe_seen(&w->ring, cqe);
        (void) io_uring_unregister_buffers(&w->ring);
        atomic_fetch_add(&pinned_reads, 1);
}

static void write_content(struct writer *w, uint8_t *page, unsigned content) {
        uint8_t bytes[KSM_PAGE_SIZE];
        struct iovec local = { bytes, KSM_PAGE_SIZE }, remote = { page, KSM_PAGE_SIZE };
        fill(bytes, content);
        switch (draw(w, 6)) {
        case 0:
                read_fixed(w, page, content);
                break;
        case 1:
                if (pread(w->file, page, KSM_PAGE_SIZE, (off_t) (content * KSM_PAGE_SIZE)) != (ssize_t) KSM_PAGE_SIZE)
                        abort();
                break;
        case 2:
                if (process_vm_writev(getpid(), &local, 1, &remote, 1, 0) != (ssize_t) KSM_PAGE_SIZE)
                        abort();
                break;
        case 3: /* discarded first */
                map_enter();
                sys_madvise((uint64_t) page, KSM_PAGE_SIZE, MADV_DONTNEED);
                map_leave();
                if (page[draw(w, KSM_PAGE_SIZE)] != 0)
                        atomic_fetch_add(&differences, 1);
                memcpy(page, bytes, KSM_PAGE_SIZE);
                break;
        default:
                memcpy(page, bytes, KSM_PAGE_SIZE);
        }
}

static void check_page(struct writer *w, const uint8_t *page, unsigned content) {
        uint8_t want[KSM_PAGE_SIZE], got[KSM_PAGE_SIZE];
        fill(want, content);
        if (draw(w, 3) == 0) { /* the kernel reads it */
                if (write(w->pipe[1], page, KSM_PAGE_SIZE) != (ssize_t) KSM_PAGE_SIZE ||
                    read(w->pipe[0], got, KSM_PAGE_SIZE) != (ssize_t) KSM_PAGE_SIZE)
                        abort();
                page = got;
        }
        if (memcmp(page, want, KSM_PAGE_SIZE) != 0)
                atomic_fetch_add(&differences, 1);
}

static void check_in_child(struct writer *w, unsigned k, unsigned content) {
        map_enter(); /* as fork does under the atfork handlers */
        pid_t pid = fork();
        if (!pid) {
                uint8_t want[KSM_PAGE_SIZE];
                fill(want, content);
                _exit(memcmp(page_at(fire[k / PAGES], k % PAGES), want, KSM_PAGE_SIZE) != 0);
        }
        map_leave();
        int status;
        if (waitpid(pid, &status, 0) != pid || status)
                atomic_fetch_add(&differences, 1);
}

/* Each writer owns every n-th page. It writes the content of the page's own slot most of the time, so that what it writes can be
 * merged again. */
static void *writer_main(void *p) {
        struct writer *w = p;
        while (!atomic_load(&stop)) {
                unsigned k = draw(w, FIRE_BLOCKS * PAGES / WRITERS) * WRITERS + w->self;
                if (draw(w, 2))
                        k = (atomic_load(&current) * PAGES + draw(w, PAGES)) / WRITERS * WRITERS + w->self;
                if (k >= FIRE_BLOCKS * PAGES)
                        continue;
                uint8_t *page = page_at(fire[k / PAGES], k % PAGES);
                check_page(w, page, w->shadow[k]);
                if (w->self == 0 && draw(w, 64) == 0)
                        check_in_child(w, k, w->shadow[k]);
                w->shadow[k] = (uint8_t) (draw(w, 4) ? k % CONTENTS : 16 + draw(w, 16));
                write_content(w, page, w->shadow[k]);
                check_page(w, page, w->shadow[k]);
                atomic_fetch_add(&operations, 1);
                const struct timespec pause = { .tv_nsec = draw(w, 100000) };
                if (draw(w, 4) == 0)
                        (void) nanosleep(&pause, NULL);
        }
        return NULL;
}

static void writer_start(struct writer *w, unsigned self, int file, pthread_t *t) {
        *w = (struct writer) { .self = self, .random = 88172645463325252ULL * (self + 1), .file = file };
        for (unsigned i = 0; i < FIRE_BLOCKS * PAGES; i++)
                w->shadow[i] = (uint8_t) (i % CONTENTS);
        w->has_ring = io_uring_queue_init(4, &w->ring, 0) == 0;
        assert_int_equal(pipe(w->pipe), 0);
        assert_int_equal(pthread_create(t, NULL, writer_main, w), 0);
}

static void test_under_fire(void **state) {
        static struct writer writers[WRITERS];
        pthread_t t[WRITERS];
        uint8_t page[KSM_PAGE_SIZE], status[64];
        uint64_t replaced = 0, counts[APPLY_STATUS_MAX_] = { 0 };
        int file = memfd_create("input", 0);
        for (unsigned i = 0; i < 32; i++) {
                fill(page, i);
                assert_int_equal(write(file, page, sizeof(page)), sizeof(page));
        }
        for (unsigned i = 0; i < FIRE_BLOCKS; i++)
                fire[i] = block_merged();
        assert_int_equal(fault_arm("any:random:1:100", NULL), 0);
        for (unsigned i = 0; i < WRITERS; i++)
                writer_start(&writers[i], i, file, &t[i]);
        uint64_t until = now_usec() + FIRE_USEC;
        for (unsigned round = 0;
             now_usec() < until || (replaced <= FIRE_REPLACED && now_usec() < until + FIRE_BOUND_USEC); round++) {
                uint8_t *b = fire[round % FIRE_BLOCKS];
                uint32_t kind = round % 7 == 6 ? APPLY_RESTORE : round % 5 == 4 ? APPLY_ZERO : APPLY_MERGE;
                uint64_t before = file_pages(b);
                atomic_store(&current, round % FIRE_BLOCKS);
                A.witness.next_usec = 0;
                (void) apply_once(kind, b, 0, PAGES, round % 2 * PAGES, status); /* and to and fro */
                for (unsigned i = 0; i < PAGES; i++) {
                        counts[status[i]]++;
                        replaced += kind == APPLY_MERGE && status[i] == APPLY_OK && !(before >> i & 1);
                }
                witness_step(&A, now_usec());
                (void) events_settle_discards(&A);
                agent_drain(&A);
        }
        atomic_store(&stop, true);
        for (unsigned i = 0; i < WRITERS; i++)
                (void) join_draining(t[i]);
        (void) fault_arm(NULL, NULL);
        printf("%llu operations, %llu into pinned pages; %llu copied on write and merged again, %llu differences; "
               "pages ok %llu changed %llu pinned %llu gone %llu budget %llu busy %llu error %llu later %llu\n",
               (unsigned long long) operations, (unsigned long long) pinned_reads, (unsigned long long) replaced,
               (unsigned long long) differences, (unsigned long long) counts[1], (unsigned long long) counts[2],
               (unsigned long long) counts[3], (unsigned long long) counts[4], (unsigned long long) counts[5],
               (unsigned long long) counts[6], (unsigned long long) counts[7], (unsigned long long) counts[8]);
        assert_int_equal(differences, 0);
        assert_true(replaced > FIRE_REPLACED / 10);
        assert_false(A.raw);
        close(file);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_copied_on_write),
                cmocka_unit_test(test_relocate),
                cmocka_unit_test(test_other_segment),
                cmocka_unit_test(test_not_ours),
                cmocka_unit_test(test_zero),
                cmocka_unit_test(test_both_kinds_in_a_block),
                cmocka_unit_test(test_discarded_and_filled),
                cmocka_unit_test(test_fixed_buffers),
                cmocka_unit_test(test_write_in_flight),
                cmocka_unit_test(test_spliced),
                cmocka_unit_test(test_witness_is_not_seen),
                cmocka_unit_test(test_restored_dontfork),
                cmocka_unit_test(test_witness_dies_with_us),
                cmocka_unit_test(test_shared_with_a_child),
                cmocka_unit_test(test_write_after_compare),
                cmocka_unit_test(test_discard_while_frozen),
                cmocka_unit_test(test_budget),
                cmocka_unit_test(test_under_fire),
        };
        return cmocka_run_group_tests(tests, rig_setup, NULL);
}
