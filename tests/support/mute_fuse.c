#include "tests/support/mute_fuse.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/cleanup.h"

#define FILE_NODE 2

int mute_fuse_mount(const char *directory, uid_t uid) {
        char options[96];
        int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
        if (fd < 0)
                return -errno;
        (void) snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=%u,group_id=%u", fd, uid, uid);
        if (unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
            mount("mute", directory, "fuse", MS_NOSUID | MS_NODEV, options) == 0)
                return fd;
        int r = -errno;
        close_fd(fd);
        return r;
}

static void reply(int fd, uint64_t unique, int error, const void *body, size_t size) {
        struct fuse_out_header header = { .len = (uint32_t) (sizeof(header) + size), .error = error, .unique = unique };
        struct iovec parts[] = { { &header, sizeof(header) }, { (void *) body, size } };
        (void) !writev(fd, parts, 2);
}

static struct fuse_attr attributes(uint64_t node) {
        bool is_file = node == FILE_NODE;
        return (struct fuse_attr){
                .ino = node,
                .mode = is_file ? S_IFREG | 0644 : S_IFDIR | 0755,
                .nlink = 1,
                .uid = getuid(),
                .gid = getgid(),
                .size = is_file ? MUTE_FUSE_BYTES : 0,
                .blksize = 4096,
        };
}

static void answer(int fd, const struct fuse_in_header *in) {
        const struct fuse_init_out init = { .major = FUSE_KERNEL_VERSION, .minor = 31, .max_write = 4096 };
        const struct fuse_entry_out entry = { .nodeid = FILE_NODE, .attr = attributes(FILE_NODE), .entry_valid = 3600 };
        const struct fuse_attr_out attr = { .attr_valid = 3600, .attr = attributes(in->nodeid) };
        const struct fuse_open_out open = { .fh = 1 };
        switch (in->opcode) {
        case FUSE_INIT:
                reply(fd, in->unique, 0, &init, sizeof(init));
                break;
        case FUSE_LOOKUP:
                reply(fd, in->unique, 0, &entry, sizeof(entry));
                break;
        case FUSE_GETATTR:
                reply(fd, in->unique, 0, &attr, sizeof(attr));
                break;
        case FUSE_OPEN:
                reply(fd, in->unique, 0, &open, sizeof(open));
                break;
        case FUSE_READ:
        case FUSE_FLUSH:
        case FUSE_RELEASE:
        case FUSE_FORGET:
        case FUSE_INTERRUPT:
                break;
        default:
                reply(fd, in->unique, -ENOSYS, NULL, 0);
        }
}

int mute_fuse_serve(int fd) {
        static _Alignas(8) uint8_t request[FUSE_MIN_READ_BUFFER + 65536];
        pid_t pid = fork();
        if (pid == 0) {
                struct pollfd wait[] = { { .fd = fd, .events = POLLIN }, { .fd = STDIN_FILENO } };
                while (poll(wait, 2, -1) > 0 && wait[0].revents == POLLIN && wait[1].revents == 0)
                        if (read(fd, request, sizeof(request)) >= (ssize_t) sizeof(struct fuse_in_header))
                                answer(fd, (const struct fuse_in_header *) request);
                _exit(0);
        }
        int r = pid < 0 ? -errno : 0;
        close_fd(fd);
        return r;
}
