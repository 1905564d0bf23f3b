/* The core of the daemon: what is known about clients, ranges, pages, shared slots, and what to do next.
 *
 * Pure: no syscalls, no clock, no stdio, no file-scope mutable state. Time, randomness (seed) and allocation
 * failure come from outside; the same inputs give the same outputs, byte for byte. Single-threaded: the caller
 * serialises all calls on one core. The shell (daemon/) turns outputs into syscalls and replies into inputs.
 *
 * Pull model. The shell asks for the next piece of work of a kind when it has a free worker for that kind; the
 * core chooses whose (deficit round robin over domains, then clients) and hands out an op id. Each op handed out
 * is answered exactly once by the matching ..._done call, also when the client is gone meanwhile (the answer is then
 * dropped inside, stale ids are harmless). One client has at most one scan and one read in flight; a domain has
 * at most one read in flight (a reader can hang on a hostile client's memory).
 *
 * The core only ever *advises*: it may be wrong about any page, because the agent verifies. Being wrong costs work,
 * never bytes.
 *
 * Addresses are page numbers (address >> 12). Errors: 0 or -errno (-ENOMEM, -EINVAL, -ENOENT, -EDQUOT).
 * Time is in microseconds of a monotonic clock, never zero. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/counters.h"
#include "common/tunables.h"

struct core;

/* Allocation is injected so that tests can fail the n-th one. free accepts NULL. */
struct core_allocator {
        void *(*realloc)(void *userdata, void *p, size_t size);
        void (*free)(void *userdata, void *p);
        void *userdata;
};

/* allocator NULL = libc's. seed: randomises hash tables' placement, not results. */
int core_new(const struct core_allocator *allocator, uint64_t seed, struct core **ret);
struct core *core_free(struct core *c); /* asserts in debug builds that all accounting returns to zero */

const struct tunables *core_tunables(const struct core *c);
/* 0, -ENOENT or -EINVAL: outside its range, or pages_to_scan while the advisor sets it. run=2 starts the unmerge of everything; the
 * books follow other changes in the background. */
int core_tunable_set(struct core *c, enum tunable_id id, int64_t value, uint64_t now_usec);

/* -- memory -------------------------------------------------------------------------------------------------- */

/* Of what is left so much is not used for anything new. It is there for what cannot wait or gives memory back: answers to what is under
 * way, moves out of a sparse segment (at most half of one, 8 MiB), books of merges into slots that are there; for sockets and
 * stacks, which nobody counts here; and for what others in the same group take between two looks. */
#define CORE_MEMORY_RESERVE_BYTES (UINT64_C(16) << 20)
/* So many bytes are left to take, for shared pages and books together; UINT64_MAX, the default: no limit. Said again and again; in between
 * the core takes off what it hands out itself. With less than the reserve left no page becomes known and nothing is published; pages
 * still merge into slots that are there, and everything else goes on. Half-way through the reserve merging ends as well.
 * True: something was refused for it, and there is no room yet. */
bool core_memory_left(struct core *c, uint64_t bytes);

/* -- pace ---------------------------------------------------------------------------------------------------- */

/* CPU time that scanning has taken since the start, of all threads. Said again and again; the advisor wants to know. */
void core_cpu_used(struct core *c, uint64_t usec);

enum core_pace {
        CORE_PACE_NORMAL = 0,
        CORE_PACE_FAST, /* pass_millisecs and settle_millisecs are taken for a quarter of what they are */
        CORE_PACE_REST, /* no pass begins and nothing is read; what has been read is merged, and requests are carried out */
};
void core_set_pace(struct core *c, enum core_pace pace, uint64_t now_usec);
/* The processes share so many processors (default, 0: each has its own). Where more of them write than that, what their write faults may take
 * is reckoned from what is left for each. */
void core_set_processors(struct core *c, unsigned n);
/* There is reason to think that scanning finds something: something was registered or changed that full scans have not covered yet, or
 * the last one found equal pages. */
bool core_has_work(const struct core *c);

/* -- NUMA nodes ---------------------------------------------------------------------------------------------- */

/* Highest node that the books tell from others; the kernel has at most 1024 (CONFIG_NODES_SHIFT). Pages of higher ones are not merged
 * with merge_across_nodes=0. */
#define CORE_NODE_MAX 1022
/* The machine has more than one node (default: one), so that merge_across_nodes=0 means something. */
void core_set_nodes(struct core *c, bool has_many);
/* The kernel has migrated pages, of whatever process, since this was said last: each client's next pass looks where its pages are. */
void core_pages_migrated(struct core *c);
/* Somebody should say so: nodes matter now. */
bool core_wants_nodes(const struct core *c);

/* -- domains, clients, ranges ------------------------------------------------------------------------------ */

/* The domain of an opaque key (uid, label, container: daemon/sys/peer.h makes it); created on first use, freed with
 * its last client and segment. Nothing is shared across domains (I4): own index, own segments, own chains. */
int core_domain(struct core *c, const void *key, size_t key_size, uint32_t *ret_domain);
/* Hash secret drawn by the shell for a domain is the shell's business (it computes the hashes). */

struct core_client_config {
        uint32_t max_map_count; /* 0 = assume 65530 */
        uint32_t n_vmas;        /* VMAs the process has now */
};
int core_client_add(struct core *c, uint32_t domain, const struct core_client_config *config, uint32_t *ret_client);
/* n_vmas: all that the process has now, merged runs included; the core takes its own off. */
void core_client_set_vmas(struct core *c, uint32_t client, uint32_t n_vmas);
/* A client that stopped answering gets no new work (parked) until it answers again. */
void core_client_park(struct core *c, uint32_t client, bool parked);
/* Forgets the client in bounded steps (core_tick); its id is not reused before that is done. */
void core_client_gone(struct core *c, uint32_t client);

/* Overlap with known ranges is merged. Cost does not depend on n_pages (32 TiB is fine). */
int core_range_add(struct core *c, uint32_t client, uint64_t page, uint64_t n_pages);
/* Pages in it are forgotten in bounded steps; merged ones count as unshared. -EAGAIN: too much of this client is being
 * forgotten already; nothing was done, ask again after core_tick. */
int core_range_remove(struct core *c, uint32_t client, uint64_t page, uint64_t n_pages);
/* The agent says: these pages no longer map what was merged there (unmapped, removed, restored). -EAGAIN as above. */
int core_pages_gone(struct core *c, uint32_t client, uint64_t page, uint64_t n_pages);

/* -- scan: PAGEMAP_SCAN over a window ---------------------------------------------------------------------- */

#define CORE_SCAN_GAPS 63
struct core_scan {
        uint64_t op;
        uint32_t client;
        uint64_t page, n_pages; /* window; may be huge (holes are skipped by the kernel) */
        /* Inside it, ascending, and never walked: nothing of it is registered, and the program may track it by a userfaultfd of its own. */
        uint32_t n_gaps;
        struct core_scan_gap {
                uint64_t page, n_pages;
        } gaps[CORE_SCAN_GAPS];
        uint32_t max_runs;      /* stop after this many result runs and report where */
        bool rewrite_protect;   /* true: runs WRITTEN|PRESENT|WPALLOWED of no file, and write-protect them again;
                                   false: plain look, all PRESENT|WPALLOWED pages, nothing changed */
        bool expects_few;       /* with rewrite_protect: much that is protected, in long mappings */
        bool wants_nodes;       /* a run's pages are on one node */
};
enum core_page_category { /* bits of core_run.categories */
        CORE_WRITTEN = 1,
        CORE_FILE = 2, /* page cache of a segment: still merged */
        CORE_ZERO = 4, /* the kernel's zero page */
        CORE_HUGE = 8,
};
struct core_run {
        uint64_t page, n_pages;
        uint32_t categories;
        int32_t node; /* if wanted; negative: not known */
};
/* False: nothing to scan before *ret_next_usec (always set). */
bool core_next_scan(struct core *c, uint64_t now_usec, struct core_scan *ret, uint64_t *ret_next_usec);
/* runs ascending, inside the window; end_page: first page not walked. error 0 or -errno (-ESRCH: client is dying;
 * other: treat the whole window as written). */
void core_scan_done(struct core *c, uint64_t op, uint64_t now_usec, const struct core_run *runs, size_t n_runs,
                    uint64_t end_page, int error);

/* -- read: hash settled pages ------------------------------------------------------------------------------ */

#define CORE_READ_PAGES 256
struct core_read {
        uint64_t op;
        uint32_t client, domain;
        uint32_t n_pages;
        bool wants_nodes;
        uint64_t pages[CORE_READ_PAGES]; /* ascending */
};
enum core_read_status {
        CORE_READ_OK = 0,
        CORE_READ_ALL_ZERO,
        CORE_READ_FAILED,
        CORE_READ_SPOILED, /* of a publish: failed, and the slot may take memory all the same */
};
struct core_read_result {
        uint64_t hash; /* 64-bit keyed hash of the bytes; only its equality matters */
        uint32_t status;
        int32_t node; /* that the page is on, of a publish the slot; if wanted; negative: not known */
};
bool core_next_read(struct core *c, uint64_t now_usec, struct core_read *ret, uint64_t *ret_next_usec);
/* results: n_pages of the op. */
void core_read_done(struct core *c, uint64_t op, uint64_t now_usec, const struct core_read_result *results);

/* -- publish: copy pages of a client into slots of a segment ------------------------------------------------ */

#define CORE_PUBLISH_PAGES 64
struct core_publish {
        uint64_t op;
        uint32_t client, domain;
        uint32_t segment, segment_slots; /* the shell creates the segment on first sight */
        int32_t node;                    /* that the segment's memory is to come from; and the results say the nodes. Negative: any */
        uint32_t n_pages;
        uint64_t pages[CORE_PUBLISH_PAGES]; /* any order */
        uint32_t slots[CORE_PUBLISH_PAGES]; /* never written before, ascending */
};
bool core_next_publish(struct core *c, uint64_t now_usec, struct core_publish *ret);
/* results: status OK with the hash of the slot's bytes *after* the copy (that becomes the chain's key, I5), or FAILED or
 * SPOILED: that slot is never mapped (reading a hole of a sealed memfd would allocate).
 * error < 0: nothing was written (segment could not be created): back off. */
void core_publish_done(struct core *c, uint64_t op, uint64_t now_usec, const struct core_read_result *results, int error);

enum core_segment_event_kind {
        CORE_SEGMENT_SEAL, /* full: drop the mapping, seal against writing */
        CORE_SEGMENT_DROP, /* nobody shares it, nothing will be merged into it: close it everywhere */
};
struct core_segment_event {
        enum core_segment_event_kind kind;
        uint32_t segment, domain;
};
bool core_next_segment_event(struct core *c, struct core_segment_event *ret);

/* -- adoption: segments and runs that were there before ------------------------------------------------------- */

/* What an earlier daemon left (segments kept by the service manager) and what the books of this one cannot know (runs that a process
 * inherited by fork or kept over a restart). See adopt.c. */

/* A segment of n_slots (a multiple of 512), bound to a node (negative: to none), all of them lost until core_slot_adopt names them. 0,
 * -EINVAL, -ENOENT (domain), -ENOMEM. */
int core_segment_adopt(struct core *c, uint32_t domain, uint32_t n_slots, int32_t node, uint32_t *ret_segment);
/* The slot holds bytes of this hash. It is offered to sharers at once, and kept without any for adopt_grace_millisecs. Once a slot.
 * 0, -EINVAL, -ENOMEM. */
int core_slot_adopt(struct core *c, uint32_t domain, uint32_t segment, uint32_t slot, uint64_t hash);
/* All are there: the grace begins, after which adopted slots without sharers go as all others do. */
void core_adopted(struct core *c, uint64_t now_usec);
/* The client's agent says: these pages map these slots. True of its own domain's segments only; pages that the books know already, or that
 * are not registered, are passed over. Returns how many were believed. */
uint32_t core_run_adopt(struct core *c, uint32_t client, uint64_t page, uint32_t n_pages, uint32_t segment, uint32_t slot);

/* -- apply: a transition in a client's address space -------------------------------------------------------- */

/* Kinds and statuses are those of the protocol; repeated here so that the core knows only common/. proto's
 * values are asserted equal in daemon/. */
enum core_apply_kind { CORE_APPLY_MERGE = 1, CORE_APPLY_ZERO = 2, CORE_APPLY_RESTORE = 3 };
enum core_apply_status {
        CORE_NOT_ASKED = 0,
        CORE_OK = 1,
        CORE_CHANGED = 2,
        CORE_PINNED_OR_FORKED = 3,
        CORE_VMA_GONE = 4,
        CORE_BUDGET = 5,
        CORE_BUSY = 6,
        CORE_ERROR = 7,
        CORE_LATER = 8,
};
struct core_extent {
        uint64_t page;
        uint32_t n_pages;
        uint32_t segment, slot; /* MERGE only */
};
struct core_apply {
        uint64_t op;
        uint32_t client;
        enum core_apply_kind kind;
        uint32_t n_extents;
        struct core_extent extents[64]; /* within one 64-page aligned block, ascending */
};
/* At most `window` applies of one client are in flight (the shell passes what its socket takes). */
bool core_next_apply(struct core *c, uint64_t now_usec, uint32_t window, struct core_apply *ret,
                     uint64_t *ret_next_usec);
/* status[page & 63], enum core_apply_status. error < 0: the request never reached the agent. 0, or -EAGAIN: its block is still being
 * forgotten, and the answer must not be forgotten with what came before it; nothing was done, answer again after core_tick. An
 * answer with an error is never refused. */
int core_apply_done(struct core *c, uint64_t op, uint64_t now_usec, const uint8_t status[64], int error);

/* -- requests with an end ------------------------------------------------------------------------------------ */

/* Merge what can be merged now: the range is scanned, settles for merge_now_settle_millisecs, is read and merged ahead of
 * other work. n_pages 0 = all ranges of the client. Completion comes as an event with the cookie. */
int core_merge_now(struct core *c, uint32_t client, uint64_t page, uint64_t n_pages, uint64_t cookie,
                   uint64_t now_usec);
/* Restore everything merged in the range (n_pages 0 = all) and take it out of merging: the client's ranges in it stay
 * registered but are not merged again until the client registers them anew; all clients: core_tunable_set(run, 2). */
int core_unmerge(struct core *c, uint32_t client, uint64_t page, uint64_t n_pages, uint64_t cookie, uint64_t now_usec);

/* Ends the client's requests with an error: it will take part in none. */
void core_requests_cancel(struct core *c, uint32_t client, int error);

struct core_event {
        uint64_t cookie;
        uint32_t client;
        int error;      /* 0; -ESRCH: the client went away; that of core_requests_cancel */
        uint64_t pages; /* merged (merge_now) or restored (unmerge) by this request */
        uint64_t left;  /* unmerge: merged pages that could not be restored */
};
bool core_next_event(struct core *c, struct core_event *ret);

/* Bounded background work (teardown, pruning, ageing). Returns when to call again at the latest. */
uint64_t core_tick(struct core *c, uint64_t now_usec);

/* -- books ---------------------------------------------------------------------------------------------------- */

/* Fills the counters that the core owns (the shell adds CPU times, waits, agents' figures). O(domains). */
void core_counters(const struct core *c, struct counters *ret);
/* Somebody is about to look at the counters: settled_scans goes on even while there is nothing to scan (round.c). */
void core_look(struct core *c, uint64_t now_usec);
struct core_client_counters {
        uint32_t domain, n_ranges;
        uint64_t registered_pages, tracked_pages, merged_pages, zero_pages, unshared_pages;
        int64_t profit_bytes;
        uint32_t vmas_used, vma_budget;
};
int core_client_counters(const struct core *c, uint32_t client, struct core_client_counters *ret);

/* Sums of the domains with ids above `after`, at most max of them, ascending. Returns how many. O(clients + domains * max). */
struct core_domain_counters {
        uint32_t domain, n_clients, n_segments;
        const void *key; /* as given to core_domain; until the next call that changes something */
        size_t key_size;
        uint64_t registered_pages, tracked_pages, merged_pages, zero_pages, unshared_pages, volatile_pages;
        uint64_t shared_pages, segment_pages, dead_pages;
};
unsigned core_domain_counters(const struct core *c, uint32_t after, struct core_domain_counters *ret, unsigned max);
/* Sums of the client's ranges from `page` on, ascending: at most max of them, and at most a millisecond's work or two. A range that does
 * not fit comes in pieces. Returns how many, or -ENOENT; *ret_next: page to go on from, 0: that was all. */
struct core_range_counters {
        uint64_t page, n_pages;
        uint64_t tracked_pages, merged_pages, zero_pages, unshared_pages;
        bool is_unmerged, is_continued;
};
int core_range_counters(struct core *c, uint32_t client, uint64_t page, struct core_range_counters *ret, unsigned max, uint64_t *ret_next);

/* Recomputes every invariant (I4, I5) and counter from scratch; NULL = all hold, else static text naming the
 * first that does not. Slow: tests and debug builds. */
const char *core_check(struct core *c);
