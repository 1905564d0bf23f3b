/* What the shell keeps for the core's domains and segments: the hash secret of each domain, the memfd of each segment.
 *
 * Segments of domains that a later daemon will know again are kept in the service manager's fd store too, from before their first
 * use until they are dropped, so that they outlive this process, however it ends; recover.h takes them over.
 *
 * A domain lives as long as someone holds a reference: clients, segments, jobs. A segment is opened when the core first
 * publishes into it and leaves with CORE_SEGMENT_DROP; sealing and freeing wait until no job uses it and run on a worker,
 * because both can take milliseconds. Loop's thread only; a worker uses what its job has pinned. */
#pragma once

#include <stdint.h>

#include "daemon/core/core.h"
#include "daemon/idmap.h"
#include "daemon/sys/digest.h"
#include "daemon/sys/workers.h"
#include "daemon/sys/segment.h"

struct store;

struct store_domain {
        struct store *store;
        uint32_t id;
        unsigned n_refs;
        struct digest_secret secret;
        size_t key_size; /* 0: not one that lasts */
        char key[];
};

struct store_segment {
        struct worker_job job; /* seal or free, one at a time */
        struct store *store;
        uint32_t id;
        struct store_domain *domain;
        struct segment_file *segment;
        unsigned n_pins;
        bool seal_wanted, free_wanted;
        bool is_kept; /* in the service manager's store */
        int error; /* of the job */
};

struct store {
        struct idmap domains, segments;
        struct idmap by_inode; /* the low 32 bits; of two that agree in those only the first */
        struct workers *workers;
        int filler; /* of segments; not its own */
};

/* filler is set before the first segment is made, workers before the first segment event. */
void store_init(struct store *s);
/* After the pool is gone: frees what is left. */
void store_done(struct store *s);

/* Finds or creates that of the core's id, whose key this is. 0 or -errno. */
int store_domain_open(struct store *s, uint32_t id, const char *key, size_t key_size, struct store_domain **ret);
struct store_domain *store_domain_ref(struct store_domain *d);
struct store_domain *store_domain_unref(struct store_domain *d);

struct store_segment *store_segment_find(struct store *s, uint32_t id);
/* The one whose memfd has this inode number, or NULL. */
struct store_segment *store_segment_by_inode(struct store *s, uint64_t inode);
/* Finds or creates, with memory that comes from the node, -1: from any. 0 or -errno. */
int store_segment_open(struct store *s, uint32_t id, struct store_domain *domain, uint32_t n_slots, int node, struct store_segment **ret);
/* A file that is there, of an earlier daemon and kept by the service manager. It is the store's from then on, not on failure. 0 or -errno. */
int store_segment_adopt(struct store *s, uint32_t id, struct store_domain *domain, struct segment_file *file);
void store_segment_pin(struct store_segment *s);
void store_segment_unpin(struct store_segment *s);
void store_segment_event(struct store *s, const struct core_segment_event *e);
/* Tells our jobs from the scanner's. */
bool store_is_job(const struct worker_job *job);
void store_job_done(struct store *s, struct worker_job *job);
