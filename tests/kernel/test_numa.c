/* NUMA nodes: what migration does to tracked pages and merged runs. Most needs two nodes, which scripts/test-guest has (numa2, numa3). */
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "tests/support/kernel.h"

#define NOBODY 65534
#define NODES_MAX 8
#define N_PAGES 32
#define N_MOVES 20
#define READ_PAUSE_USEC 50
#define BALANCING_SEC 60 /* two scans of the process, each a second and more after the last, in emulation */
#define SHARED_MODE (UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MINOR)

/* -- nodes --------------------------------------------------------------------------------------------------- */

static int bind_to(void *at, size_t n_pages, int policy, int node) {
        unsigned long mask = 1UL << node;

        return syscall(SYS_mbind, at, n_pages * KSM_PAGE_SIZE, policy, &mask, 8 * sizeof(mask) + 1, 0) < 0 ? -errno : 0;
}

/* Two nodes with memory, or the fact is skipped. */
static void need_two(int nodes[2]) {
        int n = 0;
        void *p = map_anon(1);

        for (int node = 0; node < NODES_MAX && n < 2; node++)
                if (bind_to(p, 1, MPOL_PREFERRED, node) == 0)
                        nodes[n++] = node;
        if (n < 2)
                fact_skip("one NUMA node with memory; scripts/test-guest numa2 has two");
}

/* One page: node or -errno. A node moves it there. */
static int move_to(void *page, int node, int flags) {
        int status = -1, *nodes = node < 0 ? NULL : &node;

        if (syscall(SYS_move_pages, 0, 1UL, &page, nodes, &status, flags) < 0)
                return -errno;
        return status;
}

static int node_of(void *page) {
        return move_to(page, -1, 0);
}

static void all_on(void *at, size_t n_pages, int node) {
        for (size_t i = 0; i < n_pages; i++)
                CHECK_EQ(node_of(page_at(at, i)), node);
}

/* Each to the node, or as many tries as it takes: a page on another CPU's list of pages not yet on the LRU is refused. */
static void move_all_to(void *at, size_t n_pages, int node, int flags) {
        for (size_t i = 0; i < n_pages; i++)
                for (unsigned tries = 0; node_of(page_at(at, i)) != node; tries++) {
                        CHECK(tries < 1000);
                        (void) move_to(page_at(at, i), node, flags);
                }
}

static void run_on_node(int node) {
        char path[64], text[16] = "";
        cpu_set_t set;

        snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/cpulist", node);
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        CHECK(fd >= 0 && read(fd, text, sizeof(text) - 1) > 0);
        CPU_ZERO(&set);
        CPU_SET(strtoul(text, NULL, 10), &set);
        CHECK(sched_setaffinity(0, sizeof(set), &set) == 0);
}

static void need_root(void) {
        if (geteuid() != 0)
                fact_skip("needs root: CAP_SYS_NICE for MPOL_MF_MOVE_ALL");
}

/* -- another process that maps the same pages ---------------------------------------------------------------------------------- */

struct sharer {
        pid_t pid;
        int socket;
};

/* The child maps what the parent maps, by fork, and reads it; then it answers each byte with the bytes' state. */
static struct sharer share(void *at, size_t n_pages, uint64_t seed) {
        struct sharer s;
        int pair[2];

        CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
        s.pid = fork();
        CHECK(s.pid >= 0);
        if (s.pid == 0) {
                char c = 'y';
                uint64_t pfn;
                close(pair[0]);
                do {
                        for (size_t i = 0; i < n_pages; i++)
                                if (!page_holds(page_at(at, i), seed + i))
                                        c = 'n';
                        pfn = page_pfn(at);
                } while (write(pair[1], &c, 1) == 1 && write(pair[1], &pfn, sizeof(pfn)) > 0 && read(pair[1], &c, 1) == 1);
                _exit(0);
        }
        close(pair[1]);
        s.socket = pair[0];
        return s;
}

/* The frame that it has for the first page, its bytes being right. */
static uint64_t sharer_frame(const struct sharer *s) {
        char c;
        uint64_t pfn;

        CHECK(read(s->socket, &c, 1) == 1 && c == 'y');
        CHECK(read(s->socket, &pfn, sizeof(pfn)) == sizeof(pfn));
        CHECK(write(s->socket, &c, 1) == 1);
        return pfn;
}

static void sharer_end(struct sharer *s) {
        (void) sharer_frame(s); /* after all that was done since the last question */
        close(s->socket);
        CHECK(waitpid(s->pid, NULL, 0) == s->pid);
}

/* -- facts ------------------------------------------------------------------------------------------------------- */

static void node_query_moves_nothing_and_knows_no_zero_page(void) {
        void *p = map_anon(4);
        int fd = uffd_open(TRACK_FEATURES), node;
        uint64_t frame;

        page_fill(p, 1);
        CHECK(page_is_zero(page_at(p, 1)));
        CHECK_EQ(uffd_register(fd, p, 4, UFFDIO_REGISTER_MODE_WP), 0);
        (void) scan_written(p, 4);
        node = node_of(p);
        frame = page_pfn(p);
        if (node == -ENOSYS)
                fact_skip("a kernel without NUMA");
        CHECK(node >= 0);
        CHECK_EQ(node_of(page_at(p, 1)), -EFAULT);
        CHECK_EQ(node_of(page_at(p, 2)), -ENOENT);
        CHECK(move_to(page_at(p, 1), node, MPOL_MF_MOVE) < 0); /* nor can it be moved */
        CHECK(page_categories(page_at(p, 1)) & PAGE_IS_PFNZERO);
        CHECK_EQ(page_pfn(p), frame);
        CHECK_EQ(scan_written(p, 4), 0);
}

static void migration_keeps_protection_and_is_no_write(void) {
        int nodes[2], fd, from;
        void *p;

        need_two(nodes);
        p = map_filled(N_PAGES, 7);
        fd = uffd_open(TRACK_FEATURES);
        CHECK_EQ(uffd_register(fd, p, N_PAGES, UFFDIO_REGISTER_MODE_WP), 0);
        CHECK_EQ(scan_written(p, N_PAGES), N_PAGES);
        from = node_of(p) == nodes[0] ? 0 : 1;
        for (int i = 1; i <= N_MOVES; i++) {
                move_all_to(p, N_PAGES, nodes[(from + i) % 2], MPOL_MF_MOVE);
                CHECK_EQ(scan_written(p, N_PAGES), 0);
        }
        for (size_t i = 0; i < N_PAGES; i++) {
                CHECK(page_holds(page_at(p, i), 7 + i));
                CHECK(page_has_wp_bit(page_at(p, i)));
        }
        page_fill(page_at(p, 3), 99);
        CHECK_EQ(scan_written(p, N_PAGES), 1);
}

struct reading {
        void *at;
        atomic_bool stop;
        atomic_size_t rounds;
};

static void read_always(void *argument) {
        struct reading *r = argument;

        while (!atomic_load(&r->stop)) {
                for (size_t i = 0; i < N_PAGES; i++)
                        CHECK(page_holds(page_at(r->at, i), 100 + i));
                atomic_fetch_add(&r->rounds, 1);
                /* Who comes back after a rest meets an empty entry in each run, who never rests rarely (6.12.95, emulated). */
                (void) usleep(READ_PAUSE_USEC);
        }
}

/* As a page goes its entry is empty for a moment, and who reads it just then waits for userfaultfd, with the page back before the message is
 * read: CONTINUE finds it there, and only the wake is wanted. */
static void answer_faults(int context) {
        struct uffd_msg msg;

        while (uffd_next(context, &msg, 0)) {
                void *page = (void *) (uintptr_t) (msg.arg.pagefault.address & ~(KSM_PAGE_SIZE - 1));

                CHECK_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
                CHECK(msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR);
                CHECK_EQ(uffd_continue(context, page, 1, UFFDIO_CONTINUE_MODE_WP), -EEXIST);
                CHECK_EQ(uffd_wake(context, page, 1), 0);
        }
}

static void migration_of_merged_pages_leaves_them_shared_and_needs_who_answers_faults(void) {
        int nodes[2], context, segment;
        struct reading reading = { 0 };
        struct toucher t;
        struct sharer s;

        need_two(nodes);
        need_root();
        context = uffd_open(SHARED_FEATURES);
        segment = segment_open(N_PAGES, 100);
        reading.at = map_segment(NULL, N_PAGES, segment, 0);
        CHECK_EQ(uffd_register(context, reading.at, N_PAGES, SHARED_MODE), 0);
        CHECK_EQ(uffd_continue(context, reading.at, N_PAGES, UFFDIO_CONTINUE_MODE_WP), 0);
        s = share(reading.at, N_PAGES, 100);
        CHECK_EQ(sharer_frame(&s), page_pfn(reading.at));
        toucher_start(&t, read_always, &reading);
        for (int i = 1; i <= N_MOVES; i++) {
                size_t rounds;

                move_all_to(reading.at, N_PAGES, nodes[i % 2], MPOL_MF_MOVE_ALL);
                rounds = atomic_load(&reading.rounds);
                while (atomic_load(&reading.rounds) == rounds)
                        answer_faults(context);
        }
        atomic_store(&reading.stop, true);
        toucher_join(&t);
        CHECK_EQ(scan_written(reading.at, N_PAGES), 0);
        CHECK_EQ(count_pages(reading.at, N_PAGES, PAGE_IS_PRESENT | PAGE_IS_FILE), N_PAGES);
        CHECK_EQ(count_vmas(reading.at, N_PAGES), 1);
        for (size_t i = 0; i < N_PAGES; i++)
                CHECK(page_has_wp_bit(page_at(reading.at, i)));
        all_on(reading.at, N_PAGES, nodes[N_MOVES % 2]);
        CHECK(page_pfn(reading.at) != 0);
        (void) sharer_frame(&s); /* said before the last moves */
        CHECK_EQ(sharer_frame(&s), page_pfn(reading.at)); /* still the same page for both */
        sharer_end(&s);
}

/* As nobody in a child: what the kernel lets who has no privilege do with pages that others map, too. */
static int as_nobody(int (*run)(void *, int), void *at, int node) {
        int status;
        pid_t child = fork();

        CHECK(child >= 0);
        if (child == 0) {
                CHECK(page_holds(at, 5)); /* maps it: a fork alone does not */
                CHECK(setresgid(NOBODY, NOBODY, NOBODY) == 0 && setresuid(NOBODY, NOBODY, NOBODY) == 0);
                _exit(run(at, node));
        }
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
        return -WEXITSTATUS(status);
}

static int try_move(void *at, int node) {
        return -move_to(at, node, MPOL_MF_MOVE);
}

static int try_move_all(void *at, int node) {
        return -move_to(at, node, MPOL_MF_MOVE_ALL);
}

/* One page of the child's own and the shared ones: 0 when only its own went. */
static int try_migrate(void *at, int node) {
        unsigned long from = ~(1UL << node) & ((1UL << NODES_MAX) - 1), to = 1UL << node;
        void *own = map_anon(1);

        page_fill(own, 1);
        if (node_of(own) == node)
                (void) move_to(own, node == 0 ? 1 : 0, MPOL_MF_MOVE);
        (void) syscall(SYS_migrate_pages, 0, 8 * sizeof(from) + 1, &from, &to);
        return node_of(own) != node || node_of(at) == node;
}

static void shared_pages_move_only_with_privilege(void) {
        int nodes[2];
        void *p;

        need_two(nodes);
        need_root();
        p = map_segment(NULL, 1, segment_open(1, 5), 0);
        CHECK(page_holds(p, 5));
        move_all_to(p, 1, nodes[0], MPOL_MF_MOVE);
        CHECK_EQ(as_nobody(try_move, p, nodes[1]), -EACCES);
        CHECK_EQ(as_nobody(try_move_all, p, nodes[1]), -EPERM);
        CHECK_EQ(as_nobody(try_migrate, p, nodes[1]), 0);
        CHECK_EQ(node_of(p), nodes[0]);
}

/* What migratepages(8) does: one process, by root. */
static void migrate_pages_by_root_takes_shared_pages_along(void) {
        unsigned long from, to;
        int nodes[2];
        struct sharer s;
        void *p;

        need_two(nodes);
        need_root();
        p = map_segment(NULL, N_PAGES, segment_open(N_PAGES, 5), 0);
        CHECK(page_holds(p, 5));
        move_all_to(p, 1, nodes[0], MPOL_MF_MOVE);
        s = share(p, 1, 5);
        CHECK_EQ(sharer_frame(&s), page_pfn(p));
        from = 1UL << nodes[0];
        to = 1UL << nodes[1];
        for (unsigned tries = 0; node_of(p) != nodes[1]; tries++) {
                CHECK(tries < 1000);
                CHECK(syscall(SYS_migrate_pages, s.pid, 8 * sizeof(from) + 1, &from, &to) >= 0); /* the other one's */
        }
        (void) sharer_frame(&s);
        CHECK_EQ(sharer_frame(&s), page_pfn(p));
        CHECK(page_holds(p, 5));
        sharer_end(&s);
}

/* mbind of a mapping of a memfd, even a private one of a read-only fd, is the file's policy from then on. */
static void policy_of_a_segment_is_its_files_and_any_mapping_sets_it(void) {
        int nodes[2], fd = memfd_create("segment", MFD_CLOEXEC | MFD_ALLOW_SEALING), ro;
        char path[64];
        uint8_t *writer, *reader;

        need_two(nodes);
        CHECK(fd >= 0 && ftruncate(fd, (off_t) (16 * KSM_PAGE_SIZE)) == 0);
        writer = mmap(NULL, 16 * KSM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        CHECK(writer != MAP_FAILED);
        for (size_t i = 0; i < 8; i++) {
                int node = nodes[i % 2];
                run_on_node(nodes[i / 2 % 2]);
                CHECK_EQ(bind_to(writer, 16, MPOL_PREFERRED, node), 0);
                page_fill(page_at(writer, i), i);
                CHECK_EQ(node_of(page_at(writer, i)), node);
        }
        CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_GROW | F_SEAL_SHRINK) == 0);
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        ro = open(path, O_RDONLY | O_CLOEXEC);
        CHECK(ro >= 0);
        reader = map_segment(NULL, 16, ro, 0);
        CHECK_EQ(bind_to(reader, 16, MPOL_BIND, nodes[0]), 0);
        run_on_node(nodes[1]);
        page_fill(page_at(writer, 8), 8);
        CHECK_EQ(node_of(page_at(writer, 8)), nodes[0]);
        CHECK_EQ(node_of(page_at(writer, 1)), nodes[1]); /* what is there stays */
}

/* Fills a node as far as the kernel lets: what is asked of it after that comes from another, and nobody is killed for it. */
static void preferred_node_that_is_full_falls_back(void) {
        const size_t step = 512;
        size_t n_pages = (size_t) sysconf(_SC_PHYS_PAGES), n_there = 0, i = 0;
        int nodes[2], node = 0;
        char *p;

        need_two(nodes);
        alarm(BALANCING_SEC); /* instead of the usual watchdog: hundreds of MiB, in emulation */
        p = mmap(NULL, n_pages * KSM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        CHECK(p != MAP_FAILED);
        (void) madvise(p, n_pages * KSM_PAGE_SIZE, MADV_HUGEPAGE);
        CHECK_EQ(bind_to(p, n_pages, MPOL_PREFERRED, nodes[1]), 0);
        for (; i + step <= n_pages; i += step) {
                for (size_t k = 0; k < step; k++)
                        *(char *) page_at(p, i + k) = 1;
                node = node_of(page_at(p, i));
                if (node != nodes[1])
                        break;
                n_there += step;
        }
        printf("%zu MiB on the node, then on node %d\n", n_there >> 8, node);
        CHECK(node >= 0 && node != nodes[1]);
        CHECK(n_there > 0);
}

static double now_sec(void) {
        struct timespec ts;

        (void) clock_gettime(CLOCK_MONOTONIC, &ts);
        return (double) ts.tv_sec + 1e-9 * (double) ts.tv_nsec;
}

static bool balancing_is_on(void) {
        char c = '0';
        _cleanup_close_ int fd = open("/proc/sys/kernel/numa_balancing", O_RDONLY | O_CLOEXEC);

        return fd >= 0 && read(fd, &c, 1) == 1 && c == '1';
}

static size_t count_on(void *at, size_t n_pages, int node) {
        size_t n = 0;

        for (size_t i = 0; i < n_pages; i++)
                n += node_of(page_at(at, i)) == node;
        return n;
}

/* Used from another node for long enough, a process's own pages follow it; what several processes map does not. */
static void balancing_moves_own_pages_unseen_and_leaves_shared_ones(void) {
        int nodes[2], track, shared;
        void *own, *merged;
        struct sharer s;
        struct uffd_msg msg;
        double end = now_sec() + BALANCING_SEC;

        need_two(nodes);
        if (!balancing_is_on())
                fact_skip("kernel.numa_balancing is off");
        alarm(2 * BALANCING_SEC);
        run_on_node(nodes[0]);
        track = uffd_open(TRACK_FEATURES);
        shared = uffd_open(SHARED_FEATURES);
        own = map_filled(N_PAGES, 7);
        merged = map_segment(NULL, N_PAGES, segment_open(N_PAGES, 100), 0);
        CHECK_EQ(uffd_register(shared, merged, N_PAGES, SHARED_MODE), 0);
        CHECK_EQ(uffd_continue(shared, merged, N_PAGES, UFFDIO_CONTINUE_MODE_WP), 0);
        s = share(merged, N_PAGES, 100);
        for (size_t i = 0; i < N_PAGES; i++)
                page_fill(page_at(own, i), 7 + i); /* its own again, after the fork */
        CHECK_EQ(uffd_register(track, own, N_PAGES, UFFDIO_REGISTER_MODE_WP), 0);
        CHECK_EQ(scan_written(own, N_PAGES), N_PAGES);
        all_on(own, N_PAGES, nodes[0]);
        all_on(merged, N_PAGES, nodes[0]);
        run_on_node(nodes[1]);
        while (count_on(own, N_PAGES, nodes[1]) < N_PAGES / 2) {
                CHECK(now_sec() < end);
                for (size_t i = 0; i < N_PAGES; i++)
                        CHECK(page_holds(page_at(own, i), 7 + i) && page_holds(page_at(merged, i), 100 + i));
        }
        printf("%zu of %d own pages, %zu of %d shared ones moved\n", count_on(own, N_PAGES, nodes[1]), N_PAGES,
               count_on(merged, N_PAGES, nodes[1]), N_PAGES);
        all_on(merged, N_PAGES, nodes[0]);
        CHECK_EQ(scan_written(own, N_PAGES), 0);
        CHECK_EQ(scan_written(merged, N_PAGES), 0);
        CHECK(!uffd_next(shared, &msg, 0));
        for (size_t i = 0; i < N_PAGES; i++)
                CHECK(page_has_wp_bit(page_at(own, i)) && page_has_wp_bit(page_at(merged, i)));
        sharer_end(&s);
}

FACTS(FACT(node_query_moves_nothing_and_knows_no_zero_page),
      FACT(migration_keeps_protection_and_is_no_write),
      FACT(migration_of_merged_pages_leaves_them_shared_and_needs_who_answers_faults),
      FACT(shared_pages_move_only_with_privilege),
      FACT(migrate_pages_by_root_takes_shared_pages_along),
      FACT(policy_of_a_segment_is_its_files_and_any_mapping_sets_it),
      FACT(preferred_node_that_is_full_falls_back),
      FACT(balancing_moves_own_pages_unseen_and_leaves_shared_ones))
