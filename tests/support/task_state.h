/* What a thread of this process is doing, by what the kernel says. For tests that drive a thread to where it waits. */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

/* The letter of /proc/self/task/TID/stat: 'R', 'S', 'D', ... 'R' also for a thread that has no such file (any more). */
char task_state(pid_t tid);
/* It sleeps in a function of the kernel with this in its name (/proc/self/task/TID/wchan). A kernel that tells nobody where tasks wait
 * ("0") is believed to mean it. */
bool task_waits_in(pid_t tid, const char *name);
