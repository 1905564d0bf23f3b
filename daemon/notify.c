#include "daemon/notify.h"

#include <inttypes.h>
#include <stdio.h>
#include <systemd/sd-daemon.h>

#include "daemon/sys/clock.h"

void notify_starting(uint64_t usec) {
        (void) sd_notifyf(0, "EXTEND_TIMEOUT_USEC=%" PRIu64, usec);
}

void notify_ready(void) {
        (void) sd_notify(0, "READY=1\nSTATUS=Merging");
}

void notify_reloading(void) {
        (void) sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%" PRIu64, clock_usec(CLOCK_MONOTONIC));
}

void notify_stopping(void) {
        (void) sd_notify(0, "STOPPING=1");
}

void notify_watchdog(void) {
        (void) sd_notify(0, "WATCHDOG=1");
}

bool notify_keep_fd(int fd, uint64_t inode) {
        char text[64];
        (void) snprintf(text, sizeof(text), "FDSTORE=1\nFDNAME=" NOTIFY_SEGMENT_PREFIX "%" PRIu64, inode);
        return sd_pid_notify_with_fds(0, 0, text, &fd, 1) > 0;
}

void notify_forget_fd(uint64_t inode) {
        (void) sd_notifyf(0, "FDSTOREREMOVE=1\nFDNAME=" NOTIFY_SEGMENT_PREFIX "%" PRIu64, inode);
}

uint64_t notify_watchdog_interval_msec(void) {
        uint64_t usec;
        if (sd_watchdog_enabled(0, &usec) <= 0)
                return 0;
        uint64_t msec = usec / 2 / USEC_PER_MSEC;
        return msec ? msec : 1;
}
