#include "daemon/passed.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "daemon/notify.h"

static void free_names(char ***names) {
        for (char **n = *names; n && *n; n++)
                free(*n);
        free(*names);
}

static int sort_in(struct passed *p, int fd, const char *name) {
        if (strncmp(name, NOTIFY_SEGMENT_PREFIX, strlen(NOTIFY_SEGMENT_PREFIX)) == 0)
                p->segment_fds[p->n_segments++] = fd;
        else if (sd_is_socket(fd, AF_UNSPEC, 0, -1) <= 0) {
                log_warning("fd %d (%s) of the service manager: nobody here knows what it is for", fd, name);
                close_fd(fd);
        } else if (p->listen_fd < 0 && sd_is_socket_unix(fd, SOCK_SEQPACKET, 1, NULL, 0) > 0)
                p->listen_fd = fd;
        else {
                log_error("the service manager must pass exactly one socket, a listening AF_UNIX SOCK_SEQPACKET one; fd %d (%s) is "
                          "not that", fd, name);
                return -EINVAL;
        }
        return 0;
}

int passed_take(struct passed *ret) {
        _cleanup_(free_names) char **names = NULL;
        *ret = (struct passed){ .listen_fd = -1 };
        int n = sd_listen_fds_with_names(1, &names), r = 0;
        if (n <= 0)
                return n < 0 ? log_errno(n, "fds of the service manager") : 0;
        ret->segment_fds = calloc((size_t) n, sizeof(*ret->segment_fds));
        if (!ret->segment_fds)
                return log_errno(ENOMEM, "fds of the service manager");
        for (int i = 0; i < n && r == 0; i++)
                r = sort_in(ret, SD_LISTEN_FDS_START + i, names[i]);
        if (r < 0)
                passed_done(ret);
        return r;
}

void passed_done(struct passed *p) {
        close_fd(p->listen_fd);
        for (unsigned i = 0; i < p->n_segments; i++)
                close_fd(p->segment_fds[i]);
        free(p->segment_fds);
        *p = (struct passed){ .listen_fd = -1 };
}
