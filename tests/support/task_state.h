/* What a thread of this process is doing, by what the kernel says. For tests that drive a thread to where it waits. */
#pragma once

#include <sys/types.h>

/* The letter of /proc/self/task/TID/stat: 'R', 'S', 'D', ... 'R' also for a thread that has no such file (any more). */
char task_state(pid_t tid);
