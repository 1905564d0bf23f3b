/* The structures of the books. docs/books.md has the picture; internal.h has what works on them.
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
/* Of a FRESH page that was not written, and is only to be read where it lies: last written before all times. */
#define NOT_WRITTEN_USEC UINT64_C(1)
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

struct extent {
        uint32_t page; /* id of some page of its block, in it or not: page i maps slot + i - this one's place in the block */
        uint32_t slot;
        uint32_t next, prev; /* extents whose `slot` is among the same 64 of the segment */
        uint32_t block_next; /* extents of the same block */
        uint64_t mapped;     /* bit per page of the block: lies inside this file mapping */
};
_Static_assert(sizeof(struct extent) == 32, "32 bytes an extent");

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

#define SLOT_HASH_WORDS 3 /* of 16 bits */
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
        uint32_t *prevs;  /* the dup before in its ring */
        uint32_t *groups; /* extents that begin in each 64 slots */
        uint16_t (*hashes)[SLOT_HASH_WORDS]; /* of each slot's content, from the top down; what is not here follows from nid */
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
        uint32_t spare_usec;    /* no pass so soon after pass_usec, for the sake of the process, had it a processor */
        uint32_t rewrite_share; /* its part of core.rewrite_shares */
        uint64_t cursor, window_pages;
        uint32_t n_rewritten, n_new; /* pages that the pass found written: known ones, others */
        unsigned n_soon;             /* much was new: so many of the next passes come soon */
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
        unsigned n_processors; /* that the processes share; 0: each has its own */
        uint64_t rewrite_shares; /* of all clients: pace_spare_usec */
        uint32_t scans_to_do;        /* full scans until what is new has been seen, or that are worth it */
        bool has_news;               /* among them */
        uint64_t news_settle_usec;   /* when news that have been seen have settled; 0: they have been read */
        uint64_t scan_begin_usec;    /* of the full scan under way */
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
static inline struct extent *extent_at(const struct core *c, uint32_t id) {
        return pool_get(&c->extents, id);
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
