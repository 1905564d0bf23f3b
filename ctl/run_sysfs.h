/* The command of `run --sysfs` sees userksm in the place of kernel KSM: in a mount namespace of its own, userksm-sysfs is mounted over
 * /sys/kernel/mm/ksm.
 *
 * The command's process makes the namespace and the mount before it execs, and hands the descriptor of the mount to the server
 * over a socket. The server stays outside of the namespace and so does not hold it: when the last process in it has ended,
 * the kernel ends the mount and the server with it, whatever became of ksmctl. */
#pragma once

#define KSM_DIRECTORY "/sys/kernel/mm/ksm"

struct sysfs_server {
        int fd; /* the command's end of the socket; -1: none */
};
#define SYSFS_SERVER_INIT { .fd = -1 }

/* Starts it, to talk to the daemon at socket_path. Returns STATUS_OK, or a status after complaining. */
int sysfs_server_start(struct sysfs_server *s, const char *socket_path);
/* In the process that is to exec the command: 0 with the tree mounted and served, or -errno after complaining. userdata: the server.
 * An unprivileged user gets a user namespace as well, in which he is who he was. */
int sysfs_server_enter(void *userdata);
/* The server ends by itself, at once if nobody entered. */
void sysfs_server_done(struct sysfs_server *s);
