/* What the memory limits of this process's control groups leave it: its own group's and those of all groups above that can be seen.
 *
 * At a limit the kernel kills (memory.max) or throttles (memory.high) instead of saying no, so whoever allocates pages for a living
 * has to look before. Version 2 and the memory controller of version 1. What is not there is no limit: no cgroup file system, no
 * controller, a group that went, the root.
 *
 * Page cache that the kernel would drop for us counts as left, but for what must be written first. Files stay open: a look costs two or
 * three reads of a microsecond each for a level, and where little is left one of memory.stat. */
#pragma once

#include <stdint.h>
#include <sys/types.h>

/* Deeper than any manager nests them; of a deeper one the levels nearest to us. */
#define MEMORY_GROUP_LEVELS 16
/* With less than this left memory.stat is looked at: it costs some 50 us, on large machines a few times that. */
#define MEMORY_GROUP_SURE_BYTES (UINT64_C(128) << 20)

struct memory_group {
        const struct memory_group_files *files;
        struct memory_group_level {
                int limit_fds[2], usage_fd, stat_fd; /* -1: not there */
        } levels[MEMORY_GROUP_LEVELS];
        unsigned n_levels;
};

/* Those of this process. 0 or -errno: then there is none. */
int memory_group_open(struct memory_group *g);
/* Those of another process, as this one sees them. */
int memory_group_open_pid(struct memory_group *g, pid_t pid);
/* The same of texts that read like /proc/self/cgroup and /proc/self/mountinfo. */
int memory_group_open_texts(struct memory_group *g, const char *cgroup, const char *mountinfo);
/* Bytes; UINT64_MAX: no limit. */
uint64_t memory_group_left(const struct memory_group *g);
void memory_group_close(struct memory_group *g);
