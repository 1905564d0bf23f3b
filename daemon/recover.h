/* Taking over the segments that an earlier daemon left with the service manager.
 *
 * A segment tells by its label which domain it belongs to; its slots are hashed anew, under this daemon's secrets, so nothing of the
 * books need survive and nothing that survives is believed (daemon/sys/segment.h says what is checked). What maps it, the agents
 * report when they connect again (RUNS). */
#pragma once

struct manager;
struct passed;

/* Before the first client. Takes the fds of p that it uses; what cannot be used is logged, and the service manager is told to forget it:
 * processes that map such a segment keep what they have. Hashes 2 to 3 GiB a second. */
void recover_segments(struct manager *m, struct passed *p);
