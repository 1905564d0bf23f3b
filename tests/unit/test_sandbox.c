/* The allow-list: what a running daemon does still works, everything else ends the process. Each case in a child. */
#include <errno.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "daemon/sys/digest.h"
#include "daemon/sys/numa.h"
#include "daemon/sys/peer.h"
#include "daemon/sys/sandbox.h"
#include "daemon/sys/segment.h"
#include "tests/unit/device.h"

static int device = -1, filler = -1;

static int in_child(int (*run)(void)) {
        int status;
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                filler = segment_filler_open(device); /* fills the memory of who made it; before, as the daemon does */
                _exit(sandbox_enter() < 0 ? 99 : run());
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void *in_thread(void *userdata) {
        return malloc(1 << 20);
}

static int daily_work(void) {
        static uint8_t page[KSM_PAGE_SIZE];
        struct digest_secret secret;
        struct segment_file *s;
        struct peer peer;
        char key[PEER_KEY_BYTES];
        pthread_t thread;
        const char *reason;
        int pair[2];
        /* A seal, a thread, a peer, a config file, a page of memory: each as the daemon does it while it runs. */
        if (digest_secret_draw(&secret) < 0 || segment_file_new(filler, 16, -1, "key", 3, &s) < 0 ||
            segment_file_fill(s, 1, page, 1) != 1 || segment_file_seal(s) < 0)
                return 1;
        segment_file_free(s);
        if (pthread_create(&thread, NULL, in_thread, NULL) != 0 || pthread_join(thread, NULL) != 0)
                return 2;
        /* A socket pair is not on the list: sockets come from accept. */
        pair[0] = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        if (pair[0] < 0)
                return 3;
        peer = (struct peer){ .pid = getpid(), .uid = getuid(), .pidfd = -1 };
        (void) peer_domain_key(pair[0], &peer, 1, key);
        (void) peer_check_eligible(&peer, &reason);
        FILE *f = fopen("/etc/passwd", "re");
        if (!f)
                return 4;
        int first = fgetc(f);
        if (fclose(f) != 0 || first == EOF)
                return 4;
        void *p = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        return p != MAP_FAILED && munmap(p, 1 << 20) == 0 ? 0 : 5;
}

/* Nodes asked of pages here and elsewhere, a segment that prefers one, what the kernel migrated: whatever it says, but it must be asked. */
static int ask_about_nodes(void) {
        struct segment_file *s;
        int16_t node;
        uint64_t n;
        if (segment_file_new(filler, 16, -1, "key", 3, &s) < 0)
                return 1;
        uint64_t page = (uintptr_t) s->slots >> KSM_PAGE_SHIFT;
        (void) numa_bind(s->slots, 16 * KSM_PAGE_SIZE, 0);
        (void) numa_nodes(0, &page, 1, &node);
        (void) numa_nodes(getpid(), &page, 1, &node);
        segment_file_free(s);
        _cleanup_close_ int fd = numa_open_vmstat();
        return fd >= 0 && numa_count() >= 1 && numa_migrations(fd, &n) != -EBADF ? 0 : 2;
}

static void test_daily_work(void **state) {
        device = open_device();
        assert_int_equal(in_child(daily_work), 0);
        assert_int_equal(in_child(ask_about_nodes), 0);
}

static int do_inet(void) {
        return socket(AF_INET, SOCK_STREAM, 0) >= 0 ? 1 : 2;
}
static int do_exec(void) {
        return execl("/bin/true", "true", (char *) NULL) < 0 ? 1 : 2;
}
static int do_open_for_writing(void) {
        return open("/tmp/userksm-sandbox-test", O_WRONLY | O_CREAT | O_CLOEXEC, 0600) < 0 ? 1 : 2;
}
static int do_executable_memory(void) {
        return mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? 1 : 2;
}
static int do_ptrace(void) {
        return ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0 ? 1 : 2;
}
static int do_write_other_memory(void) {
        return syscall(SYS_process_vm_writev, getppid(), NULL, 0, NULL, 0, 0) < 0 ? 1 : 2;
}
static int do_setuid(void) {
        return setuid(0) < 0 ? 1 : 2;
}
static int do_kill(void) {
        return kill(getppid(), 0) < 0 ? 1 : 2;
}
static int do_move_pages(void) {
        void *page = &page;
        int node = 0, status;
        return syscall(SYS_move_pages, 0, 1UL, &page, &node, &status, 0) < 0 ? 1 : 2;
}
static int do_bind_to_a_node_alone(void) {
        unsigned long mask = 1;
        void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        return syscall(SYS_mbind, p, 4096UL, MPOL_BIND, &mask, 2UL, 0) < 0 ? 1 : 2;
}
static int do_bind_and_move(void) {
        unsigned long mask = 1;
        void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        return syscall(SYS_mbind, p, 4096UL, MPOL_PREFERRED, &mask, 2UL, MPOL_MF_MOVE) < 0 ? 1 : 2;
}

static void test_forbidden(void **state) {
        int (*const cases[])(void) = { do_inet,
                                       do_exec,
                                       do_open_for_writing,
                                       do_executable_memory,
                                       do_ptrace,
                                       do_write_other_memory,
                                       do_setuid,
                                       do_kill,
                                       do_move_pages,
                                       do_bind_to_a_node_alone,
                                       do_bind_and_move };
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
                assert_int_equal(in_child(cases[i]), 128 + SIGSYS);
}

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_daily_work), cmocka_unit_test(test_forbidden) };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
