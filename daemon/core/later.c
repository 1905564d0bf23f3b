/* Blocks with pages that the agent cannot have certified just now (CORE_LATER): private pages inside mappings need a witness, and a
 * process pays for one only now and then (lib/witness.h). Nothing is wrong with them, and pages elsewhere in the process need not
 * wait for it.
 *
 * They wait in a queue of the client's, as do ragged blocks with such pages. When their time has come, one is asked for; each one that is done brings some of the others
 * along, so that all go while the witness lives; the first that has to wait again puts them all off, longer each time. An unmerge
 * of any block in the queue takes out all that are in it, once. */
#include "daemon/core/internal.h"

#define LATER_FIRST_USEC (50 * 1000)
#define LATER_MAX_DOUBLINGS 5
#define RELEASE_BLOCKS 8

static uint32_t pop(struct core *c, struct client *cl) {
        cl->n_later--;
        cl->n_hurried -= cl->n_hurried > 0;
        return block_pop(c, &cl->later, BLOCK_LATER);
}

void later_add(struct core *c, struct client *cl, uint32_t block, uint64_t now_usec) {
        if (!(block_at(c, block)->flags & (BLOCK_APPLY | BLOCK_SHORT | BLOCK_LATER))) {
                block_push(c, &cl->later, block, BLOCK_LATER);
                cl->n_later++;
        }
        if (cl->later_usec == 0) {
                cl->later_usec = now_usec + ((uint64_t) LATER_FIRST_USEC << cl->later_tries);
                cl->later_tries = MIN(cl->later_tries + 1, (unsigned) LATER_MAX_DOUBLINGS);
        }
        timer_set(c, cl, TIMER_WAKE, cl->later_usec);
}

void later_wake(struct core *c, struct client *cl, uint64_t now_usec) {
        if (cl->later_usec > now_usec)
                timer_set(c, cl, TIMER_WAKE, cl->later_usec);
        else
                cl->later_usec = 0;
}

void later_release(struct core *c, struct client *cl) {
        if (cl->later_usec > 0)
                return;
        cl->later_tries = 0;
        for (unsigned n = 0; n < RELEASE_BLOCKS && cl->later.head != NIL; n++)
                block_queue_apply(c, pop(c, cl));
}

void later_hurry(struct core *c, struct client *cl) {
        cl->n_hurried = cl->n_later;
        turn_add(c, cl, TURN_APPLY);
}

uint32_t later_pop(struct core *c, struct client *cl) {
        bool is_due = cl->later_usec == 0 && cl->n_applies == 0;

        return cl->later.head != NIL && (is_due || cl->n_hurried > 0) ? pop(c, cl) : NIL;
}
