#include "daemon/listener.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <uv.h>

#include "common/fault.h"
#include "common/log.h"
#include "daemon/bounds.h"
#include "daemon/manager.h"
#include "daemon/session.h"

/* Its members may connect (systemd/userksm.conf of sysusers.d makes it). */
#define GROUP "userksm"
/* Agents of a whole machine may connect at once when the daemon comes back. */
#define LISTEN_BACKLOG 4096

struct listener {
        struct manager *manager;
        uv_poll_t poll;
        int fd;
        bool unlink_at_end;
        bool suspended;
        bool is_closed_abstract;
        dev_t device; /* of the socket file that we made */
        ino_t inode;
};

/* A socket file has a mode; an abstract name has none. */
static bool may_connect(const struct listener *l, int fd) {
        struct ucred peer;
        socklen_t size = sizeof(peer);
        if (!l->is_closed_abstract)
                return true;
        return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && (peer.uid == 0 || peer.uid == geteuid());
}

static void on_connection(uv_poll_t *handle, int status, int events) {
        struct listener *l = handle->data;
        for (unsigned i = 0; i < LISTENER_ACCEPTS_PER_TURN && !turn_is_over(&l->manager->turn, now_usec()); i++) {
                int fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
                if (fd >= 0 && !may_connect(l, fd)) {
                        close_fd(fd);
                        continue;
                }
                if (fd >= 0) {
                        fault_point(FAULT_accepted);
                        int r = session_new(l->manager, fd);
                        if (r < 0 && r != -ESRCH)
                                account_log(l->manager, NULL, LOG_WARNING, "connection", "cannot serve a new connection: %s", strerror(-r));
                        continue;
                }
                if (errno == EINTR || errno == ECONNABORTED)
                        continue;
                if (errno != EAGAIN) {
                        account_log(l->manager, NULL, LOG_WARNING, "accept", "accept: %s", strerror(errno));
                        /* The connection stays in the queue and would wake us for ever. */
                        (void) uv_poll_stop(&l->poll);
                        l->suspended = true;
                        manager_watch(l->manager);
                }
                break;
        }
}

void listener_tick(struct listener *l) {
        if (l->suspended && uv_poll_start(&l->poll, UV_READABLE, on_connection) == 0)
                l->suspended = false;
}

/* The directory of the default path belongs to tmpfiles.d or RuntimeDirectory=; by hand as root we make it. */
static void make_parent(const char *path) {
        char parent[CONFIG_SOCKET_BYTES];
        const char *slash = strrchr(path, '/');
        if (!slash || slash == path || geteuid() != 0)
                return;
        memcpy(parent, path, (size_t) (slash - path));
        parent[slash - path] = '\0';
        if (mkdir(parent, 0755) == 0)
                log_info("created %s", parent);
}

static int bind_path(struct listener *l, const char *path) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        size_t length = strlen(path);
        bool abstract = path[0] == '@';
        memcpy(address.sun_path, path, length);
        if (abstract)
                address.sun_path[0] = '\0';
        socklen_t size = (socklen_t) (offsetof(struct sockaddr_un, sun_path) + length + !abstract);
        /* By umask, from the first moment. Who may connect is given a userfaultfd that also stops the kernel's own accesses, which
         * vm.unprivileged_userfaultfd=0 keeps from users; so it is for the administrator to open it to all. */
        mode_t mask = umask(l->manager->config.open_to_all ? 0111 : 0117);
        int r = bind(l->fd, (struct sockaddr *) &address, size) < 0 ? -errno : 0;
        (void) umask(mask);
        l->is_closed_abstract = abstract && !l->manager->config.open_to_all;
        if (r == 0 && !abstract) {
                struct stat st;
                const struct group *g = getgrnam(GROUP);
                if (g && chown(path, (uid_t) -1, g->gr_gid) < 0)
                        log_warning_errno(errno, "%s: cannot give it to group " GROUP, path);
                if (stat(path, &st) == 0) {
                        l->device = st.st_dev;
                        l->inode = st.st_ino;
                        l->unlink_at_end = true;
                }
        }
        return r;
}

static int make_socket(struct listener *l, const char *path) {
        l->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (l->fd < 0)
                return log_errno(errno, "socket");
        if (path[0] != '@')
                make_parent(path);
        int r = bind_path(l, path);
        if (r == -EADDRINUSE && path[0] != '@') {
                int probe = channel_connect(path, 1);
                if (probe >= 0 || probe == -EAGAIN) {
                        close_fd(probe);
                        log_error("%s: another daemon listens there", path);
                        return -EADDRINUSE;
                }
                /* Only a socket, and only one that nobody listens on. */
                struct stat st;
                if (probe == -ECONNREFUSED && lstat(path, &st) == 0 && S_ISSOCK(st.st_mode) && unlink(path) == 0)
                        r = bind_path(l, path);
        }
        if (r < 0)
                return log_errno(r, "%s: cannot bind", path);
        if (listen(l->fd, LISTEN_BACKLOG) < 0)
                return log_errno(errno, "listen");
        return 0;
}

static int take_passed(struct listener *l, int fd) {
        l->fd = fd;
        int flags = fcntl(fd, F_GETFL);
        if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
                return log_errno(errno, "socket of the service manager");
        return 0;
}

int listener_new(struct manager *m, int passed_fd, struct listener **ret) {
        struct listener *l = calloc(1, sizeof(*l));
        if (!l) {
                close_fd(passed_fd);
                return -ENOMEM;
        }
        *l = (struct listener){ .manager = m, .fd = -1 };
        int r = passed_fd >= 0 ? take_passed(l, passed_fd) : make_socket(l, m->config.socket);
        if (r >= 0)
                r = uv_poll_init(&m->loop, &l->poll, l->fd);
        if (r < 0) {
                if (l->unlink_at_end)
                        (void) unlink(m->config.socket);
                close_fd(l->fd);
                free(l);
                return r;
        }
        l->poll.data = l;
        r = uv_poll_start(&l->poll, UV_READABLE, on_connection);
        if (r < 0)
                log_errno(r, "cannot watch the listening socket");
        *ret = l;
        return r;
}

static void on_closed(uv_handle_t *handle) {
        struct listener *l = handle->data;
        close_fd(l->fd);
        free(l);
}

struct listener *listener_free(struct listener *l) {
        struct stat st;
        if (!l)
                return NULL;
        const char *path = l->manager->config.socket;
        if (l->unlink_at_end && lstat(path, &st) == 0 && st.st_dev == l->device && st.st_ino == l->inode)
                (void) unlink(path);
        uv_close((uv_handle_t *) &l->poll, on_closed);
        return NULL;
}
