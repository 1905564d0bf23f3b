/* One SEQPACKET connection: sends and receives whole frames with their fds, non-blocking or blocking as the
 * socket is. No allocation, no stdio: used by daemon, agent and CLI alike. Not thread-safe. */
#pragma once

#include <stdint.h>

#include "proto/codec.h"

struct channel_message {
        _Alignas(8) uint8_t packet[FRAME_MAX_BYTES];
        struct frame frame;
        int fds[FRAME_MAX_FDS];
        unsigned n_fds; /* still owned by the message; take with channel_take_fd */
};

/* connect(2) to the socket at path (a leading '@' = abstract). Returns the fd (CLOEXEC, non-blocking when asked)
 * or -errno; -ENAMETOOLONG when the path does not fit sun_path. */
int channel_connect(const char *path, int nonblock);

/* 0, or -errno (-EAGAIN: would block, nothing was sent). fds stay the caller's. MSG_NOSIGNAL always. */
int channel_send(int fd, enum message_type type, const void *body, const void *elements, uint32_t count,
                 const int *fds, unsigned n_fds);
/* The same for a frame already encoded (the daemon's send queue). */
int channel_send_packet(int fd, const void *packet, size_t size, const int *fds, unsigned n_fds);

/* 1 = a frame is in *m; 0 = orderly end of file; -EAGAIN; -EPROTO = violation with *ret_error set (fds closed,
 * frame unusable); other -errno. Received fds are CLOEXEC; more than FRAME_MAX_FDS or a truncated packet is a
 * violation. On 1 the caller must end with channel_message_done (closes fds not taken). */
int channel_receive(int fd, unsigned sender, struct channel_message *m, enum codec_error *ret_error);
int channel_take_fd(struct channel_message *m, unsigned i);
void channel_message_done(struct channel_message *m);
