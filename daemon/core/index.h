/* The index: from a hash to 32-bit ids, for contents (pages and slots of a domain) and for blocks alike.
 *
 * Lines of 64 bytes hold 8 entries {key, id}: the key is the top 32 bits of the hash, and an entry's line follows from it. The index
 * does not keep hashes: a key that fits is a hint, the owner compares what it knows of the id. Of 2^28 entries one in 2^8 neighbours fits by
 * chance, so one lookup in 30 looks at an id for nothing.
 *
 * Growth is bounded: the key's first bits choose a shard, a shard grows by 1.25 and is split in two when it reaches
 * SHARD_MAX_LINES, and each such step touches this one shard only (99 in 100 below 0.9 ms), and nothing of what its ids name: with
 * other bits than the key's in the entries each id would have to be asked for its key, a cache miss each, four for each insertion.
 *
 * At 10^8 entries nearly every read of a line, or of what an id names, is a cache miss. So who has many lookups to make says so before
 * (index_fetch).
 *
 * A probe walks lines from the home line and ends at the first line with an empty entry. Deleting clears an entry; in a
 * line without empty ones it leaves a tombstone, so that probes go on; rebuilds drop them. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/core/memory.h"

struct index_entry {
        uint32_t key, id;
};
struct index_shard;

struct index {
        struct memory *memory;
        void (*fetch)(void *owner, uint32_t id); /* prefetches what the match of a lookup reads of the id */
        void *owner;
        struct index_shard **shards; /* 1 << depth pointers; a shard shallower than the directory appears repeatedly */
        uint32_t depth;
        uint64_t n_entries;
};

static inline uint32_t index_key(uint64_t hash) {
        return (uint32_t) (hash >> 32);
}

void index_init(struct index *x, struct memory *m, void (*fetch)(void *owner, uint32_t id), void *owner);
void index_done(struct index *x);
/* 0 or -ENOMEM (nothing changed). The same id must not be there yet; ids below INDEX_ID_MAX. */
#define INDEX_ID_MAX (UINT32_MAX - 2)
int index_insert(struct index *x, uint64_t hash, uint32_t id);
/* True when it was there. */
bool index_remove(struct index *x, uint64_t hash, uint32_t id);
bool index_replace(struct index *x, uint64_t hash, uint32_t id, uint32_t new_id);

/* Calls match for each entry with the hash's key until it returns true; returns that id or NIL. */
uint32_t index_find(const struct index *x, uint64_t hash, bool (*match)(void *userdata, uint32_t id), void *userdata);
/* What lookups of these hashes will read is brought near all at once: far memory takes as long for one as for ten. */
void index_fetch(const struct index *x, const uint64_t *hashes, size_t n);
/* Visits every entry (checks). */
void index_each(const struct index *x, void (*visit)(void *userdata, struct index_entry e), void *userdata);
uint64_t index_bytes(const struct index *x);
