#include "daemon/room.h"

#include "common/log.h"
#include "daemon/bounds.h"

void room_open(struct room *r) {
        *r = (struct room){ .left_bytes = UINT64_MAX };
        int error = memory_group_open(&r->group);
        if (error < 0)
                log_warning_errno(error, "the memory limits of the control group cannot be known");
}

void room_look(struct room *r, struct core *core, uint64_t now) {
        r->left_bytes = memory_group_left(&r->group);
        bool is_short = core_memory_left(core, r->left_bytes);
        if (is_short == r->said_short || (r->said_usec > 0 && now < r->said_usec + LOG_WINDOW_USEC))
                return;
        r->said_short = is_short;
        r->said_usec = now;
        if (is_short)
                log_warning("memory limit of the control group: %llu MiB left, nothing new is shared until there is room",
                            (unsigned long long) r->left_bytes >> 20);
        else
                log_notice("memory limit of the control group: %llu MiB left, sharing goes on", (unsigned long long) r->left_bytes >> 20);
}

void room_close(struct room *r) {
        memory_group_close(&r->group);
}
