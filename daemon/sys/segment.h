/* A segment: the memfd that holds shared pages (I2: written once by the daemon, then immutable for everyone).
 *
 * Life: open (the daemon's one writable mapping fills slots; nobody else can write, map writable, truncate or punch, by
 * F_SEAL_FUTURE_WRITE|GROW|SHRINK) -> sealed (mapping gone, F_SEAL_WRITE|F_SEAL_SEAL: not even the daemon) -> freed by
 * the kernel with its last mapping and fd (I3). There is no call that reuses or punches a slot. */
#pragma once

#include <stdint.h>

#include "common/cleanup.h"

/* The same as the protocol's SEGMENT_SLOTS_MAX (asserted in daemon/store.c). */
#define SEGMENT_LIMIT_SLOTS (1U << 18)

struct segment_file {
        int fd;         /* the daemon's, read-write; -1 once sealed */
        int client_fd;  /* opened O_RDONLY: what clients get */
        uint8_t *slots; /* the writable mapping; NULL once sealed */
        uint32_t n_slots;
};

/* 0 or -errno. */
int segment_file_new(uint32_t n_slots, struct segment_file **ret);
/* Drops the writable mapping and seals for good. Can wait for pins to go away (hundreds of milliseconds): call on a worker.
 * 0, also when already sealed; -errno: sealing failed, but the daemon's mapping is gone and F_SEAL_FUTURE_WRITE still
 * stands, so the content cannot change all the same. */
int segment_file_seal(struct segment_file *s);
struct segment_file *segment_file_free(struct segment_file *s);
DEFINE_CLEANUP(struct segment_file *, segment_file_free)
