#include "tests/sim/world.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"

enum sim_kind { SIM_SCAN, SIM_READ, SIM_PUBLISH, SIM_APPLY };
struct sim_op {
        enum sim_kind kind;
        uint32_t client;
        union {
                struct core_scan scan;
                struct core_read read;
                struct core_publish publish;
                struct core_apply apply;
        };
};

#define MUST(condition)                                                                                             \
        do {                                                                                                        \
                if (!(condition)) {                                                                                 \
                        fprintf(stderr, "seed %" PRIu64 ", %s:%d: %s\n", w->seed, __FILE__, __LINE__, #condition);  \
                        abort();                                                                                    \
                }                                                                                                   \
        } while (0)

static uint64_t mix(uint64_t x) {
        x += UINT64_C(0x9e3779b97f4a7c15);
        x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
        x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
        return x ^ x >> 31;
}

uint64_t world_random(struct world *w, uint64_t below) {
        w->random += UINT64_C(0x9e3779b97f4a7c15);
        return mix(w->random) % below;
}

static void *grown(void *p, uint32_t n, size_t item) {
        p = realloc(p, (size_t) n * item);
        if (!p)
                abort();
        return p;
}

struct world *world_new(uint64_t seed, const struct core_allocator *allocator) {
        struct world *w = calloc(1, sizeof(*w));

        if (!w)
                abort();
        w->seed = w->random = seed;
        w->now_usec = 1000000;
        w->window = 4;
        w->max_map_count = 65530;
        if (core_new(allocator, seed, &w->core) < 0) {
                free(w);
                return NULL;
        }
        return w;
}

void world_free(struct world *w) {
        w->core = core_free(w->core);
        for (uint32_t i = 0; i < w->n_processes; i++)
                free(w->processes[i].pages);
        for (uint32_t i = 0; i < w->n_segments; i++) {
                free(w->segments[i].content);
                free(w->segments[i].is_written);
                free(w->segments[i].nodes);
        }
        free(w->processes);
        free(w->segments);
        free(w->ops);
        free(w);
}

uint32_t world_domain(struct world *w, const char *key) {
        struct sim_domain *d = &w->domains[w->n_domains];

        MUST(w->n_domains < SIM_DOMAINS && strlen(key) < sizeof(d->key));
        if (core_domain(w->core, key, strlen(key), &d->id) < 0)
                return 0;
        strcpy(d->key, key);
        w->n_domains++;
        return d->id;
}

uint32_t world_process(struct world *w, uint32_t domain, uint64_t base, uint64_t n_pages) {
        struct core_client_config config = { .max_map_count = w->max_map_count, .n_vmas = 50 };
        struct sim_process p = { .domain = domain, .base = base, .n_pages = n_pages };

        if (core_client_add(w->core, domain, &config, &p.client) < 0)
                return UINT32_MAX;
        if (core_range_add(w->core, p.client, base, n_pages) < 0) {
                core_client_gone(w->core, p.client);
                return UINT32_MAX;
        }
        p.pages = calloc(n_pages, sizeof(*p.pages));
        p.is_alive = true;
        w->processes = grown(w->processes, w->n_processes + 1, sizeof(p));
        w->processes[w->n_processes] = p;
        return w->n_processes++;
}

void world_exit(struct world *w, uint32_t process) {
        w->processes[process].is_alive = false;
        core_client_gone(w->core, w->processes[process].client);
}

void world_write(struct world *w, uint32_t process, uint64_t i, uint32_t content) {
        struct sim_page *p = &w->processes[process].pages[i];

        if (p->kind != KIND_ANON)
                p->node = w->processes[process].home;
        p->kind = KIND_ANON;
        p->content = content;
        p->is_written = true;
}

static void register_again(struct world *w, const struct sim_process *p, uint64_t i, uint64_t n) {
        while (core_range_remove(w->core, p->client, p->base + i, n) == -EAGAIN)
                (void) core_tick(w->core, w->now_usec);
        for (uint64_t k = i; k < i + n; k++)
                p->pages[k].is_left_out = false;
        if (!w->leaves_gaps || world_random(w, 2))
                (void) core_range_add(w->core, p->client, p->base + i, n);
        else
                for (uint64_t k = i; k < i + n; k++)
                        p->pages[k].is_left_out = true;
}

int world_register_all(struct world *w, struct sim_process *p) {
        for (uint64_t k = 0; k < p->n_pages; k++)
                p->pages[k].is_left_out = false;
        return core_range_add(w->core, p->client, p->base, p->n_pages);
}

void world_drop(struct world *w, uint32_t process, uint64_t i, uint64_t n) {
        struct sim_process *p = &w->processes[process];

        memset(&p->pages[i], 0, n * sizeof(*p->pages));
        register_again(w, p, i, n);
}

static enum core_apply_status restore_page(const struct sim_process *p, struct sim_page *q) {
        if (!q->in_file)
                return CORE_VMA_GONE;
        if (q->is_pinned && q->kind == KIND_ANON)
                return CORE_PINNED_OR_FORKED;
        if (q->kind == KIND_FILE)
                q->node = p->home;
        q->kind = q->kind == KIND_ZERO ? KIND_HOLE : KIND_ANON; /* the copy of a discarded page is left untouched */
        q->in_file = false;
        q->is_written = q->kind == KIND_ANON;
        return CORE_OK;
}

void world_register_anew(struct world *w, uint32_t process, uint64_t i, uint64_t n) {
        struct sim_process *p = &w->processes[process];

        for (uint64_t k = i; k < i + n; k++)
                p->is_inexact |= restore_page(p, &p->pages[k]) == CORE_PINNED_OR_FORKED;
        register_again(w, p, i, n);
}

void world_discard(struct world *w, uint32_t process, uint64_t i, uint64_t n) {
        for (struct sim_page *q = &w->processes[process].pages[i]; n-- > 0; q++) {
                q->kind = q->in_file ? KIND_ZERO : KIND_HOLE;
                q->content = 0;
                q->is_written = q->in_file; /* made by the agent */
        }
}

static struct sim_segment *segment_of(const struct world *w, uint32_t id) {
        for (uint32_t i = w->n_segments; i-- > 0;)
                if (w->segments[i].id == id)
                        return &w->segments[i];
        return NULL;
}

unsigned world_node(const struct world *w, const struct sim_page *q) {
        const struct sim_segment *s = q->kind == KIND_FILE ? segment_of(w, q->segment) : NULL;

        return s ? s->nodes[q->slot] : q->node;
}

void world_migrate(struct world *w, uint32_t process, uint64_t i, uint64_t n, unsigned node) {
        for (struct sim_page *q = &w->processes[process].pages[i]; n-- > 0; q++) {
                const struct sim_segment *s = q->kind == KIND_FILE ? segment_of(w, q->segment) : NULL;

                if (s)
                        s->nodes[q->slot] = (uint8_t) node;
                else
                        q->node = (uint8_t) node;
        }
        w->has_migrated = true;
}

static void tell(struct world *w) {
        if (w->has_migrated)
                core_pages_migrated(w->core);
        w->has_migrated = false;
}

/* What the core is told of a node that it has not asked for must not matter. */
static int32_t told_node(struct world *w, const struct sim_page *q, bool is_wanted) {
        if (!w->n_nodes)
                return 0;
        if (is_wanted && w->hides_nodes)
                return -1;
        return is_wanted ? (int32_t) world_node(w, q) : (int32_t) world_random(w, 5) - 1;
}

static struct sim_process *process_of(struct world *w, uint32_t client) {
        for (uint32_t i = 0; i < w->n_processes; i++)
                if (w->processes[i].client == client)
                        return &w->processes[i];
        MUST(!"a client that there is");
        return NULL;
}

uint64_t world_hash(const struct world *w, uint32_t content) {
        if (w->same_keys)
                return mix(0) << 32 | (uint64_t) content << 18; /* above the bits of a nid */
        return mix(w->collision_bits ? content & ((1U << w->collision_bits) - 1) : content);
}

/* -- the kernel's and the agents' part -------------------------------------------------------------------------------- */

/* The gap that the page lies in: what is there must stay as it is. NULL: none. */
static const struct core_scan_gap *gap_of(const struct world *w, const struct core_scan *s, uint64_t page) {
        for (uint32_t i = 0; i < s->n_gaps; i++) {
                MUST(s->gaps[i].n_pages > 0 && s->gaps[i].page > s->page && s->gaps[i].page + s->gaps[i].n_pages < s->page + s->n_pages);
                MUST(i == 0 || s->gaps[i].page > s->gaps[i - 1].page + s->gaps[i - 1].n_pages);
                if (page >= s->gaps[i].page && page < s->gaps[i].page + s->gaps[i].n_pages)
                        return &s->gaps[i];
        }
        return NULL;
}

/* The transition under way has moved it out, so that nothing is there. */
static bool is_away(const struct world *w, uint32_t client, uint64_t page) {
        const struct core_apply *a = w->under_way;

        for (uint32_t k = 0; a && a->client == client && k < a->n_extents; k++)
                if (page >= a->extents[k].page && page < a->extents[k].page + a->extents[k].n_pages)
                        return true;
        return false;
}

static void answer_scan(struct world *w, const struct core_scan *s) {
        struct sim_process *p = process_of(w, s->client);
        struct core_run *runs;
        uint64_t page, end = s->page + s->n_pages, stop;
        size_t n = 0;

        w->n_scans++;
        if (!p->is_alive) {
                core_scan_done(w->core, s->op, w->now_usec, NULL, 0, s->page, -ESRCH);
                return;
        }
        MUST(s->page >= p->base && end <= p->base + p->n_pages);
        if (w->fail_permille && world_random(w, 4000) < w->fail_permille) {
                if (s->rewrite_protect) /* the kernel may have protected already */
                        for (uint64_t k = s->page; k < end; k++)
                                if (!gap_of(w, s, k))
                                        p->pages[k - p->base].is_written = false;
                core_scan_done(w->core, s->op, w->now_usec, NULL, 0, s->page, -EFAULT);
                return;
        }
        runs = calloc(s->max_runs, sizeof(*runs));
        MUST(runs);
        stop = end;
        MUST(!s->wants_nodes || (!s->rewrite_protect && core_wants_nodes(w->core)));
        for (page = s->page; page < end; page++) {
                const struct core_scan_gap *gap = gap_of(w, s, page);
                struct sim_page *q = &p->pages[page - p->base];
                uint32_t cat = (q->is_written ? CORE_WRITTEN : 0U) | (q->kind == KIND_FILE ? CORE_FILE : 0U) |
                               (q->kind == KIND_ZERO ? CORE_ZERO : 0U);
                int32_t node = s->wants_nodes ? told_node(w, q, true) : -1;

                if (gap) {
                        page += gap->n_pages - 1;
                        continue;
                }
                if (q->kind == KIND_HOLE || (s->rewrite_protect && !q->is_written) || is_away(w, s->client, page))
                        continue;
                if (n > 0 && runs[n - 1].page + runs[n - 1].n_pages == page && runs[n - 1].categories == cat && runs[n - 1].node == node) {
                        runs[n - 1].n_pages++;
                } else if (n == s->max_runs) {
                        stop = page;
                        break;
                } else {
                        runs[n++] = (struct core_run){ .page = page, .n_pages = 1, .categories = cat, .node = node };
                }
                if (s->rewrite_protect)
                        q->is_written = false;
                w->n_scanned_pages++;
                w->n_placed_pages += s->wants_nodes;
        }
        core_scan_done(w->core, s->op, w->now_usec, runs, n, stop, 0);
        free(runs);
}

static bool fails(struct world *w) {
        return w->fail_permille && world_random(w, 1000) < w->fail_permille;
}

static struct core_read_result look_at(struct world *w, struct sim_process *p, uint64_t page, bool wants_nodes) {
        struct core_read_result r = { .status = CORE_READ_FAILED };
        const struct sim_page *q = &p->pages[page - p->base];

        if (!p->is_alive || q->kind == KIND_HOLE || fails(w))
                return r;
        r.hash = world_hash(w, q->content);
        r.node = told_node(w, q, wants_nodes);
        r.status = q->content ? CORE_READ_OK : CORE_READ_ALL_ZERO;
        return r;
}

static void meanwhile(struct world *w, unsigned of) {
        void (*f)(struct world *) = w->meanwhile;

        if (!f || w->meanwhile_of != of)
                return;
        w->meanwhile = NULL;
        f(w);
}

static void answer_read(struct world *w, const struct core_read *r) {
        struct core_read_result results[CORE_READ_PAGES];
        struct sim_process *p = process_of(w, r->client);

        w->n_reads++;
        for (uint32_t k = 0; k < r->n_pages; k++) {
                MUST(k == 0 || r->pages[k] > r->pages[k - 1]);
                MUST(r->pages[k] >= p->base && r->pages[k] < p->base + p->n_pages);
                results[k] = look_at(w, p, r->pages[k], r->wants_nodes);
        }
        meanwhile(w, MEANWHILE_READ);
        core_read_done(w->core, r->op, w->now_usec, results);
}

/* Where the kernel puts the slot: as it is bound, if there is memory. */
static uint32_t slot_node(struct world *w, int32_t wanted) {
        if (w->is_full)
                return ((uint32_t) wanted + 1) % w->n_nodes;
        return wanted < 0 || fails(w) ? (uint32_t) world_random(w, w->n_nodes) : (uint32_t) wanted;
}

static void answer_publish(struct world *w, const struct core_publish *u) {
        struct core_read_result results[CORE_PUBLISH_PAGES];
        struct sim_process *p = process_of(w, u->client);
        struct sim_segment *s = segment_of(w, u->segment);

        MUST(u->n_pages >= 1 && u->n_pages <= CORE_PUBLISH_PAGES);
        if (fails(w)) {
                core_publish_done(w->core, u->op, w->now_usec, NULL, -ENOMEM);
                return;
        }
        if (!s) {
                w->segments = grown(w->segments, w->n_segments + 1, sizeof(*s));
                s = &w->segments[w->n_segments++];
                *s = (struct sim_segment){ .id = u->segment, .domain = u->domain, .n_slots = u->segment_slots, .node = u->node, .is_open = true };
                s->content = calloc(s->n_slots, sizeof(*s->content));
                s->is_written = calloc(s->n_slots, sizeof(*s->is_written));
                s->nodes = calloc(s->n_slots, sizeof(*s->nodes));
                MUST(s->content && s->is_written && s->nodes);
        }
        MUST(s->is_open && !s->is_sealed && s->domain == u->domain && p->domain == u->domain && s->node == u->node);
        for (uint32_t k = 0; k < u->n_pages; k++) {
                MUST(u->slots[k] < s->n_slots && !s->is_written[u->slots[k]]);
                MUST(k == 0 || u->slots[k] > u->slots[k - 1]);
                results[k] = look_at(w, p, u->pages[k], false);
                if (w->spoils || (results[k].status == CORE_READ_FAILED && k % 2)) {
                        results[k].status = CORE_READ_SPOILED;
                        s->is_written[u->slots[k]] = true; /* with zeros */
                        w->n_spoiled++;
                        continue;
                }
                if (results[k].status == CORE_READ_FAILED)
                        continue;
                results[k].status = CORE_READ_OK;
                s->content[u->slots[k]] = p->pages[u->pages[k] - p->base].content;
                s->is_written[u->slots[k]] = true;
                if (w->n_nodes)
                        s->nodes[u->slots[k]] = (uint8_t) slot_node(w, u->node);
                results[k].node = s->nodes[u->slots[k]];
        }
        meanwhile(w, MEANWHILE_PUBLISHED);
        s = segment_of(w, u->segment);
        MUST(s && s->is_open && !s->is_sealed);
        core_publish_done(w->core, u->op, w->now_usec, results, 0);
}

static enum core_apply_status merge_page(struct world *w, struct sim_process *p, uint64_t page, uint32_t segment,
                                         uint32_t slot) {
        struct sim_segment *s = segment_of(w, segment);
        struct sim_page *q = &p->pages[page - p->base];

        MUST(s && s->domain == p->domain && slot < s->n_slots && s->is_written[slot]);
        if (!s->is_open || (!q->in_file && q->kind != KIND_ANON))
                return CORE_VMA_GONE;
        if (p->has_no_witness && q->in_file && q->kind == KIND_ANON)
                return CORE_LATER;
        if (q->is_pinned && q->kind == KIND_ANON)
                return CORE_PINNED_OR_FORKED;
        if (!q->in_file)
                q->is_written = true; /* moved out and back */
        if (q->content != s->content[slot])
                return CORE_CHANGED;
        if (p->vmas_max && world_vmas(w, (uint32_t) (p - w->processes)) + 2 > p->vmas_max)
                return CORE_BUDGET;
        w->n_relocated += q->in_file;
        *q = (struct sim_page){ .content = q->content, .segment = segment, .slot = slot, .kind = KIND_FILE, .in_file = true };
        return CORE_OK;
}

static enum core_apply_status apply_page(struct world *w, struct sim_process *p, const struct core_apply *a,
                                         const struct core_extent *e, uint64_t page) {
        struct sim_page *q = &p->pages[page - p->base];

        if (p->is_stuck)
                return CORE_BUSY;
        if (q->is_left_out && a->kind != CORE_APPLY_RESTORE)
                return CORE_VMA_GONE;
        if (fails(w)) {
                enum core_apply_status s = CORE_CHANGED + world_random(w, 6) % 6;

                return s == CORE_VMA_GONE && q->in_file ? CORE_ERROR : s; /* no agent says this of a mapping that is there */
        }
        if (a->kind == CORE_APPLY_MERGE)
                return merge_page(w, p, page, e->segment, e->slot + (uint32_t) (page - e->page));
        if (a->kind == CORE_APPLY_RESTORE)
                return p->has_no_witness && q->in_file && q->kind == KIND_ANON ? CORE_LATER : restore_page(p, q);
        if (q->kind != KIND_ANON && !q->in_file)
                return CORE_VMA_GONE;
        if (p->has_no_witness && q->in_file && q->kind == KIND_ANON)
                return CORE_LATER;
        q->is_written |= !q->in_file;
        if (q->is_pinned && q->kind == KIND_ANON)
                return CORE_PINNED_OR_FORKED;
        if (q->content)
                return CORE_CHANGED;
        *q = (struct sim_page){ .kind = KIND_HOLE };
        return CORE_OK;
}

static void answer_apply(struct world *w, const struct core_apply *a) {
        struct sim_process *p = process_of(w, a->client);
        uint8_t status[64] = {};
        uint64_t block = a->extents[0].page >> BLOCK_SHIFT, last = 0;
        const struct core_apply *outer = w->under_way;

        w->n_applies++;
        MUST(a->n_extents >= 1 && a->n_extents <= 64);
        MUST(!outer || outer->client != a->client || outer->extents[0].page >> BLOCK_SHIFT != block);
        if (!p->is_alive || (w->fail_permille && world_random(w, 3000) < w->fail_permille)) {
                MUST(core_apply_done(w->core, a->op, w->now_usec, NULL, -ECONNRESET) == 0);
                return;
        }
        for (uint32_t k = 0; k < a->n_extents; k++) {
                const struct core_extent *e = &a->extents[k];

                MUST(e->n_pages >= 1 && e->page >= last);
                last = e->page + e->n_pages;
                MUST(e->page >> BLOCK_SHIFT == block && (last - 1) >> BLOCK_SHIFT == block);
                for (uint64_t page = e->page; page < last; page++)
                        status[page & 63] = (uint8_t) apply_page(w, p, a, e, page);
        }
        w->under_way = a;
        meanwhile(w, MEANWHILE_APPLIED);
        w->under_way = outer;
        while (core_apply_done(w->core, a->op, w->now_usec, status, 0) == -EAGAIN)
                (void) core_tick(w->core, w->now_usec);
}

/* -- the shell's part --------------------------------------------------------------------------------------------------- */

static void answer(struct world *w, uint32_t i) {
        struct sim_op op = w->ops[i];

        w->ops[i] = w->ops[--w->n_ops];
        switch (op.kind) {
        case SIM_SCAN:
                answer_scan(w, &op.scan);
                break;
        case SIM_READ:
                answer_read(w, &op.read);
                break;
        case SIM_PUBLISH:
                answer_publish(w, &op.publish);
                break;
        case SIM_APPLY:
                answer_apply(w, &op.apply);
                break;
        }
}

static void take_events(struct world *w) {
        struct core_segment_event e;
        struct core_event done;

        while (core_next_segment_event(w->core, &e)) {
                struct sim_segment *s = segment_of(w, e.segment);

                if (e.kind == CORE_SEGMENT_SEAL) {
                        w->n_sealed++;
                        if (s)
                                s->is_sealed = true;
                }
                if (e.kind != CORE_SEGMENT_DROP)
                        continue;
                w->n_dropped++;
                if (s)
                        s->is_open = false;
        }
        while (core_next_event(w->core, &done)) {
                w->n_events++;
                w->last_event = done;
        }
}

static bool pull(struct world *w, enum sim_kind kind, uint64_t *ret_next) {
        struct sim_op op = { .kind = kind };
        bool got = false;

        *ret_next = UINT64_MAX;
        if (kind == SIM_SCAN)
                got = core_next_scan(w->core, w->now_usec, &op.scan, ret_next);
        else if (kind == SIM_READ)
                got = core_next_read(w->core, w->now_usec, &op.read, ret_next);
        else if (kind == SIM_PUBLISH)
                got = core_next_publish(w->core, w->now_usec, &op.publish);
        else
                got = core_next_apply(w->core, w->now_usec, w->window, &op.apply, ret_next);
        if (!got)
                return false;
        /* A reader can hang on a client's memory: one of a domain is enough. */
        for (uint32_t i = 0; i < w->n_ops; i++) {
                MUST(kind != SIM_READ || w->ops[i].kind != SIM_READ || w->ops[i].read.domain != op.read.domain);
                MUST(kind != SIM_APPLY || w->ops[i].kind != SIM_APPLY || w->ops[i].apply.client != op.apply.client ||
                     w->ops[i].apply.extents[0].page >> BLOCK_SHIFT != op.apply.extents[0].page >> BLOCK_SHIFT);
                MUST(kind != SIM_SCAN || w->ops[i].kind != SIM_SCAN || w->ops[i].scan.client != op.scan.client);
        }
        if (w->n_ops == w->ops_capacity) {
                w->ops_capacity = w->ops_capacity * 2 + 8;
                w->ops = grown(w->ops, w->ops_capacity, sizeof(*w->ops));
        }
        w->ops[w->n_ops++] = op;
        return true;
}

static uint64_t pump(struct world *w) {
        uint64_t next = 0;
        unsigned n = 0;

        for (bool again = true; again; n++) {
                uint64_t at;

                again = false;
                tell(w);
                MUST(n < 1000000); /* work without end at one time */
                next = core_tick(w->core, w->now_usec);
                again |= next <= w->now_usec;
                for (int k = SIM_SCAN; k <= SIM_APPLY; k++) {
                        while (pull(w, (enum sim_kind) k, &at)) {
                                answer(w, w->n_ops - 1);
                                again = true;
                        }
                        next = MIN(next, at);
                }
                while (w->n_ops)
                        answer(w, 0);
                take_events(w);
        }
        return next;
}

void world_pump(struct world *w) {
        (void) pump(w);
}

void world_run(struct world *w, uint64_t usec) {
        uint64_t end = w->now_usec + usec;

        while (w->now_usec < end) {
                uint64_t next = pump(w);

                w->now_usec = MAX(next, w->now_usec + 1);
                w->now_usec = MIN(w->now_usec, end);
        }
        (void) pump(w);
}

void world_scan(struct world *w) {
        struct core_scan s;
        uint64_t at;

        w->now_usec += 1000000;
        while (core_next_scan(w->core, w->now_usec, &s, &at))
                answer_scan(w, &s);
}

void world_step(struct world *w) {
        uint64_t at;

        if (w->n_ops && world_random(w, 2))
                answer(w, (uint32_t) world_random(w, w->n_ops));
        else
                (void) pull(w, (enum sim_kind) world_random(w, 4), &at);
        if (world_random(w, 4) == 0)
                (void) core_tick(w->core, w->now_usec);
        if (world_random(w, 8) == 0)
                take_events(w);
        if (w->has_migrated && world_random(w, 32) == 0)
                tell(w);
}

struct counters world_counters(const struct world *w) {
        struct counters n;

        core_counters(w->core, &n);
        return n;
}

uint64_t world_vmas(const struct world *w, uint32_t process) {
        const struct sim_process *p = &w->processes[process];
        uint64_t edges = 0;

        for (uint64_t i = 0; i <= p->n_pages; i++) {
                const struct sim_page *l = i > 0 ? &p->pages[i - 1] : NULL, *r = i < p->n_pages ? &p->pages[i] : NULL;
                bool lf = l && l->in_file, rf = r && r->in_file;

                edges += lf != rf || (lf && (l->segment != r->segment || l->slot + 1 != r->slot));
        }
        return edges;
}

uint32_t world_unsealed(const struct world *w) {
        uint32_t n = 0;

        for (uint32_t i = 0; i < w->n_segments; i++)
                n += w->segments[i].is_open && !w->segments[i].is_sealed;
        return n;
}

uint64_t world_merged(const struct world *w, uint32_t process) {
        const struct sim_process *p = &w->processes[process];
        uint64_t n = 0;

        for (uint64_t i = 0; i < p->n_pages; i++)
                n += p->pages[i].kind == KIND_FILE;
        return n;
}

static bool is_mapped(const struct world *w, uint32_t segment) {
        for (uint32_t i = 0; i < w->n_processes; i++)
                for (uint64_t k = 0; w->processes[i].is_alive && k < w->processes[i].n_pages; k++)
                        if (w->processes[i].pages[k].in_file && w->processes[i].pages[k].segment == segment)
                                return true;
        return false;
}

uint64_t world_store_pages(const struct world *w) {
        uint64_t n = 0;

        for (uint32_t i = 0; i < w->n_segments; i++) {
                const struct sim_segment *s = &w->segments[i];

                if (!s->is_open && !is_mapped(w, s->id))
                        continue;
                for (uint32_t k = 0; k < s->n_slots; k++)
                        n += s->is_written[k];
        }
        return n;
}
