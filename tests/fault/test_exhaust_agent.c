/* Every system call of the agent fails, one at a time: the n-th of each kind, for every n until a run does not get that far.
 *
 * Each run is a process of its own with an agent that the test plays (tests/lib/rig.h) and the whole life of some blocks: registered,
 * merged, zeros given back, read, written, discarded, merged again, restored, unregistered. After every step all bytes are right. When it
 * is over nothing fails any more, and what did not work then works now: nothing may be left half-done.
 *
 * A call of ours that fails for want of memory may cost the savings of that step. What it may never cost: a byte, a thread that waits
 * for ever, a mapping that is left in the guard, or merging for the rest of the process's life.
 *
 * usage: test_exhaust_agent [CALL N ERRNO]    all runs, or that one */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/fault.h"
#include "lib/book.h"
#include "lib/vma.h"
#include "tests/lib/rig.h"

#define RUN_BOUND_SECONDS 20U
#define TRIES_AT_LAST 400U
#define PAUSE_AT_LAST_USEC 5000U
#define JOBS 4U
#define RUN_LENGTH 7U  /* slots 1 to 7 of the rig's segment */
#define BLOCKS 3U

static uint8_t want[BLOCKS][PAGES]; /* content of each page, then one byte of it: see expect */
static uint8_t poked[BLOCKS][PAGES];
static uint8_t *blocks[BLOCKS];
static const char *step;

static struct fault_page *page; /* shared by the runs and the test */

static void *map_page(const char *path, size_t length) {
        (void) path;
        (void) length;
        return page;
}

static uint8_t *at(unsigned b, unsigned i) {
        return blocks[b] + i * KSM_PAGE_SIZE;
}

/* By reading the memory as the program does; a page left in the guard would wait for ever, and the alarm ends the run. */
static void check(void) {
        uint8_t bytes[KSM_PAGE_SIZE];
        for (unsigned b = 0; b < BLOCKS; b++)
                for (unsigned i = 0; blocks[b] && i < PAGES; i++) {
                        fill(bytes, want[b][i]);
                        bytes[99] = (uint8_t) (bytes[99] + poked[b][i]);
                        if (memcmp(bytes, at(b, i), KSM_PAGE_SIZE) != 0) {
                                printf("wrong bytes in block %u page %u after %s\n", b, i, step);
                                _exit(3);
                        }
                }
}

static void *check_thread(void *unused) {
        check();
        return unused;
}

static void check_as_program(const char *after) {
        pthread_t t;
        step = after;
        if (pthread_create(&t, NULL, check_thread, NULL) != 0)
                _exit(4);
        (void) join_draining(t);
}

static void put(unsigned b, unsigned i, unsigned content) {
        fill(at(b, i), content);
        want[b][i] = (uint8_t) content;
        poked[b][i] = 0;
}

/* -- the life of some blocks ------------------------------------------------------------------------------------------- */

static void merge(unsigned b) {
        uint8_t status[64];
        for (unsigned i = 0; i < PAGES; i += RUN_LENGTH)
                (void) apply(APPLY_MERGE, blocks[b], i, MIN(RUN_LENGTH, (unsigned) PAGES - i), 1, status);
}

static void zero(unsigned b) {
        uint8_t status[64];
        (void) apply(APPLY_ZERO, blocks[b], 0, PAGES, 0, status);
}

static void restore(unsigned b) {
        uint8_t status[64];
        (void) apply(APPLY_RESTORE, blocks[b], 0, PAGES, 0, status);
}

/* The program's side: in a thread, because it may have to wait for the agent, which this thread plays. */
static void *write_some(void *p) {
        unsigned b = (unsigned) (uintptr_t) p;
        for (unsigned i = 0; i < PAGES; i += 5) {
                at(b, i)[99]++;
                poked[b][i]++;
        }
        return NULL;
}

static void *write_back(void *p) {
        unsigned b = (unsigned) (uintptr_t) p;
        for (unsigned i = 0; i < PAGES; i += 5)
                put(b, i, want[b][i]);
        return NULL;
}

static void as_program(void *(*f)(void *), void *argument) {
        pthread_t t;
        if (pthread_create(&t, NULL, f, argument) != 0)
                _exit(4);
        (void) join_draining(t);
}

static void protect(unsigned b, int prot) {
        if (mprotect(blocks[b], BLOCK_BYTES, prot) < 0)
                _exit(4);
}

static void forget_content(unsigned b) {
        memset(want[b], 0, PAGES);
        memset(poked[b], 0, PAGES);
}

static void retrack(void) {
        if (A.retrack)
                A.retrack = registry_retrack(&A) < 0;
}

static void live(void) {
        for (unsigned b = 0; b < BLOCKS; b++)
                for (unsigned i = 0; i < PAGES; i++)
                        put(b, i, b == 1 ? 0 : i % 16 == 9 ? 0 : 1 + i % RUN_LENGTH); /* some are not what the slot holds */
        merge(0);
        check_as_program("merge");
        zero(1);
        check_as_program("zero");
        as_program(write_some, (void *) 0);
        check_as_program("writing");
        merge(0);
        check_as_program("merging what was written");
        as_program(write_back, (void *) 0);
        merge(0);
        check_as_program("merging what was written back");
        as_program(discard, blocks[0]);
        forget_content(0);
        check_as_program("discarding");
        merge(2);
        as_program(write_some, (void *) 2);
        protect(2, PROT_READ); /* which the restore must give its copies */
        restore(2);
        check_as_program("restoring");
        protect(2, PROT_READ | PROT_WRITE);
        restore(0);
        check_as_program("restoring what was discarded");
        (void) registry_unregister(&A, (uint64_t) blocks[1], (uint64_t) blocks[1] + BLOCK_BYTES, true);
        (void) registry_register(&A, (uint64_t) blocks[1], (uint64_t) blocks[1] + BLOCK_BYTES, true);
        check_as_program("unregistering");
        retrack();
}

#define must(condition)                                                                                                \
        do                                                                                                             \
                if (!(condition)) {                                                                                    \
                        printf("after all that: not %s\n", #condition);                                               \
                        _exit(5);                                                                                      \
                }                                                                                                      \
        while (0)

/* What works in a process that has never lacked anything. */
static void must_work(void) {
        for (unsigned b = 0; b < BLOCKS; b++) {
                uint64_t start = (uint64_t) blocks[b], end = start + BLOCK_BYTES;
                if (!rangeset_contains(&A.ranges, start, end))
                        must(registry_register(&A, start, end, false) == 0);
        }
        retrack();
        must(!A.raw);
        must(!A.retrack);
        for (unsigned i = 0; i < PAGES; i++)
                put(0, i, 1 + i % RUN_LENGTH);
        /* Pages inside merged runs are merged again only so often (lib/witness.h). */
        for (unsigned tries = 0; tries < TRIES_AT_LAST && file_pages(blocks[0]) != ~0ULL; tries++) {
                merge(0);
                (void) usleep(PAUSE_AT_LAST_USEC);
        }
        check_as_program("merging at last");
        must(file_pages(blocks[0]) == ~0ULL);
        restore(0);
        check_as_program("restoring at last");
        must(file_pages(blocks[0]) == 0);
        must(!book_any_merged((uint64_t) blocks[0], (uint64_t) blocks[0] + BLOCK_BYTES));
        /* No page of any block in the guard: a discard would wait for an event that says so. */
        for (unsigned b = 0; b < BLOCKS; b++) {
                as_program(discard, blocks[b]);
                forget_content(b);
        }
        check_as_program("discarding at last");
}

/* -- a run --------------------------------------------------------------------------------------------------------------- */

static void run(enum fault_id id, enum fault_action action, unsigned n, int error) {
        (void) alarm(RUN_BOUND_SECONDS);
        (void) rig_setup(NULL);
        for (unsigned b = 0; b < BLOCKS; b++)
                blocks[b] = block_new();
        atomic_store(&page->action, action);
        atomic_store(&page->left, n);
        atomic_store(&page->value, (uint32_t) error);
        atomic_store(&page->fired, 0);
        atomic_store(&page->order, (uint32_t) id + 1);
        if (fault_arm("/shared", map_page) < 0)
                _exit(4);
        live();
        (void) fault_arm(NULL, NULL);
        must_work();
        _exit(0);
}

static int run_apart(enum fault_id id, enum fault_action action, unsigned n, int error) {
        int result;
        (void) fflush(NULL);
        pid_t pid = fork();
        if (pid == 0)
                run(id, action, n, error);
        if (pid < 0 || waitpid(pid, &result, 0) != pid)
                return -1;
        return result;
}

static const struct {
        enum fault_id id;
        int errors[3];
} calls[] = {
        { FAULT_sys_mmap, { ENOMEM } },
        { FAULT_sys_munmap, { ENOMEM } },
        { FAULT_sys_mprotect, { ENOMEM } },
        { FAULT_sys_mremap, { ENOMEM } },
        { FAULT_sys_madvise, { ENOMEM, EAGAIN } },
        { FAULT_sys_ioctl, { ENOMEM } },
        { FAULT_sys_look, { ENOMEM } },
        { FAULT_uffd_register, { ENOMEM } },
        { FAULT_uffd_unregister, { ENOMEM } },
        { FAULT_uffd_move, { ENOMEM, EAGAIN, EBUSY } },
        { FAULT_uffd_fill, { ENOMEM, EAGAIN } },
        { FAULT_uffd_protect, { ENOMEM, EAGAIN } },
        { FAULT_sys_pread, { EIO, ENOMEM } },
        { FAULT_sys_read, { EAGAIN } },
        { FAULT_sys_open, { EMFILE, ENOMEM } },
};

/* One run alone, for a debugger. */
static int run_one(const char *name, unsigned n, int error) {
        for (unsigned i = 0; i < FAULT_MAX_; i++)
                if (strcmp(fault_table[i].name, name) == 0)
                        run((enum fault_id) i, FAULT_FAIL, n, error);
        return 64;
}

/* Returns the failures; counts the runs. */
static unsigned exhaust(enum fault_id id, int error, unsigned *n_runs) {
        unsigned n = 0, failed = 0;
        do {
                int result = run_apart(id, FAULT_FAIL, ++n, error);
                if (result == 0)
                        continue;
                failed++;
                printf("%s %u fails with %s: status %x\n", fault_table[id].name, n, strerrorname_np(error), (unsigned) result);
        } while (atomic_load(&page->fired));
        printf("%s: %s at each of %u calls, %u failures\n", fault_table[id].name, strerrorname_np(error), n - 1, failed);
        *n_runs += n;
        return failed;
}

static void *map_shared(void) {
        return mmap(NULL, sizeof(*page), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

/* Every JOBS-th kind of failure. The runs mostly wait. */
static int job(unsigned which) {
        unsigned failures = 0, runs = 0, k = 0;
        page = map_shared();
        for (unsigned c = 0; c < ARRAY_SIZE(calls); c++)
                for (unsigned e = 0; e < ARRAY_SIZE(calls[c].errors) && calls[c].errors[e]; e++)
                        if (k++ % JOBS == which)
                                failures += exhaust(calls[c].id, calls[c].errors[e], &runs);
        printf("%u runs, %u failures\n", runs, failures);
        return failures != 0;
}

int main(int argc, char **argv) {
        int failed = 0, result;
        setvbuf(stdout, NULL, _IOLBF, 0);
        (void) setenv("CMOCKA_TEST_ABORT", "1", 1); /* outside of a test cmocka else ends the run without a word */
        page = map_shared();
        if (page == MAP_FAILED)
                return 1;
        if (argc == 4)
                return run_one(argv[1], (unsigned) atoi(argv[2]), atoi(argv[3]));
        int first = run_apart(FAULT_sys_mmap, FAULT_COUNT, 0, 0);
        if (first != 0) {
                printf("without any failure: status %x\n", (unsigned) first);
                return WIFEXITED(first) ? WEXITSTATUS(first) : 1;
        }
        for (unsigned i = 0; i < JOBS; i++)
                if (fork() == 0)
                        exit(job(i));
        for (unsigned i = 0; i < JOBS; i++)
                failed |= wait(&result) < 0 || result != 0;
        return failed;
}
