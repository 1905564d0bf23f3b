/* The structures of the books and what the core's files offer each other. docs/books.md has the picture.
 *
 * Ownership: core owns domains, clients, blocks, extents and ops by pools; a domain owns its index and segments; a client
 * owns its ranges and requests. Ids, not pointers, are kept across calls. Only page.c changes page records, only slot.c
 * changes slots, only extent.c changes extents: so each count has one place that keeps it. */
#pragma once

#include "common/cleanup.h"
#include "daemon/core/core.h"
#include "daemon/core/index.h"
#include "daemon/core/memory.h"

/* A public id: pool index and a generation, so that stale ids are noticed. Never 0. */
#define ID_INDEX_BITS 18

/* -- pages and blocks ----------------------------------------------------------------------------------------- */

/* What a page record says. Payload in brackets. Whether the page lies inside a file mapping is told apart, by its block's
 * extents: a page copied on write, or discarded and refilled, stays inside and may be in any state. */
enum page_state {
        PAGE_NONE = 0,  /* nothing known */
        PAGE_FRESH,     /* [when last seen written, usec] waits to settle */
        PAGE_READING,   /* [same] a read is in flight */
        PAGE_HASHED,    /* [hash] equals an unshared page or a full chain: waits for a publish */
        PAGE_UNSHARED,  /* [hash] unique so far, in the index */
        PAGE_PARTNER,   /* [hash] in the index; another page of equal hash is being published */
        PAGE_SOURCE,    /* [hash] being published */
        PAGE_MATCHED,   /* [slot] to be merged; holds a pending count of the slot */
        PAGE_MERGING,   /* [slot] apply in flight; holds a pending count of the slot */
        PAGE_MERGED,    /* [extent] maps its slot, and is counted as a sharer */
        PAGE_ZEROABLE,  /* read as zeros */
        PAGE_ZEROING,   /* apply in flight */
        PAGE_ZEROED,    /* given back: reads as the kernel's zero page */
        PAGE_FOREIGN,   /* maps a segment that the books do not know of: left alone */
        PAGE_STATES,
};
/* Record: state 4 bits, fails 4 bits (failed or short-lived merges: the settle time doubles with each), payload 56 bits. */
#define PAYLOAD_SHIFT 8
#define FAILS_MAX 15
static inline uint64_t record(enum page_state state, unsigned fails, uint64_t payload) {
        return (uint64_t) state | (uint64_t) fails << 4 | payload << PAYLOAD_SHIFT;
}
static inline enum page_state record_state(uint64_t r) {
        return (enum page_state)(r & 15);
}
static inline unsigned record_fails(uint64_t r) {
        return (unsigned) (r >> 4) & 15;
}
static inline uint64_t record_payload(uint64_t r) {
        return r >> PAYLOAD_SHIFT;
}
/* Back from the payload to a content hash (node.c) without the 8 bits that nothing uses. */
static inline uint64_t record_hash(uint64_t r) {
        return r & ~UINT64_C(0xff);
}
static inline unsigned more_fails(unsigned fails, unsigned by) {
        return MIN(fails + by, (unsigned) FAILS_MAX);
}

enum block_flags {
        BLOCK_WAITING = 1 << 0,    /* in client.waiting or client.ready, by read_next */
        BLOCK_PUBLISH = 1 << 1,    /* in client.publish, by publish_next */
        BLOCK_APPLY = 1 << 2,      /* in client.apply, by apply_next */
        BLOCK_SHORT = 1 << 3,      /* in one of client.shorts, by apply_next */
        BLOCK_SHORT_DUE = 1 << 4,  /* its short runs have waited */
        BLOCK_BUSY = 1 << 5,       /* an apply is in flight: at most one a block */
        BLOCK_PUBLISHING = 1 << 6, /* a publish from it is in flight */
        BLOCK_RESTORE = 1 << 7,    /* restore all of it */
        BLOCK_RAGGED = 1 << 8,     /* restore extents with little left */
        BLOCK_UNMERGE = 1 << 9,    /* restored for the client's unmerge request */
        BLOCK_SKIPPED = 1 << 10,   /* hot: left out of the last pass */
        BLOCK_DOUBTFUL = 1 << 11,  /* the last look found an extent of it ragged */
        BLOCK_REFUSED = 1 << 12,   /* some of it could not be restored: waits for the client's next try */
        BLOCK_CLAIMED = 1 << 13,   /* has pages that the agent reported, and no look has seen yet */
        BLOCK_LATER = 1 << 14,     /* in client.later, by apply_next */
};
#define BLOCK_QUEUED (BLOCK_WAITING | BLOCK_PUBLISH | BLOCK_APPLY | BLOCK_SHORT | BLOCK_LATER)
struct block {
        uint64_t number; /* page >> BLOCK_SHIFT */
        uint64_t seen;   /* pages that the look numbered `look` saw present */
        uint32_t client : ID_INDEX_BITS;     /* pool index */
        uint32_t stamp : 32 - ID_INDEX_BITS; /* pass in which its short runs began to wait, its lower bits */
        uint32_t next, prev;                 /* of the client */
        uint32_t read_next, publish_next, apply_next;
        uint32_t extents; /* the file mappings in it: list head */
        uint16_t flags;
        uint8_t look;
        uint8_t age; /* hot: scanned every 2^age passes; BLOCK_RECHECK: this pass will tell if it still is */
        uint64_t page[BLOCK_PAGES];
};
_Static_assert(offsetof(struct block, page) == 48, "48 bytes a block, as planned");
#define BLOCK_RECHECK 0x80
#define BLOCKS_MAX (1U << 25) /* page ids have 31 bits: 8 TiB of populated memory */

static inline uint32_t page_id(uint32_t block, unsigned i) {
        return block << BLOCK_SHIFT | i;
}
#define SLOT_ELSEWHERE (NIL - 2)    /* for VMA costs: next to no slot that there is */
#define SLOT_ID (UINT32_C(1) << 31) /* tells slots from pages in the index */

struct block_queue {
        uint32_t head, tail;
};

/* -- slots, segments, domains ----------------------------------------------------------------------------------- */

enum slot_state { SLOT_EMPTY = 0, SLOT_WRITING, SLOT_LIVE, SLOT_DEAD };
struct slot {
        uint32_t next;         /* ring of the chain's dups, itself when alone; segment.prevs has the other direction */
        uint32_t sharers : 18; /* pages that map it */
        uint32_t pending : 11; /* pages that are about to */
        uint32_t state : 2;
        uint32_t is_misplaced : 1; /* not on its segment's node, or not known to be: no new sharers (node.c) */
};
_Static_assert(sizeof(struct slot) == 8, "8 bytes a slot, as planned");
#define SLOT_SHARERS_MAX ((1U << 18) - 1)
#define SLOT_PENDING_MAX ((1U << 11) - 1)

#define SEGMENT_UNIT 512         /* slots: 2 MiB; slot ids are given to segments in these */
#define SEGMENT_LARGE_UNITS 8    /* 16 MiB */
#define SEGMENT_LARGE_FROM 16384 /* slots published in the domain before segments grow */
#define STRIP_SLOTS 128          /* a publishing client's own: neighbours that are published apart still fuse */

enum segment_events {
        SEGMENT_SEAL_DUE = 1,
        SEGMENT_SEALED = 2,
        SEGMENT_DROP_DUE = 4,
        SEGMENT_QUEUED = 8,
        SEGMENT_CLEANING = 16,
        SEGMENT_PRUNE = 64, /* a dup in it won or lost sharers, or the cap changed, since the last sweep */
        SEGMENT_PRUNE_TOO = 128, /* that was so of another one, with room for what is here */
        SEGMENT_HELD = 32, /* adopted: each live slot has a pending count more than pages account for, from held_next on */
};
struct segment {
        uint32_t id, domain;
        uint32_t base, n_slots; /* ids of its slots */
        uint32_t next_slot;     /* first not given to a strip */
        uint32_t n_writing, n_live, n_dead;
        uint32_t n_sharers;     /* of all its slots */
        uint32_t n_lonely;      /* slots with one sharer: they save nothing */
        uint32_t n_lost;        /* given but never written */
        uint32_t n_extents;     /* mapped: also by pages that share nothing any more */
        uint32_t n_for_runs;    /* dups that the last sweep found to be kept for a run's sake */
        uint32_t held_next;
        uint32_t nid; /* the node that its memory is on, as in node.c; 0: any */
        uint32_t events;
        struct segment *event_next;
        struct slot *slots;
        uint32_t *keys;   /* top half of each chain's hash: slots have no other memory of it */
        uint32_t *prevs;  /* the dup before in its ring */
        uint32_t *groups; /* extents that begin in each 64 slots */
};

enum turn_kind { TURN_READ, TURN_PUBLISH, TURN_APPLY, TURN_KINDS };
struct turn_list {
        uint32_t head, tail;
};

struct domain {
        struct core *core; /* the index has one owner pointer */
        uint32_t id;
        uint32_t n_clients, n_segments;
        uint8_t *key;
        size_t key_size;
        struct index index; /* contents: pages and slots */
        struct segment **units;
        uint32_t n_units, units_capacity;
        struct segment **open; /* by nid: strips come from it; or NULL */
        uint32_t n_open, open_capacity;
        struct segment *cleaning; /* being emptied */
        uint64_t clean_usec;      /* no cleaning before that only a tidy store is a reason for */
        uint32_t clean_group, clean_rounds; /* how far, and how often round */
        uint32_t found_unit;                /* of the segment that an agent reported last */
        bool is_full;             /* a publish was refused by the bound on its slots, or for memory */
        uint64_t registered_pages;
        uint64_t given_slots, dead_slots; /* of its segments: being written, live or dead; of them dead */
        uint64_t slots_shared;            /* slots with sharers */
        uint64_t leaving_slots;           /* given, in segments that have been cleaned or are */
        bool is_reading;
        struct turn_list turns[TURN_KINDS];
        uint32_t turn_next[TURN_KINDS];
        uint8_t in_turn;
};

/* -- clients ---------------------------------------------------------------------------------------------------- */

struct range {
        uint64_t start, end; /* pages */
        bool is_unmerged;    /* by request: registered, but not to be merged */
};

/* A walk over the known blocks of an interval: by number when the interval is small, else along the client's list. */
struct walk {
        uint64_t start, end; /* pages */
        uint64_t number;
        uint32_t block;
        bool by_number, is_active;
};

enum request_phase {
        REQUEST_WAITING, /* for its turn */
        REQUEST_SCAN_1,  /* write-protect */
        REQUEST_SETTLE,
        REQUEST_SCAN_2, /* what was written meanwhile stays out */
        REQUEST_READ,
        REQUEST_DRAIN,   /* until nothing of the client waits for a publish or an apply */
        REQUEST_WALK,    /* unmerge: mark the blocks */
        REQUEST_RESTORE, /* until the marked blocks are restored */
};
struct request {
        struct request *next;
        struct core_event event;
        bool is_unmerge;
        enum request_phase phase;
        uint64_t start, end, cursor;   /* pages */
        uint64_t scan_usec, until_usec; /* begin of the scan; end of the phase */
        uint32_t n_blocks;              /* unmerge: marked and not restored yet */
};

struct skip {
        uint64_t number;
        uint32_t due_pass;
};
struct skip_list {
        struct skip *items;
        uint32_t n, capacity, next;
};

enum timer_kind { TIMER_SCAN, TIMER_WAKE, TIMER_KINDS };

#define FORGETS_MAX 8
#define CLIENT_STRIPS 4 /* one for each node that its pages are on: most machines have no more */
#define SHORT_BUCKETS 8 /* runs of 8 and more do not wait */
struct client {
        uint32_t id, domain;
        bool is_parked, is_gone, is_scanning, is_reading, is_publishing;
        bool in_pass, is_looking, wants_look, in_epoch, has_counted, in_jobs;
        uint32_t scan_mark; /* block at whose reading its part of a full scan ends; NIL: none is waited for */
        uint32_t n_applies, max_map_count, n_vmas;
        struct range_chunk **chunks; /* its ranges, ascending, apart from each other: range.c */
        uint32_t n_chunks, chunks_capacity, n_ranges;
        uint64_t registered_pages;
        uint32_t blocks, n_blocks; /* list head */
        struct block_queue waiting, ready, publish, apply, later, shorts[SHORT_BUCKETS];

        uint32_t pass;
        uint64_t pass_usec, last_pass_usec; /* start of the running one and of the last complete one; 0 none */
        uint64_t spare_usec; /* no pass so soon after pass_usec, for the sake of the process */
        uint64_t cursor, window_pages, n_rewritten;
        struct skip_list skips[2]; /* [pass & 1] is read, the other is built */
        uint8_t look;
        uint8_t claim_look; /* the last look when the agent reported runs, or that failed in part: the next one judges them */

        struct walk forgets[FORGETS_MAX];
        struct walk sweep, request_walk, retry;
        struct request *requests, *requests_tail; /* the first is the active one */

        uint32_t states[PAGE_STATES]; /* how many of its pages are in each; of all clients they are below 2^31 (BLOCKS_MAX) */
        int64_t vmas_used, vmas_pending;
        uint64_t budget_usec, busy_usec; /* no merge, no apply before */
        unsigned budget_tries, busy_tries;
        uint64_t later_usec; /* when the first of `later` is asked for again; 0: one has been */
        unsigned later_tries;
        uint32_t n_later, n_hurried; /* blocks in `later`; those at its head that do not wait */
        uint64_t retry_usec; /* when what was refused to be restored is tried again; 0 nothing was */
        unsigned retry_tries;
        bool has_refused; /* the retry that is under way found some */
        struct strip {
                uint32_t segment, next, end; /* slots given to it and not used yet: none when next == end */
        } strips[CLIENT_STRIPS];
        unsigned strip_turn; /* the one to give up for another node */
        uint32_t node_round; /* the last that a look answered, see core.node_round */
        uint64_t node_usec;  /* no look before that only nodes are a reason for */
        bool is_placing;     /* the look under way asks for nodes */

        uint32_t turn_next[TURN_KINDS];
        int32_t credit[TURN_KINDS];
        uint8_t in_turn;
        uint32_t timer_pos[TIMER_KINDS];
        uint32_t job_next, urgent_next;
        bool in_urgent;
};

/* -- ops, core ---------------------------------------------------------------------------------------------------- */

enum op_kind { OP_SCAN = 1, OP_READ, OP_PUBLISH, OP_APPLY };
struct op_publish {
        uint32_t n_pages;
        uint64_t strips; /* those of its pages that get a dup of their own, although others would have room */
        uint32_t pages[CORE_PUBLISH_PAGES], slots[CORE_PUBLISH_PAGES];
        uint64_t hashes[CORE_PUBLISH_PAGES];
};
struct op {
        uint64_t id;
        uint32_t client, domain;
        uint8_t kind, apply_kind;
        bool is_request, is_plain;
        bool wants_nodes; /* what it says of nodes means something */
        union {
                struct {
                        uint64_t page, n_pages, from_usec;
                        uint64_t n_walked; /* without gaps */
                } scan;
                struct {
                        uint32_t n_pages;
                        uint32_t *pages;
                } read;
                struct op_publish *publish;
                struct {
                        uint64_t mask;
                        uint32_t block;
                        uint32_t n_vmas;
                } apply;
        };
};

struct advisor {
        uint64_t begin_usec, begin_cpu_usec; /* of the scan under way */
        uint64_t scan_sec, change;           /* of the last one; percent of the one before, averaged */
};

struct timer {
        uint64_t at_usec;
        uint32_t client;
};
struct timer_heap {
        struct timer *items;
        uint32_t n, capacity;
};

struct core {
        struct memory memory;
        uint64_t seed;
        struct tunables tunables;
        struct pool domains, clients, blocks, extents, ops;
        struct index block_table;
        uint64_t op_sequence;
        uint32_t id_sequence, segment_sequence;
        struct timer_heap timers[TIMER_KINDS];
        struct turn_list turns[TURN_KINDS];
        struct turn_list jobs;   /* clients with background work */
        struct turn_list urgent; /* clients whose merge_now waits for reads */
        struct segment *events, *events_tail;
        struct request *done, *done_tail;
        double read_tokens;
        uint64_t read_tokens_usec;
        uint64_t clean_usec; /* segments are looked at again */
        /* The sweep of prune.c: when the next begins; how far the one that is under way is. */
        bool prune_due, prune_is_too; /* the segment is visited for the sake of others */
        uint64_t prune_usec;
        uint32_t prune_domain, prune_unit, prune_segment, prune_slot;
        uint32_t prune_moves; /* that are left to it */
        struct advisor advisor;
        uint64_t cpu_usec;   /* that scanning has taken so far */
        enum core_pace pace;
        bool has_nodes;      /* more than one */
        uint32_t node_round; /* counts reasons to look where all pages are: the kernel has migrated some, or merge_across_nodes changed */
        uint64_t slots_misplaced;
        uint32_t scans_to_do;        /* full scans until what is new has been covered */
        uint32_t n_read, n_promising; /* pages read in this one; of them with an equal, or zero */
        /* Clients that passes walk, and those of them whose part of the full scan is done. */
        uint32_t n_epoch_clients, n_epoch_counted;
        bool in_full_scan; /* one of them has begun a pass since */
        uint32_t round_scans; /* full scans since settled_scans went up, which was at round_usec */
        uint64_t round_usec;
        bool is_unmerging; /* run=2 */
        uint32_t n_held;         /* adopted segments */
        uint64_t adopted_usec;   /* the grace begins */

        uint32_t states[PAGE_STATES];
        uint64_t registered_pages, slots_shared, slots_sharers, chains, dups, dups_for_runs;
        uint64_t segments, segment_slots_written, slots_dead, n_live_clients;
        uint64_t n_publishing_pages; /* handed out, perhaps not yet written */
        int64_t vmas_used;
        struct counters counters; /* the ones that only grow */
};

static inline uint32_t id_index(uint32_t id) {
        return id & ((1U << ID_INDEX_BITS) - 1);
}
static inline struct client *client_at(const struct core *c, uint32_t index) {
        return pool_get(&c->clients, index);
}
static inline struct domain *domain_at(const struct core *c, uint32_t index) {
        return pool_get(&c->domains, index);
}
static inline struct block *block_at(const struct core *c, uint32_t id) {
        return pool_get(&c->blocks, id);
}
static inline struct domain *client_domain(const struct core *c, const struct client *cl) {
        return domain_at(c, cl->domain);
}
static inline struct client *block_client(const struct core *c, const struct block *b) {
        return client_at(c, b->client);
}
static inline uint64_t usec_of_ms(int64_t ms) {
        return (uint64_t) ms * 1000;
}

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
uint32_t block_table_key(void *core, uint32_t block);
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
struct extent {
        uint32_t page; /* id of some page of its block, in it or not: page i maps slot + i - this one's place in the block */
        uint32_t slot;
        uint32_t next, prev; /* extents whose `slot` is among the same 64 of the segment */
        uint32_t block_next; /* extents of the same block */
        uint64_t mapped;     /* bit per page of the block: lies inside this file mapping */
};
_Static_assert(sizeof(struct extent) == 32, "32 bytes an extent");
static inline struct extent *extent_at(const struct core *c, uint32_t id) {
        return pool_get(&c->extents, id);
}
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
static inline struct slot *slot_at(const struct domain *d, uint32_t slot) {
        struct segment *s = d->units[slot / SEGMENT_UNIT];

        return &s->slots[slot - s->base];
}
static inline uint32_t slot_key(const struct domain *d, uint32_t slot) {
        struct segment *s = d->units[slot / SEGMENT_UNIT];

        return s->keys[slot - s->base];
}
static inline uint32_t *slot_prev(const struct domain *d, uint32_t slot) {
        struct segment *s = d->units[slot / SEGMENT_UNIT];

        return &s->prevs[slot - s->base];
}
/* Consecutive slots of one segment: what maps them side by side is one mapping. */
static inline bool slots_are_neighbours(const struct domain *d, uint32_t a, uint32_t b) {
        return a != NIL && b == a + 1 && segment_of(d, a) == segment_of(d, b);
}
uint32_t content_key(void *domain, uint32_t id);
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
/* The hash that stands for these bytes on that node. Its nid can be read from it. */
uint64_t content_hash(uint64_t hash, unsigned nid);
unsigned content_nid(uint64_t content_hash);
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
void scan_schedule(struct core *c, struct client *cl, uint64_t at_usec);
bool scan_is_unmerged(const struct client *cl, uint64_t page); /* in no range, or in one taken out of merging */
void scan_sweep_step(struct core *c, struct client *cl, unsigned *budget);
/* To be told when ranges, parking or life of the client changed: full_scans waits only for those that passes walk. */
void scan_epoch_update(struct core *c, struct client *cl);
/* When its next pass begins has changed. */
void scan_hurry(struct core *c, struct client *cl);
/* A block that waited to be read does no longer. */
void scan_was_read(struct core *c, struct client *cl, uint32_t block, uint64_t now_usec);

/* pace.c */
uint64_t pace_usec(const struct core *c, int64_t ms); /* of a pass or settle time, as the pace has it */
void pace_news(struct core *c);                       /* something is there that no full scan has covered */
void pace_page_read(struct core *c, bool has_equal);
void pace_scan_ends(struct core *c);

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
