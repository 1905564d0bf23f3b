/* A forked child: its agent, its books, its memory; and what is noted for the agent. The agent runs, but has no daemon. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "lib/agent.h"
#include "lib/book.h"
#include "lib/sys.h"

#define NO_SOCKET "/nonexistent/userksm"
#define GENERATIONS 40
/* What may differ from generation to generation. AddressSanitizer maps memory of its own for every thread. */
#ifdef __SANITIZE_ADDRESS__
#define MAPPINGS_MORE (16 * GENERATIONS)
#define THREADS_START_MSEC 10000U
#else
#define MAPPINGS_MORE 4
#endif
/* Nothing is mapped there, no sanitizer's shadow either; one for each test, as notes on it may be read late. */
#define FAR 0x200000000000ULL
#define FAR_TOO 0x210000000000ULL
#define FAR_AWAY 0x220000000000ULL
#define FARTHER 0x230000000000ULL
#define LENGTH ((uint64_t) BLOCK_PAGES << KSM_PAGE_SHIFT)

static int setup(void **state) {
        return agent_start(NO_SOCKET, 0);
}

static void assert_exits_zero(pid_t pid) {
        int status;
        assert_true(pid > 0);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
}

static unsigned count_mappings(void) {
        char line[512];
        unsigned n = 0;
        FILE *f = fopen("/proc/self/maps", "re");
        while (f && fgets(line, sizeof(line), f))
                n++;
        if (f)
                fclose(f);
        return n;
}

/* AddressSanitizer allocates as it starts a thread, and the lock of its allocator stays held in a child that was forked meanwhile.
 * libc's does not: elsewhere forks come at any moment. */
#ifdef __SANITIZE_ADDRESS__
static bool others_run(void) {
        bool run = false;
        DIR *d = opendir("/proc/self/task");
        for (struct dirent *e; d && (e = readdir(d));) {
                char path[64], state = 'R';
                int tid = atoi(e->d_name);
                if (tid == 0 || tid == gettid())
                        continue;
                (void) snprintf(path, sizeof(path), "/proc/self/task/%d/stat", tid);
                FILE *f = fopen(path, "re");
                run |= !f || fscanf(f, "%*d %*s %c", &state) != 1 || state != 'S';
                if (f)
                        fclose(f);
        }
        if (d)
                closedir(d);
        return run;
}

static bool let_threads_start(void) {
        const struct timespec pause = { .tv_nsec = 1000000 };
        for (unsigned i = 0; i < THREADS_START_MSEC; i++) {
                if (!others_run())
                        return true;
                (void) nanosleep(&pause, NULL);
        }
        return false;
}
#else
static bool let_threads_start(void) {
        return true;
}
#endif

/* Each child starts its agent and forks the next one: nothing may add up. */
static int generation(unsigned left, unsigned first_count) {
        int status;
        if (agent_start(NO_SOCKET, 0) < 0 || !agent_running())
                return 1;
        unsigned n = count_mappings();
        if (first_count && n > first_count + MAPPINGS_MORE)
                return 2;
        if (!left)
                return 0;
        if (!let_threads_start())
                return 4;
        pid_t pid = fork();
        if (!pid)
                _exit(generation(left - 1, first_count ? first_count : n));
        return waitpid(pid, &status, 0) != pid || status ? 3 : 0;
}

static void test_generations(void **state) {
        assert_true(let_threads_start());
        pid_t pid = fork();
        if (!pid)
                _exit(generation(GENERATIONS, 0));
        assert_exits_zero(pid);
}

static void *nothing(void *unused) {
        return NULL;
}

/* A fork that libc does not know of keeps its list of threads, the agent's among them. */
static void test_raw_fork(void **state) {
        pid_t pid = (pid_t) sys_call(SYS_fork, 0, 0, 0, 0, 0, 0);
        if (!pid) {
                pthread_t t;
                if (agent_running() || agent_start(NO_SOCKET, 0) < 0)
                        _exit(1);
                _exit(pthread_create(&t, NULL, nothing, NULL) || pthread_join(t, NULL));
        }
        assert_exits_zero(pid);
}

static void pretend_merged(uint64_t start) {
        struct book_block *b = book_get(start >> (BLOCK_SHIFT + KSM_PAGE_SHIFT));
        assert_non_null(b);
        b->merged = ~0ULL;
}

/* Unmapped just before the fork: the parent's agent may not have read the note, the child must. */
static void test_notes_under_way(void **state) {
        pretend_merged(FAR);
        agent_note_unmapped(FAR, LENGTH);
        pid_t pid = fork();
        if (!pid)
                _exit(book_any_merged(FAR, FAR + LENGTH));
        assert_exits_zero(pid);
}

/* Until the child's agent has contexts it answers discards by itself: only where segments are mapped, and as they are
 * protected. The books may be stale: memory comes and goes without notes inside libc. */
static void test_discard_without_agent(void **state) {
        int segment = memfd_create("userksm", 0), other = memfd_create("other", 0);
        assert_int_equal(ftruncate(segment, LENGTH), 0);
        assert_int_equal(ftruncate(other, LENGTH), 0);
        assert_int_equal(pwrite(segment, "s", 1, 0), 1);
        assert_int_equal(pwrite(other, "o", 1, 0), 1);
        char *s = mmap((void *) FAR_TOO, LENGTH, PROT_READ, MAP_PRIVATE | MAP_FIXED, segment, 0);
        char *o = mmap((void *) (FAR_TOO + LENGTH), LENGTH, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, other, 0);
        pretend_merged(FAR_TOO);
        pretend_merged(FAR_TOO + LENGTH);
        pid_t pid = fork();
        if (!pid) {
                if (agent_discard_local(FAR_TOO, 2 * LENGTH) < 0 || *s || *o != 'o')
                        _exit(1);
                _exit(pread(other, s, 1, 0) != -1 ? 2 : 0); /* read-only still */
        }
        assert_exits_zero(pid);
        munmap(s, 2 * LENGTH);
        agent_note_unmapped(FAR_TOO, 2 * LENGTH);
        close(segment);
        close(other);
}

/* A child that no daemon welcomes gets plain copies of what it inherited: protected as they were, and whatever becomes of the segment,
 * their bytes stay. */
static void test_child_without_daemon(void **state) {
        int segment = memfd_create("userksm", 0);
        assert_int_equal(ftruncate(segment, LENGTH), 0);
        assert_int_equal(pwrite(segment, "s", 1, 0), 1);
        assert_int_equal(pwrite(segment, "s", 1, LENGTH / 2), 1);
        char *r = mmap((void *) FARTHER, LENGTH / 2, PROT_READ, MAP_PRIVATE | MAP_FIXED, segment, 0);
        char *w = mmap((void *) (FARTHER + LENGTH / 2), LENGTH / 2, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, segment, LENGTH / 2);
        pretend_merged(FARTHER);
        pid_t pid = fork();
        if (!pid) {
                agent_ensure_after_fork();
                if (pwrite(segment, "xy", 2, 0) != 2 || pwrite(segment, "xy", 2, LENGTH / 2) != 2 || r[0] != 's' || r[1] || w[0] != 's' || w[1])
                        _exit(1);
                if (pread(segment, r, 1, 0) != -1 || pread(segment, w, 1, 0) != 1 || w[0] != 'x')
                        _exit(2); /* read-only still, and writable */
                _exit(book_any_merged(FARTHER, FARTHER + LENGTH) ? 3 : 0);
        }
        assert_exits_zero(pid);
        munmap(r, LENGTH);
        agent_note_unmapped(FARTHER, LENGTH);
        close(segment);
}

/* What the child does not get it must not believe to have. */
static void test_dontfork(void **state) {
        pretend_merged(FAR_AWAY);
        agent_note_advice(FAR_AWAY, LENGTH, MADV_DONTFORK);
        pid_t pid = fork();
        if (!pid)
                _exit(book_any_merged(FAR_AWAY, FAR_AWAY + LENGTH));
        assert_exits_zero(pid);
        assert_true(book_any_merged(FAR_AWAY, FAR_AWAY + LENGTH));
        agent_note_unmapped(FAR_AWAY, LENGTH);
}

/* More notes than the agent has room for, faster than it wakes by itself. */
static void test_many_notes(void **state) {
        char *p = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (unsigned round = 0; round < 3; round++) {
                assert_int_equal(agent_register((uint64_t) p, LENGTH), 0);
                for (unsigned i = 0; i < 10000; i++) { /* as the wrappers do */
                        agent_ensure_after_fork();
                        agent_note_unmapped(FAR, LENGTH);
                }
                agent_note_unmapped((uint64_t) p, LENGTH);
        }
        munmap(p, LENGTH);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_generations),
                cmocka_unit_test(test_many_notes),
                cmocka_unit_test(test_raw_fork),
                cmocka_unit_test(test_notes_under_way),
                cmocka_unit_test(test_discard_without_agent),
                cmocka_unit_test(test_child_without_daemon),
                cmocka_unit_test(test_dontfork),
        };
#ifdef __SANITIZE_THREAD__
        /* It makes a child of a program with threads that starts one a fatal error, and in a child of a raw fork still sees the parent's. */
        printf("SKIP: TSan does not follow children of programs with threads\n");
        return 77;
#endif
        return cmocka_run_group_tests(tests, setup, NULL);
}
