/* Whose turn it is: for each kind of work a ring of domains, and in each domain a ring of its clients that have such
 * work. A client keeps its turn for TURN_PAGES pages, then both rings move on: so a domain's share does not grow with
 * the number of its clients, nor a client's with its size. */
#include "daemon/core/internal.h"

#include <errno.h>

#define TURN_PAGES 4096

void turn_add_domain(struct core *c, struct domain *d, enum turn_kind kind) {
        struct turn_list *l = &c->turns[kind];
        uint32_t index = id_index(d->id);

        if (d->in_turn & 1 << kind || d->turns[kind].head == NIL || (kind == TURN_READ && d->is_reading))
                return;
        d->in_turn |= (uint8_t) (1 << kind);
        d->turn_next[kind] = NIL;
        if (l->head == NIL)
                l->head = index;
        else
                domain_at(c, l->tail)->turn_next[kind] = index;
        l->tail = index;
}

static void domain_pop(struct core *c, enum turn_kind kind) {
        struct turn_list *l = &c->turns[kind];
        struct domain *d = domain_at(c, l->head);

        d->in_turn &= (uint8_t) ~(1 << kind);
        l->head = d->turn_next[kind];
        if (l->head == NIL)
                l->tail = NIL;
}

static void client_push(struct core *c, struct domain *d, struct client *cl, enum turn_kind kind) {
        struct turn_list *l = &d->turns[kind];
        uint32_t index = id_index(cl->id);

        cl->in_turn |= (uint8_t) (1 << kind);
        cl->turn_next[kind] = NIL;
        cl->credit[kind] = TURN_PAGES;
        if (l->head == NIL)
                l->head = index;
        else
                client_at(c, l->tail)->turn_next[kind] = index;
        l->tail = index;
}

static void client_pop(struct core *c, struct domain *d, enum turn_kind kind) {
        struct turn_list *l = &d->turns[kind];
        struct client *cl = client_at(c, l->head);

        cl->in_turn &= (uint8_t) ~(1 << kind);
        l->head = cl->turn_next[kind];
        if (l->head == NIL)
                l->tail = NIL;
}

void turn_add(struct core *c, struct client *cl, enum turn_kind kind) {
        struct domain *d = client_domain(c, cl);

        if (cl->is_gone || cl->is_parked)
                return;
        if (!(cl->in_turn & 1 << kind))
                client_push(c, d, cl, kind);
        turn_add_domain(c, d, kind);
}

struct client *turn_head(struct core *c, enum turn_kind kind) {
        while (c->turns[kind].head != NIL) {
                struct domain *d = domain_at(c, c->turns[kind].head);

                if (d->turns[kind].head != NIL && !(kind == TURN_READ && d->is_reading))
                        return client_at(c, d->turns[kind].head);
                domain_pop(c, kind);
        }
        return NULL;
}

void turn_drop(struct core *c, enum turn_kind kind) {
        client_pop(c, domain_at(c, c->turns[kind].head), kind);
}

void turn_spend(struct core *c, enum turn_kind kind, uint32_t pages) {
        struct domain *d = domain_at(c, c->turns[kind].head);
        struct client *cl = client_at(c, d->turns[kind].head);

        cl->credit[kind] -= (int32_t) pages;
        if (cl->credit[kind] > 0)
                return;
        client_pop(c, d, kind);
        client_push(c, d, cl, kind);
        domain_pop(c, kind);
        turn_add_domain(c, d, kind);
}

/* At exit only, linear in the domain's clients that have work. */
void turn_remove(struct core *c, struct client *cl) {
        struct domain *d = client_domain(c, cl);
        uint32_t index = id_index(cl->id);

        for (int k = 0; k < TURN_KINDS; k++) {
                struct turn_list *l = &d->turns[k];
                uint32_t before = NIL;

                if (!(cl->in_turn & 1 << k))
                        continue;
                for (uint32_t i = l->head; i != index; i = client_at(c, i)->turn_next[k])
                        before = i;
                if (before == NIL)
                        l->head = cl->turn_next[k];
                else
                        client_at(c, before)->turn_next[k] = cl->turn_next[k];
                if (l->tail == index)
                        l->tail = before;
        }
        cl->in_turn = 0;
        /* A domain left without clients in its list leaves the core's when its turn comes; it must not be freed before. */
        for (int k = 0; k < TURN_KINDS; k++) {
                uint32_t before = NIL, i = c->turns[k].head;

                if (d->turns[k].head != NIL || !(d->in_turn & 1 << k))
                        continue;
                for (; i != cl->domain; i = domain_at(c, i)->turn_next[k])
                        before = i;
                if (before == NIL)
                        c->turns[k].head = d->turn_next[k];
                else
                        domain_at(c, before)->turn_next[k] = d->turn_next[k];
                if (c->turns[k].tail == i)
                        c->turns[k].tail = before;
                d->in_turn &= (uint8_t) ~(1 << k);
        }
}

/* -- timers: a heap per kind; ties by client so that the order is the same everywhere ---------------------------- */

static bool is_before(struct timer a, struct timer b) {
        return a.at_usec != b.at_usec ? a.at_usec < b.at_usec : a.client < b.client;
}

static void place(struct core *c, enum timer_kind kind, uint32_t pos, struct timer t) {
        c->timers[kind].items[pos] = t;
        client_at(c, t.client)->timer_pos[kind] = pos;
}

static void sift(struct core *c, enum timer_kind kind, uint32_t pos, struct timer t) {
        struct timer_heap *h = &c->timers[kind];

        while (pos > 0 && is_before(t, h->items[(pos - 1) / 2])) {
                place(c, kind, pos, h->items[(pos - 1) / 2]);
                pos = (pos - 1) / 2;
        }
        for (;;) {
                uint32_t child = 2 * pos + 1;

                if (child + 1 < h->n && is_before(h->items[child + 1], h->items[child]))
                        child++;
                if (child >= h->n || !is_before(h->items[child], t))
                        break;
                place(c, kind, pos, h->items[child]);
                pos = child;
        }
        place(c, kind, pos, t);
}

/* Room for every client, so that setting a timer cannot fail. */
int timer_reserve(struct core *c, uint32_t n_clients) {
        for (int k = 0; k < TIMER_KINDS; k++) {
                struct timer_heap *h = &c->timers[k];
                int r = memory_grow(&c->memory, (void **) &h->items, &h->capacity, n_clients, sizeof(*h->items));

                if (r < 0)
                        return r;
        }
        return 0;
}

void timer_set(struct core *c, struct client *cl, enum timer_kind kind, uint64_t at_usec) {
        struct timer_heap *h = &c->timers[kind];
        uint32_t pos = cl->timer_pos[kind];

        if (cl->is_gone || (pos != NIL && h->items[pos].at_usec <= at_usec))
                return;
        if (pos == NIL)
                pos = h->n++;
        sift(c, kind, pos, (struct timer){ at_usec, id_index(cl->id) });
}

void timer_clear(struct core *c, struct client *cl, enum timer_kind kind) {
        struct timer_heap *h = &c->timers[kind];
        uint32_t pos = cl->timer_pos[kind];
        struct timer last;

        if (pos == NIL)
                return;
        cl->timer_pos[kind] = NIL;
        last = h->items[--h->n];
        if (pos < h->n)
                sift(c, kind, pos, last);
}

struct client *timer_head(const struct core *c, enum timer_kind kind, uint64_t *ret_usec) {
        const struct timer_heap *h = &c->timers[kind];

        *ret_usec = h->n ? h->items[0].at_usec : UINT64_MAX;
        return h->n ? client_at(c, h->items[0].client) : NULL;
}
