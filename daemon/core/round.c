/* settled_scans: the promise of kernel KSM's full_scans.
 *
 * One full scan of the kernel reads, compares and merges, and its programs wait for two or three of them to find everything merged
 * that they had offered before. A full scan of ours looks who wrote, reads what had settled, and merges later. So several make a
 * round: in the first whole pass of it a page is seen, in one that begins a settle time later it is read, and then its client has nothing
 * left to do. Who sees settled_scans go up twice has seen a round from its beginning to its end.
 *
 * While there is nothing to scan (all was taken out of merging again, or is of a kind that is left alone) a round of nothing ends when
 * somebody looks: his program waits for it. */
#include "daemon/core/internal.h"

/* The pass that was under way when the round began, one that sees, one that reads. */
#define ROUND_SCANS 3
/* Somebody always writes, is slow, or has a page that waits for long: the others must not wait for him. Scans that are done sooner than in a
 * period, because of news, do not make a round end before its time. */
#define ROUND_SCANS_MAX 12

/* A round of nothing. An agent that is only just connecting has more time than that in two of them. */
#define NOTHING_MIN_USEC (1000 * 1000)

static bool is_at_rest(const struct core *c) {
        for (uint32_t i = pool_next(&c->clients, 0); i != NIL; i = pool_next(&c->clients, i + 1)) {
                const struct client *cl = client_at(c, i);

                if (cl->in_epoch && (cl->is_reading || cl->ready.head != NIL || !request_is_drained(cl)))
                        return false;
        }
        return true;
}

void round_begins(struct core *c, uint64_t now_usec) {
        c->round_scans = 0;
        c->round_usec = now_usec;
}

void core_look(struct core *c, uint64_t now_usec) {
        uint64_t least_usec = MAX(ROUND_SCANS * pace_usec(c, c->tunables.pass_millisecs), (uint64_t) NOTHING_MIN_USEC);

        if (c->tunables.run != 1 || c->n_epoch_clients > 0 || now_usec < c->round_usec + least_usec)
                return;
        c->counters.settled_scans++;
        round_begins(c, now_usec);
}

void round_scan_ended(struct core *c, uint64_t now_usec) {
        uint64_t pass_usec = pace_usec(c, c->tunables.pass_millisecs);
        uint64_t least_usec = pace_usec(c, c->tunables.settle_millisecs) + 2 * pass_usec;
        bool is_late;

        c->round_scans++;
        is_late = c->round_scans >= ROUND_SCANS_MAX && now_usec >= c->round_usec + ROUND_SCANS_MAX * pass_usec;
        if (c->round_scans < ROUND_SCANS || now_usec < c->round_usec + least_usec)
                return;
        if (!is_late && !is_at_rest(c))
                return;
        c->counters.settled_scans++;
        round_begins(c, now_usec);
}
