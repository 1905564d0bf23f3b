/* Segments and their slots: giving them out, counting who maps them, and letting go.
 *
 * A slot is given to a client's strip, written once by a publish, then LIVE as long as a page maps it or is about to, then
 * DEAD for ever: a forked child that nobody told us about may still map it (I3), so neither slot nor segment is reused.
 * A segment with nothing live, nothing being written and nothing mapped is dropped whole; clean.c helps it get there. */
#include "daemon/core/internal.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

struct segment *segment_of(const struct domain *d, uint32_t slot) {
        return d->units[slot / SEGMENT_UNIT];
}

bool slot_has_room(const struct core *c, const struct domain *d, uint32_t slot) {
        const struct slot *s = slot_at(d, slot);
        uint64_t cap = MIN((uint64_t) c->tunables.max_page_sharing, (uint64_t) SLOT_SHARERS_MAX);

        return s->state == SLOT_LIVE && !s->is_misplaced && !(segment_of(d, slot)->events & SEGMENT_CLEANING) && s->pending < SLOT_PENDING_MAX &&
               s->sharers + s->pending < cap;
}

/* -- segments ------------------------------------------------------------------------------------------------------- */

static size_t segment_bytes(uint32_t n_slots) {
        return sizeof(struct segment) + n_slots * (sizeof(struct slot) + sizeof(uint32_t) + SLOT_HASH_WORDS * sizeof(uint16_t)) +
               n_slots / BLOCK_PAGES * sizeof(uint32_t);
}

/* First run of free units. Unit 0 stays free, so that "the slot before" of any slot is never NIL. */
static int find_units(struct core *c, struct domain *d, uint32_t n, uint32_t *ret) {
        uint32_t run = 0, i;
        int r;

        for (i = 1; i < d->n_units && run < n; i++)
                run = d->units[i] ? 0 : run + 1;
        if (run < n) {
                i = MAX(d->n_units, 1U) + n - run;
                r = memory_grow(&c->memory, (void **) &d->units, &d->units_capacity, i, sizeof(*d->units));
                if (r < 0)
                        return r;
                memset(&d->units[d->n_units], 0, (i - d->n_units) * sizeof(*d->units));
                d->n_units = i;
        }
        *ret = i - n;
        return 0;
}

int segment_new(struct core *c, struct domain *d, uint32_t n_slots, unsigned nid, struct segment **ret) {
        uint32_t units = n_slots / SEGMENT_UNIT, first;
        struct segment *s;
        int r;

        r = find_units(c, d, units, &first);
        if (r < 0)
                return r;
        s = memory_realloc(&c->memory, NULL, 0, segment_bytes(n_slots));
        if (!s)
                return -ENOMEM;
        memset(s, 0, segment_bytes(n_slots));
        s->id = ++c->segment_sequence;
        s->domain = id_index(d->id);
        s->base = first * SEGMENT_UNIT;
        s->n_slots = n_slots;
        s->nid = nid;
        s->slots = (struct slot *) (s + 1);
        s->prevs = (uint32_t *) (s->slots + n_slots);
        s->groups = s->prevs + n_slots;
        s->hashes = (uint16_t (*)[SLOT_HASH_WORDS]) (s->groups + n_slots / BLOCK_PAGES);
        memset(s->groups, 0xff, n_slots / BLOCK_PAGES * sizeof(uint32_t));
        for (uint32_t u = 0; u < units; u++)
                d->units[first + u] = s;
        d->n_segments++;
        c->segments++;
        *ret = s;
        return 0;
}

static uint32_t segment_given(const struct segment *s) {
        return s->n_writing + s->n_live + s->n_dead;
}

void segment_free(struct core *c, struct segment *s) {
        struct domain *d = domain_at(c, s->domain);

        for (uint32_t u = s->base / SEGMENT_UNIT; u < (s->base + s->n_slots) / SEGMENT_UNIT; u++)
                d->units[u] = NULL;
        d->given_slots -= segment_given(s);
        if (s->events & SEGMENT_CLEANING)
                d->leaving_slots -= segment_given(s);
        if (d->cleaning == s)
                d->cleaning = NULL;
        d->n_segments--;
        c->segments--;
        c->dups_for_runs -= s->n_for_runs;
        c->slots_dead -= s->n_dead;
        d->dead_slots -= s->n_dead;
        c->segment_slots_written -= s->n_dead + s->n_live;
        memory_release(&c->memory, s, segment_bytes(s->n_slots));
}

static void event_queue(struct core *c, struct segment *s, uint32_t event) {
        s->events |= event;
        if (s->events & SEGMENT_QUEUED)
                return;
        s->events |= SEGMENT_QUEUED;
        s->event_next = NULL;
        if (c->events)
                c->events_tail->event_next = s;
        else
                c->events = s;
        c->events_tail = s;
}

void segment_check(struct core *c, struct segment *s) {
        struct domain *d = domain_at(c, s->domain);

        if (s->events & SEGMENT_DROP_DUE)
                return;
        if (s->n_writing == 0 && s->n_live == 0 && s->n_extents == 0 && s->n_dead + s->n_lost > 0) {
                segment_close(d, s);
                event_queue(c, s, SEGMENT_DROP_DUE);
        } else if (!(s->events & (SEGMENT_SEALED | SEGMENT_SEAL_DUE)) && s->n_writing == 0 &&
                   segment_given(s) + s->n_lost == s->n_slots)
                event_queue(c, s, SEGMENT_SEAL_DUE);
}

bool core_next_segment_event(struct core *c, struct core_segment_event *ret) {
        while (c->events) {
                struct segment *s = c->events;
                uint32_t domain = s->domain;

                *ret = (struct core_segment_event){ .segment = s->id, .domain = domain_at(c, domain)->id };
                c->events = s->event_next;
                s->events &= ~(uint32_t) SEGMENT_QUEUED;
                if (s->events & SEGMENT_DROP_DUE) {
                        ret->kind = CORE_SEGMENT_DROP;
                        segment_free(c, s);
                        domain_free_if_unused(c, domain);
                        return true;
                }
                s->events = (s->events & ~(uint32_t) SEGMENT_SEAL_DUE) | SEGMENT_SEALED;
                ret->kind = CORE_SEGMENT_SEAL;
                return true;
        }
        return false;
}

/* -- giving out ------------------------------------------------------------------------------------------------------ */

bool segment_is_open(const struct domain *d, const struct segment *s) {
        return s->nid < d->n_open && d->open[s->nid] == s;
}

void segment_close(struct domain *d, const struct segment *s) {
        if (segment_is_open(d, s))
                d->open[s->nid] = NULL;
}

/* The domain's open segment of the node, with room. */
static int segment_open(struct core *c, struct domain *d, unsigned nid, struct segment **ret) {
        uint32_t units = d->given_slots >= SEGMENT_LARGE_FROM ? SEGMENT_LARGE_UNITS : 1;
        int r;

        if (nid >= d->n_open) {
                r = memory_grow(&c->memory, (void **) &d->open, &d->open_capacity, nid + 1, sizeof(struct segment *));
                if (r < 0)
                        return r;
                for (; d->n_open <= nid; d->n_open++)
                        d->open[d->n_open] = NULL;
        }
        if (!d->open[nid] || d->open[nid]->next_slot == d->open[nid]->n_slots) {
                r = segment_new(c, d, units * SEGMENT_UNIT, nid, &d->open[nid]);
                if (r < 0)
                        return r;
        }
        *ret = d->open[nid];
        return 0;
}

static struct segment *strip_segment(const struct domain *d, const struct strip *t) {
        struct segment *s;

        if (t->next == t->end)
                return NULL;
        s = t->next / SEGMENT_UNIT < d->n_units ? segment_of(d, t->next) : NULL;
        return s && s->id == t->segment && !(s->events & (SEGMENT_DROP_DUE | SEGMENT_CLEANING)) ? s : NULL;
}

/* The slots left are lost: they were never written, so they cost an entry each and no memory. */
static void strip_abandon(struct core *c, const struct domain *d, struct strip *t) {
        struct segment *s = strip_segment(d, t);

        for (; s && t->next < t->end; t->next++) {
                s->slots[t->next - s->base].state = SLOT_DEAD;
                s->n_lost++;
        }
        t->next = t->end = 0;
        if (s)
                segment_check(c, s);
}

void strips_abandon(struct core *c, struct client *cl) {
        for (unsigned k = 0; k < CLIENT_STRIPS; k++)
                strip_abandon(c, client_domain(c, cl), &cl->strips[k]);
}

/* The client's strip in memory of the node. */
static int strip_find(struct core *c, struct client *cl, unsigned nid, struct strip **ret) {
        struct domain *d = client_domain(c, cl);
        struct strip *t = NULL;
        struct segment *s;
        int r;

        for (unsigned k = 0; k < CLIENT_STRIPS; k++) {
                s = strip_segment(d, &cl->strips[k]);
                if (s && s->nid == nid) {
                        *ret = &cl->strips[k];
                        return 0;
                }
                if (!s)
                        t = t ? t : &cl->strips[k];
        }
        r = segment_open(c, d, nid, &s);
        if (r < 0)
                return r;
        if (!t) {
                t = &cl->strips[cl->strip_turn++ % CLIENT_STRIPS];
                strip_abandon(c, d, t);
        }
        t->segment = s->id;
        t->next = s->base + s->next_slot;
        s->next_slot = MIN(s->next_slot + STRIP_SLOTS, s->n_slots);
        t->end = s->base + s->next_slot;
        *ret = t;
        return 0;
}

int slot_take(struct core *c, struct client *cl, unsigned nid, uint32_t n, uint32_t *ret_first, uint32_t *ret_n) {
        struct domain *d = client_domain(c, cl);
        struct segment *s;
        struct strip *t;
        int r;

        r = strip_find(c, cl, nid, &t);
        if (r < 0)
                return r;
        s = segment_of(d, t->next);
        *ret_first = t->next;
        *ret_n = MIN(n, t->end - t->next);
        for (uint32_t i = 0; i < *ret_n; i++) {
                struct slot *slot = slot_at(d, t->next);

                *slot = (struct slot){ .next = t->next, .state = SLOT_WRITING };
                t->next++;
        }
        s->n_writing += *ret_n;
        d->given_slots += *ret_n;
        return 0;
}

void slot_fail(struct core *c, struct domain *d, uint32_t slot, bool was_written) {
        struct segment *s = segment_of(d, slot);

        slot_at(d, slot)->state = SLOT_DEAD;
        s->n_writing--;
        if (was_written) {
                s->n_dead++;
                d->dead_slots++;
                c->slots_dead++;
                c->segment_slots_written++;
        } else {
                s->n_lost++;
                d->given_slots--;
        }
        segment_check(c, s);
}

/* The lowest of the four words are 8 bits that nothing uses and 8 of the nid, which is the segment's (node.c). */
static void set_hash(struct segment *s, uint32_t slot, uint64_t hash) {
        uint16_t *words = s->hashes[slot - s->base];

        assert(content_nid(hash) == s->nid);
        for (unsigned i = 0; i < SLOT_HASH_WORDS; i++)
                words[i] = (uint16_t) (hash >> (48 - 16 * i));
}

uint64_t slot_hash(const struct domain *d, uint32_t slot) {
        const struct segment *s = segment_of(d, slot);
        const uint16_t *words = s->hashes[slot - s->base];
        uint64_t hash = 0;

        for (unsigned i = 0; i < SLOT_HASH_WORDS; i++)
                hash |= (uint64_t) words[i] << (48 - 16 * i);
        return content_with_nid(hash, s->nid);
}

void slot_live(struct core *c, struct domain *d, uint32_t slot, uint64_t hash) {
        struct segment *s = segment_of(d, slot);

        *slot_at(d, slot) = (struct slot){ .next = slot, .pending = 1, .state = SLOT_LIVE };
        *slot_prev(d, slot) = slot;
        set_hash(s, slot, hash);
        s->n_writing--;
        s->n_live++;
        c->segment_slots_written++;
        segment_check(c, s);
}

void slot_revive(struct core *c, struct domain *d, uint32_t slot, uint64_t hash) {
        struct segment *s = segment_of(d, slot);

        s->n_lost--;
        s->n_writing++;
        d->given_slots++;
        slot_live(c, d, slot, hash);
}

/* -- dups of a chain: a ring, one of them in the index ---------------------------------------------------------------- */

void slot_join(struct core *c, struct domain *d, uint32_t slot, uint32_t chain) {
        struct slot *s = slot_at(d, slot), *in = slot_at(d, chain);
        bool was_alone = in->next == chain;

        s->next = in->next;
        *slot_prev(d, slot) = chain;
        *slot_prev(d, in->next) = slot;
        in->next = slot;
        c->chains += was_alone;
        c->dups += was_alone ? 2 : 1;
        (void) index_replace(&d->index, slot_hash(d, chain), SLOT_ID | chain, SLOT_ID | slot);
}

static void ring_leave(struct core *c, struct domain *d, uint32_t slot) {
        struct slot *s = slot_at(d, slot);
        uint32_t before = *slot_prev(d, slot);

        if (s->next == slot) {
                (void) index_remove(&d->index, slot_hash(d, slot), SLOT_ID | slot);
                return;
        }
        prune_mark(c, segment_of(d, before));
        prune_mark(c, segment_of(d, s->next));
        slot_at(d, before)->next = s->next;
        *slot_prev(d, s->next) = before;
        c->chains -= s->next == before;
        c->dups -= s->next == before ? 2 : 1;
        (void) index_replace(&d->index, slot_hash(d, slot), SLOT_ID | slot, SLOT_ID | s->next);
        s->next = slot;
}

static void die_if_unused(struct core *c, struct domain *d, uint32_t slot) {
        struct segment *segment = segment_of(d, slot);
        struct slot *s = slot_at(d, slot);

        if (s->sharers > 0 || s->pending > 0)
                return;
        trace_slot_dead(d, slot);
        ring_leave(c, d, slot);
        slot_placed(c, d, slot, false);
        s->state = SLOT_DEAD;
        segment->n_live--;
        segment->n_dead++;
        d->dead_slots++;
        c->slots_dead++;
        segment_check(c, segment);
}

void slot_pend(struct domain *d, uint32_t slot) {
        struct slot *s = slot_at(d, slot);

        assert(s->state == SLOT_LIVE && s->pending < SLOT_PENDING_MAX);
        s->pending++;
}

void slot_unpend(struct core *c, struct domain *d, uint32_t slot) {
        assert(slot_at(d, slot)->pending > 0);
        slot_at(d, slot)->pending--;
        prune_changed(c, d, slot); /* it has room */
        die_if_unused(c, d, slot);
}

static void count_sharers(struct core *c, struct segment *segment, struct slot *s, int change) {
        c->slots_shared -= s->sharers > 0;
        domain_at(c, segment->domain)->slots_shared -= s->sharers > 0;
        segment->n_lonely -= s->sharers == 1;
        s->sharers = (s->sharers + (uint32_t) change) & SLOT_SHARERS_MAX;
        c->slots_shared += s->sharers > 0;
        domain_at(c, segment->domain)->slots_shared += s->sharers > 0;
        segment->n_lonely += s->sharers == 1;
        segment->n_sharers += (uint32_t) change;
        c->slots_sharers += (uint64_t) (int64_t) change;
}

void slot_share(struct core *c, struct domain *d, uint32_t slot) {
        struct slot *s = slot_at(d, slot);

        assert(s->state == SLOT_LIVE && s->pending > 0);
        s->pending--;
        count_sharers(c, segment_of(d, slot), s, 1);
        prune_changed(c, d, slot);
}

void slot_unshare(struct core *c, struct domain *d, uint32_t slot) {
        struct slot *s = slot_at(d, slot);

        assert(s->state == SLOT_LIVE && s->sharers > 0);
        count_sharers(c, segment_of(d, slot), s, -1);
        prune_changed(c, d, slot);
        die_if_unused(c, d, slot);
}
