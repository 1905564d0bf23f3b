/* Worker threads for what may block: page table scans, reads, publishing, sealing.
 *
 * A job is a caller's object with a run function. It is queued by workers_submit, run on a worker, and handed back by
 * workers_reap on the thread that owns the pool; `wake` (called on a worker, must be async-safe: uv_async_send) says that
 * something is there to reap. All other functions are the owner's.
 *
 * A worker can hang: the memory that it reads is the client's, and the client may have put something behind it that
 * does not answer. A new worker takes its place soon (workers_relieve), up to WORKERS_LOST_MAX, so that clients of several users who
 * do this at a time do not stop the work for all others; much later its job is given up (workers_give_up). The job still comes
 * back through workers_reap if it ever ends, and its thread ends then. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "common/cleanup.h"

/* Threads whose place is taken cost a stack and hold a client's fds; past this many the pool only shrinks. */
#define WORKERS_LOST_MAX 32
#define WORKERS_LIMIT 64

struct workers;
struct worker_job {
        void (*run)(struct worker_job *job, void *scratch); /* scratch: the worker's own scratch_bytes */
        struct worker_job *next;
        uint64_t started_usec; /* 0 = not yet */
        bool slow;      /* by workers_find_slow */
        bool given_up;  /* by workers_give_up */
        bool cancelled; /* never run: the pool was stopped */
};

/* 0 or -errno. Threads start at once, all signals blocked. */
int workers_new(unsigned n_workers, size_t scratch_bytes, void (*wake)(void *userdata), void *userdata, struct workers **ret);
/* Waits until every worker has ended its job. Jobs not begun come back through workers_reap with `cancelled` set; those
 * submitted from now on are run at once by the caller. -EBUSY: a worker is lost, it may use its job for ever: the pool
 * cannot be freed, its memory is left to the exit of the process. */
int workers_stop(struct workers *p);
/* After workers_stop and reaping. Jobs still in it are forgotten. */
struct workers *workers_free(struct workers *p);
DEFINE_CLEANUP(struct workers *, workers_free)

void workers_submit(struct workers *p, struct worker_job *job);
/* The next finished job, or NULL. */
struct worker_job *workers_reap(struct workers *p);
/* New workers for those at their job for longer than slow_usec. Also ends the threads of those that came back. */
void workers_relieve(struct workers *p, uint64_t now, uint64_t slow_usec);
/* A running job older than slow_usec not found before, now marked slow, or NULL. */
struct worker_job *workers_find_slow(struct workers *p, uint64_t now, uint64_t slow_usec);
/* A running job older than limit_usec not given up before, now given up, or NULL. */
struct worker_job *workers_give_up(struct workers *p, uint64_t now, uint64_t limit_usec);
unsigned workers_n_lost(const struct workers *p);    /* workers that hang now */
unsigned workers_n_replaced(const struct workers *p); /* workers at their job, lost or not, whose place another has */
unsigned workers_n_running(const struct workers *p); /* workers that take jobs */
/* CPU time that the workers have used, as of their last finished jobs. */
uint64_t workers_cpu_usec(struct workers *p);
