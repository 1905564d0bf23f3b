/* What the service manager hears (sd_notify; nothing without $NOTIFY_SOCKET): READY, RELOADING, STOPPING, WATCHDOG. */
#pragma once

#include <stdint.h>

void notify_ready(void);
void notify_reloading(void);
void notify_stopping(void);
/* A sign of life. The loop sends it, so a loop that hangs is restarted. */
void notify_watchdog(void);
/* How often the watchdog wants one, half its timeout in milliseconds; 0 = there is none. */
uint64_t notify_watchdog_interval_msec(void);
