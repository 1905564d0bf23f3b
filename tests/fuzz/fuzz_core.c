/* Any sequence of inputs to the core, from clients, kernel and agents that say what they like: no assertion fails, the books
 * recompute (core_check), and what the core hands out keeps its contract: living addresses of the named client, slots written
 * once, merges only into written slots of segments of the client's own domain that were not dropped (I4), of equal content when
 * everybody told the truth (I5). At the end everybody leaves, and nothing may be left.
 *
 * An input is a list of steps, one byte what and some bytes how; bytes beyond its end read as 0. The content of memory is one
 * byte a page. A truthful answer says what that model says; the others are bytes of the input within the contract of
 * core.h (a client chooses what its memory looks like, not how the kernel numbers pages).
 *
 * One input costs at most some ten milliseconds: STEPS_MAX, OPS_MAX. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "daemon/core/core.h"
#include "tests/fuzz/fuzz.h"

#define CLIENTS_MAX 4
#define SPAN_PAGES 256 /* of a client: four blocks */
#define STEPS_MAX 512
#define OPS_MAX 768 /* handed out in one input */
#define PENDING_MAX 24
#define SEGMENTS_MAX 256
#define SEGMENT_SLOTS_MAX 4096
#define CHECK_EVERY 4 /* steps; a check walks everything */
#define WORK_STEP_USEC 50000 /* retries of a few milliseconds each are one */
#define REST_USEC (100u * 1000 * 1000)

#define MUST(condition)                                                                              \
        do {                                                                                         \
                if (!(condition)) {                                                                  \
                        fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);    \
                        abort();                                                                     \
                }                                                                                    \
        } while (0)

enum kind { SCAN, READ, PUBLISH, APPLY, KINDS };
struct pending {
        enum kind kind;
        union {
                struct core_scan scan;
                struct core_read read;
                struct core_publish publish;
                struct core_apply apply;
        };
};

struct program {
        uint32_t id, domain;
        uint64_t base;
        bool is_alive;
        uint8_t content[SPAN_PAGES]; /* 0 zeros */
        bool is_there[SPAN_PAGES], is_written[SPAN_PAGES], is_file[SPAN_PAGES];
};

struct segment {
        uint32_t id, domain, n_slots;
        bool is_dropped, is_sealed;
        uint8_t *content;
        bool *is_written;
};

struct fuzz {
        const uint8_t *data;
        size_t left;
        struct core *core;
        uint64_t now_usec;
        uint64_t fail_after; /* allocations until one fails; 0 none does */
        struct program programs[CLIENTS_MAX];
        struct pending pending[PENDING_MAX];
        unsigned n_pending, n_ops;
        struct segment segments[SEGMENTS_MAX];
        unsigned n_segments;
        bool has_lied; /* a page's content may have changed under the core, or was never what it was told */
};

static uint8_t byte(struct fuzz *f) {
        if (f->left == 0)
                return 0;
        f->left--;
        return *f->data++;
}

static uint32_t word(struct fuzz *f) {
        uint32_t high = byte(f);

        return high << 8 | byte(f);
}

/* -- the machine ---------------------------------------------------------------------------------------------------- */

static void *fuzz_realloc(void *userdata, void *p, size_t size) {
        struct fuzz *f = userdata;

        if (f->fail_after > 0 && --f->fail_after == 0)
                return NULL;
        return realloc(p, size);
}

static void fuzz_free(void *userdata, void *p) {
        free(p);
}

static struct program *program_of(struct fuzz *f, uint32_t id) {
        for (unsigned i = 0; i < CLIENTS_MAX; i++)
                if (f->programs[i].id == id)
                        return &f->programs[i];
        return NULL;
}

/* NULL: an address that the model does not cover (a range of many TiB has such), or a program long gone. */
static const uint8_t *content_at(const struct program *p, uint64_t page) {
        return p && page >= p->base && page - p->base < SPAN_PAGES && p->is_there[page - p->base] ? &p->content[page - p->base] : NULL;
}

static struct segment *segment_of(struct fuzz *f, uint32_t id) {
        for (unsigned i = 0; i < f->n_segments; i++)
                if (f->segments[i].id == id)
                        return &f->segments[i];
        return NULL;
}

static struct segment *segment_new(struct fuzz *f, const struct core_publish *u) {
        struct segment *s = &f->segments[f->n_segments];

        MUST(u->segment_slots > 0 && u->segment_slots <= SEGMENT_SLOTS_MAX);
        if (f->n_segments == SEGMENTS_MAX)
                return NULL;
        f->n_segments++;
        *s = (struct segment){ .id = u->segment, .domain = u->domain, .n_slots = u->segment_slots };
        s->content = calloc(s->n_slots, 1);
        s->is_written = calloc(s->n_slots, sizeof(*s->is_written));
        MUST(s->content && s->is_written);
        return s;
}

/* Equality of hashes is all that matters; their top bits choose places in the index. */
static uint64_t hash_of(uint8_t content) {
        return (content & 7) * UINT64_C(0x2100000000000000) + (uint64_t) (content >> 3) * 0x10001000100;
}

/* -- answers -------------------------------------------------------------------------------------------------------- */

static bool is_in_gap(const struct core_scan *s, uint64_t page) {
        for (uint32_t i = 0; i < s->n_gaps; i++)
                if (page >= s->gaps[i].page && page < s->gaps[i].page + s->gaps[i].n_pages)
                        return true;
        return false;
}

static void scan_true(struct fuzz *f, const struct core_scan *s) {
        struct program *p = program_of(f, s->client);
        static struct core_run runs[SPAN_PAGES];
        uint64_t end = s->page + s->n_pages, stop = end;
        size_t n = 0;

        if (!p || !p->is_alive) {
                core_scan_done(f->core, s->op, f->now_usec, NULL, 0, s->page, -ESRCH);
                return;
        }
        for (uint64_t page = MAX(s->page, p->base); page < MIN(end, p->base + SPAN_PAGES); page++) {
                uint64_t i = page - p->base;
                uint32_t categories = (p->is_written[i] ? CORE_WRITTEN : 0U) | (p->is_file[i] ? CORE_FILE : 0U);

                if (!p->is_there[i] || is_in_gap(s, page) || (s->rewrite_protect && !p->is_written[i]))
                        continue;
                if (n > 0 && runs[n - 1].page + runs[n - 1].n_pages == page && runs[n - 1].categories == categories) {
                        runs[n - 1].n_pages++;
                } else if (n == MIN(s->max_runs, (uint32_t) ARRAY_SIZE(runs))) {
                        stop = page;
                        break;
                } else {
                        runs[n++] = (struct core_run){ .page = page, .n_pages = 1, .categories = categories };
                }
                if (s->rewrite_protect)
                        p->is_written[i] = false;
        }
        core_scan_done(f->core, s->op, f->now_usec, runs, n, stop, 0);
}

static void scan_any(struct fuzz *f, const struct core_scan *s) {
        struct core_run runs[16];
        uint64_t at = s->page, end = s->page + s->n_pages;
        size_t n = 0, wanted = MIN(byte(f) % ARRAY_SIZE(runs), s->max_runs);
        int error = byte(f) % 8 == 7 ? -EFAULT : 0;

        for (; n < wanted; n++) {
                at += byte(f);
                if (at >= end)
                        break;
                runs[n] = (struct core_run){ .page = at, .n_pages = MIN(1u + byte(f), end - at), .categories = byte(f) & 15 };
                at += runs[n].n_pages;
        }
        core_scan_done(f->core, s->op, f->now_usec, runs, n, n == wanted && wanted > 0 ? at : end, error);
}

static struct core_read_result look(struct fuzz *f, uint32_t client, uint64_t page) {
        const uint8_t *content = content_at(program_of(f, client), page);
        struct core_read_result r = { .status = CORE_READ_FAILED };

        if (content) {
                r.hash = hash_of(*content);
                r.status = *content ? CORE_READ_OK : CORE_READ_ALL_ZERO;
        }
        return r;
}

static void answer_read(struct fuzz *f, const struct core_read *r, bool is_true) {
        struct core_read_result results[CORE_READ_PAGES];
        uint8_t step = is_true ? 0 : byte(f), value = is_true ? 0 : byte(f);

        for (uint32_t k = 0; k < r->n_pages; k++, value = (uint8_t) (value + step)) {
                if (is_true)
                        results[k] = look(f, r->client, r->pages[k]);
                else
                        results[k] = (struct core_read_result){ .hash = hash_of(value), .status = value % 16 < 14 ? 0 : value % 16 - 13 };
        }
        core_read_done(f->core, r->op, f->now_usec, results);
}

/* Slots are written by the daemon: what the segment holds is known, whatever the source was said to hold. */
static void answer_publish(struct fuzz *f, const struct core_publish *u, bool is_true) {
        struct core_read_result results[CORE_PUBLISH_PAGES];
        struct segment *s = segment_of(f, u->segment);
        uint8_t how = is_true ? 0 : byte(f);

        if (!s)
                s = segment_new(f, u);
        if (how % 8 == 7 || !s) {
                core_publish_done(f->core, u->op, f->now_usec, NULL, -ENOMEM);
                return;
        }
        MUST(s->domain == u->domain && !s->is_dropped);
        for (uint32_t k = 0; k < u->n_pages; k++) {
                const uint8_t *content = content_at(program_of(f, u->client), u->pages[k]);

                MUST(u->slots[k] < s->n_slots && !s->is_written[u->slots[k]]);
                results[k] = (struct core_read_result){ .status = CORE_READ_FAILED };
                if (!content || (how && byte(f) % 4 == 0))
                        continue;
                s->content[u->slots[k]] = (uint8_t) (*content + (how >> 6 == 1 ? k & 1 : 0)); /* changed while it was copied */
                s->is_written[u->slots[k]] = true;
                results[k] = (struct core_read_result){ .hash = hash_of(s->content[u->slots[k]]), .status = CORE_READ_OK };
        }
        core_publish_done(f->core, u->op, f->now_usec, results, 0);
}

static enum core_apply_status apply_true(struct fuzz *f, const struct core_apply *a, const struct core_extent *e, uint64_t page) {
        struct program *p = program_of(f, a->client);
        const uint8_t *content = content_at(p, page);
        struct segment *s = a->kind == CORE_APPLY_MERGE ? segment_of(f, e->segment) : NULL;
        uint64_t i;

        if (!content)
                return CORE_VMA_GONE;
        i = page - p->base;
        if (a->kind == CORE_APPLY_RESTORE) {
                if (!p->is_file[i])
                        return CORE_VMA_GONE;
                p->is_file[i] = false;
                p->is_written[i] = true;
                return CORE_OK;
        }
        if (p->is_file[i])
                return CORE_VMA_GONE;
        if (a->kind == CORE_APPLY_ZERO) {
                if (*content)
                        return CORE_CHANGED;
                p->is_there[i] = false;
                return CORE_OK;
        }
        MUST(s);
        if (*content != s->content[e->slot + (page - e->page)]) {
                MUST(f->has_lied); /* I5: who told the truth and wrote nothing is asked to merge equals only */
                return CORE_CHANGED;
        }
        p->is_file[i] = true;
        p->is_written[i] = false;
        return CORE_OK;
}

static void answer_apply(struct fuzz *f, const struct core_apply *a, bool is_true) {
        uint8_t status[64] = {}, step = is_true ? 0 : byte(f), value = is_true ? 0 : byte(f);

        for (uint32_t k = 0; k < a->n_extents; k++)
                for (uint64_t page = a->extents[k].page; page < a->extents[k].page + a->extents[k].n_pages; page++) {
                        status[page & 63] = (uint8_t) (is_true ? apply_true(f, a, &a->extents[k], page) : value % 10);
                        value = (uint8_t) (value + step);
                }
        while (core_apply_done(f->core, a->op, f->now_usec, status, step == 255 ? -ECONNRESET : 0) == -EAGAIN)
                (void) core_tick(f->core, f->now_usec);
}

static void answer(struct fuzz *f, unsigned i, bool is_true) {
        struct pending p = f->pending[i];

        f->pending[i] = f->pending[--f->n_pending];
        f->has_lied |= !is_true;
        if (p.kind == SCAN && is_true)
                scan_true(f, &p.scan);
        else if (p.kind == SCAN)
                scan_any(f, &p.scan);
        else if (p.kind == READ)
                answer_read(f, &p.read, is_true);
        else if (p.kind == PUBLISH)
                answer_publish(f, &p.publish, is_true);
        else
                answer_apply(f, &p.apply, is_true);
}

/* -- what the core hands out -------------------------------------------------------------------------------------------- */

static void check_read(struct fuzz *f, const struct core_read *r) {
        MUST(r->n_pages >= 1 && r->n_pages <= CORE_READ_PAGES);
        for (uint32_t k = 1; k < r->n_pages; k++)
                MUST(r->pages[k] > r->pages[k - 1]);
}

static void check_publish(struct fuzz *f, const struct core_publish *u) {
        const struct program *p = program_of(f, u->client);

        MUST(u->n_pages >= 1 && u->n_pages <= CORE_PUBLISH_PAGES);
        MUST(p && p->domain == u->domain);
        for (uint32_t k = 0; k < u->n_pages; k++)
                MUST(u->slots[k] < u->segment_slots && (k == 0 || u->slots[k] > u->slots[k - 1]));
}

static void check_apply(struct fuzz *f, const struct core_apply *a) {
        const struct program *p = program_of(f, a->client);
        uint64_t last = 0, block = a->extents[0].page >> 6;

        MUST(p && a->n_extents >= 1 && a->n_extents <= ARRAY_SIZE(a->extents));
        for (uint32_t k = 0; k < a->n_extents; k++) {
                const struct core_extent *e = &a->extents[k];
                const struct segment *s = a->kind == CORE_APPLY_MERGE ? segment_of(f, e->segment) : NULL;

                MUST(e->n_pages >= 1 && e->page >= last);
                last = e->page + e->n_pages;
                MUST(e->page >> 6 == block && (last - 1) >> 6 == block);
                if (a->kind != CORE_APPLY_MERGE)
                        continue;
                MUST(s && s->domain == p->domain && !s->is_dropped && e->slot + e->n_pages <= s->n_slots);
                for (uint32_t i = 0; i < e->n_pages; i++)
                        MUST(s->is_written[e->slot + i]);
        }
}

static bool pull(struct fuzz *f, enum kind kind, uint32_t window, uint64_t *ret_next) {
        struct pending *p = &f->pending[f->n_pending];
        bool got;

        *ret_next = UINT64_MAX;
        if (f->n_pending == PENDING_MAX || f->n_ops == OPS_MAX)
                return false;
        p->kind = kind;
        if (kind == SCAN)
                got = core_next_scan(f->core, f->now_usec, &p->scan, ret_next);
        else if (kind == READ)
                got = core_next_read(f->core, f->now_usec, &p->read, ret_next);
        else if (kind == PUBLISH)
                got = core_next_publish(f->core, f->now_usec, &p->publish);
        else
                got = core_next_apply(f->core, f->now_usec, window, &p->apply, ret_next);
        if (!got)
                return false;
        if (kind == SCAN)
                MUST(p->scan.n_pages > 0 && p->scan.max_runs > 0 && program_of(f, p->scan.client));
        else if (kind == READ)
                check_read(f, &p->read);
        else if (kind == PUBLISH)
                check_publish(f, &p->publish);
        else
                check_apply(f, &p->apply);
        f->n_pending++;
        f->n_ops++;
        return true;
}

static void take_events(struct fuzz *f) {
        struct core_segment_event e;
        struct core_event done;

        while (core_next_segment_event(f->core, &e)) {
                struct segment *s = segment_of(f, e.segment);

                if (!s)
                        continue; /* its first publish failed */
                MUST(s->domain == e.domain && !s->is_dropped);
                if (e.kind == CORE_SEGMENT_DROP)
                        s->is_dropped = true;
                else
                        MUST(!s->is_sealed);
                s->is_sealed |= e.kind == CORE_SEGMENT_SEAL;
        }
        while (core_next_event(f->core, &done))
                ;
}

/* The shell at work with nobody lying, until `until` or until nothing is left to do. */
static void work(struct fuzz *f, uint64_t until_usec) {
        for (unsigned turns = 0; f->now_usec <= until_usec && turns < OPS_MAX; turns++) {
                uint64_t next = core_tick(f->core, f->now_usec), at;
                bool got = false;

                for (int k = SCAN; k < KINDS; k++) {
                        while (pull(f, (enum kind) k, 4, &at)) {
                                answer(f, f->n_pending - 1, true);
                                got = true;
                        }
                        next = MIN(next, at);
                }
                while (f->n_pending)
                        answer(f, 0, true);
                take_events(f);
                if (!got && f->n_ops == OPS_MAX)
                        break;
                if (!got)
                        f->now_usec = MAX(f->now_usec + WORK_STEP_USEC, next);
        }
        f->now_usec = MIN(f->now_usec, until_usec);
}

/* -- steps -------------------------------------------------------------------------------------------------------------- */

static void client_new(struct fuzz *f, struct program *p) {
        static const uint64_t bases[] = { 0, 1000, UINT64_C(0x7ffff7000), (UINT64_C(1) << 52) - SPAN_PAGES };
        uint8_t how = byte(f), vmas = byte(f), period = byte(f);
        struct core_client_config config = { .max_map_count = vmas & 15 ? 0 : vmas, .n_vmas = vmas >> 4 };
        char key = how & 1 ? 'a' : 'b';
        uint32_t domain, client;

        if (p->is_alive || core_domain(f->core, &key, 1, &domain) < 0)
                return;
        while (core_client_add(f->core, domain, &config, &client) < 0) {
                /* Who asked for a domain and got no client asks again: nobody else frees it. */
        }
        *p = (struct program){ .id = client, .domain = domain, .base = bases[how >> 1 & 3], .is_alive = true };
        for (unsigned i = 0; i < SPAN_PAGES; i++) {
                p->content[i] = (uint8_t) (period ? i % period : i);
                p->is_there[i] = p->is_written[i] = true;
        }
        (void) core_range_add(f->core, client, p->base, 1u + (how >> 3) * 8);
}

static void tunable(struct fuzz *f) {
        static const int64_t values[] = { 0, 1, 2, 3, 8, 10, 64, 500, 1000, 65536, INT64_MAX, -1 };
        uint8_t id = byte(f) % (TUNABLE_MAX_ + 1), value = byte(f);

        if (id == TUNABLE_MAX_)
                core_set_pace(f->core, (enum core_pace) (value % 3), f->now_usec);
        (void) core_tunable_set(f->core, (enum tunable_id) id, values[value % ARRAY_SIZE(values)], f->now_usec);
}

static void program_writes(struct fuzz *f, struct program *p, uint64_t i, uint64_t n, uint8_t content) {
        for (; i < SPAN_PAGES && n > 0; i++, n--) {
                p->content[i] = (uint8_t) (content + (content & 64 ? i : 0));
                p->is_there[i] = p->is_written[i] = true;
                p->is_file[i] = false;
        }
        f->has_lied = true;
}

static void program_drops(struct fuzz *f, struct program *p, uint64_t i, uint64_t n) {
        while (core_pages_gone(f->core, p->id, p->base + i, n) == -EAGAIN)
                (void) core_tick(f->core, f->now_usec);
        for (; i < SPAN_PAGES && n > 0; i++, n--)
                p->is_there[i] = p->is_written[i] = p->is_file[i] = false;
        f->has_lied = true;
}

static void step(struct fuzz *f) {
        enum what {
                CLIENT_NEW, CLIENT_GONE, PARK, UNPARK, RANGE_ADD, RANGE_REMOVE, DROP, WRITE, MERGE_NOW, UNMERGE, CANCEL, SET, VMAS,
                TIME, TICK, PULL, PULL_2, ANSWER, ANSWER_2, LIE, EVENTS, FAIL, STALE, WORK, WORK_2, ENORMOUS, WHATS,
        };
        uint8_t what = byte(f), who = byte(f);
        struct program *p = &f->programs[who % CLIENTS_MAX];
        uint64_t page, n, at;

        switch ((enum what) (what % WHATS)) {
        case CLIENT_NEW:
                client_new(f, p);
                break;
        case CLIENT_GONE:
                core_client_gone(f->core, p->id);
                p->is_alive = false;
                break;
        case PARK:
        case UNPARK:
                core_client_park(f->core, p->id, what % WHATS == PARK);
                break;
        case RANGE_ADD:
        case RANGE_REMOVE:
        case DROP:
        case WRITE:
        case MERGE_NOW:
        case UNMERGE:
                page = word(f) % SPAN_PAGES;
                n = byte(f) * (who & 64 ? 4u : 1u);
                if (what % WHATS == RANGE_ADD)
                        (void) core_range_add(f->core, p->id, p->base + page, n);
                else if (what % WHATS == RANGE_REMOVE)
                        while (core_range_remove(f->core, p->id, p->base + page, n) == -EAGAIN)
                                (void) core_tick(f->core, f->now_usec);
                else if (what % WHATS == DROP)
                        program_drops(f, p, page, n);
                else if (what % WHATS == WRITE)
                        program_writes(f, p, page, n, byte(f));
                else if (what % WHATS == MERGE_NOW)
                        (void) core_merge_now(f->core, p->id, p->base + page, n, page, f->now_usec);
                else
                        (void) core_unmerge(f->core, p->id, p->base + page, n, page, f->now_usec);
                break;
        case CANCEL:
                core_requests_cancel(f->core, p->id, -EPERM);
                break;
        case SET:
                tunable(f);
                break;
        case VMAS:
                core_client_set_vmas(f->core, p->id, who & 128 ? UINT32_MAX : byte(f));
                break;
        case TIME:
                f->now_usec += (uint64_t) word(f) * (who & 128 ? 1000 : 10);
                break;
        case TICK:
                (void) core_tick(f->core, f->now_usec);
                break;
        case PULL:
        case PULL_2:
                (void) pull(f, (enum kind) (who % KINDS), who >> 4, &at);
                break;
        case ANSWER:
        case ANSWER_2:
        case LIE:
                if (f->n_pending)
                        answer(f, who % f->n_pending, what % WHATS != LIE);
                break;
        case EVENTS:
                take_events(f);
                break;
        case FAIL:
                f->fail_after = byte(f);
                break;
        case STALE: { /* an answer to what was never asked */
                uint8_t status[64];

                memset(status, who, sizeof(status));
                (void) core_apply_done(f->core, f->n_pending ? f->pending[0].scan.op ^ who : who, f->now_usec, status, 0);
                break;
        }
        case WORK:
        case WORK_2:
                work(f, f->now_usec + (uint64_t) who * 20000);
                break;
        case ENORMOUS:
                page = (uint64_t) word(f) << 36;
                (void) core_range_add(f->core, p->id, page, (uint64_t) byte(f) << 40);
                (void) core_range_remove(f->core, p->id, page, (uint64_t) byte(f) << 38);
                break;
        case WHATS:
                break;
        }
}

static void check_books(struct fuzz *f) {
        const char *error = core_check(f->core);

        if (!error)
                return;
        fprintf(stderr, "the books: %s\n", error);
        abort();
}

static void everybody_leaves(struct fuzz *f) {
        struct counters n;

        f->fail_after = 0;
        f->n_ops = 0;
        for (unsigned i = 0; i < CLIENTS_MAX; i++)
                core_client_gone(f->core, f->programs[i].id);
        while (f->n_pending)
                answer(f, 0, false);
        work(f, f->now_usec + REST_USEC);
        check_books(f);
        core_counters(f->core, &n);
        MUST(n.clients == 0 && n.tracked_pages == 0 && n.runs == 0 && n.vmas_used == 0 && n.segments == 0 && n.domains == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        static struct fuzz f;
        const struct core_allocator allocator = { fuzz_realloc, fuzz_free, &f };

        f = (struct fuzz){ .data = data, .left = size, .now_usec = 1000000 };
        if (core_new(&allocator, 1, &f.core) < 0)
                abort();
        for (unsigned n = 0; f.left > 0 && n < STEPS_MAX; n++) {
                step(&f);
                if (n % CHECK_EVERY == 0)
                        check_books(&f);
        }
        check_books(&f);
        everybody_leaves(&f);
        (void) core_free(f.core);
        for (unsigned i = 0; i < f.n_segments; i++) {
                free(f.segments[i].content);
                free(f.segments[i].is_written);
        }
        return 0;
}
