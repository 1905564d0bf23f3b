/* What the service manager hears (sd_notify; nothing without $NOTIFY_SOCKET): EXTEND_TIMEOUT, READY, RELOADING, STOPPING, WATCHDOG, and
 * which fds it is to keep for a later daemon (systemd's "fd store", FileDescriptorStoreMax=). */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* Names of kept segments: this and their inode number. */
#define NOTIFY_SEGMENT_PREFIX "segment-"

/* The start goes on, and shall not be given up before `usec` from now. */
void notify_starting(uint64_t usec);
void notify_ready(void);
void notify_reloading(void);
void notify_stopping(void);
/* A sign of life. The loop sends it, so a loop that hangs is restarted. */
void notify_watchdog(void);
/* Gives the manager a copy of a segment's fd, to hand to the next start of this service. Whoever calls may end right after: the message
 * is in the manager's socket. False: there is no manager. One that keeps none, or has its store full, does not say so. */
bool notify_keep_fd(int fd, uint64_t inode);
void notify_forget_fd(uint64_t inode);
/* How often the watchdog wants one, half its timeout in milliseconds; 0 = there is none. */
uint64_t notify_watchdog_interval_msec(void);
