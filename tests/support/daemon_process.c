#include "tests/support/daemon_process.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"

#define ARGUMENTS_MAX 32

static const char *program;

void daemon_program(const char *path) {
        program = path;
}

const char *daemon_program_path(void) {
        return program;
}

/* Polls are 5 ms apart: the daemon's answer is waited for, not a time. */
static bool poll_again(unsigned *n) {
        const struct timespec pause = { .tv_nsec = 5000000 };
        (void) nanosleep(&pause, NULL);
        return (*n += 5) < TEST_BOUND_MSEC;
}

static void spawn(struct daemon_process *d, const char *const *arguments) {
        const char *argv[ARGUMENTS_MAX] = { program };
        unsigned n = 1;
        if (!d->directory[0]) {
                (void) snprintf(d->directory, sizeof(d->directory), "/tmp/userksm-test-XXXXXX");
                assert_non_null(mkdtemp(d->directory));
                (void) chmod(d->directory, 0755); /* tests connect as other users too */
                (void) snprintf(d->socket, sizeof(d->socket), "%s/sock", d->directory);
                (void) snprintf(d->log, sizeof(d->log), "%s/log", d->directory);
        }
        argv[n++] = "--socket";
        argv[n++] = d->socket;
        /* Whatever the rest of the machine does. */
        argv[n++] = "--idle-cpu-permille=1000";
        argv[n++] = "--pressure-permille=0";
        argv[n++] = "--low-memory-permille=0";
        for (; arguments && *arguments; arguments++) {
                assert_true(n < ARGUMENTS_MAX - 1);
                argv[n++] = *arguments;
        }
        d->pid = fork();
        assert_true(d->pid >= 0);
        if (d->pid == 0) {
                int log = open(d->log, O_WRONLY | O_CREAT | O_APPEND, 0600);
                if (log < 0 || dup2(log, STDOUT_FILENO) < 0 || dup2(log, STDERR_FILENO) < 0)
                        _exit(126);
                (void) close_range(3, ~0U, 0);
                (void) execv(program, (char *const *) argv);
                _exit(127);
        }
}

void daemon_start(struct daemon_process *d, const char *const *arguments) {
        unsigned waited = 0;
        int fd;
        spawn(d, arguments);
        while ((fd = channel_connect(d->socket, 0)) < 0) {
                int status;
                if (waitpid(d->pid, &status, WNOHANG) != 0 || !poll_again(&waited)) {
                        daemon_print_log(d);
                        fail_msg("the daemon does not answer");
                }
        }
        close_fd(fd);
}

int daemon_wait(struct daemon_process *d) {
        unsigned waited = 0;
        int status;
        pid_t r;
        while ((r = waitpid(d->pid, &status, WNOHANG)) == 0)
                if (!poll_again(&waited)) {
                        (void) kill(d->pid, SIGKILL);
                        (void) waitpid(d->pid, &status, 0);
                        daemon_print_log(d);
                        fail_msg("the daemon does not end");
                }
        assert_int_equal(r, d->pid);
        d->pid = 0;
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int daemon_run(struct daemon_process *d, const char *const *arguments) {
        spawn(d, arguments);
        return daemon_wait(d);
}

void daemon_stop(struct daemon_process *d) {
        if (d->pid > 0) {
                assert_int_equal(kill(d->pid, SIGTERM), 0);
                int status = daemon_wait(d);
                if (status != 0)
                        daemon_print_log(d);
                assert_int_equal(status, 0);
        }
        (void) unlink(d->log);
        (void) unlink(d->socket);
        (void) rmdir(d->directory);
        d->directory[0] = '\0';
}

unsigned daemon_log_lines(const struct daemon_process *d, const char *text) {
        char line[2048];
        unsigned n = 0;
        FILE *f = fopen(d->log, "re");
        if (!f)
                return 0;
        while (fgets(line, sizeof(line), f))
                n += strstr(line, text) != NULL;
        (void) fclose(f);
        return n;
}

void daemon_wait_log(const struct daemon_process *d, const char *text, unsigned at_least) {
        unsigned waited = 0;
        while (daemon_log_lines(d, text) < at_least)
                if (!poll_again(&waited)) {
                        daemon_print_log(d);
                        fail_msg("the log does not say \"%s\"", text);
                }
}

void daemon_print_log(const struct daemon_process *d) {
        char line[2048];
        FILE *f = fopen(d->log, "re");
        while (f && fgets(line, sizeof(line), f))
                (void) fputs(line, stderr);
        if (f)
                (void) fclose(f);
}

unsigned daemon_count_fds(const struct daemon_process *d) {
        char path[64];
        unsigned n = 0;
        (void) snprintf(path, sizeof(path), "/proc/%d/fd", (int) d->pid);
        DIR *dir = opendir(path);
        assert_non_null(dir);
        for (struct dirent *e; (e = readdir(dir));)
                n += e->d_name[0] != '.';
        (void) closedir(dir);
        return n;
}

int peer_connect(const struct daemon_process *d) {
        const struct timeval bound = { .tv_sec = TEST_BOUND_MSEC / 1000 };
        int fd = channel_connect(d->socket, 0);
        assert_true(fd >= 0);
        assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &bound, sizeof(bound)), 0);
        return fd;
}

int admin_connect(const struct daemon_process *d, struct msg_admin_welcome *ret) {
        static struct channel_message m;
        int fd = peer_connect(d);
        const struct msg_admin_hello hello = { 0 };
        assert_int_equal(channel_send(fd, MSG_ADMIN_HELLO, &hello, NULL, 0, NULL, 0), 0);
        receive_frame(fd, MSG_ADMIN_WELCOME, &m);
        if (ret)
                *ret = *(const struct msg_admin_welcome *) m.frame.body;
        return fd;
}

void agent_send_hello(int fd, const struct msg_hello *hello, int pagemap_fd, int mem_fd) {
        assert_int_equal(channel_send(fd, MSG_HELLO, hello, NULL, 0, (int[]){ pagemap_fd, mem_fd }, 2), 0);
}

int agent_connect(const struct daemon_process *d, uint32_t *ret_client, int *ret_device) {
        static struct channel_message m;
        const struct msg_hello hello = { .page_size = KSM_PAGE_SIZE, .n_vmas = 50, .comm = "fake-agent" };
        _cleanup_close_ int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
        _cleanup_close_ int mem = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
        int fd = peer_connect(d);
        agent_send_hello(fd, &hello, pagemap, mem);
        receive_frame(fd, MSG_WELCOME, &m);
        if (ret_client)
                *ret_client = ((const struct msg_welcome *) m.frame.body)->client;
        int device = channel_take_fd(&m, 0);
        if (ret_device)
                *ret_device = device;
        else
                close_fd(device);
        channel_message_done(&m);
        return fd;
}

void receive_frame(int fd, enum message_type type, struct channel_message *ret) {
        for (;;) {
                enum codec_error error = CODEC_OK;
                int r = channel_receive(fd, ROLE_DAEMON, ret, &error);
                if (r != 1)
                        fail_msg("expected %s, but: %s", message_name((uint16_t) type),
                                 r == 0 ? "end of file" : r == -EPROTO ? codec_error_string(error) : strerror(-r));
                if (ret->frame.type == MSG_PING && type != MSG_PING && type != 0) {
                        assert_int_equal(channel_send(fd, MSG_PONG, ret->frame.body, NULL, 0, NULL, 0), 0);
                        continue;
                }
                if (type)
                        assert_string_equal(message_name(ret->frame.type), message_name((uint16_t) type));
                return;
        }
}

void expect_closed(int fd, int error) {
        static struct channel_message m;
        for (;;) {
                enum codec_error codec = CODEC_OK;
                int r = channel_receive(fd, ROLE_DAEMON, &m, &codec);
                if (r == 0 || r == -ECONNRESET) /* RESET: it closed with frames of ours unread */
                        break;
                assert_int_equal(r, 1);
                if (m.frame.type == MSG_REFUSED) {
                        assert_int_equal(((const struct msg_refused *) m.frame.body)->error, error);
                        error = 0;
                } else
                        assert_string_equal(message_name(m.frame.type), "PING");
                channel_message_done(&m);
        }
        assert_int_equal(error, 0); /* REFUSED was sent if it was due */
}

void get_counters(int admin_fd, struct counters *ret) {
        static struct channel_message m;
        const struct msg_stats_request request = { 0 };
        assert_int_equal(channel_send(admin_fd, MSG_STATS_REQUEST, &request, NULL, 0, NULL, 0), 0);
        receive_frame(admin_fd, MSG_STATS_REPLY, &m);
        assert_int_equal(m.frame.count, COUNTER_MAX_);
        memcpy(ret, m.frame.elements, sizeof(*ret));
}

void admin_request(int admin_fd, enum message_type type, const void *body, struct msg_admin_done *ret) {
        static struct channel_message m;
        assert_int_equal(channel_send(admin_fd, type, body, NULL, 0, NULL, 0), 0);
        receive_frame(admin_fd, MSG_ADMIN_DONE, &m);
        *ret = *(const struct msg_admin_done *) m.frame.body;
}
