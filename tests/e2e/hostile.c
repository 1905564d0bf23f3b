/* Clients that mean harm, for test_malice.py. One attack a process, as a user of its own:
 *
 *   hostile SOCKET UID ATTACK [ARGUMENT]
 *
 * "ready" on standard output when it is in place. Floods last ARGUMENT milliseconds and end with status 0; the others stay until their
 * standard input is closed or they are killed, all of their process group, and say on standard output what the test waits for. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/uapi.h"
#include "tests/support/fake_agent.h"
#include "tests/support/frames.h"
#include "tests/support/mute_fuse.h"

#define N_PAGES 64
#define GUESS_SEED 4711

static struct daemon_process the_daemon;
static unsigned argument;
static int pagemap, mem;

static void say(const char *text) {
        (void) printf("%s\n", text);
        (void) fflush(stdout);
}

static uint64_t msec(void) {
        struct timespec t;
        (void) clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t) t.tv_sec * 1000 + (uint64_t) t.tv_nsec / 1000000;
}

static void need(bool is_so, const char *what) {
        if (is_so)
                return;
        (void) fprintf(stderr, "hostile: %s: %s\n", what, strerror(errno));
        exit(1);
}

/* Until whoever started it closes our standard input. */
static void stay(void) {
        struct pollfd wait = { .fd = STDIN_FILENO };
        (void) poll(&wait, 1, -1);
        _exit(0);
}

static void fill(uint8_t *page, uint64_t seed) {
        for (unsigned i = 0; i < KSM_PAGE_SIZE; i += 8) {
                uint64_t x = random_next(&seed);
                memcpy(page + i, &x, 8);
        }
}

/* For ARGUMENT milliseconds; each connection until it is closed or `body` has had enough. */
static void flood(void (*body)(int fd, uint64_t *random)) {
        uint64_t random = 1 + (uint64_t) getpid(), end = msec() + argument;
        unsigned n = 0;
        say("ready");
        for (; msec() < end; n++) {
                int fd = channel_connect(the_daemon.socket, 0);
                if (fd < 0)
                        continue;
                body(fd, &random);
                close_fd(fd);
        }
        (void) printf("%u connections\n", n);
}

static bool hello(int fd) {
        const struct msg_hello body = { .page_size = KSM_PAGE_SIZE, .n_vmas = 50, .comm = "hostile" };
        int r;
        while ((r = channel_send(fd, MSG_HELLO, &body, NULL, 0, (int[]){ pagemap, mem }, 2)) == -ETOOMANYREFS)
                (void) usleep(1000); /* too many that the daemon has not come to */
        return r == 0;
}

/* -- frames --------------------------------------------------------------------------------------------------------------- */

static void random_bytes(int fd, uint64_t *random) {
        uint8_t bytes[2048];
        size_t size = random_below(random, sizeof(bytes));
        for (size_t i = 0; i < size; i++)
                bytes[i] = (uint8_t) random_next(random);
        (void) hello(fd);
        while (send(fd, bytes, size, MSG_NOSIGNAL) > 0)
                ;
}

static void half_frames(int fd, uint64_t *random) {
        static _Alignas(FRAME_ALIGN) uint8_t packet[FRAME_MAX_BYTES];
        size_t size = random_frame(packet, MSG_RANGE_ADD, 8, random);
        (void) hello(fd);
        (void) send(fd, packet, size / 2, MSG_NOSIGNAL);
        while (send(fd, packet, 8, MSG_NOSIGNAL) > 0)
                ;
}

static void answers_to_nothing(int fd, uint64_t *random) {
        const struct msg_applied applied = { .op = random_next(random) };
        const struct msg_ping pong = { .cookie = random_next(random) };
        (void) hello(fd);
        if (random_below(random, 2))
                (void) channel_send(fd, MSG_APPLIED, &applied, NULL, 0, NULL, 0);
        else
                (void) channel_send(fd, MSG_PONG, &pong, NULL, 0, NULL, 0);
        struct pollfd wait = { .fd = fd };
        (void) poll(&wait, 1, 1000);
}

/* As many descriptors as a message may carry, with every kind of frame, of the connection itself among others. */
static void descriptors(int fd, uint64_t *random) {
        enum { MANY = 253 };
        static _Alignas(FRAME_ALIGN) uint8_t packet[FRAME_MAX_BYTES];
        union {
                struct cmsghdr header;
                uint8_t bytes[CMSG_SPACE(MANY * sizeof(int))];
        } control;
        unsigned type = 0;
        while (message_types[type + 1] && random_below(random, 6))
                type++;
        struct iovec part = { packet, random_frame(packet, message_types[type], 1, random) };
        struct msghdr m = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
        int fds[MANY];
        for (unsigned i = 0; i < MANY; i++)
                fds[i] = i % 2 ? fd : pagemap;
        control.header = (struct cmsghdr){ .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(fds)) };
        memcpy(CMSG_DATA(&control.header), fds, sizeof(fds));
        if (random_below(random, 2))
                (void) hello(fd);
        while (sendmsg(fd, &m, MSG_NOSIGNAL) > 0)
                ;
}

/* Asks and asks, reads nothing. */
static void deaf(int fd, uint64_t *random) {
        const struct msg_merge_request request = { .cookie = 1, .start = KSM_PAGE_SIZE, .length = KSM_PAGE_SIZE };
        if (hello(fd))
                while (channel_send(fd, MSG_MERGE_REQUEST, &request, NULL, 0, NULL, 0) == 0)
                        ;
}

/* Ranges where nothing is, all there is, as many as there can be, and cuts through all of them at once. */
static void lies(int fd, uint64_t *random) {
        enum { MANY = 512 };
        static struct range_element e[MANY];
        const struct msg_range_add body = { .n_vmas = 65530 };
        const struct msg_range_del del = { 0 };
        if (!hello(fd))
                return;
        for (unsigned frame = 0; frame < 600; frame++) {
                for (unsigned i = 0; i < MANY; i++) {
                        uint64_t number = frame * MANY + i;
                        e[i] = (struct range_element){ (2 * number + 1) * KSM_PAGE_SIZE, KSM_PAGE_SIZE };
                        if (random_below(random, 8) == 0)
                                e[i].start += UINT64_C(1) << (30 + random_below(random, 24));
                }
                if (channel_send(fd, MSG_RANGE_ADD, &body, e, MANY, NULL, 0) < 0)
                        return;
                if (frame % 100 != 99 || frame >= 300)
                        continue;
                const struct range_element all = { KSM_PAGE_SIZE, ADDRESS_LIMIT - 2 * KSM_PAGE_SIZE };
                if (channel_send(fd, frame == 199 ? MSG_GONE : MSG_RANGE_DEL, &del, &all, 1, NULL, 0) < 0)
                        return;
        }
}

/* -- connections ------------------------------------------------------------------------------------------------------------ */

static int connect_patiently(void) {
        int fd;
        while ((fd = channel_connect(the_daemon.socket, 0)) == -EAGAIN)
                ;
        return fd;
}

/* ARGUMENT connections that say nothing. */
static void silent(void) {
        for (unsigned i = 0; i < argument; i++)
                need(connect_patiently() >= 0, "connect");
        say("ready");
        stay();
}

/* ARGUMENT agents, with a range each, that read nothing any more. */
static void many(void) {
        const struct msg_range_add body = { .n_vmas = 50 };
        const struct range_element range = { (uintptr_t) &the_daemon & ~(KSM_PAGE_SIZE - 1), KSM_PAGE_SIZE };
        unsigned n = 0;
        for (; n < argument; n++) {
                int fd = connect_patiently();
                need(fd >= 0, "connect");
                (void) (hello(fd) && channel_send(fd, MSG_RANGE_ADD, &body, &range, 1, NULL, 0) == 0); /* not when it is refused */
        }
        (void) printf("%u\n", n);
        say("ready");
        stay();
}

/* Registered, with work that waits for it, and stopped. */
static void stopped(void) {
        struct fake_agent a;
        fake_agent_start(&a, &the_daemon);
        fake_agent_map(&a, N_PAGES);
        memset(a.memory, 0, N_PAGES * KSM_PAGE_SIZE);
        memset(a.memory, 1, KSM_PAGE_SIZE);
        fake_agent_announce(&a);
        say("ready");
        (void) raise(SIGSTOP);
        stay();
}

/* -- memory that does not answer ---------------------------------------------------------------------------------------------- */

/* Known to the daemon and too fresh to be read when `swap` puts something else there. Again until the daemon has fallen for it. */
static void change_what_is_known(struct fake_agent *a, void (*swap)(struct fake_agent *, int), int fd) {
        for (uint64_t seed = 1;; seed += N_PAGES) {
                uint64_t end = msec() + 200;
                fake_agent_map(a, N_PAGES);
                fake_agent_announce(a);
                while (msec() < end) {
                        for (size_t i = 0; i < N_PAGES; i++)
                                fill(fake_page(a, i), seed + i);
                        (void) fake_agent_step_unless_closed(a, 1);
                }
                swap(a, fd);
                for (end = msec() + 1000; msec() < end;)
                        if (!fake_agent_step_unless_closed(a, 10) && recv(a->fd, &(char){ 0 }, 1, MSG_PEEK | MSG_DONTWAIT) == 0) {
                                say("evicted");
                                stay();
                        }
        }
}

static void swap_uffd(struct fake_agent *a, int guard) {
        struct uffdio_register r = { .range = { (uintptr_t) a->memory, N_PAGES * KSM_PAGE_SIZE },
                                     .mode = UFFDIO_REGISTER_MODE_MISSING };
        need(ioctl(a->track, UFFDIO_UNREGISTER, &r.range) == 0, "unregister");
        need(madvise(a->memory, N_PAGES * KSM_PAGE_SIZE, MADV_DONTNEED) == 0, "discard");
        need(ioctl(guard, UFFDIO_REGISTER, &r) == 0, "register");
}

static void uffd_memory(void) {
        struct fake_agent a;
        struct uffdio_api api = { .api = UFFD_API };
        int device;
        close_fd(agent_connect(&the_daemon, NULL, &device));
        int guard = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
        close_fd(device);
        need(guard >= 0 && ioctl(guard, UFFDIO_API, &api) == 0, "userfaultfd");
        fake_agent_start(&a, &the_daemon);
        say("ready");
        change_what_is_known(&a, swap_uffd, guard);
}

static void swap_fuse(struct fake_agent *a, int file) {
        need(mmap(a->memory, N_PAGES * KSM_PAGE_SIZE, PROT_READ, MAP_PRIVATE | MAP_FIXED, file, 0) == a->memory, "map");
}

static void fuse_memory(int file) {
        struct fake_agent a;
        fake_agent_start(&a, &the_daemon);
        say("ready");
        change_what_is_known(&a, swap_fuse, file);
}

/* -- mappings that nobody may look at --------------------------------------------------------------------------------------- */

#define CROWD 10

static void *read_through_proc(void *memory) {
        char byte;
        (void) !pread(mem, &byte, 1, (off_t) (uintptr_t) memory); /* holds the lock on the mappings, shared, while it waits */
        return NULL;
}

static void *change_mappings(void *unused) {
        (void) mmap(NULL, KSM_PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); /* waits for it, and lets nobody past */
        return NULL;
}

static void lock_mappings(int file, unsigned i) {
        struct fake_agent a;
        pthread_t reader, writer;
        uint8_t *mute = mmap(NULL, KSM_PAGE_SIZE, PROT_READ, MAP_PRIVATE, file, (off_t) (i * (MUTE_FUSE_BYTES / CROWD / KSM_PAGE_SIZE) * KSM_PAGE_SIZE));
        need(mute != MAP_FAILED, "map");
        fake_agent_start(&a, &the_daemon);
        fake_agent_map(&a, N_PAGES);
        for (unsigned page = 0; page < N_PAGES; page++) /* unique: who is asked to merge has to change mappings */
                fill(fake_page(&a, page), (uint64_t) (i + 1) * N_PAGES + page);
        fake_agent_announce(&a);
        (void) fake_agent_step_unless_closed(&a, 100);
        need(pthread_create(&reader, NULL, read_through_proc, mute) == 0 && pthread_create(&writer, NULL, change_mappings, NULL) == 0, "thread");
        for (;;) /* answers, so that it is not for silence that it is left alone */
                if (!fake_agent_step_unless_closed(&a, 100) && recv(a.fd, &(char){ 0 }, 1, MSG_PEEK | MSG_DONTWAIT) == 0)
                        stay();
}

/* Agents of one user whose mappings cannot be scanned. */
static void locked_mappings(int file) {
        for (unsigned i = 0; i < CROWD; i++) {
                pid_t child = fork();
                need(child >= 0, "fork");
                if (child == 0) {
                        close_fd(pagemap);
                        close_fd(mem);
                        pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
                        mem = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
                        lock_mappings(file, i);
                }
        }
        say("ready");
        stay();
}

/* -- descriptors that do not answer --------------------------------------------------------------------------------------------- */

static void fuse_descriptors(int file) {
        const struct msg_hello body = { .page_size = KSM_PAGE_SIZE, .comm = "fuse" };
        const struct msg_admin_hello admin = { 0 };
        const int fds[] = { file, file };
        int fd = peer_connect(&the_daemon);
        /* With any other frame the kernel drops them: the daemon closes none. */
        for (unsigned i = 0; i < 100; i++) {
                int other = peer_connect(&the_daemon);
                if (i % 2)
                        (void) hello(other);
                (void) channel_send(other, MSG_ADMIN_HELLO, &admin, NULL, 0, NULL, 0);
                struct iovec part = { (void *) &admin, sizeof(admin) };
                union {
                        struct cmsghdr header;
                        uint8_t bytes[CMSG_SPACE(sizeof(fds))];
                } control = { .header = { .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(fds)) } };
                struct msghdr m = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
                memcpy(CMSG_DATA(&control.header), fds, sizeof(fds));
                (void) sendmsg(other, &m, MSG_NOSIGNAL);
                close_fd(other);
        }
        for (unsigned i = 0; i < 20; i++)
                agent_send_hello(i ? peer_connect(&the_daemon) : fd, &body, file, file);
        say("ready");
        struct pollfd wait = { .fd = fd };
        (void) poll(&wait, 1, -1);
        say("evicted");
        stay();
}

/* -- exec of a setuid program ----------------------------------------------------------------------------------------------------- */

/* What the setuid program is: pages at an address that its user chose, with content that he guesses. */
static int be_setuid_program(const char *address) {
        uint8_t *at = (uint8_t *) strtoull(address, NULL, 16);
        need(geteuid() != getuid(), "not setuid");
        need(mmap(at, N_PAGES * KSM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == at,
             "map at the address");
        for (size_t i = 0; i < N_PAGES; i++)
                fill(at + i * KSM_PAGE_SIZE, GUESS_SEED + i);
        say("changed");
        stay();
        return 0;
}

/* A client of its own with the guess. */
static void guess(void) {
        struct fake_agent a;
        fake_agent_start(&a, &the_daemon);
        fake_agent_map(&a, N_PAGES);
        for (size_t i = 0; i < N_PAGES; i++)
                fill(fake_page(&a, i), GUESS_SEED + i);
        fake_agent_announce(&a);
        for (;;)
                (void) fake_agent_step(&a, 1000);
}

/* Shares the address space that the daemon was shown, and outlives it in the first process: speaks for it, keeps its pages fresh until
 * the exec. If the daemon took the setuid program's memory for them, its user sees them become what is neither unique nor merged. */
static int stand_in(void *userdata) {
        struct fake_agent *a = userdata;
        static struct channel_message m;
        const pid_t parent = getppid();
        bool is_open = true, has_told = false;
        for (uint64_t seed = 1; getppid() == parent; seed++) {
                struct pollfd wait = { .fd = is_open ? a->fd : -1, .events = POLLIN };
                enum codec_error error;
                int r = poll(&wait, 1, 10) > 0 ? channel_receive(a->fd, ROLE_DAEMON, &m, &error) : -EAGAIN;
                is_open = is_open && (r == 1 || r == -EAGAIN);
                if (r == 1 && m.frame.type == MSG_PING)
                        (void) channel_send(a->fd, MSG_PONG, m.frame.body, NULL, 0, NULL, 0);
                if (r == 1 && m.frame.type == MSG_APPLY && !has_told) {
                        say("leaked");
                        has_told = true;
                }
                if (r == 1)
                        channel_message_done(&m);
                /* Heard lately: read by pid, where that is permitted. */
                if (is_open)
                        (void) channel_send(a->fd, MSG_AGENT_STATS, &(struct msg_agent_stats){ 0 }, NULL, 0, NULL, 0);
                if (seed < 80) /* some ten milliseconds each */
                        for (size_t i = 0; i < N_PAGES; i++)
                                fill(fake_page(a, i), seed << 16 | i);
        }
        return 0;
}

static void setuid_exec(const char *setuid_program) {
        static struct fake_agent a;
        static uint8_t stack[1 << 18];
        char address[32];
        if (fork() == 0) {
                (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
                guess();
        }
        fake_agent_start(&a, &the_daemon);
        fake_agent_map(&a, N_PAGES);
        for (size_t i = 0; i < N_PAGES; i++)
                fill(fake_page(&a, i), i + 1);
        fake_agent_announce(&a);
        (void) snprintf(address, sizeof(address), "%llx", (unsigned long long) (uintptr_t) a.memory);
        need(clone(stand_in, stack + sizeof(stack), CLONE_VM | SIGCHLD, &a) > 0, "clone");
        say("ready");
        (void) usleep(300000); /* in the middle of merging; nothing waits for it */
        (void) execl(setuid_program, "hostile", "-", "0", "setuid-program", address, NULL);
        need(false, "exec");
}

/* ---------------------------------------------------------------------------------------------------------------------------------- */

static void become(uid_t uid) {
        need(setgroups(0, NULL) == 0 && setresgid(uid, uid, uid) == 0 && setresuid(uid, uid, uid) == 0, "change the user");
        (void) prctl(PR_SET_DUMPABLE, 1);
        (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
        pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
        mem = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
        need(pagemap >= 0 && mem >= 0, "open /proc");
}

static void with_fuse(uid_t uid, const char *directory, void (*attack)(int file)) {
        char path[256];
        int fd = mute_fuse_mount(directory, uid);
        if (fd < 0) {
                (void) printf("no FUSE: %s\n", strerror(-fd));
                exit(77);
        }
        become(uid);
        need(mute_fuse_serve(fd) == 0, "server");
        (void) snprintf(path, sizeof(path), "%s/" MUTE_FUSE_FILE, directory);
        int file = open(path, O_RDONLY | O_CLOEXEC);
        need(file >= 0, path);
        attack(file);
}

static const struct {
        const char *name;
        void (*body)(int fd, uint64_t *random);
} floods[] = {
        { "random-bytes", random_bytes }, { "half-frames", half_frames }, { "answers-to-nothing", answers_to_nothing },
        { "descriptors", descriptors },   { "deaf", deaf },               { "lies", lies },
};

int main(int argc, char **argv) {
        if (argc < 4)
                return 64;
        const char *attack = argv[3], *rest = argc > 4 ? argv[4] : "";
        uid_t uid = (uid_t) atoi(argv[2]);
        if (strcmp(attack, "setuid-program") == 0)
                return be_setuid_program(rest);
        argument = (unsigned) atoi(rest);
        (void) signal(SIGPIPE, SIG_IGN);
        (void) snprintf(the_daemon.socket, sizeof(the_daemon.socket), "%s", argv[1]);
        if (strcmp(attack, "fuse-memory") == 0)
                with_fuse(uid, rest, fuse_memory);
        if (strcmp(attack, "locked-mappings") == 0)
                with_fuse(uid, rest, locked_mappings);
        if (strcmp(attack, "fuse-descriptors") == 0)
                with_fuse(uid, rest, fuse_descriptors);
        if (strcmp(attack, "many") == 0) { /* while it may raise the limit */
                const struct rlimit limit = { argument + 100, argument + 100 };
                need(setrlimit(RLIMIT_NOFILE, &limit) == 0, "raise the limit of descriptors");
        }
        become(uid);
        for (size_t i = 0; i < ARRAY_SIZE(floods); i++)
                if (strcmp(attack, floods[i].name) == 0) {
                        flood(floods[i].body);
                        return 0;
                }
        if (strcmp(attack, "many") == 0)
                many();
        if (strcmp(attack, "silent") == 0)
                silent();
        if (strcmp(attack, "stopped") == 0)
                stopped();
        if (strcmp(attack, "uffd-memory") == 0)
                uffd_memory();
        if (strcmp(attack, "setuid-exec") == 0)
                setuid_exec(rest);
        return 64;
}
