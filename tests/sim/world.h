/* A simulated machine around the core: processes whose pages hold small integers, a kernel that tracks writes, agents that
 * verify and act. It plays the shell: pulls work, carries it out on the simulated memory, answers; at once, or in
 * random order with writes in between.
 *
 * The world checks what the real one promises: a merge replaces a page only by equal content, a slot is written once, a
 * dropped segment is never used, ops are for living addresses. A violation prints the seed and aborts. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/core/core.h"

enum page_kind {
        KIND_HOLE,
        KIND_ANON, /* private memory; in a file mapping: copied on write, or discarded and written again */
        KIND_FILE, /* maps its slot */
        KIND_ZERO, /* the kernel's zero page */
};
struct sim_page {
        uint32_t content;       /* 0 = zeros */
        uint32_t segment, slot; /* of the file mapping that it lies in, whatever is there */
        uint8_t kind;
        uint8_t node; /* that it is on, if KIND_ANON */
        bool in_file, is_written, is_pinned;
        bool is_left_out; /* not registered */
};
struct sim_process {
        uint32_t client, domain;
        uint64_t base, n_pages;
        uint8_t home; /* node that its new pages are on */
        struct sim_page *pages;
        bool is_alive, is_stuck; /* stuck: its agent answers BUSY */
        bool has_no_witness;     /* its agent answers LATER for private pages in mappings */
        bool is_inexact;         /* the books cannot know of some mappings: left by an unregister that could not restore */
        uint32_t vmas_max;       /* merges fail with BUDGET above it; 0 = no limit */
};
struct sim_segment {
        uint32_t id, domain, n_slots;
        uint32_t *content;
        uint8_t *nodes; /* that each slot is on */
        int32_t node;   /* that it is bound to, or negative */
        bool *is_written;
        bool is_open, is_sealed;
};
struct sim_op;
struct sim_domain {
        char key[16];
        uint32_t id, new_id; /* new_id: see restart.c */
};
#define SIM_DOMAINS 8

struct world {
        struct core *core;
        uint64_t seed, random, now_usec;
        struct sim_process *processes;
        uint32_t n_processes;
        struct sim_segment *segments;
        uint32_t n_segments;
        struct sim_domain domains[SIM_DOMAINS];
        uint32_t n_domains;
        struct sim_op *ops; /* handed out and not answered */
        uint32_t n_ops, ops_capacity;
        uint32_t window, max_map_count; /* of processes to come */
        uint8_t n_nodes;     /* 0: one, and none is ever asked for */
        bool has_migrated;   /* the core has not been told yet */
        bool spoils;         /* every publish fails, and takes memory */
        uint64_t n_spoiled;
        bool is_full;        /* no node has the memory that a segment is to have of it */
        bool hides_nodes;
        uint64_t n_placed_pages; /* whose node a look asked for */
        uint64_t n_scans, n_scanned_pages, n_reads, n_applies, n_merged_calls, n_events, n_sealed, n_dropped;
        struct core_event last_event;
        unsigned collision_bits; /* hashes of only so many bits, 0 = all: equality of hashes is only a hint */
        bool leaves_gaps;        /* what is mapped or registered anew is left out at times, until everything is registered again */
        bool same_keys;          /* hashes differ only in what the index does not store beside an entry; contents below 2^14 */
        /* Called once, when something of that kind has been done and the core has not been told yet. */
        void (*meanwhile)(struct world *w);
        enum { MEANWHILE_READ, MEANWHILE_PUBLISHED, MEANWHILE_APPLIED } meanwhile_of;
        const struct core_apply *under_way; /* the transition that the core has not been told of, during meanwhile */
        unsigned fail_permille;  /* reads, publishes and applies that fail at random */
        uint64_t n_relocated;    /* merges of pages that lay in a file mapping */
};

struct world *world_new(uint64_t seed, const struct core_allocator *allocator);
void world_free(struct world *w);
uint64_t world_random(struct world *w, uint64_t below);

uint32_t world_domain(struct world *w, const char *key);
/* A process with one registered range of n_pages at page base. Returns its index. */
uint32_t world_process(struct world *w, uint32_t domain, uint64_t base, uint64_t n_pages);
void world_exit(struct world *w, uint32_t process);
void world_write(struct world *w, uint32_t process, uint64_t i, uint32_t content);
/* The program unmaps pages and maps them anew, empty; the agent says so, in two frames. */
/* Ends an unmerge, and what was left out. */
int world_register_all(struct world *w, struct sim_process *p);
void world_drop(struct world *w, uint32_t process, uint64_t i, uint64_t n);
/* The program takes pages out of merging and puts them in again: the agent restores them first, where it can. */
void world_register_anew(struct world *w, uint32_t process, uint64_t i, uint64_t n);
/* The kernel migrates pages to a node: private ones, and the slots that others map. */
void world_migrate(struct world *w, uint32_t process, uint64_t i, uint64_t n, unsigned node);
/* The node of a page that is there, in private memory or in a slot. */
unsigned world_node(const struct world *w, const struct sim_page *q);
/* MADV_DONTNEED: what lies in a file mapping stays there, as zero pages. */
void world_discard(struct world *w, uint32_t process, uint64_t i, uint64_t n);

/* The daemon dies, with whatever it had under way, and the next one takes over, but for so many segments of 1000 that were not kept
 * (restart.c). Ids of domains, clients and segments change in w. */
void world_restart(struct world *w, unsigned lost_permille);
uint64_t world_hash(const struct world *w, uint32_t content);

/* Pulls and answers everything until nothing is left at this time. */
void world_pump(struct world *w);
/* Pumps while the clock goes on by usec. */
void world_run(struct world *w, uint64_t usec);
/* A second passes, and of all that is due only scans are made. */
void world_scan(struct world *w);
/* One random step: pull an op, or answer one; for interleavings. */
void world_step(struct world *w);

struct counters world_counters(const struct world *w);
uint64_t world_vmas(const struct world *w, uint32_t process); /* that the kernel would have, for merged runs */
/* Segments that are neither sealed nor dropped. */
uint32_t world_unsealed(const struct world *w);
uint64_t world_merged(const struct world *w, uint32_t process);
/* Pages of memory that the segments take which anybody holds open or maps. */
uint64_t world_store_pages(const struct world *w);
