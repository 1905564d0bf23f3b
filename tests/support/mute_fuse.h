/* A FUSE file system of one file whose server tells what it is and never answers anything else: whoever reads the file, touches a
 * mapping of it or closes a descriptor of it waits until the server dies. */
#pragma once

#include <sys/types.h>

#define MUTE_FUSE_FILE "file"
#define MUTE_FUSE_BYTES (1 << 20)

/* Mounts it for this user in a mount namespace of this process's own; needs CAP_SYS_ADMIN. The server's descriptor, or -errno. */
int mute_fuse_mount(const char *directory, uid_t uid);
/* Forks the server, which lives until standard input is closed (its parent, once killed, waits for it), and closes fd. 0 or -errno. */
int mute_fuse_serve(int fd);
