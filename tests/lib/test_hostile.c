/* Transitions against what programs do to their memory: huge pages, references and pins, forks, other processes' writes,
 * protections and holes. Bytes first; then that nothing hangs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/fault.h"
#include "common/uapi.h"
#include "lib/book.h"
#include "lib/mailbox.h"
#include "lib/maplock.h"
#include "lib/userksm.h"
#include "tests/lib/rig.h"

#define HUGE_BYTES (2UL << 20)
#define HANG_USEC 2000000U /* a transition takes some 100 us; the watchdog looks every 5 ms */
#define TRIES 50 /* of what a busy machine may hold up */
#define FIRE_USEC 2000000U
#define FIRE_MERGES (500 / FIRE_PART) /* or longer, on a machine that is busy; a tenth at least */
#define FIRE_BOUND_USEC 60000000U

static void fill_block(uint8_t *b) {
        for (unsigned i = 0; i < PAGES; i++)
                fill(page_at(b, i), i % CONTENTS);
}

static void assert_block(uint8_t *b, unsigned from, unsigned to) {
        uint8_t want[KSM_PAGE_SIZE];
        for (unsigned i = from; i < to; i++) {
                fill(want, i % CONTENTS);
                assert_memory_equal(page_at(b, i), want, KSM_PAGE_SIZE);
        }
}

static void merge(uint8_t *b) {
        uint8_t status[64];
        uint64_t before = now_usec();
        (void) apply(APPLY_MERGE, b, 0, PAGES, 0, status);
        assert_true(now_usec() - before < HANG_USEC);
}

static void restore(uint8_t *b) {
        uint8_t status[64];
        (void) apply(APPLY_RESTORE, b, 0, PAGES, 0, status);
}

/* The third block of a huge page. */
static uint8_t *huge_block(uint8_t **ret_huge) {
        uint8_t *p = mmap(NULL, 2 * HUGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        uint8_t *huge = (uint8_t *) (((uintptr_t) p + HUGE_BYTES - 1) & ~(HUGE_BYTES - 1)), *b = huge + 2 * BLOCK_BYTES;
        assert_int_equal(madvise(huge, HUGE_BYTES, MADV_HUGEPAGE), 0);
        memset(huge, 0, HUGE_BYTES);
        fill_block(b);
        assert_int_equal(registry_register(&A, (uint64_t) huge, (uint64_t) huge + HUGE_BYTES, true), 0);
        *ret_huge = huge;
        return b;
}

static bool is_huge(const uint8_t *b) {
        struct look look;
        assert_int_equal(look_at(A.pagemap_fd, (uint64_t) b, PAGES, &look), 0);
        return look.huge;
}

/* Splitting a huge page gives its zero-filled pieces the kernel's zero page, in the middle of a move. */
static void test_huge_page(void **state) {
        uint8_t *huge, *b = huge_block(&huge), status[64];
        bool was_huge = is_huge(b);
        merge(b);
        assert_block(b, 0, PAGES);
        (void) apply(APPLY_ZERO, huge, 0, PAGES, 0, status);
        for (unsigned i = 0; i < PAGES * KSM_PAGE_SIZE; i++)
                assert_int_equal(huge[i], 0);
        /* What the split did is what was asked for. Said to have changed, they would be tried again for ever. */
        (void) apply(APPLY_ZERO, huge, 0, PAGES, 0, status);
        for (unsigned i = 0; i < PAGES; i++)
                assert_true(status[i] == APPLY_OK || status[i] == APPLY_VMA_GONE);
        merge(b);
        assert_block(b, 0, PAGES);
        printf("huge %d, merged %d\n", was_huge, __builtin_popcountll(file_pages(b)));
        assert_true(__builtin_popcountll(file_pages(b)) >= 56); /* all but the zeros */
        restore(b);
        assert_block(b, 0, PAGES);
        munmap(huge, HUGE_BYTES);
        registry_forget(&A, (uint64_t) huge, (uint64_t) huge + HUGE_BYTES);
}

/* A reference that is no pin: some kernels loop in the move as long as it stays. */
static void test_spliced_huge_page(void **state) {
        int fd[2];
        uint8_t *huge, *b = huge_block(&huge), got[KSM_PAGE_SIZE], want[KSM_PAGE_SIZE];
        assert_int_equal(pipe(fd), 0);
        struct iovec v = { page_at(b, 5), KSM_PAGE_SIZE };
        assert_int_equal(vmsplice(fd[1], &v, 1, 0), KSM_PAGE_SIZE);
        uint8_t status[64];
        uint64_t before = now_usec();
        (void) apply_once(APPLY_MERGE, b, 0, PAGES, 0, status); /* on such a kernel asking again takes as long each time */
        assert_true(now_usec() - before < HANG_USEC);
        assert_block(b, 0, PAGES);
        fill(want, 5);
        assert_int_equal(read(fd[0], got, sizeof(got)), sizeof(got));
        assert_memory_equal(got, want, sizeof(got));
        for (unsigned i = 0; i < TRIES && !file_pages(b); i++)
                merge(b);
        assert_block(b, 0, PAGES);
        assert_true(file_pages(b));
        close(fd[0]);
        close(fd[1]);
        munmap(huge, HUGE_BYTES);
        registry_forget(&A, (uint64_t) huge, (uint64_t) huge + HUGE_BYTES);
}

/* A move that does not come back is ended: the watchdog fills its destination. Here one that is late, on any kernel. */
static void test_move_without_end(void **state) {
        uint8_t *b = block_new(), status[64];
        fill_block(b);
        uint64_t broken = A.watch.broken;
        for (unsigned tries = 0; tries < TRIES && A.watch.broken == broken; tries++) {
                restore(b);
                assert_int_equal(fault_arm("uffd_move:delay:1:100000", NULL), 0);
                (void) apply_once(APPLY_MERGE, b, 0, PAGES, 0, status);
                (void) fault_arm(NULL, NULL);
                assert_block(b, 0, PAGES);
        }
        assert_int_not_equal(A.watch.broken, broken);
        merge(b);
        assert_int_equal(file_pages(b), ~0ULL);
        assert_block(b, 0, PAGES);
}

static void test_unmapped_in_the_middle(void **state) {
        uint8_t *b = block_new();
        fill_block(b);
        merge(b);
        assert_int_equal(munmap(page_at(b, 20), 10 * KSM_PAGE_SIZE), 0);
        registry_forget(&A, (uint64_t) page_at(b, 20), (uint64_t) page_at(b, 30));
        restore(b);
        assert_int_equal(file_pages(b), 0);
        assert_block(b, 0, 20);
        assert_block(b, 30, PAGES);
        assert_int_equal(msync(page_at(b, 25), KSM_PAGE_SIZE, MS_ASYNC), -1); /* nothing came back there */
}

static void test_protection(void **state) {
        uint8_t *b = block_new();
        fill_block(b);
        merge(b);
        assert_int_equal(mprotect(b, BLOCK_BYTES, PROT_NONE), 0);
        assert_int_equal(mprotect(page_at(b, 8), 8 * KSM_PAGE_SIZE, PROT_READ), 0);
        restore(b);
        assert_int_equal(file_pages(b), 0);
        int null = open("/dev/zero", O_RDONLY);
        assert_int_equal(read(null, page_at(b, 9), 1), -1); /* still not writable */
        assert_int_equal(mprotect(b, BLOCK_BYTES, PROT_READ | PROT_WRITE), 0);
        close(null);
        assert_block(b, 0, PAGES);
        merge(b);
        assert_block(b, 0, PAGES);
}

/* libc unmaps without telling: the book is stale until the kernel is asked. What lies there now is none of ours. */
static void test_stale_book(void **state) {
        uint8_t *b = block_new(), status[64];
        struct vma v;
        fill_block(b);
        merge(b);
        uint64_t merged = file_pages(b);
        assert_true(merged >> 8 & 0xff);
        long r = sys_mmap((uint64_t) page_at(b, 8), 8 * KSM_PAGE_SIZE, PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        assert_int_equal(r, (long) page_at(b, 8));
        for (unsigned i = 8; i < 16; i++)
                fill(page_at(b, i), i % CONTENTS);
        for (unsigned round = 0; round < 3; round++) {
                (void) apply(round == 0 ? APPLY_MERGE : round == 1 ? APPLY_ZERO : APPLY_RESTORE, b, 0, PAGES, 0, status);
                assert_int_equal(vma_query(A.maps_fd, (uint64_t) page_at(b, 8), false, &v), 0);
                assert_true(v.flags & PROCMAP_QUERY_VMA_SHARED);
                assert_int_equal(v.end - v.start, 8 * KSM_PAGE_SIZE);
                assert_int_equal(status[9], APPLY_VMA_GONE);
        }
        assert_block(b, 0, PAGES);
}

struct change {
        uint8_t *page;
        int (*make)(uint8_t *page);
};

static int forbid_writing(uint8_t *page) {
        return (int) sys_mprotect((uint64_t) page, KSM_PAGE_SIZE, PROT_READ);
}

static int forbid_all(uint8_t *page) {
        return (int) sys_mprotect((uint64_t) page, KSM_PAGE_SIZE, PROT_NONE);
}

static int lock(uint8_t *page) {
        return (int) syscall(SYS_mlock, page, KSM_PAGE_SIZE);
}

static int unmap(uint8_t *page) {
        return (int) sys_munmap((uint64_t) page, KSM_PAGE_SIZE);
}

static int map_anew(uint8_t *page) {
        return sys_is_error(sys_mmap((uint64_t) page, KSM_PAGE_SIZE, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
}

static int map_file(uint8_t *page) {
        int fd = open("/proc/self/exe", O_RDONLY);
        long r = sys_mmap((uint64_t) page, KSM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0);
        close(fd);
        return sys_is_error(r);
}

static int name(uint8_t *page) {
        return prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, page, KSM_PAGE_SIZE, "name");
}

static void *change_in_transition(void *p) {
        struct change *c = p;
        while (!in_transition())
                ;
        const struct timespec pause = { .tv_nsec = 30000000 };
        (void) nanosleep(&pause, NULL);
        return (void *) (intptr_t) c->make(c->page);
}

/* Past the mapping lock, while the page is away: it comes back all the same, or what is there now stays. */
static void test_changed_without_libc(void **state) {
        static int (*const changes[])(uint8_t *) = { forbid_writing, forbid_all, lock,    name,
                                                     unmap,          map_anew,   map_file };
        for (unsigned k = 0, late = 0; k < ARRAY_SIZE(changes);) {
                uint8_t *b = block_new(), status[64], want[KSM_PAGE_SIZE];
                fill_block(b);
                fill(page_at(b, 10), 100); /* unequal: has to come back */
                struct change change = { page_at(b, 10), changes[k] };
                pthread_t t;
                pthread_create(&t, NULL, change_in_transition, &change);
                assert_int_equal(fault_arm("hole_compared:delay:1:100000", NULL), 0);
                (void) apply(APPLY_MERGE, b, 0, PAGES, 0, status);
                (void) fault_arm(NULL, NULL);
                bool made = !join_draining(t);
                assert_true(made || change.make == name); /* not every kernel has names */
                if (A.raw == made)
                        k++;
                else /* made when the transition was over already, on a machine that is busy */
                        assert_true(++late < TRIES);
                A.raw = false;
                assert_int_equal(status[10], APPLY_CHANGED);
                if (change.make == forbid_writing || change.make == forbid_all)
                        assert_int_equal(mprotect(page_at(b, 10), KSM_PAGE_SIZE, PROT_READ | PROT_WRITE), 0);
                fill(want, change.make == map_anew ? 0 : 100);
                if (change.make == map_file)
                        assert_memory_equal(page_at(b, 10), "\177ELF", 4);
                else if (change.make == unmap)
                        assert_int_equal(msync(page_at(b, 10), KSM_PAGE_SIZE, MS_ASYNC), -1);
                else
                        assert_memory_equal(page_at(b, 10), want, KSM_PAGE_SIZE);
                assert_block(b, 0, 10);
                assert_block(b, 11, PAGES);
                munmap(b, BLOCK_BYTES);
                registry_forget(&A, (uint64_t) b, (uint64_t) b + BLOCK_BYTES);
        }
}

static void *lock_all(void *unused) {
        (void) unused;
        return (void *) (intptr_t) mlockall(MCL_CURRENT);
}

/* mlockall fills every page there is, scratch too, and ends. Memory that is locked does not let go of pages for MADV_DONTNEED: what one
 * transition leaves in scratch is not the next one's. */
static void test_everything_locked(void **state) {
        uint8_t *b = block_new(), *c = block_new(), status[64];
        fill_block(b);
        for (unsigned i = 0; i < PAGES; i++)
                fill(page_at(c, i), 100 + i);
        pthread_t t;
        pthread_create(&t, NULL, lock_all, NULL);
        void *failed;
        while (pthread_tryjoin_np(t, &failed) == EBUSY) { /* as the agent's loop does */
                agent_drain(&A);
                mailbox_answer_bell();
        }
        assert_null(failed);
        (void) apply(APPLY_MERGE, b, 0, PAGES / 2, 0, status);
        (void) apply(APPLY_MERGE, c, PAGES / 2, PAGES / 2, 0, status);
        assert_int_equal(munlockall(), 0);
        assert_block(b, 0, PAGES);
        assert_int_equal(file_pages(c), 0);
        for (unsigned i = 0; i < PAGES; i++) {
                uint8_t want[KSM_PAGE_SIZE];
                fill(want, 100 + i);
                assert_memory_equal(page_at(c, i), want, KSM_PAGE_SIZE);
        }
}

static void *discard_in_transition(void *page) {
        while (!in_transition())
                ;
        const struct timespec pause = { .tv_nsec = 30000000 };
        (void) nanosleep(&pause, NULL);
        (void) fault_arm("hole_compared:delay:1:100000", NULL); /* the zap comes before the agent goes on */
        return (void *) sys_madvise((uint64_t) page, KSM_PAGE_SIZE, MADV_DONTNEED);
}

/* Past the mapping lock, while the page is away and about to be merged: zeros from then on. */
static void test_discarded_without_libc(void **state) {
        uint8_t *b = block_new(), status[64], zeros[KSM_PAGE_SIZE] = { 0 };
        pthread_t t;
        fill_block(b);
        pthread_create(&t, NULL, discard_in_transition, page_at(b, 12));
        assert_int_equal(fault_arm("hole_moved:delay:1:100000", NULL), 0);
        (void) apply(APPLY_MERGE, b, 0, PAGES, 0, status);
        (void) fault_arm(NULL, NULL);
        assert_null(join_draining(t));
        assert_true(A.raw);
        A.raw = false;
        pthread_create(&t, NULL, touch, b); /* might wait for the agent */
        (void) join_draining(t);
        assert_memory_equal(page_at(b, 12), zeros, KSM_PAGE_SIZE);
        assert_block(b, 0, 12);
        assert_block(b, 13, PAGES);
        munmap(b, BLOCK_BYTES);
        registry_forget(&A, (uint64_t) b, (uint64_t) b + BLOCK_BYTES);
}

/* A page that was copied on write cannot be restored; behind it in its mapping lies the next slot of the segment. */
static void test_growth(void **state) {
        uint8_t *b = block_new(), status[64];
        fill_block(b);
        (void) apply(APPLY_MERGE, b, 0, 1, 8, status); /* zeros; the next slot holds content 1 */
        b[0] = 1;
        uint8_t *p = userksm_mremap(b, KSM_PAGE_SIZE, 2 * KSM_PAGE_SIZE, MREMAP_MAYMOVE, NULL);
        assert_ptr_equal(p, MAP_FAILED);
        assert_int_equal(b[0], 1);
}

static void *discard_and_populate(void *b) {
        (void) discard(b);
        return (void *) sys_madvise((uint64_t) b, BLOCK_BYTES, 23 /* MADV_POPULATE_WRITE */);
}

static void test_populate_write(void **state) {
        pthread_t t;
        uint8_t *b = block_new();
        fill_block(b);
        merge(b);
        pthread_create(&t, NULL, discard_and_populate, b);
        void *failed;
        while (pthread_tryjoin_np(t, &failed) == EBUSY) { /* as the agent's loop does */
                agent_drain(&A);
                mailbox_answer_bell();
        }
        assert_null(failed);
        assert_null(touch(b));
}

/* -- under fire ---------------------------------------------------------------------------------------------------- */

#define FIRE_BLOCKS 128

struct fire {
        uint8_t *block[FIRE_BLOCKS];
        pid_t victim;
        _Atomic bool go, stop;
        _Atomic uint64_t operations, differences;
};
static struct fire *fire; /* shared with children */

static void fire_prepare(void) {
        fire = mmap(NULL, sizeof(*fire), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        fire->victim = getpid();
}

static void fire_blocks(void) {
        for (unsigned i = 0; i < FIRE_BLOCKS; i++) {
                fire->block[i] = block_new();
                fill_block(fire->block[i]);
        }
        atomic_store(&fire->go, true);
}

/* Merges and restores round and round. */
static void fire_run(const char *name) {
        uint64_t until = now_usec() + FIRE_USEC, merged = 0;
        assert_int_equal(fault_arm("any:random:1:100", NULL), 0);
        for (unsigned round = 0;
             now_usec() < until || (merged <= FIRE_MERGES && now_usec() < until + FIRE_BOUND_USEC); round++) {
                uint8_t status[64], *b = fire->block[round / 2 % FIRE_BLOCKS];
                (void) apply_once(round & 1 ? APPLY_RESTORE : APPLY_MERGE, b, 0, PAGES, 0, status);
                for (unsigned i = 0; i < PAGES; i++)
                        merged += !(round & 1) && status[i] == APPLY_OK;
                agent_drain(&A);
        }
        (void) fault_arm(NULL, NULL);
        atomic_store(&fire->stop, true);
        printf("%s: %llu operations, %llu merged, %llu differences\n", name, (unsigned long long) fire->operations,
               (unsigned long long) merged, (unsigned long long) fire->differences);
        assert_true(merged > FIRE_MERGES / 10);
}

static void fire_end(void) {
        assert_int_equal(fire->differences, 0);
        assert_true(fire->operations > 0);
        for (unsigned i = 0; i < FIRE_BLOCKS; i++) {
                munmap(fire->block[i], BLOCK_BYTES);
                registry_forget(&A, (uint64_t) fire->block[i], (uint64_t) fire->block[i] + BLOCK_BYTES);
        }
        munmap(fire, sizeof(*fire));
}

/* Another process writes and reads back. */
static int foreign_writer(void) {
        uint8_t want[KSM_PAGE_SIZE], got[KSM_PAGE_SIZE];
        uint64_t x = 88172645463325252ULL;
        while (!atomic_load(&fire->go))
                (void) sys_yield();
        while (!atomic_load(&fire->stop)) {
                x ^= x << 13, x ^= x >> 7, x ^= x << 17;
                unsigned i = (unsigned) (x >> 8) % PAGES;
                struct iovec local = { want, sizeof(want) },
                             remote = { page_at(fire->block[(x >> 20) % FIRE_BLOCKS], i), sizeof(want) };
                fill(want, x & 1 ? i % CONTENTS : 100 + (unsigned) (x >> 40));
                if (process_vm_writev(fire->victim, &local, 1, &remote, 1, 0) != (ssize_t) sizeof(want))
                        return 1;
                (void) sys_yield();
                local.iov_base = got;
                if (process_vm_readv(fire->victim, &local, 1, &remote, 1, 0) != (ssize_t) sizeof(got))
                        return 2;
                if (memcmp(want, got, sizeof(want)) != 0)
                        atomic_fetch_add(&fire->differences, 1);
                atomic_fetch_add(&fire->operations, 1);
        }
        return 0;
}

static void test_foreign_writes(void **state) {
        int status;
        fire_prepare();
        pid_t pid = fork(); /* before the blocks: its pages must not be shared with ours */
        if (!pid)
                _exit(foreign_writer());
        fire_blocks();
        fire_run("foreign writes");
        while (waitpid(pid, &status, WNOHANG) == 0)
                agent_drain(&A);
        assert_int_equal(status, 0);
        fire_end();
}

/* As fork does under the atfork handlers. The blocks stay as they are: each child must see them all. */
static void *forker(void *unused) {
        uint8_t want[CONTENTS][KSM_PAGE_SIZE];
        int status;
        for (unsigned i = 0; i < CONTENTS; i++)
                fill(want[i], i);
        for (unsigned n = 0; !atomic_load(&fire->stop); n++) {
                map_enter();
                pid_t pid = fork();
                if (!pid) {
                        for (unsigned k = n; k < FIRE_BLOCKS; k += 16)
                                for (unsigned i = 0; i < PAGES; i++)
                                        if (memcmp(page_at(fire->block[k], i), want[i % CONTENTS], KSM_PAGE_SIZE) != 0)
                                                _exit(1);
                        _exit(0);
                }
                map_leave();
                if (waitpid(pid, &status, 0) != pid || status)
                        atomic_fetch_add(&fire->differences, 1);
                atomic_fetch_add(&fire->operations, 1);
        }
        return NULL;
}

static void test_forks(void **state) {
        pthread_t t[2];
        fire_prepare();
        fire_blocks();
        for (unsigned i = 0; i < 2; i++)
                pthread_create(&t[i], NULL, forker, NULL);
        fire_run("forks");
        for (unsigned i = 0; i < 2; i++)
                (void) join_draining(t[i]);
        fire_end();
}

/* I/O that pins: O_DIRECT and buffers registered for a while. */
static void *direct_reader(void *path) {
        struct io_uring ring;
        uint64_t x = 1234567;
        uint8_t want[KSM_PAGE_SIZE];
        int fd = open(path, O_RDONLY | O_DIRECT);
        bool have_ring = io_uring_queue_init(4, &ring, 0) == 0;
        for (unsigned n = 0; fd >= 0 && !atomic_load(&fire->stop); n++) {
                x ^= x << 13, x ^= x >> 7, x ^= x << 17;
                /* Half of the reads leave a page as it was, or soon nothing would be left that merges. */
                unsigned i = (unsigned) (x >> 8) % PAGES, slot = x & 2 ? i % CONTENTS : (unsigned) (x >> 14) % (2 * CONTENTS);
                uint8_t *page = page_at(fire->block[(x >> 20) % FIRE_BLOCKS], i);
                struct iovec v = { page, KSM_PAGE_SIZE };
                long r;
                if (have_ring && x & 1 && io_uring_register_buffers(&ring, &v, 1) == 0) {
                        struct io_uring_cqe *cqe;
                        struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
                        (void) sys_yield(); /* let it be merged under the pin */
                        io_uring_prep_read_fixed(sqe, fd, page, KSM_PAGE_SIZE, slot * KSM_PAGE_SIZE, 0);
                        (void) io_uring_submit_and_wait(&ring, 1);
                        (void) io_uring_wait_cqe(&ring, &cqe);
                        r = cqe->res;
                        io_uring_cqe_seen(&ring, cqe);
                        (void) io_uring_unregister_buffers(&ring);
                } else {
                        r = pread(fd, page, KSM_PAGE_SIZE, (off_t) (slot * KSM_PAGE_SIZE));
                }
                fill(want, slot);
                if (r != (long) KSM_PAGE_SIZE || memcmp(page, want, KSM_PAGE_SIZE) != 0)
                        atomic_fetch_add(&fire->differences, 1);
                atomic_fetch_add(&fire->operations, 1);
        }
        if (fd >= 0)
                close(fd);
        if (have_ring)
                io_uring_queue_exit(&ring);
        return NULL;
}

static void test_pins(void **state) {
        char path[] = "direct-XXXXXX";
        uint8_t page[KSM_PAGE_SIZE];
        pthread_t t;
        int fd = mkstemp(path);
        assert_true(fd >= 0);
        for (unsigned i = 0; i < 2 * CONTENTS; i++) {
                fill(page, i);
                assert_int_equal(write(fd, page, sizeof(page)), sizeof(page));
        }
        close(fd);
        fd = open(path, O_RDONLY | O_DIRECT);
        if (fd < 0) {
                unlink(path);
                skip();
        }
        close(fd);
        fire_prepare();
        fire_blocks();
        pthread_create(&t, NULL, direct_reader, path);
        fire_run("pins");
        (void) join_draining(t);
        unlink(path);
        fire_end();
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_huge_page),
                cmocka_unit_test(test_spliced_huge_page),
                cmocka_unit_test(test_move_without_end),
                cmocka_unit_test(test_unmapped_in_the_middle),
                cmocka_unit_test(test_protection),
                cmocka_unit_test(test_stale_book),
                cmocka_unit_test(test_changed_without_libc),
                cmocka_unit_test(test_discarded_without_libc),
                cmocka_unit_test(test_everything_locked),
                cmocka_unit_test(test_growth),
                cmocka_unit_test(test_populate_write),
                cmocka_unit_test(test_foreign_writes),
                cmocka_unit_test(test_forks),
                cmocka_unit_test(test_pins),
        };
        return cmocka_run_group_tests(tests, rig_setup, NULL);
}
