/* The administrator's side: statistics, clients, tunables, merge and unmerge. One request, one reply, in order.
 *
 * Root and the daemon's own user may do everything. Anyone else may read the totals, the tunables and the clients of his
 * own. */
#pragma once

#include <stdint.h>

#include "proto/codec.h"

struct session;

void control_hello(struct session *s);
void control_frame(struct session *s, const struct frame *f);
/* A merge or unmerge asked for by this session has ended. error: 0 or errno value. */
void control_request_done(struct session *s, int error, uint64_t pages, uint64_t left);
