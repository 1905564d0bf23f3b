/* VMAs, pins, barriers and fd tables: what else the agent stands on. */
#include <fcntl.h>
#include <liburing.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "tests/support/kernel.h"

static struct procmap_query query(const void *at, uint64_t flags) {
        _cleanup_close_ int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
        struct procmap_query q = { .size = sizeof(q), .query_flags = flags, .query_addr = (uintptr_t) at };

        CHECK(fd >= 0);
        if (ioctl(fd, PROCMAP_QUERY, &q) < 0)
                q.vma_end = 0;
        return q;
}

static void procmap_query_describes_anonymous_and_segment_mappings(void) {
        int segment = segment_open(4, 1);
        void *anon = map_anon(2), *run = map_segment(NULL, 2, segment, 1);
        struct procmap_query q = query(page_at(anon, 1), 0);

        CHECK_EQ(q.vma_start, (uintptr_t) anon);
        CHECK_EQ(q.vma_end, (uintptr_t) page_at(anon, 2));
        CHECK_EQ(q.vma_flags, PROCMAP_QUERY_VMA_READABLE | PROCMAP_QUERY_VMA_WRITABLE);
        CHECK_EQ(q.inode, 0);
        q = query(run, 0);
        CHECK(q.inode != 0 && q.vma_offset == KSM_PAGE_SIZE && q.vma_page_size == KSM_PAGE_SIZE);
        CHECK(!(q.vma_flags & PROCMAP_QUERY_VMA_SHARED));
        CHECK(mprotect(anon, 2 * KSM_PAGE_SIZE, PROT_NONE) == 0);
        CHECK_EQ(query(anon, 0).vma_flags, 0);
        CHECK(munmap(anon, 2 * KSM_PAGE_SIZE) == 0);
        CHECK_EQ(query(anon, 0).vma_end, 0);
        CHECK(query(anon, PROCMAP_QUERY_COVERING_OR_NEXT_VMA).vma_start >= (uintptr_t) page_at(anon, 2));
}

/* -- pins ---------------------------------------------------------------------------------------------------------- */

struct pinned {
        struct io_uring ring;
        void *page;
};

static struct pinned *pin_page(uint64_t seed) {
        static struct pinned p;
        struct iovec iov;
        int r = io_uring_queue_init(4, &p.ring, 0);

        if (r < 0)
                fact_skip("io_uring: %s", strerror(-r));
        p.page = map_filled(1, seed);
        iov = (struct iovec){ p.page, KSM_PAGE_SIZE };
        r = io_uring_register_buffers(&p.ring, &iov, 1);
        if (r < 0)
                fact_skip("io_uring fixed buffers: %s", strerror(-r));
        return &p;
}

static void move_refuses_a_page_pinned_by_an_io_uring_fixed_buffer(void) {
        struct pinned *p = pin_page(1);
        int context = uffd_open(SCRATCH_FEATURES);
        void *scratch = map_anon(1);

        CHECK_EQ(uffd_register(context, scratch, 1, UFFDIO_REGISTER_MODE_MISSING), 0);
        CHECK_EQ(uffd_move(context, scratch, p->page, 1, 0, NULL), -EBUSY);
        CHECK(page_holds(p->page, 1));
        CHECK_EQ(io_uring_unregister_buffers(&p->ring), 0);
        CHECK_EQ(uffd_move(context, scratch, p->page, 1, 0, NULL), 0);
        io_uring_queue_exit(&p->ring);
}

/* Why minimum age must cover what pins do not: a plain reference is not seen. */
static void move_does_not_see_a_plain_reference_on_a_small_page(void) {
        int context = uffd_open(SCRATCH_FEATURES), fds[2];
        void *page = map_filled(1, 2), *scratch = map_anon(1);
        struct iovec iov = { page, KSM_PAGE_SIZE };

        CHECK_EQ(uffd_register(context, scratch, 1, UFFDIO_REGISTER_MODE_MISSING), 0);
        CHECK(pipe2(fds, O_CLOEXEC) == 0);
        CHECK_EQ(vmsplice(fds[1], &iov, 1, 0), KSM_PAGE_SIZE);
        CHECK_EQ(uffd_move(context, scratch, page, 1, 0, NULL), 0);
        CHECK(page_holds(scratch, 2));
}

/* Pinning for writing copies the shared page first and marks it written, so the scan sees it. */
static void pinning_a_merged_page_copies_it(void) {
        int context = uffd_open(SHARED_FEATURES), segment = segment_open(1, 3), r;
        void *run = map_segment(NULL, 1, segment, 0);
        struct iovec iov = { run, KSM_PAGE_SIZE };
        struct io_uring ring;

        CHECK_EQ(uffd_register(context, run, 1, UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MINOR), 0);
        CHECK_EQ(uffd_continue(context, run, 1, UFFDIO_CONTINUE_MODE_WP), 0);
        r = io_uring_queue_init(4, &ring, 0);
        if (r < 0)
                fact_skip("io_uring: %s", strerror(-r));
        r = io_uring_register_buffers(&ring, &iov, 1);
        if (r < 0)
                fact_skip("io_uring fixed buffers: %s", strerror(-r));
        CHECK_EQ(page_categories(run) & (PAGE_IS_FILE | PAGE_IS_WRITTEN), PAGE_IS_WRITTEN);
        CHECK(page_holds(run, 3));
        io_uring_queue_exit(&ring);
}

/* -- VMAs ---------------------------------------------------------------------------------------------------------- */

static void map_fixed_drops_what_was_advised(void) {
        void *p = map_filled(1, 1);
        int segment = segment_open(1, 1), status;
        pid_t child;

        CHECK(madvise(p, KSM_PAGE_SIZE, MADV_DONTFORK) == 0);
        map_segment(p, 1, segment, 0);
        child = fork();
        CHECK(child >= 0);
        if (child == 0)
                _exit(page_holds(p, 1) ? 0 : 1); /* it is there: DONTFORK is gone */
        CHECK(waitpid(child, &status, 0) == child);
        CHECK_EQ(status, 0);
}

static void consecutive_slots_fuse_and_others_do_not(void) {
        int segment = segment_open(4, 1);
        void *p = map_anon(4);

        map_segment(p, 1, segment, 0);
        map_segment(page_at(p, 1), 1, segment, 1);
        CHECK_EQ(count_vmas(p, 2), 1);
        map_segment(page_at(p, 2), 1, segment, 3);
        CHECK_EQ(count_vmas(p, 3), 2);
}

/* Restored runs: fresh memory moved into place keeps its own page offset. */
static void anonymous_pages_moved_by_mremap_never_fuse_with_neighbours(void) {
        void *p = map_filled(3, 1), *fresh = map_filled(1, 2);

        CHECK(mremap(fresh, KSM_PAGE_SIZE, KSM_PAGE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, page_at(p, 1)) == page_at(p, 1));
        CHECK_EQ(count_vmas(p, 3), 3);
        CHECK(page_holds(page_at(p, 1), 2));
}

static void mremap_over_several_runs_fails_and_grows_into_the_next_slot(void) {
        int segment = segment_open(4, 10);
        char *p = map_anon(4);
        void *grown;

        map_segment(p, 1, segment, 0);
        map_segment(page_at(p, 1), 1, segment, 2);
        CHECK(mremap(p, 2 * KSM_PAGE_SIZE, 4 * KSM_PAGE_SIZE, MREMAP_MAYMOVE) == MAP_FAILED && errno == EFAULT);
        grown = mremap(p, KSM_PAGE_SIZE, 2 * KSM_PAGE_SIZE, MREMAP_MAYMOVE);
        CHECK(grown != MAP_FAILED);
        CHECK(page_holds(page_at(grown, 1), 11)); /* another's page, not zeros: why it must be restored first */
}

static unsigned read_max_map_count(void) {
        FILE *f = fopen("/proc/sys/vm/max_map_count", "re");
        unsigned n = 0;

        if (!f || fscanf(f, "%u", &n) != 1)
                fact_skip("cannot read vm.max_map_count");
        fclose(f);
        return n;
}

/* The program's own munmap included: why merged runs stay below half of the limit. */
static void at_max_map_count_every_split_fails_and_nothing_is_lost(void) {
        unsigned limit = read_max_map_count();
        int context = uffd_open(TRACK_FEATURES);
        void *p = map_filled(3, 1), *filler;

        if (limit > 300000)
                fact_skip("vm.max_map_count is %u: filling it takes too long", limit);
        filler = mmap(NULL, (limit + 2UL) * KSM_PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        CHECK(filler != MAP_FAILED);
        for (size_t i = 1; i < limit; i += 2)
                if (mprotect(page_at(filler, i), KSM_PAGE_SIZE, PROT_READ) < 0)
                        break;
        CHECK(errno == ENOMEM);
        /* one more fits after some splits: use it up, if it is there */
        (void) mprotect(filler, KSM_PAGE_SIZE, PROT_READ | PROT_WRITE);
        CHECK(munmap(page_at(p, 1), KSM_PAGE_SIZE) < 0 && errno == ENOMEM);
        CHECK_EQ(uffd_register(context, page_at(p, 1), 1, UFFDIO_REGISTER_MODE_WP), -ENOMEM);
        CHECK(page_holds(p, 1) && page_holds(page_at(p, 1), 2) && page_holds(page_at(p, 2), 3));
}

/* -- barriers, fd tables --------------------------------------------------------------------------------------------- */

/* The mapping lock's handshake (Dekker): after the barrier at least one side sees the other's store. */
struct handshake {
        atomic_int flag, active, phase;
        int seen_by_thread;
};

static void lock_holder(void *argument) {
        struct handshake *h = argument;

        for (int round = 1; round <= 2000; round++) {
                while (atomic_load_explicit(&h->phase, memory_order_acquire) != round)
                        sched_yield();
                atomic_store_explicit(&h->flag, round, memory_order_relaxed);
                atomic_signal_fence(memory_order_seq_cst); /* compiler only: the barrier is the other side's */
                h->seen_by_thread = atomic_load_explicit(&h->active, memory_order_relaxed) == round;
                atomic_store_explicit(&h->phase, -round, memory_order_release);
        }
}

static void membarrier_makes_a_plain_store_enough(void) {
        struct handshake h = { 0 };
        struct toucher t;

        CHECK(syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0);
        toucher_start(&t, lock_holder, &h);
        for (int round = 1; round <= 2000; round++) {
                bool seen;

                atomic_store_explicit(&h.phase, round, memory_order_release);
                atomic_store_explicit(&h.active, round, memory_order_relaxed);
                CHECK(syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) == 0);
                seen = atomic_load_explicit(&h.flag, memory_order_relaxed) == round;
                while (atomic_load_explicit(&h.phase, memory_order_acquire) != -round)
                        sched_yield();
                CHECK(seen || h.seen_by_thread);
        }
        toucher_join(&t);
}

struct private_table {
        int fd;
        int error;
};

static void unshare_and_close(void *argument) {
        struct private_table *p = argument;

        if (syscall(SYS_close_range, p->fd, ~0U, CLOSE_RANGE_UNSHARE) < 0)
                p->error = errno;
        else if (fcntl(p->fd, F_GETFD) >= 0)
                p->error = EEXIST;
}

/* The agent's fds are its own: it leaves the shared table, closes the program's there, and nobody else notices. */
static void close_range_unshare_gives_one_thread_its_own_table(void) {
        struct private_table p = { .fd = open("/dev/null", O_RDONLY | O_CLOEXEC) };
        struct toucher t;

        CHECK(p.fd >= 0);
        toucher_start(&t, unshare_and_close, &p);
        toucher_join(&t);
        CHECK_EQ(p.error, 0);
        CHECK(fcntl(p.fd, F_GETFD) >= 0);
}

FACTS(FACT(procmap_query_describes_anonymous_and_segment_mappings),
      FACT(move_refuses_a_page_pinned_by_an_io_uring_fixed_buffer),
      FACT(move_does_not_see_a_plain_reference_on_a_small_page),
      FACT(pinning_a_merged_page_copies_it),
      FACT(map_fixed_drops_what_was_advised),
      FACT(consecutive_slots_fuse_and_others_do_not),
      FACT(anonymous_pages_moved_by_mremap_never_fuse_with_neighbours),
      FACT(mremap_over_several_runs_fails_and_grows_into_the_next_slot),
      FACT(at_max_map_count_every_split_fails_and_nothing_is_lost),
      FACT(membarrier_makes_a_plain_store_enough),
      FACT(close_range_unshare_gives_one_thread_its_own_table))
