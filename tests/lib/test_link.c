/* The agent's side of a connection, the test being daemon and agent: what a new daemon is told and given, and what is forgotten when it
 * goes. Judged by the kernel: which page maps which slot, and what a scan may track. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/agent_start.h"
#include "tests/lib/rig.h"

#define BLOCKS 4U /* more runs than one frame holds */
#define NOT_REPORTED UINT32_MAX
#define MERGED_WANTED UINT64_C(0x80000000005a0f01) /* not every page */

static int daemon_fd;

static void connect_both(void) {
        int sv[2];
        if (!A.message)
                A.message = own_alloc(sizeof(*A.message));
        assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv), 0);
        A.link_fd = sv[0];
        A.welcomed = false;
        daemon_fd = sv[1];
}

static void disconnect(void) {
        close(A.link_fd);
        close(daemon_fd);
        A.link_fd = -1;
}

static void welcome(uint32_t flags) {
        const struct msg_welcome m = { .client = 1, .flags = flags };
        int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
        assert_int_equal(channel_send(daemon_fd, MSG_WELCOME, &m, NULL, 0, &device, 1), 0);
        close(device);
        link_readable(&A);
        assert_true(A.welcomed);
}

/* Neighbours lie in slots that are not, so each page is a run of its own. */
static uint32_t scattered(unsigned i) {
        return i % CONTENTS + CONTENTS * (i * 3 % 61);
}

static uint8_t *block_scattered(void) {
        uint8_t *b = block_new(), status[64];
        struct extent_element x[PAGES];
        for (unsigned i = 0; i < PAGES; i++) {
                x[i] = (struct extent_element) { .page = ((uint64_t) b >> KSM_PAGE_SHIFT) + i, .n_pages = 1, .segment = 1, .slot = scattered(i) };
                fill(page_at(b, i), i % CONTENTS);
        }
        for (unsigned tries = 0; tries < BUSY_TRIES && file_pages(b) != ~0ULL; tries++)
                (void) transition_apply(&A, APPLY_MERGE, x, PAGES, status);
        assert_int_equal(file_pages(b), ~0ULL);
        return b;
}

static uint32_t reported[BLOCKS][PAGES]; /* slots */
static uint8_t *blocks[BLOCKS];
static unsigned n_frames;

static void take_run(const struct run_element *x) {
        assert_int_equal(x->inode, segments_find(&A.segments, 1)->inode);
        for (uint64_t k = 0; k < x->n_pages; k++)
                for (unsigned n = 0; n < BLOCKS; n++) {
                        uint64_t i = x->page + k - ((uint64_t) blocks[n] >> KSM_PAGE_SHIFT);
                        if (i < PAGES) {
                                assert_int_equal(reported[n][i], NOT_REPORTED);
                                reported[n][i] = x->slot + (uint32_t) k;
                        }
                }
}

static void take_frames(void) {
        static struct channel_message m;
        enum codec_error error;
        while (channel_receive(daemon_fd, ROLE_AGENT, &m, &error) == 1) {
                const struct run_element *x = m.frame.elements;
                for (uint32_t i = 0; m.frame.type == MSG_RUNS && i < m.frame.count; i++)
                        take_run(&x[i]);
                n_frames += m.frame.type == MSG_RUNS;
                channel_message_done(&m);
        }
}

/* Every page that shows its slot is reported, with that slot; none that was written or discarded since. */
static void test_report(void **state) {
        pthread_t t;
        blocks[0] = block_merged();
        for (unsigned n = 1; n < BLOCKS; n++)
                blocks[n] = block_scattered();
        memset(reported, 0xff, sizeof(reported));
        for (unsigned i = 5; i < 9; i++)
                *(volatile uint8_t *) page_at(blocks[0], i) = 1;
        *(volatile uint8_t *) page_at(blocks[2], 30) = 1;
        pthread_create(&t, NULL, discard, blocks[3]);
        (void) join_draining(t);
        connect_both();
        welcome(WELCOME_REPORT);
        assert_true(A.reporting);
        for (unsigned turns = 0; A.reporting && turns < BUSY_TRIES; turns++) {
                A.report_at_usec = 0;
                report_step(&A, now_usec());
                take_frames();
        }
        assert_false(A.reporting);
        assert_true(n_frames > 1);
        for (unsigned n = 0; n < BLOCKS; n++) {
                uint64_t file = file_pages(blocks[n]);
                assert_int_equal(file, n == 0 ? ~(0xfULL << 5) : n == 2 ? ~(1ULL << 30) : n == 3 ? 0 : ~0ULL);
                for (unsigned i = 0; i < PAGES; i++)
                        assert_int_equal(reported[n][i], file >> i & 1 ? (uint32_t) slot_of(page_at(blocks[n], i), 1) : NOT_REPORTED);
        }
        disconnect();
}

/* Every page asked for has its node, or why not; for a private page and for a merged one, and nothing is brought in for it. */
static void test_nodes(void **state) {
        static struct channel_message m;
        enum codec_error error;
        uint8_t *merged = block_merged(), *plain = block_new();
        unsigned first = merged < plain ? 0 : 1; /* of the two is the merged one */
        memset(plain, 1, 8 * KSM_PAGE_SIZE);
        struct nodes_wanted_element wanted[2];
        wanted[first] = (struct nodes_wanted_element) { (uint64_t) merged >> KSM_PAGE_SHIFT, MERGED_WANTED };
        wanted[1 - first] = (struct nodes_wanted_element) { (uint64_t) plain >> KSM_PAGE_SHIFT, ~0ULL };
        const struct msg_nodes_request request = { .op = 7 };
        if (!nodes_can_be_told(&A)) {
                print_message("SKIPPED: a kernel without NUMA, or a filter\n");
                skip();
        }
        connect_both();
        welcome(0);
        while (channel_receive(daemon_fd, ROLE_AGENT, &m, &error) == 1)
                channel_message_done(&m);
        assert_int_equal(channel_send(daemon_fd, MSG_NODES_REQUEST, &request, wanted, 2, NULL, 0), 0);
        link_readable(&A);
        assert_int_equal(channel_receive(daemon_fd, ROLE_AGENT, &m, &error), 1);
        assert_int_equal(m.frame.type, MSG_NODES);
        assert_int_equal(((const struct msg_nodes *) m.frame.body)->op, 7);
        assert_int_equal(m.frame.count, 2);
        const struct nodes_element *nodes = m.frame.elements;
        for (unsigned k = 0; k < PAGES; k++) {
                assert_true(MERGED_WANTED >> k & 1 ? nodes[first].node[k] >= 0 : nodes[first].node[k] == -ENOENT);
                assert_true(k < 8 ? nodes[1 - first].node[k] >= 0 : nodes[1 - first].node[k] == -ENOENT);
        }
        assert_int_equal(file_pages(merged), ~0ULL);
        disconnect();
}

/* Under a filter that kills for the question, as a service manager's may be: it is not asked. Non-zero: a failure. */
static int ask_under_a_filter(void) {
        struct sock_filter code[] = {
                BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
                BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_move_pages, 0, 1),
                BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
                BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        };
        const struct sock_fprog program = { ARRAY_SIZE(code), code };
        A.witness.seccomp = SECCOMP_UNKNOWN;
        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
                return 99;
        return nodes_can_be_told(&A);
}

static void test_no_nodes_under_a_filter(void **state) {
        int status;
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
                agent_control()->made_by_leader = true;
                _exit(ask_under_a_filter());
        }
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
}

static void *ask_in_a_thread(void *unused) {
        return (void *) (intptr_t) ask_under_a_filter();
}

/* The thread that made the agent has one and passed it on; the first thread has none. */
static void test_no_nodes_under_the_filter_of_a_thread(void **state) {
        pthread_t thread;
        void *result;
        assert_false(agent_control()->made_by_leader);
        assert_int_equal(pthread_create(&thread, NULL, ask_in_a_thread, NULL), 0);
        assert_int_equal(pthread_join(thread, &result), 0);
        assert_null(result);
        A.witness.seccomp = SECCOMP_UNKNOWN;
}

/* What lost its tracking (no memory for it) is tracked again for the next daemon. */
static void test_tracked_again(void **state) {
        uint8_t *b = block_new();
        memset(b, 1, BLOCK_BYTES);
        assert_int_equal(context_unregister(&A.track, (uint64_t) b, (uint64_t) b + BLOCK_BYTES), 0);
        assert_int_equal(tracked_pages(b), 0);
        connect_both();
        welcome(0);
        assert_false(A.reporting);
        assert_int_equal(tracked_pages(b), ~0ULL);
        disconnect();
}

/* The next daemon gives its segments other numbers. Last: those of the rig are gone. */
static void test_segments_go_with_the_daemon(void **state) {
        uint8_t *b = block_new();
        connect_both();
        welcome(0);
        close(daemon_fd);
        link_readable(&A);
        assert_int_equal(A.link_fd, -1);
        assert_null(segments_find(&A.segments, 1));
        assert_null(segments_find(&A.segments, 2));
        fill(b, 1);
        assert_int_equal(apply_one(b, 1, 1), APPLY_ERROR);
        assert_int_equal(file_pages(b), 0);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_report),
                cmocka_unit_test(test_nodes),
                cmocka_unit_test(test_no_nodes_under_a_filter),
                cmocka_unit_test(test_no_nodes_under_the_filter_of_a_thread),
                cmocka_unit_test(test_tracked_again),
                cmocka_unit_test(test_segments_go_with_the_daemon),
        };
        return cmocka_run_group_tests(tests, rig_setup, NULL);
}
