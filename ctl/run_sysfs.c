#include "ctl/run_sysfs.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "ctl/ctl.h"
#include "ctl/paths.h"

/* The server's end of the socket, as userksm-sysfs is told. */
#define SERVER_FD 3

static void exec_server(const char *path, const char *socket_path, int fd) {
        int null_fd = open("/dev/null", O_RDWR);
        sigset_t none;

        setsid(); /* Ctrl-C is not meant for it */
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        /* None of the run's streams stay open in it: a pipeline ends when the command does. Not CLOEXEC, even if fd is SERVER_FD. */
        fd = fcntl(fd, F_DUPFD, SERVER_FD + 1);
        dup2(fd, SERVER_FD);
        for (int i = 0; i < SERVER_FD; i++)
                dup2(null_fd, i);
        syscall(SYS_close_range, SERVER_FD + 1u, ~0u, 0u);
        (void) chdir("/");
        unsetenv("LD_PRELOAD");
        execl(path, path, "--socket", socket_path, "--handed", "3", (char *) NULL);
        _exit(STATUS_OSERR);
}
_Static_assert(SERVER_FD == 3, "said in words above");

int sysfs_server_start(struct sysfs_server *s, const char *socket_path) {
        char path[PATH_MAX];
        int fds[2];
        pid_t pid;

        if (access(KSM_DIRECTORY, F_OK) < 0) {
                complain("--sysfs: there is no " KSM_DIRECTORY " to mount over: this kernel is without KSM");
                return STATUS_UNAVAILABLE;
        }
        if (find_sysfs_server(path) < 0) {
                complain("--sysfs: userksm-sysfs was not found: looked at %s", path);
                return STATUS_UNAVAILABLE;
        }
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0) {
                complain("--sysfs: %m");
                return STATUS_OSERR;
        }
        pid = fork();
        if (pid == 0)
                exec_server(path, socket_path, fds[1]);
        close_fd(fds[1]);
        if (pid < 0) {
                complain("--sysfs: cannot start userksm-sysfs: %m");
                close_fd(fds[0]);
                return STATUS_OSERR;
        }
        s->fd = fds[0];
        return STATUS_OK;
}

void sysfs_server_done(struct sysfs_server *s) {
        s->fd = close_fd(s->fd);
}

/* -- in the command's process ------------------------------------------------------------------------------------------ */

static int write_file(const char *path, const char *text) {
        _cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);

        if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t) strlen(text))
                return -errno;
        return 0;
}

/* The same ids inside as outside. */
static int map_ids(uid_t uid, gid_t gid) {
        char map[64];
        int r;

        snprintf(map, sizeof(map), "%u %u 1", uid, uid);
        r = write_file("/proc/self/uid_map", map);
        if (r == 0)
                r = write_file("/proc/self/setgroups", "deny");
        snprintf(map, sizeof(map), "%u %u 1", gid, gid);
        return r < 0 ? r : write_file("/proc/self/gid_map", map);
}

/* What happens outside (a disk that is mounted) is seen inside, but not the other way round. */
static int enter_namespace(void) {
        uid_t uid = geteuid();
        gid_t gid = getegid();
        int r = 0;

        if (unshare(CLONE_NEWNS) < 0) {
                if (errno != EPERM || unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0)
                        return -errno;
                r = map_ids(uid, gid);
        }
        if (r == 0 && mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0)
                r = -errno;
        return r;
}

/* The device is opened here: the kernel wants it of the mount's own user namespace. */
static int mount_tree(int *ret_fd) {
        char options[128];
        int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);

        if (fd < 0)
                return -errno;
        snprintf(options, sizeof(options), "fd=%d,rootmode=40755,user_id=%u,group_id=%u,default_permissions,allow_other", fd,
                 geteuid(), getegid());
        if (mount("userksm", KSM_DIRECTORY, "fuse.userksm", MS_NOSUID | MS_NODEV | MS_NOEXEC, options) < 0) {
                int r = -errno;

                close_fd(fd);
                return r;
        }
        *ret_fd = fd;
        return 0;
}

/* 0: the server has it and serves. */
static int hand_over(int socket_fd, int fd) {
        union {
                char bytes[CMSG_SPACE(sizeof(int))];
                struct cmsghdr header;
        } control = { .header = { .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS } };
        char byte = 0;
        struct iovec iov = { &byte, 1 };
        struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
        ssize_t n;

        memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
        if (sendmsg(socket_fd, &m, MSG_NOSIGNAL) != 1)
                return -errno;
        /* Or nobody would end the mount when the server ends: ours would be one of its descriptors. */
        close_fd(fd);
        do
                n = recv(socket_fd, &byte, 1, 0);
        while (n < 0 && errno == EINTR);
        return n == 1 ? 0 : n < 0 ? -errno : -ECONNRESET;
}

int sysfs_server_enter(void *userdata) {
        const struct sysfs_server *s = userdata;
        int r, fd = -1;

        r = enter_namespace();
        if (r < 0) {
                complain("--sysfs: no mount namespace: %s", strerror(-r));
                return r;
        }
        r = mount_tree(&fd);
        if (r < 0) {
                complain("--sysfs: cannot mount over " KSM_DIRECTORY ": %s%s", strerror(-r),
                         r == -ENOENT || r == -ENODEV || r == -EACCES ? " (is there /dev/fuse, open to you, and the kernel module fuse?)" :
                                                                          "");
                return r;
        }
        r = hand_over(s->fd, fd);
        if (r < 0)
                complain("--sysfs: userksm-sysfs does not serve: %s", strerror(-r));
        return r;
}
