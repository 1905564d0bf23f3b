/* Which node a page is on and where a segment's pages come from: as the kernel of this machine has it, with one node or with several
 * (scripts/test-guest has machines with two and three). */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/uapi.h"
#include "daemon/sys/numa.h"
#include "daemon/sys/segment.h"
#include "tests/unit/device.h"

#define NOBODY 65534
#define NODES_LIMIT 8
/* Several calls' worth, the last one not full. */
#define MANY_PAGES (2 * NUMA_CALL_PAGES + 7)
#define SLOTS 64U

static uint64_t page_number(const void *p) {
        return (uintptr_t) p >> KSM_PAGE_SHIFT;
}

static int node_of(const void *p) {
        uint64_t page = page_number(p);
        int16_t node;
        assert_int_equal(numa_nodes(0, &page, 1, &node), 0);
        return node;
}

static uint8_t *map_pages(size_t n_pages) {
        void *p = mmap(NULL, n_pages * KSM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        assert_true(p != MAP_FAILED);
        assert_int_equal(madvise(p, n_pages * KSM_PAGE_SIZE, MADV_NOHUGEPAGE), 0);
        return p;
}

static void need_numa(void) {
        int16_t node = 0;
        uint64_t page = page_number(&node);
        if (numa_nodes(0, &page, 1, &node) == -ENOSYS) {
                print_message("SKIPPED: a kernel without NUMA\n");
                skip();
        }
}

static void test_lists(void **state) {
        static const struct {
                const char *text;
                unsigned count;
        } good[] = { { "0\n", 1 }, { "0-1\n", 2 }, { "0,2\n", 2 }, { "0-1,4,6-9\n", 7 }, { "0-1023\n", 1024 } };
        static const char *const bad[] = { "",      "\n",   "0",        "x\n",     "0-\n",  "-1\n", "1-0\n", "0,\n",
                                           ",0\n",   "0 1\n", "0-1024\n", "0-1-2\n", "0\n1\n", "99999999999999999999\n" };
        unsigned count;
        for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
                assert_int_equal(numa_parse_list(good[i].text, &count), 0);
                assert_int_equal(count, good[i].count);
        }
        for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
                assert_int_equal(numa_parse_list(bad[i], &count), -EBADMSG);
        printf("%u nodes with memory\n", numa_count());
        assert_in_range(numa_count(), 1, 1024);
}

static void test_vmstat_text(void **state) {
        uint64_t n = 1;
        assert_int_equal(numa_parse_vmstat("nr_free_pages 1\npgmigrate_success 18446744073709551\npgmigrate_fail 3\n", &n), 0);
        assert_true(n == UINT64_C(18446744073709551));
        assert_int_equal(numa_parse_vmstat("", &n), -EBADMSG);
        assert_int_equal(numa_parse_vmstat("nr_free_pages 1\nthp_pgmigrate_success 4\n", &n), -EBADMSG);
        assert_int_equal(numa_parse_vmstat("nr_free_pages 1\npgmigrate_success x\n", &n), -EBADMSG);
}

/* From the whole file, which the kernel gives out in pieces; it only grows. */
static void test_migrations(void **state) {
        uint64_t first, second;
        _cleanup_close_ int fd = numa_open_vmstat();
        assert_true(fd >= 0);
        int r = numa_migrations(fd, &first);
        if (r == -EBADMSG) {
                print_message("SKIPPED: a kernel that migrates nothing\n");
                skip();
        }
        assert_int_equal(r, 0);
        assert_int_equal(numa_migrations(fd, &second), 0);
        assert_true(second >= first);
        assert_int_equal(numa_migrations(-1, &first), -EBADF);
}

static void test_what_is_where(void **state) {
        need_numa();
        uint8_t *p = map_pages(8);
        memset(p, 1, 2 * KSM_PAGE_SIZE);
        assert_int_equal(*(volatile uint8_t *) (p + 2 * KSM_PAGE_SIZE), 0); /* the zero page */
        assert_int_equal(munmap(p + 4 * KSM_PAGE_SIZE, KSM_PAGE_SIZE), 0);
        assert_in_range(node_of(p), 0, NODES_LIMIT);
        assert_in_range(node_of(p + KSM_PAGE_SIZE), 0, NODES_LIMIT);
        assert_int_equal(node_of(p + 2 * KSM_PAGE_SIZE), -EFAULT);
        assert_int_equal(node_of(p + 3 * KSM_PAGE_SIZE), -ENOENT);
        assert_int_equal(node_of(p + 4 * KSM_PAGE_SIZE), -EFAULT);
        assert_int_equal(munmap(p, 8 * KSM_PAGE_SIZE), 0);
}

/* Every third page is a hole: each answer must stand at its page, over the borders of calls. */
static void test_many_pages(void **state) {
        need_numa();
        static uint64_t pages[MANY_PAGES];
        static int16_t nodes[MANY_PAGES];
        uint8_t *p = map_pages(MANY_PAGES);
        for (size_t i = 0; i < MANY_PAGES; i++) {
                pages[i] = page_number(p + (MANY_PAGES - 1 - i) * KSM_PAGE_SIZE); /* any order */
                if (i % 3)
                        p[(MANY_PAGES - 1 - i) * KSM_PAGE_SIZE] = 1;
        }
        assert_int_equal(numa_nodes(0, pages, MANY_PAGES, nodes), 0);
        for (size_t i = 0; i < MANY_PAGES; i++)
                assert_true(i % 3 ? nodes[i] >= 0 : nodes[i] == -ENOENT);
        assert_int_equal(numa_nodes(0, pages, 0, nodes), 0);
        assert_int_equal(munmap(p, MANY_PAGES * KSM_PAGE_SIZE), 0);
}

/* A child as this one's user, and one as another: what a daemon without privilege is told of each. */
static int ask_as_nobody(pid_t pid, uint64_t page) {
        int status;
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
                int16_t node;
                if (setresgid(NOBODY, NOBODY, NOBODY) < 0 || setresuid(NOBODY, NOBODY, NOBODY) < 0)
                        _exit(EXIT_FAILURE);
                _exit(-numa_nodes(pid, &page, 1, &node));
        }
        assert_int_equal(waitpid(child, &status, 0), child);
        return WIFEXITED(status) ? -WEXITSTATUS(status) : -EINTR;
}

static void test_other_processes(void **state) {
        need_numa();
        int16_t node;
        uint8_t *p = map_pages(1);
        uint64_t page = page_number(p);
        p[0] = 1;
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0)
                for (;;)
                        (void) pause();
        assert_int_equal(numa_nodes(child, &page, 1, &node), 0);
        assert_int_equal(node, node_of(p)); /* the same page, shared by the fork */
        if (geteuid() == 0) {
                assert_int_equal(ask_as_nobody(child, page), -EPERM);
                assert_int_equal(ask_as_nobody(0, page), 0);
        }
        assert_int_equal(kill(child, SIGKILL), 0);
        assert_int_equal(waitpid(child, NULL, 0), child);
        assert_int_equal(numa_nodes(child, &page, 1, &node), -ESRCH);
        assert_int_equal(munmap(p, KSM_PAGE_SIZE), 0);
}

/* -- with several nodes ----------------------------------------------------------------------------------------------- */

/* The node of the CPU's own memory: of a page that it touches first. */
static int run_on(int cpu) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET((size_t) cpu, &set);
        if (sched_setaffinity(0, sizeof(set), &set) < 0)
                return -errno;
        uint8_t *p = map_pages(1);
        p[0] = 1;
        int node = node_of(p);
        assert_int_equal(munmap(p, KSM_PAGE_SIZE), 0);
        return node;
}

static void assert_slots_on(const struct segment_file *s, unsigned first, unsigned n, int node) {
        for (unsigned i = first; i < first + n; i++)
                assert_int_equal(node_of(s->slots + i * KSM_PAGE_SIZE), node);
}

/* Whichever CPU fills it: each slot on the segment's node. */
static void fill_on_each_cpu(int node, int n_cpus) {
        static const uint8_t bytes[2 * KSM_PAGE_SIZE] = { 1 };
        struct segment_file *s;
        _cleanup_close_ int device = open_device();
        _cleanup_close_ int filler = segment_filler_open(device);
        assert_int_equal(segment_file_new(filler, SLOTS, -1, "key", 3, &s), 0);
        assert_int_equal(numa_bind(s->slots, SLOTS * KSM_PAGE_SIZE, node), 0);
        unsigned slot = 0;
        for (int cpu = 0; cpu < n_cpus && slot + 2 <= SLOTS; cpu++, slot += 2) {
                int own = run_on(cpu);
                if (own < 0)
                        break;
                assert_int_equal(segment_file_fill(s, slot, bytes, 2), 2);
                assert_slots_on(s, slot, 2, node);
                printf("CPU %d, whose memory is on node %d: slots on node %d\n", cpu, own, node);
        }
        assert_true(slot > 0);
        segment_file_free(s);
}

static void test_bound_segment(void **state) {
        need_numa();
        cpu_set_t before;
        assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
        int n_cpus = (int) sysconf(_SC_NPROCESSORS_CONF);
        unsigned n_bound = 0;
        for (int node = 0; node < NODES_LIMIT; node++) {
                uint8_t *p = map_pages(1);
                int r = numa_bind(p, KSM_PAGE_SIZE, node);
                assert_int_equal(munmap(p, KSM_PAGE_SIZE), 0);
                if (r < 0) {
                        assert_int_equal(r, -EINVAL);
                        continue;
                }
                fill_on_each_cpu(node, n_cpus);
                n_bound++;
        }
        assert_int_equal(sched_setaffinity(0, sizeof(before), &before), 0);
        assert_true(n_bound >= 1);
        assert_int_equal(n_bound, MIN(numa_count(), (unsigned) NODES_LIMIT));
}

static void test_no_such_node(void **state) {
        need_numa();
        uint8_t *p = map_pages(1);
        static const int nodes[] = { -1, 1023, 1024, INT32_MAX };
        for (size_t i = 0; i < ARRAY_SIZE(nodes); i++)
                assert_int_equal(numa_bind(p, KSM_PAGE_SIZE, nodes[i]), -EINVAL);
        assert_int_equal(munmap(p, KSM_PAGE_SIZE), 0);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_lists),           cmocka_unit_test(test_vmstat_text),   cmocka_unit_test(test_migrations),
                cmocka_unit_test(test_what_is_where),   cmocka_unit_test(test_many_pages),    cmocka_unit_test(test_other_processes),
                cmocka_unit_test(test_bound_segment),   cmocka_unit_test(test_no_such_node),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
