/* What kernel KSM says of a process in /proc/PID, said of userksm: process/PID/ksm_merging_pages and ksm_stat in the tree. The directory
 * `process` is not listed; programs are led to it by preload.c. As in /proc, a process's files are its user's alone to read. */
#pragma once

#include <stddef.h>
#include <sys/types.h>

#include "proto/messages.h"

#define PROCESS_DIRECTORY "process"

enum process_file { PROCESS_FILE_ksm_merging_pages, PROCESS_FILE_ksm_stat, PROCESS_FILE_MAX_ };
int process_file_find(const char *name); /* or -ENOENT */
/* 0, or -ENOENT: no process has that id. */
int process_parse(const char *name, uint32_t *ret_pid);

#define PROCESS_TEXT_BYTES 256
/* client NULL: it is not connected to userksm, all is 0. */
size_t process_show(enum process_file file, const struct client_element *client, char text[PROCESS_TEXT_BYTES]);
