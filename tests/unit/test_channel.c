/* The channel over real socket pairs: frames with fds there and back, and every way a peer can misbehave, without an fd
 * left behind. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "proto/channel.h"

static struct channel_message message;

struct fixture {
        int pair[2];
        int null_fd;
        unsigned fds_before;
};

static unsigned count_fds(void) {
        DIR *d = opendir("/proc/self/fd");
        unsigned n = 0;

        assert_non_null(d);
        while (readdir(d))
                n++;
        closedir(d);
        return n;
}

static int setup(void **state) {
        static struct fixture f;

        f.fds_before = count_fds();
        assert_return_code(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, f.pair), errno);
        f.null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        assert_true(f.null_fd >= 0);
        *state = &f;
        return 0;
}

static int teardown(void **state) {
        struct fixture *f = *state;

        close_fd(f->pair[0]);
        close_fd(f->pair[1]);
        close_fd(f->null_fd);
        assert_int_equal(count_fds(), f->fds_before); /* nothing leaked, whatever the test did */
        return 0;
}

static int receive(const struct fixture *f, enum codec_error *e) {
        *e = CODEC_OK;
        return channel_receive(f->pair[1], ROLE_AGENT | ROLE_ADMIN | ROLE_DAEMON, &message, e);
}

/* Sends any bytes with any number of fds, as a hostile peer can. */
static void send_raw(int fd, const void *bytes, size_t size, int passed, unsigned n_fds) {
        union {
                struct cmsghdr align;
                uint8_t bytes[CMSG_SPACE(sizeof(int) * 64)];
        } control = { 0 };
        struct iovec part = { (void *) bytes, size };
        struct msghdr m = { .msg_iov = &part, .msg_iovlen = 1 };

        if (n_fds > 0) {
                m.msg_control = &control;
                m.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
                control.align.cmsg_level = SOL_SOCKET;
                control.align.cmsg_type = SCM_RIGHTS;
                control.align.cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
                for (unsigned i = 0; i < n_fds; i++)
                        ((int *) CMSG_DATA(&control.align))[i] = passed;
        }
        assert_int_equal(sendmsg(fd, &m, MSG_NOSIGNAL), (ssize_t) size);
}

static void test_frame_with_fds(void **state) {
        struct fixture *f = *state;
        struct msg_hello hello = { .page_size = 4096, .comm = "test" };
        struct stat sent, received;
        enum codec_error e;
        int fd;

        assert_int_equal(channel_send(f->pair[0], MSG_HELLO, &hello, NULL, 0, (int[]) { f->null_fd, f->pair[0] }, 2),
                         0);
        assert_int_equal(receive(f, &e), 1);
        assert_int_equal(message.frame.type, MSG_HELLO);
        assert_memory_equal(message.frame.body, &hello, sizeof(hello));
        assert_int_equal(message.n_fds, 2);
        fd = channel_take_fd(&message, 0);
        assert_true(fd >= 0);
        assert_int_equal(channel_take_fd(&message, 0), -EBADF);
        assert_int_equal(channel_take_fd(&message, 2), -EBADF);
        assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
        fstat(f->null_fd, &sent);
        fstat(fd, &received);
        assert_int_equal(sent.st_rdev, received.st_rdev);
        channel_message_done(&message); /* closes the one not taken */
        assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
        close_fd(fd);
}

static void test_elements(void **state) {
        struct fixture *f = *state;
        struct range_element ranges[RANGES_MAX];
        struct msg_range_add add = { .n_vmas = 3 };
        enum codec_error e;

        for (unsigned i = 0; i < RANGES_MAX; i++)
                ranges[i] = (struct range_element) { 4096 * (i + 1), 4096 };
        assert_int_equal(channel_send(f->pair[0], MSG_RANGE_ADD, &add, ranges, RANGES_MAX, NULL, 0), 0);
        assert_int_equal(receive(f, &e), 1);
        assert_int_equal(message.frame.count, RANGES_MAX);
        assert_memory_equal(message.frame.elements, ranges, sizeof(ranges));
        channel_message_done(&message);
}

static void test_send_refuses_misuse(void **state) {
        struct fixture *f = *state;
        struct msg_ping ping = { 1 };
        struct msg_hello hello = { .page_size = 4096 };
        int fds[] = { f->null_fd, f->null_fd };
        enum codec_error e;

        assert_int_equal(channel_send(f->pair[0], MSG_PING, &ping, NULL, 0, fds, 1), -EINVAL);
        assert_int_equal(channel_send(f->pair[0], MSG_HELLO, &hello, NULL, 0, fds, 1), -EINVAL);
        assert_int_equal(channel_send(f->pair[0], MSG_PING, &ping, &ping, 1, NULL, 0), -EINVAL);
        assert_int_equal(channel_send(f->pair[0], (enum message_type) 63, &ping, NULL, 0, NULL, 0), -EINVAL);
        assert_int_equal(receive(f, &e), -EAGAIN); /* nothing of it was sent */
}

static void expect_violation(const struct fixture *f, enum codec_error expected) {
        enum codec_error e;

        assert_int_equal(receive(f, &e), -EPROTO);
        assert_int_equal(e, expected);
        assert_int_equal(message.n_fds, 0);
}

static void test_violations(void **state) {
        struct fixture *f = *state;
        static uint8_t packet[FRAME_MAX_BYTES + 1];
        struct msg_hello hello = { .page_size = 4096 };
        size_t size = frame_encode(packet, sizeof(packet), MSG_HELLO, &hello, NULL, 0);

        for (unsigned n = 0; n <= 8; n++) { /* too few, right, too many, more than fit the receiver */
                send_raw(f->pair[0], packet, size, f->null_fd, n);
                if (n == 2) {
                        enum codec_error e;
                        assert_int_equal(receive(f, &e), 1);
                        channel_message_done(&message);
                } else
                        expect_violation(f, CODEC_FDS);
        }
        send_raw(f->pair[0], packet, size - 1, f->null_fd, 2);
        expect_violation(f, CODEC_SHORT);
        send_raw(f->pair[0], packet, 1, f->null_fd, 4);
        expect_violation(f, CODEC_SHORT);
        send_raw(f->pair[0], packet, 0, f->null_fd, 1);
        expect_violation(f, CODEC_SHORT);
        send_raw(f->pair[0], packet, sizeof(packet), -1, 0); /* longer than any frame */
        expect_violation(f, CODEC_SIZE);
        ((struct frame_header *) packet)->version++;
        send_raw(f->pair[0], packet, size, f->null_fd, 2);
        expect_violation(f, CODEC_VERSION);
}

static void test_full_fd_table_is_not_the_peers_fault(void **state) {
        struct fixture *f = *state;
        struct msg_hello hello = { .page_size = 4096 };
        struct rlimit old, none;
        enum codec_error e;
        int r;

        if (getenv("USERKSM_TEST_VALGRIND")) /* it keeps the limit to itself, for fds of its own above it */
                skip();
        assert_int_equal(
                channel_send(f->pair[0], MSG_HELLO, &hello, NULL, 0, (int[]) { f->null_fd, f->null_fd }, 2), 0);
        assert_return_code(getrlimit(RLIMIT_NOFILE, &old), errno);
        none = (struct rlimit) { .rlim_cur = 0, .rlim_max = old.rlim_max };
        assert_return_code(setrlimit(RLIMIT_NOFILE, &none), errno);
        r = receive(f, &e);
        setrlimit(RLIMIT_NOFILE, &old);
        assert_int_equal(r, -EMFILE);
        assert_int_equal(message.n_fds, 0);
}

static void test_end_and_backpressure(void **state) {
        struct fixture *f = *state;
        struct msg_ping ping = { 7 };
        unsigned sent = 0, received = 0;
        enum codec_error e;
        int r;

        while ((r = channel_send(f->pair[0], MSG_PING, &ping, NULL, 0, NULL, 0)) == 0)
                sent++;
        assert_int_equal(r, -EAGAIN);
        f->pair[0] = close_fd(f->pair[0]);
        while ((r = receive(f, &e)) == 1) { /* what was sent arrives, then the end */
                channel_message_done(&message);
                received++;
        }
        assert_int_equal(r, 0);
        assert_int_equal(received, sent);
        assert_int_equal(channel_send(f->pair[1], MSG_PING, &ping, NULL, 0, NULL, 0), -EPIPE); /* and no SIGPIPE */
}

/* Its last words arrive, also when it closed with frames of ours unread. */
static void test_last_frame_of_who_closed(void **state) {
        struct fixture *f = *state;
        struct msg_ping ping = { 0 };
        const struct msg_refused refused = { .error = EUSERS };
        enum codec_error e;

        assert_int_equal(channel_send(f->pair[1], MSG_PING, &ping, NULL, 0, NULL, 0), 0);
        assert_int_equal(channel_send(f->pair[0], MSG_REFUSED, &refused, NULL, 0, NULL, 0), 0);
        close_fd(f->pair[0]);
        f->pair[0] = -1;
        assert_int_equal(receive(f, &e), 1);
        assert_int_equal(message.frame.type, MSG_REFUSED);
        channel_message_done(&message);
        assert_int_equal(receive(f, &e), 0);
}

static void test_send_packet(void **state) {
        struct fixture *f = *state;
        static _Alignas(FRAME_ALIGN) uint8_t packet[FRAME_MAX_BYTES];
        struct msg_segment segment = { .segment = 9, .n_slots = 512 };
        size_t size = frame_encode(packet, sizeof(packet), MSG_SEGMENT, &segment, NULL, 0);
        enum codec_error e;

        assert_int_equal(channel_send_packet(f->pair[0], packet, size, &f->null_fd, 1), 0);
        assert_int_equal(receive(f, &e), 1);
        assert_memory_equal(message.frame.body, &segment, sizeof(segment));
        channel_message_done(&message);
}

/* Abstract and path names, to a listener of our own. */
static void test_connect(void **state) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        char directory[] = "/tmp/userksm-test-XXXXXX", path[64], longest[sizeof(address.sun_path) + 2];
        int listener, fd;

        assert_non_null(mkdtemp(directory));
        snprintf(path, sizeof(path), "%s/s", directory);
        assert_int_equal(channel_connect(path, 0), -ENOENT);
        strcpy(address.sun_path, path);
        listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        assert_return_code(bind(listener, (struct sockaddr *) &address, sizeof(address)), errno);
        assert_int_equal(channel_connect(path, 0), -ECONNREFUSED);
        assert_return_code(listen(listener, 1), errno);
        fd = channel_connect(path, 1);
        assert_true(fd >= 0);
        assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
        assert_true(fcntl(fd, F_GETFL) & O_NONBLOCK);
        close_fd(fd);
        close_fd(listener);
        unlink(path);
        rmdir(directory);

        snprintf(path, sizeof(path), "@userksm-test-%d", (int) getpid());
        address = (struct sockaddr_un) { .sun_family = AF_UNIX };
        memcpy(address.sun_path + 1, path + 1, strlen(path) - 1);
        listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        assert_return_code(bind(listener, (struct sockaddr *) &address,
                                (socklen_t) (offsetof(struct sockaddr_un, sun_path) + strlen(path))),
                           errno);
        assert_return_code(listen(listener, 1), errno);
        fd = channel_connect(path, 0);
        assert_true(fd >= 0);
        assert_false(fcntl(fd, F_GETFL) & O_NONBLOCK);
        close_fd(fd);
        close_fd(listener);

        memset(longest, 'x', sizeof(longest));
        longest[sizeof(address.sun_path)] = 0; /* its NUL does not fit */
        assert_int_equal(channel_connect(longest, 0), -ENAMETOOLONG);
        longest[0] = '@';
        assert_int_equal(channel_connect(longest, 0), -ECONNREFUSED);
        longest[sizeof(address.sun_path)] = 'x';
        longest[sizeof(address.sun_path) + 1] = 0;
        assert_int_equal(channel_connect(longest, 0), -ENAMETOOLONG);
        assert_int_equal(channel_connect("", 0), -EINVAL);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_frame_with_fds, setup, teardown),
                cmocka_unit_test_setup_teardown(test_elements, setup, teardown),
                cmocka_unit_test_setup_teardown(test_send_refuses_misuse, setup, teardown),
                cmocka_unit_test_setup_teardown(test_violations, setup, teardown),
                cmocka_unit_test_setup_teardown(test_full_fd_table_is_not_the_peers_fault, setup, teardown),
                cmocka_unit_test_setup_teardown(test_end_and_backpressure, setup, teardown),
                cmocka_unit_test_setup_teardown(test_last_frame_of_who_closed, setup, teardown),
                cmocka_unit_test_setup_teardown(test_send_packet, setup, teardown),
                cmocka_unit_test_setup_teardown(test_connect, setup, teardown),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
