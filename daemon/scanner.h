/* Turns the core's scans, reads and publishes into jobs of the pool, and their results into inputs of the core.
 *
 * The core decides whose turn it is and bounds what is in flight per domain; here are the number of jobs, the account of the
 * CPU time that they take (daemon/governor.h bounds it), and the watch over jobs
 * that hang: such a job is answered as failed, its user's clients are evicted and refused until the thread comes back. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/sys/workers.h"

struct manager;
struct scanner;

/* Bytes of scratch that a worker needs. */
size_t scanner_scratch_bytes(void);
/* m->workers must be there. */
int scanner_new(struct manager *m, struct scanner **ret);
/* After the pool is gone. */
struct scanner *scanner_free(struct scanner *s);

/* Starts one job if there is work and room. True: call again; false: not before *ret_next_usec. */
bool scanner_dispatch(struct scanner *s, uint64_t now, uint64_t *ret_next_usec);
/* Takes back a finished job of ours. */
void scanner_job_done(struct scanner *s, struct worker_job *job);
/* A job of ours may hang: its user's clients get no new work until it is back. */
void scanner_job_slow(struct scanner *s, struct worker_job *job);
/* A job of ours hangs: it was given up. */
void scanner_job_lost(struct scanner *s, struct worker_job *job);
/* Jobs handed out and not back yet, given up ones included. */
unsigned scanner_n_running(const struct scanner *s);
