#include "daemon/sys/process.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/limits.h>
#include <linux/magic.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>

/* Reads N out of ".../N/<name>", the path that the kernel gives for the fd. 0 or -EINVAL. */
static int procfs_fd_pid(int fd, const char *name, unsigned long *ret) {
        char link[64], path[PATH_MAX];
        struct statfs fs;
        if (fstatfs(fd, &fs) < 0 || fs.f_type != PROC_SUPER_MAGIC)
                return -EINVAL;
        int flags = fcntl(fd, F_GETFL);
        if (flags < 0 || (flags & O_ACCMODE) != O_RDONLY || (flags & O_PATH))
                return -EINVAL;
        (void) snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
        ssize_t n = readlink(link, path, sizeof(path) - 1);
        if (n <= 0)
                return -EINVAL;
        path[n] = '\0';
        char *base = strrchr(path, '/');
        if (!base || base == path || strcmp(base + 1, name) != 0)
                return -EINVAL;
        *base = '\0';
        char *number = strrchr(path, '/');
        if (!number || number[1] < '1' || number[1] > '9')
                return -EINVAL;
        /* /proc/N/task/N/mem has the same shape, other locking and no pagemap of its own: refuse it. */
        if (number - path >= 5 && strncmp(number - 5, "/task", 5) == 0)
                return -EINVAL;
        char *end;
        errno = 0;
        *ret = strtoul(number + 1, &end, 10);
        return errno || *end ? -EINVAL : 0;
}

int process_new(const struct peer *peer, int pagemap_fd, int mem_fd, struct process **ret, const char **ret_reason) {
        _cleanup_close_ int pagemap = pagemap_fd, mem = mem_fd, pidfd = -1;
        unsigned long pagemap_pid, mem_pid;
        *ret_reason = NULL;
        if (procfs_fd_pid(pagemap, "pagemap", &pagemap_pid) < 0)
                *ret_reason = "first descriptor is not a read-only /proc/PID/pagemap";
        else if (procfs_fd_pid(mem, "mem", &mem_pid) < 0)
                *ret_reason = "second descriptor is not a read-only /proc/PID/mem";
        else if (pagemap_pid != mem_pid)
                *ret_reason = "descriptors of two different processes";
        if (*ret_reason)
                return -EINVAL;
        if (peer->pidfd >= 0) {
                pidfd = fcntl(peer->pidfd, F_DUPFD_CLOEXEC, 0);
                if (pidfd < 0)
                        return -errno;
        }
        struct process *p = malloc(sizeof(*p));
        if (!p)
                return -ENOMEM;
        /* The fast path reads by pid. It is only for a process whose consent names the pid that the kernel vouches for: not
         * for one in another pid namespace, nor for a child that passed its parent's descriptors. */
        *p = (struct process){
                .n_refs = 1,
                .pagemap_fd = take_fd(&pagemap),
                .mem_fd = take_fd(&mem),
                .pidfd = take_fd(&pidfd),
                .pid = peer->pid,
                .uid = peer->uid,
        };
        atomic_init(&p->closing, false);
        atomic_init(&p->fast_denied, p->pidfd < 0 || (unsigned long) peer->pid != pagemap_pid);
        *ret = p;
        return 0;
}

struct process *process_ref(struct process *p) {
        p->n_refs++;
        return p;
}

struct process *process_unref(struct process *p) {
        if (!p || --p->n_refs > 0)
                return NULL;
        close_fd(p->pagemap_fd);
        close_fd(p->mem_fd);
        close_fd(p->pidfd);
        free(p);
        return NULL;
}

/* A file below /proc/PID becomes root's when the process is not dumpable; the directory stays its effective user's. */
bool process_is_its_users(const struct process *p) {
        char path[32];
        struct stat st;
        (void) snprintf(path, sizeof(path), "/proc/%d/status", (int) p->pid);
        return stat(path, &st) == 0 && st.st_uid == p->uid;
}

bool process_has_exited(const struct process *p) {
        struct pollfd fd = { .fd = p->pidfd, .events = POLLIN };
        return p->pidfd >= 0 && poll(&fd, 1, 0) > 0;
}
