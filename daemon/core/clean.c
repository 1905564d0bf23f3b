/* Cleaning, as in a log: slots die one by one, memory comes back only by whole segments. So what is left in a sparse segment
 * moves elsewhere, and then the segment goes.
 *
 * No page is copied for it. The books take the sharers off the segment's slots and make them candidates where they lie, unwritten
 * for long: at the next pass they are read and find each other, a slot in an open segment is published from one of them,
 * and the agents map it over. Until then they map the old slots, so memory does not rise and nothing is unshared but
 * in the books. What turns out to be shared by nobody is restored: its extents are ragged (restore.c). The segment takes no new
 * sharers meanwhile, and is dropped when nothing lies in it.
 *
 * Which: the one that gives most for each page to move. At once, when it is half dead and moving costs little; whatever it costs,
 * when more of the domain is dead than live; and when the domain's bound stands in the way of a publish, where slots that only
 * one page maps count as well: they save nothing, and their pages end as private memory. Else, as long as more than a tenth of
 * the domain is dead, at a pace that keeps its cost below 1 % of a CPU: so at rest a tenth is left at most. The open segment is given
 * up for it, if it must be: a domain whose bound is below a segment would never have another. One after the other in a domain;
 * the next may begin when all pages of the one before are on their way.
 *
 * A segment of the other setting of merge_across_nodes (node.c) goes the same way, at the same pace and before the others; where nodes
 * begin to matter its sharers are restored first. */
#include "daemon/core/internal.h"

/* Pages to move for one that comes free: a move costs 2 to 4 us, once. */
#define CLEAN_CHEAP 2
/* After so many, with nobody sharing from it any more, the next segment has its turn: merges that were asked for before come in
 * within one or two. What is still mapped goes when it is found ragged. */
#define CLEAN_ROUNDS 3
/* When the domain may publish no more, a segment is worth it with this part of what it holds dead, or shared by nobody. */
#define CLEAN_FULL_DIVISOR 8
/* Dead slots for which the open segment is given up: 256 KiB, lest a small domain changes segments all the time. */
#define CLEAN_OPEN_SLOTS 64
/* What may be dead of a domain at rest, 1 in so many; and pages moved for it a second, each 2 to 4 us of an agent's time. */
#define CLEAN_REST_DIVISOR 10
#define CLEAN_PACE_PAGES 2000
#define PAGES_PER_MIB 256

/* Moves out of a segment that then goes live on the reserve. */
bool clean_has_memory(struct core *c, const struct domain *d, uint64_t bytes) {
        if (d->leaving_slots > 0 && memory_has_reserve(&c->memory, bytes))
                return true;
        return memory_has_room(&c->memory, bytes);
}

/* Live slots are bounded by what the domain has registered. Dead ones take memory, too: they may be half as much again, and
 * what is on its way out does not count, or a full domain could never move it. */
bool clean_leaves_room(struct core *c, struct domain *d, uint64_t n_slots) {
        uint64_t share = (uint64_t) ((unsigned __int128) d->registered_pages * (uint64_t) c->tunables.segment_share_permille / 1000);
        uint64_t most = MIN(share, (uint64_t) c->tunables.segment_max_mbytes * PAGES_PER_MIB);

        if (d->given_slots - d->dead_slots + n_slots <= most &&
            d->given_slots + n_slots <= most + most / 2 + d->leaving_slots && clean_has_memory(c, d, n_slots * KSM_PAGE_SIZE))
                return true;
        d->is_full = true;
        return false;
}

struct sparse {
        struct segment *best;
        struct segment *misbound; /* the first that nodes are a reason for */
        uint64_t n_live, n_dead;
};

/* Slots that a cleaning gives back to a full domain. */
static uint64_t gain(const struct segment *s) {
        return s->n_dead + s->n_lonely;
}

/* Where memory is limited, not a segment that the reserve could not hold once more: what could not move would end as private memory. */
static bool may_go(const struct core *c, const struct segment *s) {
        return s->n_writing == 0 && s->n_live > 0 && !(s->events & (SEGMENT_CLEANING | SEGMENT_DROP_DUE | SEGMENT_HELD)) &&
               memory_has_reserve(&c->memory, s->n_live * KSM_PAGE_SIZE);
}

static bool is_candidate(const struct core *c, const struct domain *d, const struct segment *s) {
        if (!may_go(c, s))
                return false;
        if (d->is_full && gain(s) * CLEAN_FULL_DIVISOR >= s->n_dead + s->n_live)
                return true;
        return s->n_dead * CLEAN_REST_DIVISOR > s->n_dead + s->n_live && (!segment_is_open(d, s) || s->n_dead >= CLEAN_OPEN_SLOTS);
}

/* a gives more for each page to move. */
static bool is_cheaper(const struct segment *a, const struct segment *b) {
        return !b || gain(a) * b->n_sharers > gain(b) * a->n_sharers;
}

static void clean_begin(struct domain *d, struct segment *s) {
        if (!(s->events & SEGMENT_CLEANING)) {
                s->events |= SEGMENT_CLEANING;
                d->leaving_slots += s->n_live + s->n_dead;
        }
        segment_close(d, s); /* what is not given of it costs no memory */
        d->is_full = false;
        d->cleaning = s;
        d->clean_group = d->clean_rounds = 0;
}

/* Whether it is time for the best of the candidates; x has the slots of the domain that are not on their way out. */
static bool is_time(const struct domain *d, const struct sparse *x, uint64_t now_usec) {
        const struct segment *s = x->best;

        if (d->is_full || x->n_dead > x->n_live)
                return true;
        if (s->n_dead >= s->n_live && s->n_sharers <= (uint64_t) CLEAN_CHEAP * s->n_dead)
                return true;
        return x->n_dead * CLEAN_REST_DIVISOR > x->n_dead + x->n_live && now_usec >= d->clean_usec;
}

static void clean_choose(struct core *c, struct domain *d, uint64_t now_usec) {
        struct sparse x = {};

        for (uint32_t u = 0; u < d->n_units; u++) {
                struct segment *s = d->units[u];

                if (!s || s->base != u * SEGMENT_UNIT)
                        continue;
                if (s->events & SEGMENT_CLEANING) {
                        if (s->n_sharers == 0)
                                continue;
                        clean_begin(d, s); /* merges that had been asked for long ago came in after its turn */
                        return;
                }
                if (!x.misbound && segment_is_misbound(c, s) && may_go(c, s))
                        x.misbound = s;
                x.n_live += s->n_live;
                x.n_dead += s->n_dead;
                if (is_candidate(c, d, s) && is_cheaper(s, x.best))
                        x.best = s;
        }
        if (x.misbound && now_usec >= d->clean_usec)
                x.best = x.misbound;
        else if (!x.best || !is_time(d, &x, now_usec))
                return;
        d->clean_usec = now_usec + (uint64_t) x.best->n_sharers * 1000000 / CLEAN_PACE_PAGES;
        clean_begin(d, x.best);
}

static void extent_unshare(struct core *c, uint32_t id) {
        const struct extent *e = extent_at(c, id);
        uint32_t block = e->page >> BLOCK_SHIFT;
        struct block *b = block_at(c, block);

        if (block_client(c, b)->is_gone)
                return;
        if (restore_is_due(c, b, e)) {
                b->flags |= BLOCK_RESTORE;
                block_queue_apply(c, block);
                return;
        }
        for (uint64_t m = e->mapped; m; m &= m - 1) {
                unsigned i = (unsigned) __builtin_ctzll(m);

                if (record_state(b->page[i]) == PAGE_MERGED)
                        page_fresh(c, block, i, record_fails(b->page[i]), NOT_WRITTEN_USEC);
        }
}

/* False: out of budget. */
static bool clean_walk(struct core *c, struct domain *d, unsigned *budget) {
        struct segment *s = d->cleaning;

        for (; d->clean_group < s->n_slots / BLOCK_PAGES; d->clean_group++)
                for (uint32_t id = s->groups[d->clean_group]; id != NIL; id = extent_at(c, id)->next) {
                        extent_unshare(c, id);
                        *budget -= *budget > 0;
                        if (*budget == 0)
                                return false;
                }
        return true;
}

uint64_t clean_step(struct core *c, uint64_t now_usec, unsigned *budget) {
        uint64_t pause = prune_pause_usec(c);

        if (c->segments == 0 || c->tunables.run != 1)
                return UINT64_MAX;
        if (c->clean_usec > now_usec + pause) /* the tunable was lowered */
                c->clean_usec = now_usec + pause;
        if (now_usec < c->clean_usec)
                return c->clean_usec;
        for (uint32_t i = pool_next(&c->domains, 0); i != NIL; i = pool_next(&c->domains, i + 1)) {
                struct domain *d = domain_at(c, i);

                if (!d->cleaning)
                        clean_choose(c, d, now_usec);
                if (!d->cleaning)
                        continue;
                if (!clean_walk(c, d, budget))
                        return now_usec; /* goes on in the next tick */
                /* Merges that were asked for before may come in yet: once more. */
                d->clean_group = 0;
                if (++d->clean_rounds >= CLEAN_ROUNDS && d->cleaning->n_sharers == 0)
                        d->cleaning = NULL;
        }
        c->clean_usec = now_usec + pause;
        return c->clean_usec;
}
