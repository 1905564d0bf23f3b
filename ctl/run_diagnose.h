/* Why has a process not connected? Looked up in /proc, most likely reason first. */
#pragma once

#include <sys/types.h>

/* Writes one sentence (or more) for a person; always something. */
void diagnose_process(pid_t pid, char *text, size_t size);
