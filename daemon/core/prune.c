/* Pruning: the books follow max_page_sharing, and chains come to have no more dups than they need.
 *
 * A sweep, every stable_node_chains_prune_millisecs and in small steps, visits the slots of segments in which something
 * changed since the last one (SEGMENT_PRUNE: a dup won or lost sharers, or the cap was set). At rest nothing is visited.
 *  - A slot with more sharers than the cap (it was lowered) lets whole extents go: their pages are read again, and find another
 *    dup, or each other.
 *  - A dup with room that another dup of its chain could take the sharers of gives them away, run by run. A run, a maximal
 *    sequence of merged pages of one client at consecutive slots, moves as a whole, to slots as consecutive, where it takes no
 *    VMA more than before; nothing is copied or read for it, the agent compares before it maps anything else. Else what of it lies
 *    in one block, an extent, may move for a VMA or two. What cannot move for its run's sake stays, and its dup is counted
 *    (dups_for_runs).
 *  - A slot that has room now takes the page that was left over when its chain was full.
 * A dup without sharers is dead at once (slot.c), so that is all there is to prune.
 *
 * It ends: a move takes pages from slots with s sharers to slots with t (pending ones counted, caps kept) only if the sum of
 * t - s + 1 over its pages is positive, which is when the sum of the squares of all slots' sharers grows; and that sum is bounded
 * by the cap. So two dups never exchange their sharers back and forth. Of two dups of one page each with room one can always
 * give to the other, so without runs a chain ends with one dup at most that is not full.
 *
 * The kernel's KSM drops dups without sharers and no more; the patch that brought max_page_sharing (2c653d0ee2ae) names
 * defragmentation as possible. */
#include "daemon/core/internal.h"

/* Dups of a chain that are looked at for one with room: at most so many are touched in a step whatever the chain. The 1024 that
 * follow hold a GiB of one page at the default cap. */
#define PRUNE_WALK 1024
/* The fullest of them that are tried. */
#define PRUNE_TARGETS 4
/* A block's part of a run may leave the rest behind for a VMA for so many pages: two VMAs for a whole block, its two ends. */
#define PAGES_PER_VMA 32
/* Pages moved or let go a sweep: 2 to 4 us of the agents' time each, so below 1 % of a CPU at the default pause. */
#define PRUNE_MOVES 4096

/* A pause of 0 is as often as it can, but not as fast as a loop can spin. */
#define PRUNE_MIN_USEC UINT64_C(1000)

uint64_t prune_pause_usec(const struct core *c) {
        return MAX(usec_of_ms(c->tunables.stable_node_chains_prune_millisecs), PRUNE_MIN_USEC);
}

static uint64_t cap_of(const struct core *c) {
        return MIN((uint64_t) c->tunables.max_page_sharing, (uint64_t) SLOT_SHARERS_MAX);
}

static uint32_t load(const struct domain *d, uint32_t slot) {
        return slot_at(d, slot)->sharers + slot_at(d, slot)->pending;
}

/* What is on its way out of a segment needs no order in it. */
static void mark(struct core *c, struct segment *s, uint32_t event) {
        if (s->events & (SEGMENT_CLEANING | SEGMENT_DROP_DUE))
                return;
        s->events |= event;
        c->prune_due = true;
}

void prune_mark(struct core *c, struct segment *s) {
        mark(c, s, SEGMENT_PRUNE);
}

void prune_mark_all(struct core *c) {
        for (uint32_t i = pool_next(&c->domains, 0); i != NIL; i = pool_next(&c->domains, i + 1))
                for (uint32_t u = 0; u < domain_at(c, i)->n_units; u++)
                        if (domain_at(c, i)->units[u])
                                prune_mark(c, domain_at(c, i)->units[u]);
}

void prune_changed(struct core *c, const struct domain *d, uint32_t slot) {
        const struct slot *s = slot_at(d, slot);

        if (s->next != slot || s->sharers + UINT64_C(1) >= cap_of(c)) /* a dup; too many; or one less than too many, just now */
                prune_mark(c, segment_of(d, slot));
}

/* -- runs ----------------------------------------------------------------------------------------------------------------- */

/* Where a client's page is: a block and a place in it. */
struct place {
        uint32_t block;
        unsigned i;
};

static uint32_t merged_slot(const struct core *c, struct place p) {
        const struct block *b = block_at(c, p.block);

        return record_state(b->page[p.i]) == PAGE_MERGED ? page_file_slot(c, b, p.i) : NIL;
}

/* The next page (step 1) or the one before (-1); block NIL: none is known there. */
static struct place neighbour(const struct core *c, struct place p, int step) {
        const struct block *b = block_at(c, p.block);
        unsigned k = p.i + (unsigned) step;

        if (k < BLOCK_PAGES)
                return (struct place){ p.block, k };
        if (step < 0 && b->number == 0)
                return (struct place){ NIL, 0 };
        return (struct place){ block_find(c, block_client(c, b), b->number + (uint64_t) (int64_t) step), k % BLOCK_PAGES };
}

static uint32_t file_slot(const struct core *c, struct place p) {
        return p.block == NIL ? NIL : page_file_slot(c, block_at(c, p.block), p.i);
}

static bool continues(const struct core *c, const struct domain *d, struct place p, uint32_t slot, int step) {
        uint32_t other = p.block == NIL ? NIL : merged_slot(c, p);

        return other != NIL && (step > 0 ? slots_are_neighbours(d, slot, other) : slots_are_neighbours(d, other, slot));
}

struct run {
        struct place first, before, after;
        uint32_t slot, n;
};

/* The run that p, which is merged, is in; of a run that goes on beyond p's block all (a run lies in one segment) or only what lies in it. */
static void run_find(const struct core *c, const struct domain *d, struct place p, bool is_all, struct run *ret) {
        struct place at = p, next;
        uint32_t slot = merged_slot(c, p);

        *ret = (struct run){ .first = p, .slot = slot, .n = 1 };
        for (next = neighbour(c, at, 1); (is_all || next.block == p.block) && continues(c, d, next, slot, 1);
             next = neighbour(c, at, 1)) {
                at = next;
                slot++;
                ret->n++;
        }
        ret->after = next;
        for (next = neighbour(c, p, -1); (is_all || next.block == p.block) && continues(c, d, next, ret->slot, -1);
             next = neighbour(c, ret->first, -1)) {
                ret->first = next;
                ret->slot--;
                ret->n++;
        }
        ret->before = next;
}

static bool may_move(const struct core *c, const struct client *cl) {
        return !cl->is_gone && !cl->is_parked && !client_unmerging(c, cl) && client_has_vmas(c, cl, 2, true);
}

/* Whether all of the run may move to the slots from `to` on: dups of the same chains (by their hashes, as in chain_pick), with
 * room, fuller all in all; and nothing of it has been taken out of merging. */
static bool run_fits(const struct core *c, const struct domain *d, const struct run *r, uint32_t to) {
        const struct segment *s = to / SEGMENT_UNIT < d->n_units ? segment_of(d, to) : NULL;
        struct place p = r->first;
        int64_t gain = 0;

        /* Within itself (equal neighbours) it would move off what it moves to. */
        if (!s || to + r->n > s->base + s->n_slots || (to < r->slot + r->n && r->slot < to + r->n))
                return false;
        for (uint32_t k = 0; k < r->n; k++, p = neighbour(c, p, 1)) {
                const struct block *b = block_at(c, p.block);

                if (slot_hash(d, to + k) != slot_hash(d, r->slot + k) || !slot_has_room(c, d, to + k) ||
                    scan_is_unmerged(block_client(c, b), (b->number << BLOCK_SHIFT) + p.i))
                        return false;
                gain += (int64_t) load(d, to + k) - load(d, r->slot + k) + 1;
        }
        return gain > 0;
}

/* VMAs that the move would cost at the run's ends; between them it changes nothing. */
static int run_cost(const struct core *c, const struct domain *d, const struct run *r, uint32_t to) {
        uint32_t left = file_slot(c, r->before), right = file_slot(c, r->after), last = r->n - 1;

        return vma_edge(d, left, to) + vma_edge(d, to + last, right) - vma_edge(d, left, r->slot) - vma_edge(d, r->slot + last, right);
}

static void run_move(struct core *c, struct domain *d, const struct run *r, uint32_t to) {
        struct place p = r->first;

        for (uint32_t k = 0; k < r->n; k++, p = neighbour(c, p, 1)) {
                slot_pend(d, to + k);
                page_set(c, p.block, p.i, record(PAGE_MATCHED, record_fails(block_at(c, p.block)->page[p.i]), to + k));
                block_queue_apply(c, p.block);
        }
}

/* -- a dup gives its sharers away --------------------------------------------------------------------------------------------- */

struct visit {
        struct core *c;
        struct domain *d;
        uint32_t slot;
        uint32_t targets[PRUNE_TARGETS]; /* the fullest first */
        unsigned n_targets;
        bool is_for_run, is_left; /* some of it stays for its run's sake; could not be tried now */
        unsigned *budget;
};

static void spend(unsigned *budget, unsigned n) {
        *budget -= MIN(*budget, n);
}

/* Other dups with room for something of this one, that hold as much. Emptier ones have to be visited for this one's sake. */
static void find_targets(struct visit *v) {
        const struct domain *d = v->d;
        uint32_t mine = load(d, v->slot), at = slot_at(d, v->slot)->next, n;

        for (n = 0; n < PRUNE_WALK && at != v->slot; n++, at = slot_at(d, at)->next) {
                uint32_t k, its = load(d, at);

                if (!slot_has_room(v->c, d, at))
                        continue;
                if (its < mine) {
                        if (!v->c->prune_is_too)
                                mark(v->c, segment_of(d, at), SEGMENT_PRUNE_TOO);
                        continue;
                }
                for (k = v->n_targets; k > 0 && load(d, v->targets[k - 1]) < its; k--)
                        if (k < PRUNE_TARGETS)
                                v->targets[k] = v->targets[k - 1];
                if (k < PRUNE_TARGETS) {
                        v->targets[k] = at;
                        v->n_targets = MIN(v->n_targets + 1, (unsigned) PRUNE_TARGETS);
                }
        }
        spend(v->budget, n / 16);
}

/* To the first of the targets that takes all of it for so many VMAs. */
static bool move_to_any(struct visit *v, const struct run *r, int vmas_max) {
        uint32_t place = v->slot - r->slot;

        spend(v->budget, 1 + r->n / 8);
        for (unsigned k = 0; k < v->n_targets; k++) {
                uint32_t to = v->targets[k] - place;

                if (v->targets[k] < place || !run_fits(v->c, v->d, r, to) || run_cost(v->c, v->d, r, to) > vmas_max)
                        continue;
                run_move(v->c, v->d, r, to);
                v->c->prune_moves -= MIN(v->c->prune_moves, r->n);
                return true;
        }
        return false;
}

/* The page's run as a whole, or at least what of it lies in the page's block. */
static bool give_away(struct visit *v, uint32_t extent, struct place p) {
        struct run r;

        (void) extent;
        if (!may_move(v->c, block_client(v->c, block_at(v->c, p.block))) || v->c->prune_moves == 0) {
                v->is_left = true;
                return v->c->prune_moves > 0;
        }
        run_find(v->c, v->d, p, true, &r);
        if (move_to_any(v, &r, 0))
                return true;
        run_find(v->c, v->d, p, false, &r);
        if (move_to_any(v, &r, (int) r.n / PAGES_PER_VMA))
                return true;
        /* Of two that hold as much, one. */
        for (unsigned k = 0; k < v->n_targets && !v->is_for_run; k++)
                v->is_for_run = slot_has_room(v->c, v->d, v->targets[k]) &&
                                (v->targets[k] < v->slot || load(v->d, v->targets[k]) > load(v->d, v->slot));
        return true;
}

/* The page of the extent that maps the slot and shares it; false when there is none. */
static bool sharer_at(const struct core *c, const struct extent *e, uint32_t slot, struct place *ret) {
        *ret = (struct place){ e->page >> BLOCK_SHIFT, (e->page & (BLOCK_PAGES - 1)) + slot - e->slot };
        return ret->i < BLOCK_PAGES && e->mapped >> ret->i & 1 &&
               record_state(block_at(c, ret->block)->page[ret->i]) == PAGE_MERGED;
}

/* Calls f for each page that shares the slot, until it returns false; to the end, or a long list would never be done: 50000 extents,
 * what three groups of slots shared by lone pages have at the default cap, take about a millisecond. What f does to the records leaves the lists of extents as
 * they are: a page lies where it lies until the agent has answered. */
static void each_sharer(struct visit *v, bool (*f)(struct visit *v, uint32_t extent, struct place p)) {
        const struct segment *s = segment_of(v->d, v->slot);
        uint32_t own = (v->slot - s->base) / BLOCK_PAGES;

        /* An extent is listed at one of its slots, which may be up to 63 away. */
        for (uint32_t g = own - (own > 0); g <= MIN(own + 1, s->n_slots / BLOCK_PAGES - 1); g++)
                for (uint32_t id = s->groups[g]; id != NIL; id = extent_at(v->c, id)->next) {
                        struct place p;

                        spend(v->budget, 1);
                        if (sharer_at(v->c, extent_at(v->c, id), v->slot, &p) && !f(v, id, p))
                                return;
                }
}

/* -- above the cap ------------------------------------------------------------------------------------------------------------ */

/* With the page goes whatever of its extent lies too deep, too, so that the extent stays whole. */
static bool let_go(struct visit *v, uint32_t extent, struct place p) {
        struct core *c = v->c;
        struct block *b = block_at(c, p.block);

        if (block_client(c, b)->is_gone)
                return true;
        if (c->prune_moves == 0) {
                v->is_left = true;
                return false;
        }
        for (uint64_t m = extent_at(c, extent)->mapped; m; m &= m - 1) {
                unsigned i = (unsigned) __builtin_ctzll(m);

                if (record_state(b->page[i]) != PAGE_MERGED || slot_at(v->d, page_file_slot(c, b, i))->sharers <= cap_of(c))
                        continue;
                page_fresh(c, p.block, i, record_fails(b->page[i]), NOT_WRITTEN_USEC);
                c->prune_moves -= c->prune_moves > 0;
        }
        return slot_at(v->d, v->slot)->sharers > cap_of(c);
}

/* -- left over ---------------------------------------------------------------------------------------------------------------- */

static bool is_left_over(void *userdata, uint32_t id) {
        const struct visit *v = userdata;
        uint64_t r;

        if (id & SLOT_ID)
                return false;
        r = block_at(v->c, id >> BLOCK_SHIFT)->page[id & (BLOCK_PAGES - 1)];
        return record_state(r) == PAGE_UNSHARED && record_hash(r) == slot_hash(v->d, v->slot);
}

/* The one unshared page of this content, which came when all dups were full, is as if it had just been read. */
static void take_in(struct visit *v) {
        uint32_t id = index_find(&v->d->index, slot_hash(v->d, v->slot), is_left_over, v), block = id >> BLOCK_SHIFT;
        uint64_t r;

        if (id == NIL || v->c->prune_moves == 0)
                return;
        v->c->prune_moves--;
        r = block_at(v->c, block)->page[id & (BLOCK_PAGES - 1)];
        page_set(v->c, block, id & (BLOCK_PAGES - 1), record_hash(r) | record(PAGE_HASHED, record_fails(r), 0));
        block_queue_publish(v->c, block);
}

/* -- sweeps -------------------------------------------------------------------------------------------------------------------- */

static void visit_slot(struct visit *v) {
        const struct slot *s = slot_at(v->d, v->slot);

        if (s->state != SLOT_LIVE)
                return;
        if (s->sharers > cap_of(v->c))
                each_sharer(v, let_go);
        if (s->state != SLOT_LIVE || !slot_has_room(v->c, v->d, v->slot))
                return;
        take_in(v);
        if (s->next == v->slot)
                return;
        find_targets(v);
        if (v->n_targets > 0)
                each_sharer(v, give_away);
}

static bool is_marked(const struct segment *s) {
        return s->events & (SEGMENT_PRUNE | SEGMENT_PRUNE_TOO) && !(s->events & (SEGMENT_CLEANING | SEGMENT_DROP_DUE));
}

/* False: out of budget. */
static bool sweep_segment(struct core *c, struct domain *d, struct segment *s, unsigned *budget) {
        if (c->prune_segment != s->id) {
                c->prune_segment = s->id;
                c->prune_slot = 0;
                c->prune_is_too = !(s->events & SEGMENT_PRUNE);
                s->events &= ~(uint32_t) (SEGMENT_PRUNE | SEGMENT_PRUNE_TOO);
                c->dups_for_runs -= s->n_for_runs;
                s->n_for_runs = 0;
        }
        for (; c->prune_slot < s->next_slot; c->prune_slot++) {
                struct visit v = { .c = c, .d = d, .slot = s->base + c->prune_slot, .budget = budget };

                if (*budget == 0)
                        return false;
                *budget -= c->prune_slot % 16 == 0;
                visit_slot(&v);
                s->n_for_runs += v.is_for_run;
                c->dups_for_runs += v.is_for_run;
                if (v.is_left)
                        prune_mark(c, s);
        }
        return true;
}

static bool sweep_domain(struct core *c, struct domain *d, unsigned *budget) {
        for (; c->prune_unit < d->n_units; c->prune_unit++) {
                struct segment *s = d->units[c->prune_unit];

                if (!s || s->base != c->prune_unit * SEGMENT_UNIT || !(is_marked(s) || c->prune_segment == s->id))
                        continue;
                if (!sweep_segment(c, d, s, budget))
                        return false;
                c->prune_segment = 0;
        }
        return true;
}

static bool is_any_marked(const struct core *c) {
        for (uint32_t i = pool_next(&c->domains, 0); i != NIL; i = pool_next(&c->domains, i + 1))
                for (uint32_t u = 0; u < domain_at(c, i)->n_units; u++)
                        if (domain_at(c, i)->units[u] && is_marked(domain_at(c, i)->units[u]))
                                return true;
        return false;
}

uint64_t prune_step(struct core *c, uint64_t now_usec, unsigned *budget) {
        uint64_t pause = prune_pause_usec(c);

        if (!c->prune_due || c->tunables.run != 1)
                return UINT64_MAX;
        c->prune_usec = MIN(c->prune_usec, now_usec + pause); /* the tunable was lowered */
        if (now_usec < c->prune_usec)
                return c->prune_usec;
        if (c->prune_domain == 0 && c->prune_unit == 0 && c->prune_segment == 0)
                c->prune_moves = PRUNE_MOVES;
        for (; (c->prune_domain = pool_next(&c->domains, c->prune_domain)) != NIL; c->prune_domain++, c->prune_unit = 0)
                if (!sweep_domain(c, domain_at(c, c->prune_domain), budget))
                        return now_usec; /* goes on in the next tick */
        c->prune_domain = c->prune_unit = 0;
        c->prune_due = is_any_marked(c);
        c->prune_usec = now_usec + pause;
        return c->prune_due ? c->prune_usec : UINT64_MAX;
}
