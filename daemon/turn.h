/* Turns of the loop: from waking up until it goes back to sleep. What becomes ready meanwhile waits for the end of the turn, so
 * its length is the loop's own latency. It is measured here, and bounded: callbacks ask whether the turn is over and leave the rest
 * to the next one, to which epoll brings them back (sockets are polled level-triggered).
 *
 * Two histograms (counters turn_*): wall clock, which is what clients feel, and the loop thread's CPU clock, which a busy machine
 * does not falsify. Loop's thread only. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "common/counters.h"

struct turn {
        uint64_t number;
        uint64_t began_usec; /* its first callback; 0: none yet */
        uint64_t ended_usec, ended_cpu_usec, ended_idle_nsec; /* the one before */
        uint64_t wall[TURN_BUCKETS], cpu[TURN_BUCKETS];
        uint64_t longest_usec, longest_cpu_usec;
};

/* Before the loop runs: has it keep the time that it sleeps. 0 or -errno. */
int turn_init(struct turn *t, uv_loop_t *loop);
/* Right before the loop runs: what the start took was nobody's turn. */
void turn_start(struct turn *t);
/* Last thing before the loop polls. */
void turn_end(struct turn *t, uv_loop_t *loop);
/* True: others have waited long enough. */
bool turn_is_over(struct turn *t, uint64_t now);
void turn_counters(const struct turn *t, struct counters *ret);
