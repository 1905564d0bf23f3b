#include "proto/channel.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "common/cleanup.h"

/* Exactly FRAME_MAX_FDS fit: one more sets MSG_CTRUNC, and the kernel keeps it. */
union control_buffer {
        struct cmsghdr align;
        uint8_t bytes[CMSG_SPACE(sizeof(int) * FRAME_MAX_FDS)];
};
_Static_assert(sizeof(int) * FRAME_MAX_FDS % sizeof(size_t) == 0, "no padding in which another fd would fit");

int channel_connect(const char *path, int nonblock) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        size_t length = strlen(path);
        socklen_t size;
        int fd, r;

        if (length == 0)
                return -EINVAL;
        /* A path keeps its NUL, an abstract name has none. */
        if (length + (path[0] != '@') > sizeof(address.sun_path))
                return -ENAMETOOLONG;
        memcpy(address.sun_path, path, length);
        size = (socklen_t) (offsetof(struct sockaddr_un, sun_path) + length + (path[0] != '@'));
        if (path[0] == '@')
                address.sun_path[0] = 0;

        fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | (nonblock ? SOCK_NONBLOCK : 0), 0);
        if (fd < 0)
                return -errno;
        do
                r = connect(fd, (const struct sockaddr *) &address, size);
        while (r < 0 && errno == EINTR);
        if (r < 0) {
                r = -errno;
                close_fd(fd);
                return r;
        }
        return fd;
}

static int send_message(int fd, const struct iovec *parts, size_t n_parts, const int *fds, unsigned n_fds) {
        union control_buffer control;
        struct msghdr message = { .msg_iov = (struct iovec *) parts, .msg_iovlen = n_parts };
        ssize_t n;

        if (n_fds > FRAME_MAX_FDS)
                return -EINVAL;
        if (n_fds > 0) {
                struct cmsghdr *c = &control.align;

                memset(&control, 0, sizeof(control));
                c->cmsg_level = SOL_SOCKET;
                c->cmsg_type = SCM_RIGHTS;
                c->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
                memcpy(CMSG_DATA(c), fds, sizeof(int) * n_fds);
                message.msg_control = &control;
                message.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
        }
        do
                n = sendmsg(fd, &message, MSG_NOSIGNAL);
        while (n < 0 && errno == EINTR);
        return n < 0 ? -errno : 0;
}

int channel_send(int fd, enum message_type type, const void *body, const void *elements, uint32_t count,
                 const int *fds, unsigned n_fds) {
        struct frame_header header;
        size_t size = frame_header_fill(&header, type, count), body_bytes = message_body_bytes((uint16_t) type);
        struct iovec parts[] = {
                { &header, sizeof(header) },
                { (void *) body, body_bytes },
                { (void *) elements, size - sizeof(header) - body_bytes },
        };

        if (size == 0 || n_fds != message_fds((uint16_t) type))
                return -EINVAL;
        return send_message(fd, parts, count > 0 ? 3 : 2, fds, n_fds);
}

int channel_send_packet(int fd, const void *packet, size_t size, const int *fds, unsigned n_fds) {
        struct iovec part = { (void *) packet, size };
        return send_message(fd, &part, 1, fds, n_fds);
}

/* Notes every fd that arrived, so that none leaks on any path after it. */
static void collect_fds(struct channel_message *m, struct msghdr *message) {
        for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
                size_t n;

                if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
                        continue;
                n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
                n = MIN(n, (size_t) (FRAME_MAX_FDS - m->n_fds));
                memcpy(m->fds + m->n_fds, CMSG_DATA(c), n * sizeof(int));
                m->n_fds += (unsigned) n;
        }
}

/* What arrived with a frame that will not be handed out. */
static void drop_fds(struct channel_message *m, enum channel_fds fds) {
        if (fds != CHANNEL_FDS_ALWAYS_MINE)
                channel_message_done(m);
}

/* A peer that closes with frames of ours unread leaves ECONNRESET, which the kernel tells once and before what the peer had sent (a
 * REFUSED, say): passed over, end of file follows. */
int channel_receive_fds(int fd, unsigned sender, struct channel_message *m, enum codec_error *ret_error,
                        enum channel_fds fds) {
        union control_buffer control;
        struct iovec part = { m->packet, sizeof(m->packet) };
        struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };
        enum codec_error e;
        ssize_t n;

        if (fds != CHANNEL_FDS_NONE) {
                message.msg_control = &control;
                message.msg_controllen = sizeof(control);
        }
        m->n_fds = 0;
        do
                n = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
        while (n < 0 && (errno == EINTR || errno == ECONNRESET));
        if (n < 0)
                return -errno;
        collect_fds(m, &message);

        /* Fewer than fit and yet cut off: the kernel found no free number in our fd table. */
        if ((message.msg_flags & MSG_CTRUNC) && m->n_fds < FRAME_MAX_FDS && fds != CHANNEL_FDS_NONE) {
                drop_fds(m, fds);
                return -EMFILE;
        }
        if (n == 0 && m->n_fds == 0)
                return 0;
        if (message.msg_flags & MSG_CTRUNC)
                e = CODEC_FDS;
        else if (message.msg_flags & MSG_TRUNC)
                e = CODEC_SIZE;
        else
                e = frame_decode(m->packet, (size_t) n, m->n_fds, sender, &m->frame);
        if (e != CODEC_OK) {
                drop_fds(m, fds);
                *ret_error = e;
                return -EPROTO;
        }
        return 1;
}

int channel_receive(int fd, unsigned sender, struct channel_message *m, enum codec_error *ret_error) {
        return channel_receive_fds(fd, sender, m, ret_error, CHANNEL_FDS_WITH_FRAME);
}

int channel_peek_type(int fd) {
        struct frame_header header;
        ssize_t n;

        do
                n = recv(fd, &header, sizeof(header), MSG_PEEK);
        while (n < 0 && (errno == EINTR || errno == ECONNRESET));
        if (n < 0)
                return -errno;
        return n == (ssize_t) sizeof(header) ? header.type : 0;
}

int channel_take_fd(struct channel_message *m, unsigned i) {
        if (i >= m->n_fds || m->fds[i] < 0)
                return -EBADF;
        return take_fd(&m->fds[i]);
}

void channel_message_done(struct channel_message *m) {
        for (unsigned i = 0; i < m->n_fds; i++)
                m->fds[i] = close_fd(m->fds[i]);
        m->n_fds = 0;
}
