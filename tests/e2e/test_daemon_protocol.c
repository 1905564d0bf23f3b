/* Peers that break the protocol: the offender alone is disconnected, with one log line; an agent and an administrator who
 * are connected all the time notice nothing; no fd is left behind in the daemon. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/tunables.h"
#include "tests/support/daemon_process.h"
#include "tests/support/frames.h"

#define NOBODY 65534

static struct daemon_process the_daemon;
static int bystander_admin = -1, bystander_agent = -1;
static unsigned violations; /* log lines so far */

static int setup(void **state) {
        static const char *const arguments[] = { "--log-level=debug", "--open-to-all=yes", "--max-clients-per-uid=40", NULL };
        daemon_start(&the_daemon, arguments);
        bystander_admin = admin_connect(&the_daemon, NULL);
        bystander_agent = agent_connect(&the_daemon, NULL, NULL);
        return 0;
}

static int teardown(void **state) {
        close_fd(bystander_admin);
        close_fd(bystander_agent);
        daemon_stop(&the_daemon);
        return 0;
}

/* After the offender is gone: one more line, and the others are served. */
static void assert_only_offender(const char *reason) {
        struct counters counters;
        char line[160];
        (void) snprintf(line, sizeof(line), "client pid %d uid %u disconnected: ", (int) getpid(), getuid());
        daemon_wait_log(&the_daemon, line, violations + 1);
        get_counters(bystander_admin, &counters);
        assert_int_equal(counters.clients, 1);
        if (daemon_log_lines(&the_daemon, line) != violations + 1 || !daemon_log_lines(&the_daemon, reason)) {
                daemon_print_log(&the_daemon);
                fail_msg("expected one line more, with: %s", reason);
        }
        violations++;
}

enum setting { FRESH, AGENT, ADMIN };

static void send_raw(int fd, const void *packet, size_t size, const int *fds, unsigned n_fds) {
        struct iovec part = { (void *) packet, size };
        union {
                struct cmsghdr align;
                char bytes[CMSG_SPACE(sizeof(int) * 16)];
        } control = { 0 };
        struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };
        if (n_fds) {
                message.msg_control = &control;
                message.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
                struct cmsghdr *c = &control.align;
                c->cmsg_level = SOL_SOCKET;
                c->cmsg_type = SCM_RIGHTS;
                c->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
                memcpy(CMSG_DATA(c), fds, sizeof(int) * n_fds);
        }
        assert_int_equal(sendmsg(fd, &message, MSG_NOSIGNAL), size);
}

static int open_as(enum setting setting) {
        return setting == FRESH ? peer_connect(&the_daemon)
               : setting == ADMIN ? admin_connect(&the_daemon, NULL) : agent_connect(&the_daemon, NULL, NULL);
}

/* A frame made well formed, then spoilt by the mutation. */
struct broken_frame {
        enum setting setting;
        enum message_type type;
        uint32_t count;
        unsigned n_fds;
        int cut;             /* bytes more (or fewer) than the frame has */
        int poke_at;         /* byte that is changed; -1 = none */
        uint8_t poke;
        int error;           /* of the REFUSED that comes first */
        const char *reason;
};

static const struct broken_frame broken_frames[] = {
        /* packets */
        { FRESH, MSG_HELLO, 0, 2, -1, -1, 0, 0, "protocol violation" },
        { FRESH, MSG_HELLO, 0, 2, 8, -1, 0, 0, "protocol violation" },
        { FRESH, MSG_HELLO, 0, 0, 16 - 56, -1, 0, 0, "protocol violation" },
        { AGENT, MSG_PONG, 0, 0, FRAME_MAX_BYTES, -1, 0, 0, "protocol violation" },
        /* header: version, type, count, reserved */
        { FRESH, MSG_HELLO, 0, 2, 0, 6, 9, EPROTONOSUPPORT, "another protocol version" },
        { FRESH, MSG_HELLO, 0, 2, 0, 4, 99, 0, "protocol violation" },
        { AGENT, MSG_RANGE_DEL, 2, 0, 0, 8, 3, 0, "protocol violation" },
        { AGENT, MSG_RANGE_DEL, 2, 0, 0, 12, 1, 0, "protocol violation" },
        /* bodies and elements */
        { AGENT, MSG_RANGE_DEL, 1, 0, 0, 16, 1, 0, "protocol violation" },
        { AGENT, MSG_RANGE_DEL, 1, 0, 0, 24, 1, 0, "protocol violation" }, /* start not a page multiple */
        { AGENT, MSG_RANGE_DEL, 1, 0, 0, 31, 0xff, 0, "protocol violation" },
        /* fds: too many, too few, where none belong */
        { FRESH, MSG_HELLO, 0, 3, 0, -1, 0, 0, "protocol violation" },
        { FRESH, MSG_HELLO, 0, 4, 0, -1, 0, 0, "protocol violation" },
        { FRESH, MSG_HELLO, 0, 16, 0, -1, 0, 0, "protocol violation" },
        { FRESH, MSG_HELLO, 0, 1, 0, -1, 0, 0, "protocol violation" },
        { AGENT, MSG_AGENT_STATS, 0, 1, 0, -1, 0, 0, "protocol violation" },
        { FRESH, MSG_ADMIN_HELLO, 0, 1, 0, -1, 0, 0, "protocol violation" },
        /* order and role */
        { FRESH, MSG_RANGE_ADD, 1, 0, 0, -1, 0, 0, "RANGE_ADD before the first HELLO" },
        { FRESH, MSG_STATS_REQUEST, 0, 0, 0, -1, 0, 0, "STATS_REQUEST before the first HELLO" },
        { FRESH, MSG_WELCOME, 0, 1, 0, -1, 0, 0, "protocol violation" },
        { AGENT, MSG_HELLO, 0, 2, 0, -1, 0, 0, "protocol violation" }, /* its descriptors are not even received */
        { AGENT, MSG_STATS_REQUEST, 0, 0, 0, -1, 0, 0, "protocol violation" },
        { AGENT, MSG_ADMIN_HELLO, 0, 0, 0, -1, 0, 0, "protocol violation" },
        { AGENT, MSG_APPLIED, 0, 0, 0, -1, 0, 0, "APPLIED for a transition that was not asked for" },
        { AGENT, MSG_PONG, 0, 0, 0, -1, 0, 0, "PONG without a PING" },
        { ADMIN, MSG_ADMIN_HELLO, 0, 0, 0, -1, 0, 0, "a second ADMIN_HELLO" },
        { ADMIN, MSG_RANGE_ADD, 1, 0, 0, -1, 0, 0, "protocol violation" },
        { ADMIN, MSG_HELLO, 0, 2, 0, -1, 0, 0, "protocol violation" },
};

static void test_broken_frames(void **state) {
        _cleanup_close_ int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        int fds[16];
        for (unsigned i = 0; i < ARRAY_SIZE(fds); i++)
                fds[i] = null_fd;
        for (unsigned i = 0; i < ARRAY_SIZE(broken_frames); i++) {
                static _Alignas(FRAME_ALIGN) uint8_t packet[3 * FRAME_MAX_BYTES];
                const struct broken_frame *b = &broken_frames[i];
                uint64_t seed = 1 + i;
                print_message("broken frame %u: %s\n", i, message_name((uint16_t) b->type));
                memset(packet, 0, sizeof(packet));
                size_t size = random_frame(packet, (uint16_t) b->type, b->count, &seed);
                if (b->poke_at >= 0)
                        packet[b->poke_at] = b->poke;
                int fd = open_as(b->setting);
                send_raw(fd, packet, (size_t) ((int) size + b->cut), fds, b->n_fds);
                expect_closed(fd, b->error);
                close_fd(fd);
                assert_only_offender(b->reason);
        }
}

/* The daemon takes nothing for a process that is not one. */
static void test_false_descriptors(void **state) {
        const struct {
                const char *pagemap, *mem;
                int flags;
                const char *reason;
        } cases[] = {
                { "/dev/null", "/proc/self/mem", O_RDONLY, "first descriptor is not" },
                { "/proc/self/pagemap", "/dev/zero", O_RDONLY, "second descriptor is not" },
                { "/proc/self/pagemap", "/proc/self/mem", O_RDWR, "second descriptor is not a read-only" },
                { "/proc/self/mem", "/proc/self/pagemap", O_RDONLY, "first descriptor is not" },
                { "/proc/1/pagemap", "/proc/self/mem", O_RDONLY, "descriptors of two different processes" },
                { "/proc/self/pagemap", "/proc/thread-self/mem", O_RDONLY, "second descriptor is not" },
                { "/proc/self/maps", "/proc/self/mem", O_RDONLY, "first descriptor is not" },
        };
        const struct msg_hello hello = { .page_size = KSM_PAGE_SIZE, .comm = "liar" };
        for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
                _cleanup_close_ int pagemap = open(cases[i].pagemap, O_RDONLY | O_CLOEXEC);
                _cleanup_close_ int mem = open(cases[i].mem, cases[i].flags | O_CLOEXEC);
                if (pagemap < 0) /* another process's pagemap needs privilege */
                        continue;
                int fd = peer_connect(&the_daemon);
                agent_send_hello(fd, &hello, pagemap, mem);
                expect_closed(fd, EINVAL);
                close_fd(fd);
                assert_only_offender(cases[i].reason);
        }
}

static void test_wrong_page_size(void **state) {
        const struct msg_hello hello = { .page_size = 16384, .comm = "big" };
        _cleanup_close_ int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        int fd = peer_connect(&the_daemon);
        agent_send_hello(fd, &hello, null_fd, null_fd);
        expect_closed(fd, EINVAL);
        close_fd(fd);
        assert_only_offender("page size is not 4096");
}

/* Valid frames in an order that makes no sense, until one is a violation or all are sent. */
static void test_random_agents(void **state) {
        static _Alignas(FRAME_ALIGN) uint8_t packet[FRAME_MAX_BYTES];
        static const uint16_t types[] = { MSG_RANGE_ADD, MSG_RANGE_DEL, MSG_GONE, MSG_MERGE_REQUEST, MSG_AGENT_STATS,
                                          MSG_RANGE_ADD, MSG_RANGE_DEL, MSG_GONE, MSG_MERGE_REQUEST, MSG_APPLIED };
        for (uint64_t seed = 1; seed <= 40; seed++) {
                uint64_t random = seed * 0x9E3779B97F4A7C15;
                int fd = agent_connect(&the_daemon, NULL, NULL);
                for (unsigned i = 0; i < 50; i++) {
                        uint16_t type = types[random_below(&random, ARRAY_SIZE(types))];
                        size_t size = random_frame(packet, type, (uint32_t) random_below(&random, 8), &random);
                        if (send(fd, packet, size, MSG_NOSIGNAL) < 0)
                                break;
                }
                close_fd(fd);
        }
        struct counters counters;
        char line[160];
        get_counters(bystander_admin, &counters);
        (void) snprintf(line, sizeof(line), "client pid %d uid %u disconnected: ", (int) getpid(), getuid());
        violations = daemon_log_lines(&the_daemon, line);
}

/* It asks and asks and never reads. */
static void test_reader_that_does_not_read(void **state) {
        const struct msg_merge_request request = { .cookie = 1, .start = KSM_PAGE_SIZE, .length = KSM_PAGE_SIZE };
        int fd = agent_connect(&the_daemon, NULL, NULL), r;
        unsigned n = 0;
        do
                r = channel_send(fd, MSG_MERGE_REQUEST, &request, NULL, 0, NULL, 0);
        while (r == 0 && ++n < 1000000);
        assert_true(r == -EPIPE || r == -ECONNRESET);
        close_fd(fd);
        assert_only_offender("does not read what it is sent");
}

/* More answers wait than its socket takes. Each that is read makes room there, for the oldest of the others and no newer one: the
 * kernel says that there is room only when three quarters are free, so the next request comes before that. */
static void test_answers_keep_their_order(void **state) {
        static struct channel_message m;
        struct msg_merge_request request = { .start = KSM_PAGE_SIZE, .length = KSM_PAGE_SIZE };
        int fd = agent_connect(&the_daemon, NULL, NULL);
        for (unsigned i = 0; i < 2000; i++) {
                request.cookie = i;
                assert_int_equal(channel_send(fd, MSG_MERGE_REQUEST, &request, NULL, 0, NULL, 0), 0);
        }
        for (unsigned i = 0; i < 4000; i++) {
                receive_frame(fd, MSG_MERGE_DONE, &m);
                assert_int_equal(((const struct msg_merge_done *) m.frame.body)->cookie, i);
                channel_message_done(&m);
                if (i >= 2000)
                        continue;
                request.cookie = 2000 + i;
                assert_int_equal(channel_send(fd, MSG_MERGE_REQUEST, &request, NULL, 0, NULL, 0), 0);
        }
        unsigned left = daemon_log_lines(&the_daemon, " left");
        close_fd(fd);
        daemon_wait_log(&the_daemon, " left", left + 1);
}

/* Killed agents leave frames unread: no misdeed, no line in the log. */
static void test_leaving_with_unread_frames(void **state) {
        const struct msg_merge_request request = { .cookie = 1, .start = KSM_PAGE_SIZE, .length = KSM_PAGE_SIZE };
        struct counters counters;
        unsigned before = daemon_log_lines(&the_daemon, "disconnected"), left = daemon_log_lines(&the_daemon, " left");
        for (unsigned i = 0; i < 20; i++) {
                int fd = agent_connect(&the_daemon, NULL, NULL);
                assert_int_equal(channel_send(fd, MSG_MERGE_REQUEST, &request, NULL, 0, NULL, 0), 0);
                get_counters(bystander_admin, &counters); /* the reply is on its way, or there */
                close_fd(fd);
        }
        daemon_wait_log(&the_daemon, " left", left + 20);
        assert_int_equal(daemon_log_lines(&the_daemon, "disconnected"), before);
}

/* Ranges where nothing is, where nothing can be, and as large as addresses go: walked in no time, harming nobody. */
static void test_lies_about_addresses(void **state) {
        static const struct range_element lies[] = {
                { UINT64_C(1) << 50, UINT64_C(1) << 30 },              /* no address of this machine: the scan fails */
                { UINT64_C(1) << 40, UINT64_C(1) << 45 },              /* 32 TiB of nothing */
                { KSM_PAGE_SIZE, ADDRESS_LIMIT - 2 * KSM_PAGE_SIZE }, /* all there is */
        };
        struct counters before, counters;
        get_counters(bystander_admin, &before);
        for (unsigned i = 0; i < ARRAY_SIZE(lies); i++) {
                const struct msg_range_add body = { .n_vmas = 50 };
                unsigned waited = 0;
                int fd = agent_connect(&the_daemon, NULL, NULL);
                assert_int_equal(channel_send(fd, MSG_RANGE_ADD, &body, &lies[i], 1, NULL, 0), 0);
                do {
                        (void) usleep(1000);
                        get_counters(bystander_admin, &counters);
                        assert_true(waited++ < TEST_BOUND_MSEC);
                } while (counters.registered_pages == 0);
                close_fd(fd);
                do
                        get_counters(bystander_admin, &counters);
                while (counters.registered_pages != 0 && waited++ < TEST_BOUND_MSEC);
                assert_int_equal(counters.registered_pages, 0);
        }
        assert_true(counters.daemon_cpu_usec - before.daemon_cpu_usec < 1000000);
}

static void test_too_many_of_one_user(void **state) {
        int fds[64], n = 0;
        while (n < 38) /* two bystanders, limit 40 */
                fds[n++] = admin_connect(&the_daemon, NULL);
        int one_more = peer_connect(&the_daemon);
        expect_closed(one_more, EUSERS);
        close_fd(one_more);
        while (n > 0)
                close_fd(fds[--n]);
        assert_only_offender("too many clients of this user");
}

static void test_silent_connection(void **state) {
        int fd = peer_connect(&the_daemon);
        expect_closed(fd, 0);
        close_fd(fd);
        assert_only_offender("said nothing");
}

/* Runs in a child as another user; its assertions become its exit status. */
static void as_nobody(void (*run)(void)) {
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                if (setgroups(0, NULL) < 0 || setgid(NOBODY) < 0 || setuid(NOBODY) < 0)
                        _exit(2);
                run();
                _exit(0);
        }
        int status;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
}

#define NEED(condition)                                                          \
        do {                                                                     \
                if (!(condition)) {                                              \
                        (void) fprintf(stderr, "%d: %s\n", __LINE__, #condition); \
                        _exit(1);                                                \
                }                                                                \
        } while (0)

static void read_only_admin(void) {
        static struct channel_message m;
        struct msg_admin_welcome welcome;
        struct msg_admin_done done;
        struct counters counters;
        int fd = admin_connect(&the_daemon, &welcome);
        NEED(!welcome.privileged);
        get_counters(fd, &counters);
        NEED(counters.clients == 1);
        admin_request(fd, MSG_TUNABLE_SET, &(struct msg_tunable_set){ .id = TUNABLE_run, .value = 0 }, &done);
        NEED(done.error == EPERM);
        admin_request(fd, MSG_ADMIN_UNMERGE, &(struct msg_admin_unmerge){ 0 }, &done);
        NEED(done.error == EPERM);
        admin_request(fd, MSG_ADMIN_MERGE, &(struct msg_admin_merge){ 0 }, &done);
        NEED(done.error == EPERM);
        NEED(channel_send(fd, MSG_CLIENTS_REQUEST, &(struct msg_clients_request){ 0 }, NULL, 0, NULL, 0) == 0);
        receive_frame(fd, MSG_CLIENTS_REPLY, &m);
        NEED(m.frame.count == 0); /* the bystander is root's */
}

static void test_other_users_only_read(void **state) {
        if (getuid() != 0)
                skip();
        as_nobody(read_only_admin);
}

/* Another effective uid than the real one: what setuid programs look like. */
static void test_setuid_program_is_refused(void **state) {
        if (getuid() != 0)
                skip();
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                const struct msg_hello hello = { .page_size = KSM_PAGE_SIZE, .comm = "suid" };
                int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
                int mem = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
                NEED(setresuid(NOBODY, 0, 0) == 0);
                int fd = peer_connect(&the_daemon);
                agent_send_hello(fd, &hello, pagemap, mem);
                expect_closed(fd, EPERM);
                _exit(0);
        }
        int status;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
        daemon_wait_log(&the_daemon, "setuid or setgid program", 1);
}

static void undumpable_agent(void) {
        const struct msg_hello hello = { .page_size = KSM_PAGE_SIZE, .comm = "secretive" };
        NEED(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0); /* setuid took it away, and with it the right to open these */
        int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
        int mem = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
        NEED(pagemap >= 0 && mem >= 0);
        NEED(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0);
        int fd = peer_connect(&the_daemon);
        agent_send_hello(fd, &hello, pagemap, mem);
        expect_closed(fd, EPERM);
}

/* Who forbids others of its user to look at its memory forbids it to us, whatever it has opened before. */
static void test_undumpable_process_is_refused(void **state) {
        if (getuid() != 0)
                skip();
        as_nobody(undumpable_agent);
        daemon_wait_log(&the_daemon, "not dumpable", 1);
}

static void test_tunables(void **state) {
        static struct channel_message m;
        struct msg_admin_done done;
        admin_request(bystander_admin, MSG_TUNABLE_SET,
                      &(struct msg_tunable_set){ .id = TUNABLE_pages_to_scan, .value = 1234 }, &done);
        assert_int_equal(done.error, 0);
        admin_request(bystander_admin, MSG_TUNABLE_SET, &(struct msg_tunable_set){ .id = TUNABLE_run, .value = 7 }, &done);
        assert_int_equal(done.error, EINVAL);
        admin_request(bystander_admin, MSG_TUNABLE_SET, &(struct msg_tunable_set){ .id = TUNABLE_MAX_, .value = 7 }, &done);
        assert_int_equal(done.error, ENOENT);
        assert_int_equal(channel_send(bystander_admin, MSG_TUNABLES_REQUEST, &(struct msg_tunables_request){ 0 }, NULL, 0,
                                      NULL, 0), 0);
        receive_frame(bystander_admin, MSG_TUNABLES_REPLY, &m);
        assert_int_equal(m.frame.count, TUNABLE_MAX_);
        const struct tunable_element *e = m.frame.elements;
        assert_int_equal(e[TUNABLE_pages_to_scan].value, 1234);
        assert_int_equal(e[TUNABLE_run].value, 1);
        admin_request(bystander_admin, MSG_ADMIN_MERGE, &(struct msg_admin_merge){ .pid = 4000000 }, &done);
        assert_int_equal(done.error, ESRCH);
}

/* Run last: everything above left the daemon with what it had before. */
static void test_no_fd_is_left(void **state) {
        int fd = agent_connect(&the_daemon, NULL, NULL);
        close_fd(fd);
        fd = admin_connect(&the_daemon, NULL);
        unsigned with_one = 0, waited = 0;
        struct counters counters;
        do {
                get_counters(bystander_admin, &counters);
                assert_true(waited++ < 10000);
        } while (counters.clients != 1);
        with_one = daemon_count_fds(&the_daemon);
        for (unsigned i = 0; i < 30; i++) {
                close_fd(agent_connect(&the_daemon, NULL, NULL));
                close_fd(admin_connect(&the_daemon, NULL));
        }
        waited = 0;
        do
                get_counters(bystander_admin, &counters);
        while (daemon_count_fds(&the_daemon) != with_one && waited++ < 10000);
        assert_int_equal(daemon_count_fds(&the_daemon), with_one);
        close_fd(fd);
}

int main(int argc, char **argv) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_broken_frames),
                cmocka_unit_test(test_false_descriptors),
                cmocka_unit_test(test_wrong_page_size),
                cmocka_unit_test(test_reader_that_does_not_read),
                cmocka_unit_test(test_answers_keep_their_order),
                cmocka_unit_test(test_leaving_with_unread_frames),
                cmocka_unit_test(test_lies_about_addresses),
                cmocka_unit_test(test_too_many_of_one_user),
                cmocka_unit_test(test_silent_connection),
                cmocka_unit_test(test_random_agents),
                cmocka_unit_test(test_other_users_only_read),
                cmocka_unit_test(test_setuid_program_is_refused),
                cmocka_unit_test(test_undumpable_process_is_refused),
                cmocka_unit_test(test_tunables),
                cmocka_unit_test(test_no_fd_is_left),
        };
        if (argc != 2)
                return 64;
        daemon_program(argv[1]);
        return cmocka_run_group_tests(tests, setup, teardown);
}
