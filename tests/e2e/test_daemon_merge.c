/* The path from a written page to a shared one, through the real daemon: scan, read, publish, APPLY. The agents are fakes
 * (tests/support/fake_agent.h) on real memory; what they have merged is checked against the bytes and against pagemap. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/tunables.h"
#include "common/uapi.h"
#include "daemon/sys/clock.h"
#include "daemon/sys/pagemap.h"
#include "tests/support/daemon_process.h"
#include "tests/support/fake_agent.h"

#define NOBODY 65534

static struct daemon_process the_daemon;
static int admin = -1;

static int setup(void **state) {
        static const char *const arguments[] = { "--log-level=debug", "--open-to-all=yes", "--pass_millisecs=10", "--settle_millisecs=20",
                                                 "--sleep_millisecs=1", NULL };
        daemon_start(&the_daemon, arguments);
        admin = admin_connect(&the_daemon, NULL);
        return 0;
}

static int teardown(void **state) {
        if (daemon_log_lines(&the_daemon, "disconnected"))
                daemon_print_log(&the_daemon);
        admin = close_fd(admin);
        daemon_stop(&the_daemon);
        return 0;
}

static struct counters now_counters(void) {
        struct counters c;
        get_counters(admin, &c);
        return c;
}

static bool is_readable(int fd) {
        struct pollfd wait = { .fd = fd, .events = POLLIN };
        return poll(&wait, 1, 0) > 0;
}

/* Content that no other seed has. */
static void fill(void *page, uint64_t seed) {
        uint64_t *p = page;
        for (size_t i = 0; i < KSM_PAGE_SIZE / sizeof(*p); i++)
                p[i] = (seed + 1) * 0x9E3779B97F4A7C15 + i;
}

static void assert_filled(const void *page, uint64_t seed) {
        uint64_t want[KSM_PAGE_SIZE / sizeof(uint64_t)];
        fill(want, seed);
        assert_memory_equal(page, want, sizeof(want));
}

/* Serves the agents until the condition holds; a bound ends it. */
#define SERVE_UNTIL(condition, ...)                                                                      \
        do {                                                                                             \
                struct fake_agent *_agents[] = { __VA_ARGS__ __VA_OPT__(, ) NULL };                      \
                uint64_t _deadline = now_usec() + TEST_BOUND_MSEC * USEC_PER_MSEC;                       \
                while (!(condition)) {                                                                   \
                        for (struct fake_agent **_a = _agents; *_a; _a++)                                \
                                while (fake_agent_step(*_a, 1))                                          \
                                        ;                                                                \
                        (void) usleep(1000);                                                             \
                        if (now_usec() > _deadline) {                                                    \
                                daemon_print_log(&the_daemon);                                           \
                                fail_msg("line %d: not within the bound: %s", __LINE__, #condition);     \
                        }                                                                                \
                }                                                                                        \
        } while (0)

/* Pages of the agent that the kernel says are page cache of a file, that is: merged. */
static uint64_t count_file_pages(const struct fake_agent *a) {
        struct page_region regions[1024];
        _cleanup_close_ int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
        size_t n;
        uint64_t end, pages = 0, first = (uintptr_t) a->memory >> KSM_PAGE_SHIFT;
        assert_int_equal(pagemap_scan(fd, first, a->n_pages, PAGEMAP_PRESENT, regions, ARRAY_SIZE(regions), &n, &end), 0);
        assert_int_equal(end, first + a->n_pages);
        for (size_t i = 0; i < n; i++)
                if (regions[i].categories & PAGE_IS_FILE)
                        pages += (regions[i].end - regions[i].start) >> KSM_PAGE_SHIFT;
        return pages;
}

/* 128 pages twice, 64 pages of zeros, 64 unique ones. */
static void test_scan_read_publish_apply(void **state) {
        struct fake_agent a;
        fake_agent_start(&a, &the_daemon);
        fake_agent_map(&a, 320);
        for (size_t i = 0; i < 128; i++) {
                fill(fake_page(&a, i), i);
                fill(fake_page(&a, 128 + i), i);
        }
        memset(fake_page(&a, 256), 0, 32 * KSM_PAGE_SIZE);
        for (size_t i = 288; i < 320; i++)
                fill(fake_page(&a, i), 1000 + i);
        fake_agent_announce(&a);
        SERVE_UNTIL(a.merged == 256 && a.zeroed == 32, &a);
        assert_int_equal(count_file_pages(&a), 256);
        SERVE_UNTIL(now_counters().pages_sharing == 128, &a);
        struct counters c = now_counters();
        assert_int_equal(c.pages_shared, 128);
        assert_int_equal(c.ksm_zero_pages, 32);
        assert_int_equal(c.pages_unshared, 32);
        assert_int_equal(c.registered_pages, 320);
        assert_int_equal(c.clients, 1);
        assert_true(c.pages_scanned >= 320);
        assert_true(c.daemon_cpu_usec > 0);
        assert_int_equal(c.failed_changed, 0);
        for (size_t i = 0; i < 128; i++) {
                assert_filled(fake_page(&a, i), i);
                assert_filled(fake_page(&a, 128 + i), i);
        }

        /* A write takes a page out, the scan notices. */
        for (size_t i = 0; i < 10; i++)
                fill(fake_page(&a, i), 5000 + i);
        SERVE_UNTIL(now_counters().pages_sharing == 118, &a);
        assert_int_equal(count_file_pages(&a), 246);

        /* Unmerge on an administrator's word: everything comes back, bytes as they were. */
        struct msg_admin_unmerge unmerge = { .pid = (uint32_t) getpid() };
        assert_int_equal(channel_send(admin, MSG_ADMIN_UNMERGE, &unmerge, NULL, 0, NULL, 0), 0);
        SERVE_UNTIL(is_readable(admin), &a);
        static struct channel_message m;
        receive_frame(admin, MSG_ADMIN_DONE, &m);
        const struct msg_admin_done *done = m.frame.body;
        assert_int_equal(done->error, 0);
        /* The written ones too: their mapping is the segment's still. */
        assert_int_equal(a.restored, 256);
        assert_in_range(done->pages, 246, 256);
        assert_int_equal(done->left, 0);
        assert_int_equal(count_file_pages(&a), 0);
        for (size_t i = 0; i < 128; i++) {
                assert_filled(fake_page(&a, i), i < 10 ? 5000 + i : i);
                assert_filled(fake_page(&a, 128 + i), i);
        }
        /* Nobody shares any more: the segments go, here and there. */
        SERVE_UNTIL(now_counters().segments == 0 && a.n_segments == 0, &a);
        fake_agent_stop(&a);
        SERVE_UNTIL(now_counters().tracked_pages == 0);
}

/* A merge on demand ends with MERGE_DONE, and long before the settling time of ordinary passes. */
static void test_merge_request(void **state) {
        struct fake_agent a;
        struct msg_admin_done done;
        admin_request(admin, MSG_TUNABLE_SET, &(struct msg_tunable_set){ .id = TUNABLE_settle_millisecs, .value = 3600000 },
                      &done);
        assert_int_equal(done.error, 0);
        fake_agent_start(&a, &the_daemon);
        fake_agent_map(&a, 128);
        for (size_t i = 0; i < 128; i++)
                fill(fake_page(&a, i), i % 64);
        fake_agent_announce(&a);
        const struct msg_merge_request request = { .cookie = 77, .start = (uintptr_t) a.memory,
                                                   .length = 128 * KSM_PAGE_SIZE };
        assert_int_equal(channel_send(a.fd, MSG_MERGE_REQUEST, &request, NULL, 0, NULL, 0), 0);
        SERVE_UNTIL(a.merge_done, &a);
        assert_int_equal(a.last_merge_done.cookie, 77);
        assert_int_equal(a.last_merge_done.error, 0);
        assert_int_equal(a.merged, 128);
        assert_int_equal(count_file_pages(&a), 128);

        /* Not registered: an error, at once. */
        a.merge_done = false;
        const struct msg_merge_request elsewhere = { .cookie = 78, .start = KSM_PAGE_SIZE, .length = KSM_PAGE_SIZE };
        assert_int_equal(channel_send(a.fd, MSG_MERGE_REQUEST, &elsewhere, NULL, 0, NULL, 0), 0);
        SERVE_UNTIL(a.merge_done, &a);
        assert_int_equal(a.last_merge_done.cookie, 78);
        assert_true(a.last_merge_done.error > 0);
        fake_agent_stop(&a);
        admin_request(admin, MSG_TUNABLE_SET, &(struct msg_tunable_set){ .id = TUNABLE_settle_millisecs, .value = 20 },
                      &done);
        SERVE_UNTIL(now_counters().tracked_pages == 0 && now_counters().segments == 0);
}

/* Two clients share; one vanishes in the middle; the other goes on. */
static void test_client_vanishes(void **state) {
        struct fake_agent a, b;
        fake_agent_start(&a, &the_daemon);
        fake_agent_start(&b, &the_daemon);
        fake_agent_map(&a, 256);
        fake_agent_map(&b, 256);
        for (size_t i = 0; i < 256; i++) {
                fill(fake_page(&a, i), i);
                fill(fake_page(&b, i), i);
        }
        fake_agent_announce(&a);
        fake_agent_announce(&b);
        SERVE_UNTIL(a.merged > 0 && b.merged > 0, &a, &b);
        fake_agent_stop(&b);
        SERVE_UNTIL(now_counters().clients == 1, &a);
        SERVE_UNTIL(now_counters().pages_sharing == 0, &a);
        for (size_t i = 0; i < 256; i++)
                assert_filled(fake_page(&a, i), i);
        fake_agent_stop(&a);
        SERVE_UNTIL(now_counters().clients == 0 && now_counters().segments == 0 && now_counters().tracked_pages == 0);
}

/* Equal bytes of another user are never offered (I4): each has segments of its own or none at all. */
static void test_users_do_not_share(void **state) {
        if (getuid() != 0)
                skip();
        int go[2];
        assert_int_equal(pipe2(go, O_CLOEXEC), 0);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                char byte;
                struct fake_agent b;
                if (setgroups(0, NULL) < 0 || setgid(NOBODY) < 0 || setuid(NOBODY) < 0)
                        _exit(2);
                /* After setuid a process is not dumpable, which the daemon refuses: exec would end that, prctl does too. */
                if (prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) < 0)
                        _exit(3);
                fake_agent_start(&b, &the_daemon);
                fake_agent_map(&b, 64);
                for (size_t i = 0; i < 64; i++)
                        fill(fake_page(&b, i), i);
                fake_agent_announce(&b);
                (void) fcntl(go[0], F_SETFL, O_NONBLOCK);
                close_fd(go[1]);
                while (read(go[0], &byte, 1) < 0)
                        while (fake_agent_step(&b, 5))
                                ;
                _exit(b.applies || b.n_segments ? 4 : 0);
        }
        close_fd(go[0]);
        struct fake_agent a;
        fake_agent_start(&a, &the_daemon);
        fake_agent_map(&a, 64);
        for (size_t i = 0; i < 64; i++)
                fill(fake_page(&a, i), i);
        fake_agent_announce(&a);
        /* Both known and read: 64 unique pages each, and two more passes for good measure. */
        SERVE_UNTIL(now_counters().pages_unshared == 128 && now_counters().domains == 2, &a);
        int64_t scans = now_counters().full_scans;
        SERVE_UNTIL(now_counters().full_scans >= scans + 2, &a);
        assert_int_equal(now_counters().pages_shared, 0);
        assert_int_equal(a.applies, 0);
        close_fd(go[1]);
        int status;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
        fake_agent_stop(&a);
        SERVE_UNTIL(now_counters().tracked_pages == 0);
}

static uint32_t client_state(uint32_t client) {
        static struct channel_message m;
        const struct msg_clients_request request = { .after = client - 1 };
        assert_int_equal(channel_send(admin, MSG_CLIENTS_REQUEST, &request, NULL, 0, NULL, 0), 0);
        receive_frame(admin, MSG_CLIENTS_REPLY, &m);
        assert_true(m.frame.count >= 1);
        const struct client_element *e = m.frame.elements;
        assert_int_equal(e->client, client);
        assert_int_equal(e->pid, getpid());
        assert_string_equal(e->comm, "fake-agent");
        return e->state;
}

/* An agent that does not answer is parked, and taken up again when it does; the other one is served all the time. */
static void test_silent_agent_is_parked(void **state) {
        struct fake_agent a, b;
        fake_agent_start(&a, &the_daemon);
        fake_agent_map(&a, 128);
        for (size_t i = 0; i < 128; i++)
                fill(fake_page(&a, i), i % 64);
        a.mute = true;
        fake_agent_announce(&a);
        SERVE_UNTIL(a.has_held, &a);
        assert_int_equal(client_state(a.client), CLIENT_ACTIVE);
        SERVE_UNTIL(client_state(a.client) == CLIENT_PARKED, &a);
        uint64_t applies = a.applies;

        fake_agent_start(&b, &the_daemon);
        fake_agent_map(&b, 128);
        for (size_t i = 0; i < 128; i++)
                fill(fake_page(&b, i), 300 + i % 64);
        fake_agent_announce(&b);
        SERVE_UNTIL(b.merged == 128, &a, &b);
        assert_int_equal(a.applies, applies); /* no new work while parked */

        a.mute = false;
        const struct msg_agent_stats stats = { .cpu_usec = 5, .transitions = 3, .busy = 2, .waits = { 1, 0, 4 } };
        assert_int_equal(channel_send(a.fd, MSG_AGENT_STATS, &stats, NULL, 0, NULL, 0), 0);
        SERVE_UNTIL(client_state(a.client) == CLIENT_ACTIVE, &a, &b);
        struct counters c = now_counters();
        assert_int_equal(c.agents_cpu_usec, 5);
        assert_int_equal(c.transitions, 3);
        assert_int_equal(c.agent_busy, 2);
        assert_int_equal(c.wait_le_64_usec, 1);
        assert_int_equal(c.wait_le_256_usec, 4);
        fake_agent_stop(&a);
        fake_agent_stop(&b);
        SERVE_UNTIL(now_counters().clients == 0 && now_counters().tracked_pages == 0);
        assert_int_equal(now_counters().transitions, 3); /* what those who left did still counts */
}

/* Refusals of every kind are counted by reason and end; the daemon does not insist for ever, nor stop for others. */
static void test_refusals_are_counted(void **state) {
        struct fake_agent a;
        fake_agent_start(&a, &the_daemon);
        fake_agent_map(&a, 128);
        for (size_t i = 0; i < 128; i++)
                fill(fake_page(&a, i), i % 64);
        a.refuse = APPLY_PINNED_OR_FORKED;
        int64_t before = now_counters().failed_pinned_or_forked;
        fake_agent_announce(&a);
        SERVE_UNTIL(now_counters().failed_pinned_or_forked > before, &a);
        assert_int_equal(now_counters().pages_sharing, 0);
        assert_int_equal(count_file_pages(&a), 0);
        fake_agent_stop(&a);
        SERVE_UNTIL(now_counters().clients == 0 && now_counters().tracked_pages == 0);
}

/* A client that changes mappings behind libc's back is left alone: no work reaches it, not even an unmerge. */
static void test_raw_client_is_left_alone(void **state) {
        struct fake_agent a, b;
        struct msg_admin_done done;
        fake_agent_start(&a, &the_daemon);
        const struct msg_agent_stats stats = { .flags = AGENT_RAW };
        fake_agent_map(&a, 128);
        for (size_t i = 0; i < 128; i++)
                fill(fake_page(&a, i), i % 64);
        /* Announced, with a merge on demand under way, and raw, before the daemon can look: it must be answered, too. */
        const struct msg_merge_request request = { .cookie = 80, .start = (uintptr_t) a.memory,
                                                   .length = 128 * KSM_PAGE_SIZE };
        assert_int_equal(kill(the_daemon.pid, SIGSTOP), 0);
        fake_agent_announce(&a);
        assert_int_equal(channel_send(a.fd, MSG_MERGE_REQUEST, &request, NULL, 0, NULL, 0), 0);
        assert_int_equal(channel_send(a.fd, MSG_AGENT_STATS, &stats, NULL, 0, NULL, 0), 0);
        assert_int_equal(kill(the_daemon.pid, SIGCONT), 0);
        SERVE_UNTIL(a.merge_done, &a);
        assert_int_equal(a.last_merge_done.cookie, 80);
        assert_int_equal(a.last_merge_done.error, EOPNOTSUPP);
        a.merge_done = false;
        assert_int_equal(channel_send(a.fd, MSG_MERGE_REQUEST, &request, NULL, 0, NULL, 0), 0);
        SERVE_UNTIL(a.merge_done, &a);
        assert_int_equal(a.last_merge_done.error, EOPNOTSUPP);
        SERVE_UNTIL(client_state(a.client) == CLIENT_RAW, &a);
        assert_int_equal(now_counters().raw_syscalls, 1);
        admin_request(admin, MSG_ADMIN_UNMERGE, &(struct msg_admin_unmerge){ .pid = (uint32_t) getpid() }, &done);
        assert_int_equal(done.error, EOPNOTSUPP);
        /* Nor while another one with the same pages is merged, and some passes more. */
        fake_agent_start(&b, &the_daemon);
        fake_agent_map(&b, 128);
        for (size_t i = 0; i < 128; i++)
                fill(fake_page(&b, i), i % 64);
        fake_agent_announce(&b);
        SERVE_UNTIL(b.merged == 128, &a, &b);
        int64_t scans = now_counters().full_scans;
        SERVE_UNTIL(now_counters().full_scans >= scans + 5, &a, &b);
        assert_int_equal(a.applies, 0);
        fake_agent_stop(&a);
        fake_agent_stop(&b);
        SERVE_UNTIL(now_counters().clients == 0 && now_counters().tracked_pages == 0);
}

/* A hostile client: its memory makes whoever reads it wait for ever, while it answers every PING. It loses its connection and
 * its user is refused until the reader is back; others are served meanwhile. */
static void test_memory_that_hangs_readers(void **state) {
        struct fake_agent a, b;
        struct msg_admin_done done;
        if (getuid() != 0) /* the fast path, which can hang, is permitted */
                skip();
        /* Read after half a second, that is: before one of the rarer looks for vanished pages tells that they are gone. */
        admin_request(admin, MSG_TUNABLE_SET, &(struct msg_tunable_set){ .id = TUNABLE_pass_millisecs, .value = 200 },
                      &done);
        admin_request(admin, MSG_TUNABLE_SET, &(struct msg_tunable_set){ .id = TUNABLE_settle_millisecs, .value = 500 },
                      &done);
        int device;
        close_fd(agent_connect(&the_daemon, NULL, &device));
        _cleanup_close_ int guard = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
        close_fd(device);
        struct uffdio_api api = { .api = UFFD_API };
        assert_int_equal(ioctl(guard, UFFDIO_API, &api), 0);

        fake_agent_start(&a, &the_daemon);
        fake_agent_map(&a, 64);
        for (size_t i = 0; i < 64; i++)
                fill(fake_page(&a, i), i);
        fake_agent_announce(&a);
        SERVE_UNTIL(now_counters().tracked_pages == 64, &a);
        /* Seen by the scan; now each becomes a hole whose faults nobody answers. */
        struct uffdio_range range = { (uintptr_t) a.memory, 64 * KSM_PAGE_SIZE };
        assert_int_equal(ioctl(a.track, UFFDIO_UNREGISTER, &range), 0);
        assert_int_equal(madvise(a.memory, 64 * KSM_PAGE_SIZE, MADV_DONTNEED), 0);
        struct uffdio_register r = { .range = range, .mode = UFFDIO_REGISTER_MODE_MISSING };
        assert_int_equal(ioctl(guard, UFFDIO_REGISTER, &r), 0);

        /* The daemon goes on: the administrator is answered, another client of another domain would be too. */
        unsigned waited = 0;
        while (!daemon_log_lines(&the_daemon, "a reader hangs on memory of this user")) {
                (void) now_counters();
                while (fake_agent_step_unless_closed(&a, 5))
                        ;
                assert_true(waited++ < TEST_BOUND_MSEC / 5);
        }
        const struct msg_hello hello = { .page_size = KSM_PAGE_SIZE, .comm = "next" };
        int refused = peer_connect(&the_daemon);
        agent_send_hello(refused, &hello, admin, admin);
        expect_closed(refused, EUSERS);
        close_fd(refused);
        /* Its end frees the reader, and its user is welcome again. */
        assert_int_equal(ioctl(guard, UFFDIO_UNREGISTER, &range), 0);
        daemon_wait_log(&the_daemon, "memory came back", 1);
        fake_agent_stop(&a);
        fake_agent_start(&b, &the_daemon);
        fake_agent_stop(&b);
        SERVE_UNTIL(now_counters().clients == 0 && now_counters().tracked_pages == 0);
}

/* Each has a daemon of its own: what one leaves behind is not the next one's. */
#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(int argc, char **argv) {
        const struct CMUnitTest tests[] = {
                TEST(test_scan_read_publish_apply), TEST(test_merge_request),
                TEST(test_client_vanishes),         TEST(test_users_do_not_share),
                TEST(test_silent_agent_is_parked),  TEST(test_refusals_are_counted),
                TEST(test_raw_client_is_left_alone), TEST(test_memory_that_hangs_readers),
        };
        if (argc != 2)
                return 64;
        daemon_program(argv[1]);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
