/* The VMA budget of a client: merged runs may take a share of vm.max_map_count less what the process has for itself. A
 * fifth of it is kept for long runs that may come later. */
#include "daemon/core/internal.h"

#define RETRY_FIRST_USEC (2 * 1000 * 1000)
#define RETRY_MAX_DOUBLINGS 5

int64_t client_vma_budget(const struct core *c, const struct client *cl) {
        int64_t share = (int64_t) cl->max_map_count * c->tunables.vma_share_permille / 1000;

        return MAX(share - (int64_t) cl->n_vmas, INT64_C(0));
}

bool client_has_vmas(const struct core *c, const struct client *cl, uint32_t n, bool is_long) {
        int64_t budget = client_vma_budget(c, cl);

        return cl->vmas_used + cl->vmas_pending + n <= (is_long ? budget : budget - budget / 5);
}

/* An eighth of the budget is used, or will be if what is about to be merged lies scattered. */
bool client_is_short_of_vmas(const struct core *c, const struct client *cl) {
        int64_t coming = (int64_t) cl->states[PAGE_MATCHED] + cl->states[PAGE_HASHED];

        return cl->vmas_used + cl->vmas_pending + coming > client_vma_budget(c, cl) / 8;
}

/* The kernel said no: leave the process alone for a while, longer each time. */
void client_budget_hit(struct core *c, struct client *cl, uint64_t now_usec) {
        if (cl->budget_usec > now_usec)
                return;
        cl->budget_usec = now_usec + ((uint64_t) RETRY_FIRST_USEC << cl->budget_tries);
        if (cl->budget_tries < RETRY_MAX_DOUBLINGS)
                cl->budget_tries++;
        timer_set(c, cl, TIMER_WAKE, cl->budget_usec);
}
