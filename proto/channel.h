/* One SEQPACKET connection: sends and receives whole frames with their fds, non-blocking or blocking as the
 * socket is. No allocation, no stdio: used by daemon, agent and CLI alike. No state of its own; two threads may use one
 * socket only in different directions. Calls interrupted by a signal are taken up again. */
#pragma once

#include <stdint.h>

#include "proto/codec.h"

struct channel_message {
        _Alignas(FRAME_ALIGN) uint8_t packet[FRAME_MAX_BYTES];
        struct frame frame;
        int fds[FRAME_MAX_FDS];
        unsigned n_fds; /* still owned by the message; take with channel_take_fd */
};

/* connect(2) to the socket at path (a leading '@' = abstract). Returns the fd (CLOEXEC, non-blocking when asked)
 * or -errno; -ENAMETOOLONG when the path does not fit sun_path; -EAGAIN: non-blocking, and the listener's queue is
 * full. */
int channel_connect(const char *path, int nonblock);

/* 0, or -errno (-EAGAIN: would block, nothing was sent; -EINVAL: type, count or n_fds do not fit the table; -EPIPE or
 * -ECONNRESET: the peer is gone). A packet goes whole or not at all. fds stay the caller's. MSG_NOSIGNAL always. */
int channel_send(int fd, enum message_type type, const void *body, const void *elements, uint32_t count,
                 const int *fds, unsigned n_fds);
/* The same for a frame already encoded (the daemon's send queue). */
int channel_send_packet(int fd, const void *packet, size_t size, const int *fds, unsigned n_fds);

/* 1 = a frame is in *m; 0 = orderly end of file (an empty packet counts as one: no frame is empty); -EAGAIN; -EPROTO =
 * violation with *ret_error set (fds closed, frame unusable); -EMFILE = our own fd table is full, the frame is lost and
 * the peer not to blame; other -errno. Received fds are CLOEXEC; more than FRAME_MAX_FDS or a truncated packet is a
 * violation. On 1 the caller must end with channel_message_done (closes fds not taken); on all else there is nothing
 * to release. The socket must have none of SO_PASSCRED, SO_PASSPIDFD, SO_PASSSEC set: fds have all the
 * control space. */
int channel_receive(int fd, unsigned sender, struct channel_message *m, enum codec_error *ret_error);
/* The same for who must not let a peer choose which descriptors he closes: closing one of a file system whose server does not answer
 * can wait for ever. */
enum channel_fds {
        CHANNEL_FDS_WITH_FRAME, /* as above */
        CHANNEL_FDS_NONE,       /* none is received: the kernel drops them, and their frame is a violation */
        CHANNEL_FDS_ALWAYS_MINE, /* whatever is returned, those in fds[0..n_fds) are the caller's */
};
int channel_receive_fds(int fd, unsigned sender, struct channel_message *m, enum codec_error *ret_error,
                        enum channel_fds fds);
/* Type of the frame that would be received next, 0 = not even a header; -errno as above. It stays where it is. */
int channel_peek_type(int fd);
/* Hands out fd i (-EBADF when there is none or it was taken). */
int channel_take_fd(struct channel_message *m, unsigned i);
void channel_message_done(struct channel_message *m);
