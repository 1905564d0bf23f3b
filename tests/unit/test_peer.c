/* Domain keys: what of a cgroup path decides who may share with whom. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "daemon/sys/peer.h"

#define ID "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static void test_scope_and_unit(void **state) {
        static const struct {
                const char *path, *scope, *unit;
        } cases[] = {
                /* the host: units differ, the scope does not */
                { "/", "", "" },
                { "/system.slice/redis@1.service", "", "redis@.service" },
                { "/system.slice/system-redis.slice/redis@6379.service", "", "redis@.service" },
                { "/system.slice/cron.service", "", "cron.service" },
                { "/system.slice/cron.service/worker", "", "cron.service" },
                { "/user.slice/user-1000.slice/session-3.scope", "", "session-3.scope" },
                { "/user.slice/user-1000.slice/user@1000.service/app.slice/app-foo@a.service", "", "app-foo@.service" },
                { "/init.scope", "", "init.scope" },
                { "/made/by/hand", "", "/made/by/hand" },
                { "/odd@name", "", "/odd@name" },
                /* slices of the administrator separate */
                { "/tenant.slice/tenant-a.slice/web@1.service", "/tenant.slice/tenant-a.slice", "web@.service" },
                { "/tenant.slice", "/tenant.slice", "" },
                /* a user's own slices below his manager do not */
                { "/user.slice/user-7.slice/user@7.service/mine.slice/x.scope", "", "x.scope" },
                /* containers */
                { "/system.slice/docker-" ID ".scope", "/system.slice/docker-" ID ".scope", "" },
                { "/docker/" ID, "/docker/" ID, "" },
                { "/docker/" ID "/system.slice/redis@1.service", "/docker/" ID, "redis@.service" },
                { "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podx.slice/cri-containerd-" ID ".scope",
                  "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podx.slice/cri-containerd-" ID ".scope", "" },
                { "/machine.slice/systemd-nspawn@c.service/payload/system.slice/a@2.service",
                  "/machine.slice/systemd-nspawn@c.service", "a@.service" },
                { "/machine.slice/machine-qemu\\x2d1.scope/libvirt", "/machine.slice/machine-qemu\\x2d1.scope", "/libvirt" },
                { "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" ID ".scope/container",
                  "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" ID ".scope", "/container" },
                { "/lxc/c1/init.scope", "/lxc/c1", "init.scope" },
                { "/lxc.payload.c1/system.slice/a.service", "/lxc.payload.c1", "a.service" },
                /* the innermost container counts */
                { "/docker/" ID "/docker/" ID, "/docker/" ID "/docker/" ID, "" },
                /* nearly container names */
                { "/docker-x.service", "", "docker-x.service" },
                { "/abc/0123456789abcdef", "", "/abc/0123456789abcdef" },
        };
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                const char *scope;
                size_t length;
                char unit[256], got[512];
                cgroup_scope(cases[i].path, strlen(cases[i].path), &scope, &length);
                (void) snprintf(got, sizeof(got), "%.*s", (int) length, scope);
                assert_string_equal(got, cases[i].scope);
                assert_true(cgroup_unit_template(cases[i].path, strlen(cases[i].path), unit, sizeof(unit)) >= 0);
                assert_string_equal(unit, cases[i].unit);
        }
}

static void test_unit_too_long(void **state) {
        char unit[8];
        assert_int_equal(cgroup_unit_template("/long.service", 13, unit, sizeof(unit)), -ENAMETOOLONG);
}

static void test_find_path(void **state) {
        static const struct {
                const char *text, *path;
        } cases[] = {
                { "0::/system.slice/a.service\n", "/system.slice/a.service" },
                { "2:cpu:/x\n0::/u\n", "/u" },
                { "9:name=systemd:/s\n0::/\n", "/s" },
                { "9:name=systemd:/s\n0::/u\n", "/u" },
                { "9:name=systemd:/s\n", "/s" },
                { "0::/", "/" },
                { "2:cpu:/x\n", NULL },
                { "", NULL },
                { "0::relative\n", NULL },
                { "10::/not-unified\n", NULL },
        };
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                const char *path;
                size_t length;
                bool found = cgroup_find_path(cases[i].text, &path, &length);
                assert_int_equal(found, cases[i].path != NULL);
                if (found) {
                        assert_int_equal(length, strlen(cases[i].path));
                        assert_memory_equal(path, cases[i].path, length);
                }
        }
}

/* Each fact separates; instances of one unit share, and for users other than root units do not matter. */
static void test_facts(void **state) {
        static const struct {
                uid_t uid;
                const char *label, *cgroup;
        } others[] = {
                { 0, "", "0::/system.slice/redis@1.service" },
                { 0, "", "0::/system.slice/cron.service" },
                { 0, "label", "0::/system.slice/redis@1.service" },
                { 0, "", "0::/tenant.slice/redis@1.service" },
                { 0, "", "0::/docker/" ID },
                { 1, "", "0::/system.slice/redis@1.service" },
                { 2, "", "0::/system.slice/redis@1.service" },
                { 1, "label", "0::/system.slice/redis@1.service" },
                { 1, "", "0::/tenant.slice/redis@1.service" },
        };
        char keys[ARRAY_SIZE(others)][PEER_KEY_BYTES], key[PEER_KEY_BYTES];
        for (size_t i = 0; i < ARRAY_SIZE(others); i++) {
                size_t size = peer_facts_key(others[i].uid, others[i].label, others[i].cgroup, keys[i]);
                assert_int_equal(size, strlen(keys[i]));
                assert_true(peer_key_lasts(keys[i], strlen(keys[i])));
                for (size_t k = 0; k < i; k++)
                        assert_string_not_equal(keys[i], keys[k]);
        }
        (void) peer_facts_key(0, "", "0::/system.slice/redis@2.service", key);
        assert_string_equal(key, keys[0]);
        (void) peer_facts_key(1, "", "0::/system.slice/cron.service", key);
        assert_string_equal(key, keys[5]);
        assert_int_equal(peer_facts_key(0, "", "no path", key), 0);
        static char text[PEER_KEY_BYTES + 32];
        (void) snprintf(text, sizeof(text), "0::/%0*d", PEER_KEY_BYTES, 0);
        assert_int_equal(peer_facts_key(0, "", text, key), 0); /* does not fit */
}

/* Two connections of one process share a key; a peer that cannot be examined shares with nobody. */
static void test_real_keys(void **state) {
        char keys[2][PEER_KEY_BYTES];
        size_t sizes[2];
        int pair[2];
        assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
        struct peer p;
        assert_int_equal(peer_get(pair[0], &p), 0);
        assert_int_equal(p.pid, getpid());
        assert_int_equal(p.uid, getuid());
        for (unsigned i = 0; i < 2; i++)
                sizes[i] = (size_t) peer_domain_key(pair[0], &p, i, keys[i]);
        assert_int_equal(sizes[0], sizes[1]);
        assert_memory_equal(keys[0], keys[1], sizes[0]);
        assert_memory_equal(keys[0], "uid=", 4);

        p.pid = 0;
        for (unsigned i = 0; i < 2; i++)
                sizes[i] = (size_t) peer_domain_key(pair[0], &p, i, keys[i]);
        assert_true(sizes[0] != sizes[1] || memcmp(keys[0], keys[1], sizes[0]) != 0);
        assert_memory_equal(keys[0], "alone=", 6);
        peer_clear(&p);
        close_fd(pair[0]);
        close_fd(pair[1]);
}

/* The peer of a socket pair is whoever made it; a child that has exited must not lend its pid to a key. */
static void test_dead_peer_is_alone(void **state) {
        char key[PEER_KEY_BYTES];
        int pair[2], carrier[2];
        assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, carrier), 0);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                char control[CMSG_SPACE(sizeof(int))] = { 0 }, byte = 0;
                struct iovec part = { &byte, 1 };
                struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
                                          .msg_controllen = sizeof(control) };
                if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) < 0)
                        _exit(1);
                struct cmsghdr *c = CMSG_FIRSTHDR(&message);
                c->cmsg_level = SOL_SOCKET;
                c->cmsg_type = SCM_RIGHTS;
                c->cmsg_len = CMSG_LEN(sizeof(int));
                memcpy(CMSG_DATA(c), &pair[0], sizeof(int));
                _exit(sendmsg(carrier[1], &message, 0) == 1 && read(carrier[1], &byte, 1) >= 0 ? 0 : 1);
        }
        char control[CMSG_SPACE(sizeof(int))], byte;
        struct iovec part = { &byte, 1 };
        struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
                                  .msg_controllen = sizeof(control) };
        assert_int_equal(recvmsg(carrier[0], &message, 0), 1);
        memcpy(&pair[0], CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
        struct peer p;
        assert_int_equal(peer_get(pair[0], &p), 0);
        assert_int_equal(p.pid, pid);
        (void) peer_domain_key(pair[0], &p, 1, key);
        assert_memory_equal(key, "uid=", 4);
        int status;
        assert_int_equal(write(carrier[0], "", 1), 1);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
        (void) peer_domain_key(pair[0], &p, 1, key);
        assert_memory_equal(key, "alone=", 6);
        const char *reason;
        assert_int_equal(peer_check_eligible(&p, &reason), -EPERM);
        /* Nor when somebody else has its pid by now. */
        p.pid = getpid();
        (void) peer_domain_key(pair[0], &p, 1, key);
        assert_memory_equal(key, "alone=", 6);
        assert_int_equal(peer_check_eligible(&p, &reason), -EPERM);
        peer_clear(&p);
        close_fd(pair[0]);
        close_fd(carrier[0]);
        close_fd(carrier[1]);
}

/* No file can be opened just now: that is said, and neither an answer about the peer nor a key for it alone, which it would keep. */
static void test_lack_is_no_answer(void **state) {
        char key[PEER_KEY_BYTES];
        const char *reason;
        struct rlimit files, none;
        struct peer p;
        int pair[2];
        assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
        assert_int_equal(peer_get(pair[0], &p), 0);
        assert_int_equal(getrlimit(RLIMIT_NOFILE, &files), 0);
        none = (struct rlimit){ .rlim_cur = 0, .rlim_max = files.rlim_max };
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
        ssize_t size = peer_domain_key(pair[0], &p, 1, key);
        int eligible = peer_check_eligible(&p, &reason);
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &files), 0);
        assert_int_equal(size, -EMFILE);
        assert_int_equal(eligible, -EMFILE);
        assert_null(reason);
        assert_true(peer_domain_key(pair[0], &p, 1, key) > 0);
        assert_memory_equal(key, "uid=", 4);
        peer_clear(&p);
        close_fd(pair[0]);
        close_fd(pair[1]);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_scope_and_unit), cmocka_unit_test(test_unit_too_long),
                cmocka_unit_test(test_find_path),      cmocka_unit_test(test_facts),
                cmocka_unit_test(test_real_keys),      cmocka_unit_test(test_dead_peer_is_alone),
                cmocka_unit_test(test_lack_is_no_answer),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
