/* Every bound of the shell, with its reason. Bounds that the administrator may move are in config.h. */
#pragma once

#include "daemon/sys/clock.h"

/* -- fairness ------------------------------------------------------------------------------------------------------ */
/* Frames taken from one connection before the others get their turn: a block's worth of work, some 50 us. */
#define SESSION_FRAMES_PER_TURN 16
/* Connections accepted before those that are there get their turn. */
#define LISTENER_ACCEPTS_PER_TURN 16
/* Steps of work handed out before the loop looks at its sockets again: well under a millisecond as a rule ... */
#define PUMP_STEPS_PER_TURN 256
/* ... and in any case this long, which is less than TURN_USEC so that neither sockets nor work can starve the other. */
#define PUMP_USEC (5 * USEC_PER_MSEC)
/* What comes up in callbacks after this long is left to the next turn. With the longest single steps (a scan's result, an exit: some
 * ms) and the pump this stays well below the 50 ms that anybody should ever wait. */
#define TURN_USEC (10 * USEC_PER_MSEC)
/* The part of it that connections of one user get: five users who flood leave each other, and everybody else, a share. */
#define TURN_USER_USEC (2 * USEC_PER_MSEC)

/* -- what one client may hold --------------------------------------------------------------------------------------- */
/* Applies in flight to one client: covers the round trip to an agent at 100 us a transition, and 16 packets fit any
 * socket buffer, so that the queue below stays empty for a client that reads. */
#define CLIENT_APPLY_WINDOW 16
/* Questions for NUMA nodes in flight to one client: as many as there are jobs, as a rule. */
#define CLIENT_NODES_WINDOW 16
/* Bytes queued for a client that does not read: a full window with all its segments, tenfold. Beyond it is evicted. */
#define SESSION_QUEUE_BYTES (256u << 10)
/* Ranges are VMAs of the process, and vm.max_map_count is 65530 by default. An administrator who raised that a hundredfold
 * has not raised what one client may cost here. */
#define CLIENT_RANGES_MAX 131072
/* Merges on demand in flight: threads of one program that call userksm_merge at once. */
#define CLIENT_MERGES_MAX 64

/* -- time ------------------------------------------------------------------------------------------------------------ */
/* Connected, but no first frame. */
#define SESSION_HELLO_USEC (5 * USEC_PER_SEC)
/* An answer is owed: after this long no new work is handed out ... */
#define CLIENT_PARK_USEC (1 * USEC_PER_SEC)
/* ... and after this long the client is evicted; its agent connects again when it lives again. */
#define CLIENT_EVICT_USEC (30 * USEC_PER_SEC)
/* A client that says nothing and is asked nothing is asked whether it lives, so that a hung one is known before work piles
 * up for it. Rare: 10 000 idle clients make 1000 wake-ups a second at most. */
#define CLIENT_IDLE_PING_USEC (10 * USEC_PER_SEC)
/* process_vm_readv only for a client whose agent was heard this lately (sys/reader.h). */
#define CLIENT_FAST_READ_USEC (1 * USEC_PER_SEC)
/* A job that runs longer may hang: another worker takes the place of its own at once. Users who act together stop the work of all
 * others for this long, and for a tick. */
#define JOB_SLOW_USEC (1 * USEC_PER_SEC)
/* A job that runs longer hangs on a client's memory: 256 pages take 0.3 ms, a whole window some 10 ms; a busy machine and
 * swapped memory may stretch that a hundredfold. */
#define JOB_LOST_USEC (10 * USEC_PER_SEC)
/* How often the above are looked at. */
#define LIVENESS_TICK_USEC (250 * USEC_PER_MSEC)
/* A private daemon stays this long after its last client: an exec closes the connection and the new program makes one. */
#define PRIVATE_LINGER_USEC (2 * USEC_PER_SEC)
/* A private daemon that nobody ever connected to. */
#define PRIVATE_UNUSED_USEC (60 * USEC_PER_SEC)

/* -- work ------------------------------------------------------------------------------------------------------------ */
/* Result runs of one scan: 96 KiB a job; a window with more is continued where it stopped. */
#define SCAN_RUNS_MAX 4096
/* Jobs handed out and not yet done, per worker: one runs, one waits so that the worker need not. */
#define JOBS_PER_WORKER 2
/* How often the governor asks for memory pressure: the kernel works it out anew every 2 s. */
#define GOVERNOR_LOOK_USEC (1 * USEC_PER_SEC)
/* The CPU governor's bucket: work may run ahead of its allowance by this much, so that a budget of 1 % still does whole
 * jobs. */
#define GOVERNOR_BURST_USEC (50 * USEC_PER_MSEC)

/* -- log -------------------------------------------------------------------------------------------------------------- */
/* Lines that clients bring about: in each window each reason once about one user's processes, so many reasons (there are some twenty;
 * who has given eight is known), and so many lines in all: 3 a second at most, however many connections of however many users
 * misbehave. */
#define LOG_WINDOW_USEC (30 * USEC_PER_SEC)
#define LOG_REASONS 8
#define LOG_REASON_BYTES 96
#define LOG_LINES 100

/* -- connections ----------------------------------------------------------------------------------------------------- */
/* Kept for root and the daemon's own user when all others are taken: somebody must be able to look, and to act. */
#define SESSIONS_RESERVED 16
/* Of the connections there can be one user has at most this part, whatever max_clients_per_uid allows. */
#define SESSIONS_USER_PERMILLE 750

/* -- file descriptors ------------------------------------------------------------------------------------------------ */
/* A client holds its socket, pagemap, mem and a pidfd. */
#define FDS_PER_CLIENT 4
/* Kept for ourselves: loop, listener, log, notification, config, one fd a segment for some thousands of segments' worth
 * of sharing. A quarter of the limit, at least this many. */
#define FDS_RESERVED_MIN 64

/* A client's own totals are only ever added up and shown; one above this lies. */
#define CLIENT_TOTAL_MAX (UINT64_C(1) << 48)
