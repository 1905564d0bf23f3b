/* What the core's files offer each other, and tests that look into the books. */
#pragma once

#include "daemon/core/books.h"

/* core.c */
uint32_t core_new_id(struct core *c, uint32_t index);
struct op *op_new(struct core *c, enum op_kind kind, struct client *cl); /* NULL: no memory */
struct op *op_get(const struct core *c, uint64_t id, enum op_kind kind);
void op_free(struct core *c, struct op *op);
/* The op's client, or NULL when it is gone. */
struct client *op_client(const struct core *c, const struct op *op);

/* domain.c */
struct domain *domain_get(const struct core *c, uint32_t id);
void domain_free_if_unused(struct core *c, uint32_t index);

/* client.c */
struct client *client_get(const struct core *c, uint32_t id); /* NULL: unknown or gone */
void client_forget_step(struct core *c, struct client *cl, unsigned *budget);
bool client_is_forgetting(const struct client *cl, uint64_t page, uint64_t end);
void job_add(struct core *c, struct client *cl);

/* turn.c: whose turn it is, per kind of work; and timers */
void turn_add(struct core *c, struct client *cl, enum turn_kind kind);
struct client *turn_head(struct core *c, enum turn_kind kind); /* NULL: nobody has work */
void turn_drop(struct core *c, enum turn_kind kind);           /* the head has none */
void turn_spend(struct core *c, enum turn_kind kind, uint32_t pages);
void turn_remove(struct core *c, struct client *cl);
void turn_add_domain(struct core *c, struct domain *d, enum turn_kind kind);
int timer_reserve(struct core *c, uint32_t n_clients);
void timer_set(struct core *c, struct client *cl, enum timer_kind kind, uint64_t at_usec); /* earlier of old and new */
void timer_clear(struct core *c, struct client *cl, enum timer_kind kind);
struct client *timer_head(const struct core *c, enum timer_kind kind, uint64_t *ret_usec);

/* range.c */
const struct range *range_find(const struct client *cl, uint64_t page); /* the one that holds page, or the next, or NULL */
void range_free_all(struct core *c, struct client *cl);
int range_put(struct core *c, struct client *cl, uint64_t start, uint64_t end, bool is_unmerged);
int range_cut(struct core *c, struct client *cl, uint64_t start, uint64_t end);
int range_mark_unmerged(struct core *c, struct client *cl, uint64_t start, uint64_t end);
const char *range_check(const struct client *cl, uint64_t *ret_pages); /* for core_check */

/* page.c */
uint32_t block_find(const struct core *c, const struct client *cl, uint64_t number);
uint32_t block_ensure(struct core *c, struct client *cl, uint64_t number); /* NIL: no memory */
void block_free(struct core *c, uint32_t block);
void block_free_if_idle(struct core *c, uint32_t block); /* nothing known, in no queue, nothing in flight */
bool block_has_state(const struct block *b, enum page_state s);
void block_push(struct core *c, struct block_queue *q, uint32_t block, enum block_flags flag);
uint32_t block_pop(struct core *c, struct block_queue *q, enum block_flags flag);
void block_table_fetch(void *core, uint32_t block);
/* What a visit of the client's blocks of these numbers will read comes near; at most FETCH_BLOCKS. */
#define FETCH_BLOCKS 16
void blocks_fetch(const struct core *c, const struct client *cl, const uint64_t *numbers, size_t n);
void records_fetch(const struct core *c, uint32_t block); /* all of a block; or NIL */
/* The same of a visit that takes all that the block's records hold. */
void block_fetch(const struct core *c, uint32_t block);
/* Counts and changes a record; what the old one holds goes over to the new one or was released. */
void page_mark(struct core *c, uint32_t block, unsigned i, uint64_t r);
/* Releases what the old record holds (index entry, pending count, place in an extent), then marks. */
void page_set(struct core *c, uint32_t block, unsigned i, uint64_t r);
void page_fresh(struct core *c, uint32_t block, unsigned i, unsigned fails, uint64_t usec);
void page_written(struct core *c, uint32_t block, unsigned i, uint32_t categories, uint64_t usec);
void page_seen(struct core *c, uint32_t block, unsigned i, uint32_t categories, uint64_t usec);
/* Its mapping is gone. A merge in flight stays, for its answer is about what is mapped now; not when `is_final`. */
void page_gone(struct core *c, uint32_t block, unsigned i, bool is_final);
void block_queue_read(struct core *c, uint32_t block);
void block_queue_publish(struct core *c, uint32_t block);
void block_queue_apply(struct core *c, uint32_t block);
void walk_begin(const struct client *cl, struct walk *w, uint64_t start, uint64_t end);
/* Next block of the walk, or NIL: at its end (is_active is false) or out of budget. */
uint32_t walk_next(struct core *c, struct client *cl, struct walk *w, unsigned *budget);

/* extent.c */
uint32_t extent_find(const struct core *c, const struct block *b, unsigned i); /* that page i lies in, or NIL */
uint64_t block_in_file(const struct core *c, const struct block *b);           /* pages that lie in some extent */
uint32_t page_file_slot(const struct core *c, const struct block *b, unsigned i); /* whose place it lies in, or NIL */
uint32_t page_slot(const struct core *c, const struct block *b, unsigned i); /* that it shares or is to share, or NIL */
/* The page maps the slot from now on, whatever it lay in before, and is MERGED; takes over a pending count. */
int extent_add(struct core *c, uint32_t block, unsigned i, uint32_t slot, unsigned fails);
/* The page, which is not MERGED, no longer lies in a file mapping (if it did). */
void extent_leave(struct core *c, uint32_t block, unsigned i);
/* 1 when between two neighbouring pages that lie at these slots (NIL: anonymous) one VMA ends and another begins. */
int vma_edge(const struct domain *d, uint32_t left, uint32_t right);
unsigned extent_vma_edges(const struct core *c, const struct block *b, unsigned i);
/* VMAs more, or fewer, when the n pages from i map `slot` and those after it; NIL: anonymous memory. */
int extent_vma_cost(const struct core *c, const struct block *b, unsigned i, unsigned n, uint32_t slot);

/* later.c */
void later_add(struct core *c, struct client *cl, uint32_t block, uint64_t now_usec);
void later_wake(struct core *c, struct client *cl, uint64_t now_usec);
void later_release(struct core *c, struct client *cl); /* the agent could do one */
void later_hurry(struct core *c, struct client *cl);   /* all that are in the queue are asked for now */
uint32_t later_pop(struct core *c, struct client *cl); /* one to be asked for now, or NIL */

/* restore.c */
/* After a look: has the block extents that are not worth their mapping? */
void restore_judge(struct core *c, uint32_t block);
/* The extent is to be restored because its segment goes, for the sake of nodes. */
bool restore_is_due(const struct core *c, const struct block *b, const struct extent *e);
uint64_t restore_pages(const struct core *c, const struct block *b); /* that are to be restored now */
void restore_refused(struct core *c, uint32_t block, uint64_t now_usec);
void restore_wake(struct core *c, struct client *cl, uint64_t now_usec);
void restore_retry_step(struct core *c, struct client *cl, unsigned *budget);

/* clean.c */
bool clean_leaves_room(struct core *c, struct domain *d, uint64_t n_slots); /* for a publish of n_slots */
bool clean_has_memory(struct core *c, const struct domain *d, uint64_t bytes); /* of core_memory_left, for something new in the domain */
uint64_t clean_step(struct core *c, uint64_t now_usec, unsigned *budget); /* when to call again */

/* prune.c */
uint64_t prune_pause_usec(const struct core *c);
void prune_mark(struct core *c, struct segment *s);
void prune_mark_all(struct core *c); /* the cap changed */
void prune_changed(struct core *c, const struct domain *d, uint32_t slot); /* to be told when its sharers did, or what it is promised to */
uint64_t prune_step(struct core *c, uint64_t now_usec, unsigned *budget); /* when to call again */

/* adopt.c */
uint64_t adopt_step(struct core *c, uint64_t now_usec, unsigned *budget); /* when to call again */

/* slot.c */
struct segment *segment_of(const struct domain *d, uint32_t slot);
uint64_t slot_hash(const struct domain *d, uint32_t slot); /* of what it has: as a record of that content would say */
static inline struct slot *slot_at(const struct domain *d, uint32_t slot) {
        struct segment *s = d->units[slot / SEGMENT_UNIT];

        return &s->slots[slot - s->base];
}
static inline uint32_t *slot_prev(const struct domain *d, uint32_t slot) {
        struct segment *s = d->units[slot / SEGMENT_UNIT];

        return &s->prevs[slot - s->base];
}
/* Consecutive slots of one segment: what maps them side by side is one mapping. */
static inline bool slots_are_neighbours(const struct domain *d, uint32_t a, uint32_t b) {
        return a != NIL && b == a + 1 && segment_of(d, a) == segment_of(d, b);
}
void content_fetch(void *domain, uint32_t id);
/* Gives the client n consecutive slots in memory of that node if it can, fewer otherwise (*ret_n >= 1); they become WRITING. */
int slot_take(struct core *c, struct client *cl, unsigned nid, uint32_t n, uint32_t *ret_first, uint32_t *ret_n);
void slot_fail(struct core *c, struct domain *d, uint32_t slot, bool was_written); /* WRITING -> DEAD */
void slot_live(struct core *c, struct domain *d, uint32_t slot, uint64_t hash); /* WRITING -> LIVE, pending for one page, alone, not indexed */
void slot_revive(struct core *c, struct domain *d, uint32_t slot, uint64_t hash); /* adopted: lost -> LIVE, held, alone; else as slot_live */
void slot_pend(struct domain *d, uint32_t slot);
void slot_unpend(struct core *c, struct domain *d, uint32_t slot);
void slot_share(struct core *c, struct domain *d, uint32_t slot); /* a pending one becomes a sharer */
void slot_unshare(struct core *c, struct domain *d, uint32_t slot);
void slot_join(struct core *c, struct domain *d, uint32_t slot, uint32_t chain); /* as a dup; becomes the indexed one */
void strips_abandon(struct core *c, struct client *cl);
int segment_new(struct core *c, struct domain *d, uint32_t n_slots, unsigned nid, struct segment **ret);
bool segment_is_open(const struct domain *d, const struct segment *s); /* strips may come from it */
void segment_close(struct domain *d, const struct segment *s);
void segment_check(struct core *c, struct segment *s); /* is it time to seal or drop it? */
void segment_free(struct core *c, struct segment *s);
bool slot_has_room(const struct core *c, const struct domain *d, uint32_t slot);

/* node.c: with merge_across_nodes=0 on a machine with several nodes, contents are told apart by the node that they lie on. nid: node + 1,
 * or 0 when nodes do not matter; as the kernel's KSM says it (get_kpfn_nid). */
#define NID_BITS 10
bool nodes_matter(const struct core *c);
/* The hash that stands for these bytes on that node: what a record keeps of one, with the nid, which can be read from it. */
uint64_t content_hash(uint64_t hash, unsigned nid);
unsigned content_nid(uint64_t content_hash);
uint64_t content_with_nid(uint64_t hash, unsigned nid); /* of which only the bits of the nid are missing */
uint64_t content_on(uint64_t content_hash, unsigned nid); /* the same bytes on another node */
/* For a page of which the op's answer says that it lies on the node: the nid, or -1 when it matters and is not known. */
int node_nid(const struct core *c, const struct op *op, int32_t node);
/* A look found the page present, on the node of that nid. */
void page_placed(struct core *c, uint32_t block, unsigned i, unsigned nid);
void slot_placed(struct core *c, struct domain *d, uint32_t slot, bool is_misplaced);
bool segment_is_misbound(const struct core *c, const struct segment *s); /* for another setting of merge_across_nodes */
bool node_wants_look(const struct core *c, const struct client *cl, uint64_t now_usec);
void node_look_begins(struct core *c, struct client *cl, uint64_t now_usec);
void node_look_failed(struct core *c, struct client *cl);

/* chain.c */
struct match {
        uint32_t slot; /* indexed dup of the chain with this hash, or NIL */
        uint32_t page; /* an unshared or partner page with this hash, or NIL */
};
void match_find(const struct core *c, const struct domain *d, uint64_t hash, struct match *ret);
/* A strip, a row of dups of one content, is as long as a block at most, and has so many sharers for each of its dups at least. */
#define STRIP_SHARERS 32
#define STRIP_PAGES (STRIP_SHARERS * BLOCK_PAGES) /* make the longest */
/* How many dups in a row the pages of this content that follow each other in the client's memory had best be spread over: 1 while
 * VMAs are plenty; else so many that 32 pages share each, by what shares the chain now (indexed: one of its dups, or NIL). */
uint32_t strip_width(const struct core *c, const struct client *cl, uint32_t indexed, uint32_t n_more);
/* A dup with room: `prefer` if it is one, else the fullest of the first few; NIL when they are full. */
uint32_t chain_pick(struct core *c, struct domain *d, uint32_t indexed, uint32_t prefer);
/* Puts a page with this hash (state READING or HASHED) where it belongs: MATCHED, HASHED or UNSHARED. */
void page_resolve(struct core *c, uint32_t block, unsigned i, uint64_t hash, uint64_t now_usec);

/* budget.c */
int64_t client_vma_budget(const struct core *c, const struct client *cl);
bool client_is_short_of_vmas(const struct core *c, const struct client *cl);
bool client_has_vmas(const struct core *c, const struct client *cl, uint32_t n, bool is_long);
void client_budget_hit(struct core *c, struct client *cl, uint64_t now_usec);
uint64_t settle_usec(const struct core *c, unsigned fails);

/* request.c */
void request_step(struct core *c, struct client *cl, uint64_t now_usec, unsigned *budget);
/* The next window that the active merge_now wants scanned. */
bool request_is_drained(const struct client *cl); /* nothing of it waits for a publish or an apply */
bool request_scan_window(struct core *c, struct client *cl, uint64_t now_usec, uint64_t *ret_page, uint64_t *ret_end);
bool request_wants_page(const struct core *c, const struct client *cl, uint64_t page, uint64_t record);
/* A marked block gave pages back; is_end: it is through. */
void request_unmerged(struct core *c, struct client *cl, uint64_t pages, uint64_t left, bool is_end);
void urgent_add(struct core *c, struct client *cl);
void urgent_remove(struct core *c, struct client *cl);
void request_cancel_all(struct core *c, struct client *cl, int error);
void request_free_all(struct core *c);
static inline bool client_merging_now(const struct client *cl) {
        return cl->requests && !cl->requests->is_unmerge;
}
static inline bool client_unmerging(const struct core *c, const struct client *cl) {
        return c->is_unmerging || (cl->requests && cl->requests->is_unmerge);
}

/* scan.c */
#define SCAN_MAX_RUNS 1024
void scan_schedule(struct core *c, struct client *cl, uint64_t at_usec);
bool scan_is_unmerged(const struct client *cl, uint64_t page); /* in no range, or in one taken out of merging */
/* To be told when ranges, parking or life of the client changed: full_scans waits only for those that passes walk. */
void scan_epoch_update(struct core *c, struct client *cl);
/* When its next pass begins has changed. */
void scan_hurry(struct core *c, struct client *cl);
/* A block that waited to be read does no longer. */
void scan_was_read(struct core *c, struct client *cl, uint32_t block, uint64_t now_usec);
/* A window had so many runs, SCAN_MAX_RUNS also when something else was in the way: how large are the next ones? */
void scan_window_took(struct client *cl, const struct op *op, uint64_t now_usec, size_t n_runs);

/* found.c */
/* After a look, and at run=2. */
void found_sweep_step(struct core *c, struct client *cl, unsigned *budget);

/* heat.c */
void heat_pass_begins(struct client *cl);
void heat_pass_ends(struct core *c, struct client *cl);
/* Shortens the window so that it holds no hot block that is not due; true when it became empty (*page is past it). */
bool heat_skip(struct core *c, struct client *cl, uint64_t *page, uint64_t *end);
uint64_t heat_next(const struct client *cl); /* the first page of the next hot block; UINT64_MAX: none */
/* A pass is through with a block. */
void heat_judge(struct core *c, struct client *cl, uint32_t block, unsigned n_rewritten);

/* pace.c */
uint64_t pace_usec(const struct core *c, int64_t ms); /* of a pass or settle time, as the pace has it */
void pace_rewrites(struct core *c, struct client *cl, uint64_t n_rewritten); /* a pass has found so many */
uint64_t pace_spare_usec(const struct core *c, const struct client *cl); /* no pass so soon after the last one's beginning */
void pace_news(struct core *c);                       /* something is there that no full scan has covered */
void pace_page_read(struct core *c, bool has_equal);
void pace_scan_ends(struct core *c, uint64_t now_usec);

/* round.c */
void round_begins(struct core *c, uint64_t now_usec);
void round_scan_ended(struct core *c, uint64_t now_usec); /* a full scan has */

/* advisor.c */
/* pages_to_scan for the next scan, after one that took so long and so much CPU time. */
uint64_t advisor_step(struct advisor *a, const struct tunables *t, uint64_t scan_usec, uint64_t cpu_usec);
void advisor_mode_changed(struct core *c, uint64_t now_usec);
void advisor_scan_begins(struct core *c, uint64_t now_usec);
void advisor_scan_ends(struct core *c, uint64_t now_usec);

/* stats.c */
uint64_t states_tracked(const uint32_t states[PAGE_STATES]);

/* trace.c: probes */
void trace_answer(const struct core *c, uint32_t block, unsigned i, enum core_apply_status status); /* page is MERGING or ZEROING */
void trace_unshare(const struct core *c, uint32_t block, unsigned i, uint32_t slot);
void trace_slot_dead(const struct domain *d, uint32_t slot);

/* apply.c */
void apply_wake_due(struct core *c, uint64_t now_usec);
void block_queue_short(struct core *c, uint32_t block, unsigned longest);
