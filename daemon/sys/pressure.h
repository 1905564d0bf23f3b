/* How short the machine's memory is, as the kernel says: pressure stall information and /proc/meminfo. Files stay open, for the sandbox
 * and for the price: a look costs two reads of some microseconds. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct pressure {
        int stall_fd, meminfo_fd; /* -1: not there */
};

/* stall_path: /proc/pressure/memory, or the file memory.pressure of a control group. What cannot be opened is not known: 0, or -errno of
 * the first, with the other open all the same. */
int pressure_open(struct pressure *p, const char *stall_path);
void pressure_close(struct pressure *p);

/* Time of the last 10 s that some process waited for memory; of MemTotal, what could be had without swapping. 0 or -errno; -EBADMSG: the
 * file does not say it. */
int pressure_stall_permille(const struct pressure *p, unsigned *ret);
int pressure_available_permille(const struct pressure *p, unsigned *ret);
/* The same in bytes. */
int pressure_available_bytes(const struct pressure *p, uint64_t *ret);

/* The same of the files' text. 0 or -EBADMSG. */
int pressure_parse_stall(const char *text, unsigned *ret_permille);
int pressure_parse_meminfo(const char *text, unsigned *ret_permille);
int pressure_parse_available(const char *text, uint64_t *ret_bytes);
