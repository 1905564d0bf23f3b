/* Memory that the limits of the daemon's control groups leave it (daemon/sys/memory_group.h), told to the core at each liveness tick. At
 * such a limit the kernel kills; so sharing stops before, and goes on when there is room again. Loop's thread only. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/core/core.h"
#include "daemon/sys/memory_group.h"

struct room {
        struct memory_group group;
        uint64_t left_bytes; /* at the last look */
        bool said_short;
        uint64_t said_usec;
};

/* Limits that cannot be known are said in the log, and none. */
void room_open(struct room *r);
/* Looks, tells the core, and says in the log when sharing stops for it and goes on. */
void room_look(struct room *r, struct core *core, uint64_t now);
void room_close(struct room *r);
