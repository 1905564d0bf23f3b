/* The daemon's life: exit statuses, signals, its socket file, the service manager's protocols, private mode. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/tunables.h"
#include "daemon/config.h"
#include "tests/support/daemon_process.h"

#define NOBODY 65534

static char *config_path;

#define REFUSED_SESSIONS 3
#define REFUSED_SESSIONS_TEXT "3"

static void write_config(const char *text) {
        FILE *f = fopen(config_path, "we");
        assert_non_null(f);
        assert_true(fputs(text, f) >= 0);
        assert_int_equal(fclose(f), 0);
}

static int64_t get_tunable(int admin, enum tunable_id id) {
        static struct channel_message m;
        assert_int_equal(channel_send(admin, MSG_TUNABLES_REQUEST, &(struct msg_tunables_request){ 0 }, NULL, 0, NULL, 0),
                         0);
        receive_frame(admin, MSG_TUNABLES_REPLY, &m);
        return ((const struct tunable_element *) m.frame.elements)[id].value;
}

static void test_exit_statuses(void **state) {
        struct daemon_process d = { 0 };
        assert_int_equal(daemon_run(&d, (const char *const[]){ "--frobnicate", NULL }), EXIT_STATUS_USAGE);
        assert_int_equal(daemon_log_lines(&d, "unknown option \"--frobnicate\""), 1);
        assert_int_equal(daemon_run(&d, (const char *const[]){ "--config", "/nonexistent", NULL }), EXIT_STATUS_CONFIG);
        write_config("[tunables]\nrun=1\nrnu=1\n");
        assert_int_equal(daemon_run(&d, (const char *const[]){ "--config", config_path, NULL }), EXIT_STATUS_CONFIG);
        char line[256];
        (void) snprintf(line, sizeof(line), "%s:3: unknown key \"rnu\" in [tunables]", config_path);
        assert_int_equal(daemon_log_lines(&d, line), 1);
        assert_int_equal(daemon_run(&d, (const char *const[]){ "--socket", "/nonexistent/dir/sock", NULL }),
                         EXIT_STATUS_OS);
        assert_int_equal(daemon_run(&d, (const char *const[]){ "--version", NULL }), EXIT_STATUS_OK);
        assert_int_equal(daemon_run(&d, (const char *const[]){ "--help", NULL }), EXIT_STATUS_OK);
        assert_true(daemon_log_lines(&d, "max_page_sharing") > 0);
        daemon_stop(&d);
}

/* As a user who may not open /dev/userfaultfd: what is missing is named, with its remedy. */
static void test_missing_feature(void **state) {
        struct stat st;
        if (getuid() != 0 || stat("/dev/userfaultfd", &st) < 0 || (st.st_mode & 0006))
                skip();
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                if (setgroups(0, NULL) < 0 || setgid(NOBODY) < 0 || setuid(NOBODY) < 0)
                        _exit(2);
                struct daemon_process d = { 0 };
                int status = daemon_run(&d, NULL);
                unsigned lines = daemon_log_lines(&d, "userksmd cannot run here: /dev/userfaultfd");
                daemon_stop(&d);
                _exit(status == EXIT_STATUS_UNAVAILABLE && lines == 1 ? 0 : 1);
        }
        int status;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
}

/* As the kernel says it. Under a sanitizer the daemon has none. */
static void test_sandboxed(void **state) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
        print_message("no system call filter under a sanitizer\n");
        skip();
#endif
        struct daemon_process d = { 0 };
        char path[64], text[4096];
        daemon_start(&d, NULL);
        close_fd(admin_connect(&d, NULL)); /* it listens before it has its filter; it answers after */
        (void) snprintf(path, sizeof(path), "/proc/%d/status", (int) d.pid);
        FILE *f = fopen(path, "re");
        assert_non_null(f);
        text[fread(text, 1, sizeof(text) - 1, f)] = '\0';
        (void) fclose(f);
        assert_non_null(strstr(text, "\nNoNewPrivs:\t1\n"));
        assert_non_null(strstr(text, "\nSeccomp:\t2\n"));
        daemon_stop(&d);
}

/* One's own socket file goes at the end; a stale one is replaced; a living daemon's is not touched. */
static void test_socket_file(void **state) {
        struct daemon_process d = { 0 }, second;
        struct stat st;
        daemon_start(&d, NULL);
        assert_int_equal(stat(d.socket, &st), 0);
        assert_int_equal(st.st_mode & 0777, 0660);
        second = d;
        assert_int_equal(daemon_run(&second, NULL), EXIT_STATUS_OS);
        assert_int_equal(daemon_log_lines(&d, "another daemon listens there"), 1);
        assert_int_equal(kill(d.pid, SIGKILL), 0);
        assert_int_equal(daemon_wait(&d), 128 + SIGKILL);
        assert_int_equal(stat(d.socket, &st), 0);
        daemon_start(&d, NULL);
        assert_int_equal(kill(d.pid, SIGINT), 0);
        assert_int_equal(daemon_wait(&d), EXIT_STATUS_OK);
        assert_int_equal(stat(d.socket, &st), -1);
        /* What is not a socket is not ours to remove. */
        close_fd(open(d.socket, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
        assert_int_equal(daemon_run(&d, NULL), EXIT_STATUS_OS);
        assert_int_equal(stat(d.socket, &st), 0);
        daemon_stop(&d);
}

/* An abstract name has no mode: it is the daemon that turns other users away, unless it is open to all. */
static void abstract_socket(const char *open_to_all, bool is_open) {
        struct daemon_process d = { 0 };
        (void) snprintf(d.directory, sizeof(d.directory), "/tmp/userksm-test-XXXXXX");
        assert_non_null(mkdtemp(d.directory));
        (void) snprintf(d.log, sizeof(d.log), "%s/log", d.directory);
        (void) snprintf(d.socket, sizeof(d.socket), "@%s", d.directory);
        daemon_start(&d, (const char *const[]){ open_to_all, NULL });
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                const struct msg_admin_hello hello = { 0 };
                char byte;
                if (setgroups(0, NULL) < 0 || setgid(NOBODY) < 0 || setuid(NOBODY) < 0)
                        _exit(2);
                int fd = peer_connect(&d);
                (void) channel_send(fd, MSG_ADMIN_HELLO, &hello, NULL, 0, NULL, 0); /* may have been closed already */
                _exit((recv(fd, &byte, 1, 0) == 1) == is_open ? 0 : 1);
        }
        int status;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
        close_fd(admin_connect(&d, NULL));
        daemon_stop(&d);
}

static void test_abstract_socket(void **state) {
        if (getuid() != 0)
                skip();
        abstract_socket("--open-to-all=no", false);
        abstract_socket("--open-to-all=yes", true);
}

static void test_reload(void **state) {
        struct daemon_process d = { 0 };
        write_config("[tunables]\npages_to_scan = 111\nsleep_millisecs = 7\n");
        daemon_start(&d, (const char *const[]){ "--config", config_path, "--sleep-millisecs=9", NULL });
        int admin = admin_connect(&d, NULL);
        assert_int_equal(get_tunable(admin, TUNABLE_pages_to_scan), 111);
        assert_int_equal(get_tunable(admin, TUNABLE_sleep_millisecs), 9);
        write_config("[daemon]\nworkers = 1\n[tunables]\npages_to_scan = 222\n");
        assert_int_equal(kill(d.pid, SIGHUP), 0);
        daemon_wait_log(&d, "configuration read again", 1);
        assert_int_equal(get_tunable(admin, TUNABLE_pages_to_scan), 222);
        assert_int_equal(get_tunable(admin, TUNABLE_sleep_millisecs), 9);
        assert_int_equal(daemon_log_lines(&d, "workers: changed only by a restart"), 1);
        /* The advisor's while it is on; with its end what the file says holds again. */
        write_config("[tunables]\npages_to_scan = 222\nadvisor_mode = scan-time\nadvisor_max_pages_to_scan = 500\nmerge_across_nodes = no\n");
        assert_int_equal(kill(d.pid, SIGHUP), 0);
        daemon_wait_log(&d, "configuration read again", 2);
        assert_int_equal(get_tunable(admin, TUNABLE_pages_to_scan), 500);
        assert_int_equal(get_tunable(admin, TUNABLE_merge_across_nodes), 0);
        assert_int_equal(daemon_log_lines(&d, "the machine has one NUMA node"), access("/sys/devices/system/node/node1", F_OK) < 0);
        write_config("[tunables]\npages_to_scan = 222\n");
        assert_int_equal(kill(d.pid, SIGHUP), 0);
        daemon_wait_log(&d, "configuration read again", 3);
        assert_int_equal(get_tunable(admin, TUNABLE_pages_to_scan), 222);
        write_config("[tunables]\npages_to_scan = x\n");
        assert_int_equal(kill(d.pid, SIGHUP), 0);
        daemon_wait_log(&d, "configuration stays as it was", 1);
        assert_int_equal(get_tunable(admin, TUNABLE_pages_to_scan), 222);
        close_fd(admin);
        daemon_stop(&d);
}

/* The supervisor's datagrams, in order. Skips those in between that are not asked for. */
static void expect_notification(int fd, const char *text) {
        char message[512];
        for (;;) {
                ssize_t n = recv(fd, message, sizeof(message) - 1, 0);
                if (n < 0) {
                        fail_msg("no %s: %s", text, strerror(errno));
                        return; /* the compiler does not know that fail_msg does not */
                }
                message[n] = '\0';
                if (strncmp(message, text, strlen(text)) == 0)
                        return;
        }
}

static void test_notifications(void **state) {
        struct daemon_process d = { 0 };
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        const struct timeval bound = { .tv_sec = TEST_BOUND_MSEC / 1000 };
        (void) snprintf(address.sun_path, sizeof(address.sun_path), "%s.notify", config_path);
        (void) unlink(address.sun_path);
        int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        assert_int_equal(bind(fd, (struct sockaddr *) &address, sizeof(address)), 0);
        assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &bound, sizeof(bound)), 0);
        assert_int_equal(setenv("NOTIFY_SOCKET", address.sun_path, 1), 0);
        assert_int_equal(setenv("WATCHDOG_USEC", "200000", 1), 0);
        daemon_start(&d, NULL);
        assert_int_equal(unsetenv("NOTIFY_SOCKET"), 0);
        assert_int_equal(unsetenv("WATCHDOG_USEC"), 0);
        expect_notification(fd, "READY=1");
        expect_notification(fd, "WATCHDOG=1");
        expect_notification(fd, "WATCHDOG=1");
        assert_int_equal(kill(d.pid, SIGHUP), 0);
        expect_notification(fd, "RELOADING=1");
        expect_notification(fd, "READY=1");
        daemon_stop(&d);
        expect_notification(fd, "STOPPING=1");
        close_fd(fd);
        assert_int_equal(unlink(address.sun_path), 0);
}

/* As the service manager starts it: the listening socket is fd 3, and stays the manager's. */
static void test_socket_activation(void **state) {
        struct daemon_process d = { 0 };
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        (void) snprintf(address.sun_path, sizeof(address.sun_path), "%s.active", config_path);
        (void) unlink(address.sun_path);
        int listening = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        assert_int_equal(bind(listening, (struct sockaddr *) &address, sizeof(address)), 0);
        assert_int_equal(listen(listening, 16), 0);
        d.pid = fork();
        assert_true(d.pid >= 0);
        if (d.pid == 0) {
                char pid[16];
                (void) snprintf(pid, sizeof(pid), "%d", (int) getpid());
                if (setenv("LISTEN_PID", pid, 1) < 0 || setenv("LISTEN_FDS", "1", 1) < 0 || dup2(listening, 3) != 3)
                        _exit(126);
                (void) fcntl(3, F_SETFD, 0);
                (void) execl(daemon_program_path(), "userksmd", "--log-level=err", (char *) NULL);
                _exit(127);
        }
        memcpy(d.socket, address.sun_path, sizeof(d.socket));
        int admin = admin_connect(&d, NULL);
        close_fd(admin);
        assert_int_equal(kill(d.pid, SIGTERM), 0);
        assert_int_equal(daemon_wait(&d), EXIT_STATUS_OK);
        struct stat st;
        assert_int_equal(stat(address.sun_path, &st), 0);
        assert_int_equal(unlink(address.sun_path), 0);
        close_fd(listening);
}

/* Who is refused before its HELLO was read is told why all the same. */
static void test_refused_unread(void **state) {
        struct daemon_process d = { 0 };
        const struct msg_hello hello = { .page_size = KSM_PAGE_SIZE, .comm = "early" };
        int fds[REFUSED_SESSIONS + 1];
        daemon_start(&d, (const char *const[]){ "--max-clients-per-uid", REFUSED_SESSIONS_TEXT, NULL });
        _cleanup_close_ int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
        _cleanup_close_ int mem = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
        assert_int_equal(kill(d.pid, SIGSTOP), 0);
        for (unsigned i = 0; i < ARRAY_SIZE(fds); i++) {
                fds[i] = peer_connect(&d);
                agent_send_hello(fds[i], &hello, pagemap, mem);
        }
        assert_int_equal(kill(d.pid, SIGCONT), 0);
        struct pollfd closed = { .fd = fds[REFUSED_SESSIONS] }; /* POLLHUP */
        char byte;
        assert_int_equal(poll(&closed, 1, TEST_BOUND_MSEC), 1);
        /* Not ECONNRESET first, which channel_receive passes over and others need not. */
        assert_int_equal(recv(fds[REFUSED_SESSIONS], &byte, 1, MSG_PEEK), 1);
        expect_closed(fds[REFUSED_SESSIONS], EUSERS);
        for (unsigned i = 0; i < ARRAY_SIZE(fds); i++)
                close_fd(fds[i]);
        daemon_stop(&d);
}

/* It stays while someone is there, and goes when the last has left. */
static void test_private(void **state) {
        struct daemon_process d = { 0 };
        daemon_start(&d, (const char *const[]){ "--private", NULL });
        int admin = admin_connect(&d, NULL), agent = agent_connect(&d, NULL, NULL);
        struct counters counters;
        close_fd(agent);
        /* Longer than it would linger alone: an administrator is enough. */
        for (unsigned i = 0; i < 30; i++) {
                (void) usleep(100000);
                get_counters(admin, &counters);
        }
        close_fd(admin);
        assert_int_equal(daemon_wait(&d), EXIT_STATUS_OK);
        daemon_stop(&d);
}

static int setup(void **state) {
        static char path[] = "/tmp/userksm-life-XXXXXX";
        close_fd(mkstemp(path));
        config_path = path;
        return 0;
}

static int teardown(void **state) {
        return unlink(config_path);
}

int main(int argc, char **argv) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_exit_statuses), cmocka_unit_test(test_missing_feature), cmocka_unit_test(test_socket_file),
                cmocka_unit_test(test_abstract_socket),
                cmocka_unit_test(test_sandboxed),
                cmocka_unit_test(test_reload),        cmocka_unit_test(test_notifications),
                cmocka_unit_test(test_socket_activation), cmocka_unit_test(test_private),
                cmocka_unit_test(test_refused_unread),
        };
        if (argc != 2)
                return 64;
        daemon_program(argv[1]);
        return cmocka_run_group_tests(tests, setup, teardown);
}
