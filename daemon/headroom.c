#include "daemon/headroom.h"

#include <errno.h>

#include "common/cleanup.h"
#include "daemon/client.h"
#include "daemon/session.h"
#include "daemon/sys/memory_group.h"
#include "daemon/sys/pressure.h"

static uint64_t needed(const struct manager *m, const struct client *c, uint64_t n_pages) {
        struct core_client_counters n;
        if (core_client_counters(m->core, c->id, &n) < 0)
                return 0;
        return n_pages ? MIN(n.merged_pages, n_pages) : n.merged_pages;
}

/* Pages that may be taken of so many bytes. */
static uint64_t without_spare(uint64_t bytes) {
        return (bytes - MIN(bytes, HEADROOM_SPARE_BYTES)) / KSM_PAGE_SIZE;
}

/* A group that cannot be read is no limit: the process would not be ours to judge. */
static uint64_t left_to(pid_t pid) {
        struct memory_group g;
        if (memory_group_open_pid(&g, pid) < 0)
                return UINT64_MAX;
        uint64_t left = memory_group_left(&g);
        memory_group_close(&g);
        return left == UINT64_MAX ? left : without_spare(left);
}

int headroom_check(const struct manager *m, uint32_t pid, uint64_t n_pages, struct headroom *ret) {
        uint64_t available;
        *ret = (struct headroom){ 0 };
        IDMAP_FOREACH(&m->clients, e) {
                const struct client *c = e->value;
                if (c->raw || (pid && (uint32_t) c->session->peer.pid != pid))
                        continue;
                uint64_t n = needed(m, c, n_pages), left = n > 0 ? left_to(c->session->peer.pid) : UINT64_MAX;
                if (n > left) {
                        *ret = (struct headroom){ .needed_pages = n, .left_pages = left, .pid = c->session->peer.pid };
                        return -ENOMEM;
                }
                ret->needed_pages += n;
        }
        if (pressure_available_bytes(&m->governor.pressure, &available) < 0)
                return 0;
        ret->left_pages = without_spare(available);
        return ret->needed_pages > ret->left_pages ? -ENOMEM : 0;
}
