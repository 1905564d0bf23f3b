/* What the shell does for the core and tells it, with no other threads and no kernel in the way: the core, the pool and the rest of the
 * manager are played by this test. A job runs when the test says, and ends as the test says.
 *
 * The functions that are played are listed in meson.build: the linker sends the shell's calls of NAME to __wrap_NAME. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "daemon/account.h"
#include "daemon/bounds.h"
#include "daemon/client.h"
#include "daemon/manager.h"
#include "daemon/nodes.h"
#include "daemon/scanner.h"
#include "daemon/session.h"
#include "daemon/sys/digest.h"
#include "tests/unit/device.h"

#define PAGES 8
#define OP 77
#define CLIENT 5
#define DOMAIN 1
#define DOMAIN_KEY "uid=1"
#define SLOTS 512

static struct played {
        /* What the core has to do. */
        bool has_scan, has_read;
        struct core_scan scan;
        struct core_read read;
        /* What came of it. */
        struct worker_job *jobs[JOBS_PER_WORKER + 1], *job; /* at workers; the last of them */
        unsigned n_jobs;
        unsigned n_answers, n_evictions, n_parks;
        int scan_error;
        size_t n_runs;
        struct core_read_result results[PAGES];
        uint32_t adopted[4], n_adopted; /* segments */
} played;

static struct manager manager;
static struct uid_account account = { .uid = 1 };
static struct session session = { .manager = &manager, .account = &account, .fd = -1 };
static struct client client = { .manager = &manager, .session = &session, .id = CLIENT };
static struct process process;
static struct scanner *scanner;
static uint8_t *memory;

/* -- the core ----------------------------------------------------------------------------------------------------------- */

#define PLAYED(type, name, ...) \
        type __wrap_##name(__VA_ARGS__); \
        type __wrap_##name(__VA_ARGS__)

PLAYED(const struct tunables *, core_tunables, const struct core *c) {
        static const struct tunables tunables = { .max_cpu_permille = 1000 };
        return &tunables;
}

PLAYED(void, core_cpu_used, struct core *c, uint64_t usec) {
}

PLAYED(bool, core_has_work, const struct core *c) {
        return true;
}

PLAYED(void, core_set_pace, struct core *c, enum core_pace pace, uint64_t now) {
}

PLAYED(bool, core_next_publish, struct core *c, uint64_t now, struct core_publish *ret) {
        return false;
}

PLAYED(bool, core_next_read, struct core *c, uint64_t now, struct core_read *ret, uint64_t *next) {
        *ret = played.read;
        return played.has_read;
}

PLAYED(bool, core_next_scan, struct core *c, uint64_t now, struct core_scan *ret, uint64_t *next) {
        *ret = played.scan;
        return played.has_scan;
}

PLAYED(void, core_read_done, struct core *c, uint64_t op, uint64_t now, const struct core_read_result *results) {
        assert_int_equal(op, OP);
        played.n_answers++;
        memcpy(played.results, results, sizeof(played.results));
}

PLAYED(void, core_scan_done, struct core *c, uint64_t op, uint64_t now, const struct core_run *runs, size_t n, uint64_t end, int error) {
        assert_int_equal(op, OP);
        played.n_answers++;
        played.n_runs = n;
        played.scan_error = error;
}

PLAYED(uint32_t, core_run_adopt, struct core *c, uint32_t id, uint64_t page, uint32_t n_pages, uint32_t segment, uint32_t slot) {
        assert_int_equal(id, CLIENT);
        assert_true(played.n_adopted < ARRAY_SIZE(played.adopted));
        played.adopted[played.n_adopted++] = segment;
        return n_pages;
}

/* -- the pool and the manager --------------------------------------------------------------------------------------------- */

PLAYED(void, workers_submit, struct workers *p, struct worker_job *job) {
        assert_true(played.n_jobs < ARRAY_SIZE(played.jobs));
        *job = (struct worker_job){ .run = job->run };
        played.job = played.jobs[played.n_jobs++] = job;
}

PLAYED(unsigned, workers_n_running, const struct workers *p) {
        return 1;
}

PLAYED(uint64_t, workers_cpu_usec, struct workers *p) {
        return 0;
}

PLAYED(void, manager_evict, struct manager *m, const struct uid_account *a, const char *reason) {
        assert_ptr_equal(a, &account);
        played.n_evictions++;
}

PLAYED(void, manager_park, struct manager *m, const struct uid_account *a) {
        assert_ptr_equal(a, &account);
        played.n_parks++;
}

/* -- a client on our own memory -------------------------------------------------------------------------------------------- */

static int setup(void **state) {
        played = (struct played){ 0 };
        memory = mmap(NULL, PAGES * KSM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        assert_true(memory != MAP_FAILED);
        for (unsigned i = 0; i < PAGES; i++)
                memset(memory + i * KSM_PAGE_SIZE, (int) (1 + i), KSM_PAGE_SIZE);
        process = (struct process){ .n_refs = 1, .pid = getpid(), .uid = getuid() };
        process.pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
        process.mem_fd = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
        process.pidfd = (int) syscall(SYS_pidfd_open, getpid(), 0);
        _cleanup_close_ int device = open_device();
        store_init(&manager.store);
        manager.store.filler = segment_filler_open(device);
        assert_int_equal(store_domain_open(&manager.store, DOMAIN, DOMAIN_KEY, strlen(DOMAIN_KEY), &client.domain), 0);
        client.process = &process;
        session.client = &client;
        assert_int_equal(idmap_put(&manager.clients, CLIENT, &client), 0);
        return scanner_new(&manager, &scanner);
}

static int teardown(void **state) {
        assert_int_equal(account.n_jobs, 0);
        assert_int_equal(process.n_refs, 1);
        scanner = scanner_free(scanner);
        idmap_clear(&manager.clients);
        store_domain_unref(client.domain);
        store_done(&manager.store);
        close_fd(manager.store.filler);
        close_fd(process.pagemap_fd);
        close_fd(process.mem_fd);
        close_fd(process.pidfd);
        return munmap(memory, PAGES * KSM_PAGE_SIZE);
}

static uint64_t first_page(void) {
        return (uintptr_t) memory >> KSM_PAGE_SHIFT;
}

/* Hands it out; it is at a worker then. */
static bool dispatch(void) {
        uint64_t next;
        unsigned before = played.n_jobs;
        bool is_out = scanner_dispatch(scanner, now_usec(), &next);
        assert_int_equal(played.n_jobs - before, is_out);
        played.has_scan = played.has_read = false;
        return is_out;
}

static void dispatch_read(void) {
        played.has_read = true;
        played.read = (struct core_read){ .op = OP, .client = CLIENT, .domain = DOMAIN, .n_pages = PAGES };
        for (unsigned i = 0; i < PAGES; i++)
                played.read.pages[i] = first_page() + i;
        assert_true(dispatch());
}

static bool dispatch_scan(void) {
        played.has_scan = true;
        played.scan = (struct core_scan){ .op = OP, .client = CLIENT, .page = first_page(), .n_pages = PAGES, .max_runs = PAGES };
        return dispatch();
}

static void run_job(void) {
        static _Alignas(64) uint8_t scratch[1 << 20]; /* zeros: whatever stands there from elsewhere is no result */
        assert_true(scanner_scratch_bytes() <= sizeof(scratch));
        played.job->run(played.job, scratch);
}

static void scan(void) {
        assert_true(dispatch_scan());
        run_job();
        scanner_job_done(scanner, played.job);
}

static void assert_all_failed(void) {
        for (unsigned i = 0; i < PAGES; i++)
                assert_int_equal(played.results[i].status, CORE_READ_FAILED);
}

static void test_read(void **state) {
        memset(memory + 3 * KSM_PAGE_SIZE, 0, KSM_PAGE_SIZE);
        dispatch_read();
        run_job();
        assert_int_equal(played.n_answers, 0);
        scanner_job_done(scanner, played.job);
        assert_int_equal(played.n_answers, 1);
        for (unsigned i = 0; i < PAGES; i++) {
                assert_int_equal(played.results[i].status, i == 3 ? CORE_READ_ALL_ZERO : CORE_READ_OK);
                assert_true(played.results[i].hash == digest_page(&client.domain->secret, memory + i * KSM_PAGE_SIZE));
        }
}

/* Bytes that were not read have no hash, and are not zero either (I5). */
static void test_unread_is_not_hashed(void **state) {
        close_fd(process.mem_fd);
        process.mem_fd = open("/dev/full", O_WRONLY | O_CLOEXEC); /* reads nothing */
        dispatch_read();
        run_job();
        scanner_job_done(scanner, played.job);
        assert_int_equal(played.n_answers, 1);
        assert_all_failed();
}

/* A worker that hangs may write its results at any time: none is used. The core is answered once. */
static void test_hung_reader(void **state) {
        dispatch_read();
        run_job();
        played.job->slow = true;
        scanner_job_slow(scanner, played.job);
        assert_int_equal(played.n_parks, 1);
        assert_int_equal(account.n_slow, 1);
        assert_int_equal(played.n_answers, 0);
        scanner_job_lost(scanner, played.job);
        assert_int_equal(played.n_answers, 1);
        assert_all_failed();
        assert_int_equal(played.n_evictions, 1);
        assert_int_equal(account.n_lost, 1);
        played.job->given_up = true;
        scanner_job_done(scanner, played.job);
        assert_int_equal(played.n_answers, 1);
        assert_int_equal(played.n_parks, 2);
        assert_int_equal(account.n_slow, 0);
        assert_int_equal(account.n_lost, 0);
}

static void end_all_jobs(void) {
        while (played.n_jobs > 0) {
                played.job = played.jobs[--played.n_jobs];
                run_job();
                scanner_job_done(scanner, played.job);
        }
}

/* Others get work when all workers' places are taken by jobs that may hang; when they are not, who comes next waits. */
static void test_slow_jobs_keep_no_place(void **state) {
        for (unsigned i = 0; i < JOBS_PER_WORKER; i++)
                assert_true(dispatch_scan());
        assert_false(dispatch_scan());
        played.jobs[0]->slow = true;
        scanner_job_slow(scanner, played.jobs[0]);
        assert_true(dispatch_scan());
        assert_false(dispatch_scan());
        end_all_jobs();
        assert_int_equal(played.n_answers, JOBS_PER_WORKER + 1);
        assert_int_equal(account.n_slow, 0);
        assert_int_equal(played.n_parks, 2);
        for (unsigned i = 0; i < JOBS_PER_WORKER; i++)
                assert_true(dispatch_scan());
        assert_false(dispatch_scan());
        end_all_jobs();
}

/* Its own pagemap stays readable here, so that only who walks it finds something. */
static void test_dying_is_not_walked(void **state) {
        scan();
        assert_int_equal(played.scan_error, 0);

        atomic_store(&process.closing, true);
        scan();
        assert_int_equal(played.scan_error, -ESRCH);
        atomic_store(&process.closing, false);

        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0)
                _exit(0);
        close_fd(process.pidfd);
        process.pidfd = (int) syscall(SYS_pidfd_open, child, 0);
        assert_int_equal(waitpid(child, NULL, 0), child);
        scan();
        assert_int_equal(played.scan_error, -ESRCH);
        assert_int_equal(played.n_answers, 3);
}

/* -- what agents report ----------------------------------------------------------------------------------------------------- */

/* I4: segments of other domains do not even come before the core, which looks as well. */
static void test_runs_of_other_domains(void **state) {
        struct store_domain *other;
        struct store_segment *own, *foreign;
        assert_int_equal(store_domain_open(&manager.store, DOMAIN + 1, DOMAIN_KEY, strlen(DOMAIN_KEY), &other), 0);
        assert_int_equal(store_segment_open(&manager.store, 1, client.domain, SLOTS, -1, &own), 0);
        assert_int_equal(store_segment_open(&manager.store, 2, other, SLOTS, -1, &foreign), 0);
        const struct run_element runs[] = {
                { .page = first_page(), .inode = foreign->segment->inode, .n_pages = 1, .slot = 0 },
                { .page = first_page() + 1, .inode = own->segment->inode, .n_pages = 1, .slot = 1 },
                { .page = first_page() + 2, .inode = own->segment->inode + foreign->segment->inode, .n_pages = 1, .slot = 2 },
        };
        struct channel_message message = { .frame = { .type = MSG_RUNS, .elements = runs, .count = ARRAY_SIZE(runs) } };
        client_frame(&client, &message);
        assert_int_equal(played.n_adopted, 1);
        assert_int_equal(played.adopted[0], own->id);
        store_domain_unref(other);
}

/* -- what agents are asked about nodes --------------------------------------------------------------------------------------- */

/* Every third page of 70 blocks: more blocks than a frame has. */
#define ASKED_BLOCKS 70U
#define ASKED_PAGES (ASKED_BLOCKS * 64 / 3)

static struct asked {
        struct nodes_question question;
        uint64_t pages[ASKED_PAGES];
        int16_t nodes[ASKED_PAGES];
        unsigned n_done;
        int error;
} asked[CLIENT_NODES_WINDOW + 1];
static int agent_fd;

static void on_nodes(struct nodes_question *q, int error) {
        struct asked *a = (struct asked *) q;
        a->n_done++;
        a->error = error;
}

static int ask(struct asked *a) {
        *a = (struct asked){ .question = { .pages = a->pages, .n_pages = ASKED_PAGES, .ret_nodes = a->nodes, .done = on_nodes } };
        for (unsigned i = 0; i < ASKED_PAGES; i++)
                a->pages[i] = 64 * 100 + 3 * i;
        return nodes_ask(&client, &a->question);
}

static int16_t node_of_page(uint64_t page) {
        return (int16_t) (page % 5 == 4 ? -ENOENT : (int) (page % 5));
}

/* The agent's part, from the next NODES_REQUEST. Its op, for an answer with another one. */
static uint64_t answer_nodes(uint64_t op_plus, uint32_t count_plus, int expected) {
        static struct channel_message m;
        static struct nodes_element answer[NODES_BLOCKS_MAX + 1];
        enum codec_error error;
        assert_int_equal(channel_receive(agent_fd, ROLE_DAEMON, &m, &error), 1);
        assert_int_equal(m.frame.type, MSG_NODES_REQUEST);
        uint64_t op = ((const struct msg_nodes_request *) m.frame.body)->op;
        const struct nodes_wanted_element *wanted = m.frame.elements;
        for (uint32_t i = 0; i < m.frame.count; i++)
                for (unsigned k = 0; k < 64; k++)
                        answer[i].node[k] = (int16_t) (wanted[i].wanted >> k & 1 ? node_of_page(wanted[i].page + k) : -ENOENT);
        const struct msg_nodes body = { .op = op + op_plus };
        const struct frame f = { .type = MSG_NODES, .body = &body, .elements = answer, .count = m.frame.count + count_plus };
        assert_int_equal(nodes_told(&client, &f), expected);
        return op;
}

static void connect_agent(void) {
        int pair[2];
        assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
        session.fd = pair[0];
        agent_fd = pair[1];
        client.flags = HELLO_NODES;
}

static void disconnect_agent(void) {
        close_fd(agent_fd);
        session.fd = close_fd(session.fd);
        client.flags = 0;
        client.n_nodes = 0;
}

static void test_nodes_are_asked(void **state) {
        connect_agent();
        assert_int_equal(ask(&asked[0]), 0);
        assert_int_equal(ask(&asked[1]), 0);
        for (unsigned frame = 0; frame < 4; frame++) { /* two each, in turn */
                assert_int_equal(asked[0].n_done, frame > 2);
                assert_int_equal(asked[1].n_done, 0);
                (void) answer_nodes(0, 0, 0);
        }
        for (unsigned i = 0; i < 2; i++) {
                assert_int_equal(asked[i].n_done, 1);
                assert_int_equal(asked[i].error, 0);
                for (unsigned k = 0; k < ASKED_PAGES; k++)
                        assert_int_equal(asked[i].nodes[k], node_of_page(asked[i].pages[k]));
        }
        assert_int_equal(client.n_nodes, 0);
        client.flags = HELLO_REPORTS; /* an older agent */
        assert_int_equal(ask(&asked[0]), -EOPNOTSUPP);
        disconnect_agent();
}

static void test_nodes_that_were_not_asked_for(void **state) {
        connect_agent();
        const struct msg_nodes body = { .op = client.nodes_op };
        assert_int_equal(nodes_told(&client, &(struct frame){ .type = MSG_NODES, .body = &body }), -EPROTO);
        assert_int_equal(ask(&asked[0]), 0);
        (void) answer_nodes(1, 0, -EPROTO);
        nodes_give_up(&client, -ESRCH);
        client.n_nodes = 0;
        assert_int_equal(ask(&asked[0]), 0);
        (void) answer_nodes(0, 1, -EPROTO);
        nodes_give_up(&client, -ESRCH);
        assert_int_equal(asked[0].n_done, 1);
        disconnect_agent();
}

/* A question ends in time, whatever else its agent says; the answer may still come. So many at once, and no more. */
static void test_nodes_are_given_up(void **state) {
        connect_agent();
        for (unsigned i = 0; i < CLIENT_NODES_WINDOW; i++)
                assert_int_equal(ask(&asked[i]), 0);
        assert_int_equal(ask(&asked[CLIENT_NODES_WINDOW]), -EAGAIN);
        assert_int_equal(asked[CLIENT_NODES_WINDOW].n_done, 0);
        (void) answer_nodes(0, 0, 0); /* the first one's first half */
        uint64_t now = client.nodes[0].sent_usec + CLIENT_PARK_USEC;
        client.heard_usec = now;
        client_tick(&client, now);
        assert_int_equal(asked[1].n_done, 0);
        client_tick(&client, now + 1);
        for (unsigned i = 0; i < CLIENT_NODES_WINDOW; i++) {
                assert_int_equal(asked[i].n_done, 1);
                assert_int_equal(asked[i].error, -ETIMEDOUT);
                for (unsigned k = 0; k < ASKED_PAGES; k++) {
                        uint64_t page = asked[i].pages[k];
                        assert_int_equal(asked[i].nodes[k], i == 0 && page < 64 * 164 ? node_of_page(page) : -ETIMEDOUT);
                }
        }
        assert_int_equal(ask(&asked[CLIENT_NODES_WINDOW]), -EAGAIN); /* they are still owed */
        for (unsigned i = 0; i < CLIENT_NODES_WINDOW; i++)
                (void) answer_nodes(0, 0, 0);
        assert_int_equal(ask(&asked[0]), 0);
        session.closing = true;
        assert_int_equal(ask(&asked[1]), -ENOTCONN);
        assert_int_equal(asked[1].n_done, 0);
        nodes_give_up(&client, -ESRCH);
        assert_int_equal(asked[0].error, -ESRCH);
        assert_int_equal(asked[1].n_done, 0);
        session.closing = false;
        disconnect_agent();
}

/* -- what one user may take of the loop and of the log ---------------------------------------------------------------------- */

static void test_share_of_a_turn(void **state) {
        struct uid_account other = { .uid = 2 };
        uint64_t now = now_usec();
        manager.turn = (struct turn){ .number = 1 };
        assert_true(account_may_go_on(&manager, &account, now));
        account_used(&manager, &account, TURN_USER_USEC - 1);
        assert_true(account_may_go_on(&manager, &account, now));
        account_used(&manager, &account, 1);
        assert_false(account_may_go_on(&manager, &account, now));
        assert_true(account_may_go_on(&manager, &other, now));
        assert_true(account_may_go_on(&manager, &other, now + TURN_USEC - 1));
        assert_false(account_may_go_on(&manager, &other, now + TURN_USEC));
        manager.turn = (struct turn){ .number = 2 };
        assert_true(account_may_go_on(&manager, &account, now));
}

static uint64_t suppressed(struct uid_account *a, const char *reason) {
        uint64_t before = manager.n_log_suppressed;
        account_log(&manager, a, LOG_NOTICE, reason, "played: %s", reason);
        return manager.n_log_suppressed - before;
}

/* Each reason once about a user, so many of them, and so many lines about all: all in one window of time. */
static void test_log_lines_have_a_bound(void **state) {
        struct uid_account users[LOG_LINES / LOG_REASONS + 1] = { 0 };
        int level = log_get_max_level();
        unsigned n = 0;
        char reason[16];
        manager.log = (struct log_limit){ 0 };
        log_set_max_level(LOG_NOTICE);
        for (unsigned u = 0; u < ARRAY_SIZE(users); u++)
                for (unsigned i = 0; i < LOG_REASONS; i++) {
                        (void) snprintf(reason, sizeof(reason), "reason %u", i);
                        assert_int_equal(suppressed(&users[u], reason), n++ >= LOG_LINES);
                        assert_int_equal(suppressed(&users[u], reason), 1);
                }
        users[0].log.began_usec = manager.log.began_usec = 1; /* long ago: the next window */
        for (unsigned i = 0; i <= LOG_REASONS; i++) {
                (void) snprintf(reason, sizeof(reason), "reason %u", i);
                assert_int_equal(suppressed(&users[0], reason), i == LOG_REASONS);
        }
        log_set_max_level(level);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_read, setup, teardown),
                cmocka_unit_test_setup_teardown(test_unread_is_not_hashed, setup, teardown),
                cmocka_unit_test_setup_teardown(test_hung_reader, setup, teardown),
                cmocka_unit_test_setup_teardown(test_slow_jobs_keep_no_place, setup, teardown),
                cmocka_unit_test_setup_teardown(test_dying_is_not_walked, setup, teardown),
                cmocka_unit_test_setup_teardown(test_runs_of_other_domains, setup, teardown),
                cmocka_unit_test_setup_teardown(test_nodes_are_asked, setup, teardown),
                cmocka_unit_test_setup_teardown(test_nodes_that_were_not_asked_for, setup, teardown),
                cmocka_unit_test_setup_teardown(test_nodes_are_given_up, setup, teardown),
                cmocka_unit_test(test_share_of_a_turn),
                cmocka_unit_test(test_log_lines_have_a_bound),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
