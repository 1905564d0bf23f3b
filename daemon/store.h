/* What the shell keeps for the core's domains and segments: the hash secret of each domain, the memfd of each segment.
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
};

struct store_segment {
        struct worker_job job; /* seal or free, one at a time */
        struct store *store;
        uint32_t id;
        struct store_domain *domain;
        struct segment_file *segment;
        unsigned n_pins;
        bool seal_wanted, free_wanted;
        int error; /* of the job */
};

struct store {
        struct idmap domains, segments;
        struct workers *workers;
};

void store_init(struct store *s, struct workers *workers);
/* After the pool is gone: frees what is left. */
void store_done(struct store *s);

int store_domain_ref(struct store *s, uint32_t id, struct store_domain **ret);
struct store_domain *store_domain_unref(struct store_domain *d);

struct store_segment *store_segment_find(struct store *s, uint32_t id);
/* Finds or creates. 0 or -errno. */
int store_segment_open(struct store *s, uint32_t id, uint32_t domain, uint32_t n_slots, struct store_segment **ret);
void store_segment_pin(struct store_segment *s);
void store_segment_unpin(struct store_segment *s);
void store_segment_event(struct store *s, const struct core_segment_event *e);
/* Tells our jobs from the scanner's. */
bool store_is_job(const struct worker_job *job);
void store_job_done(struct store *s, struct worker_job *job);
