/* A segment: the memfd that holds shared pages (I2: written once by the daemon, then immutable for everyone).
 *
 * Behind the slots stands one page more, the label: what a later daemon must know to take the segment over from the service
 * manager's fd store (daemon/recover.h). It is written before anyone else has an fd, and under the same seals.
 *
 * Slots are filled by UFFDIO_COPY through the daemon's mapping, the only one that the seals still let be filled: an empty slot gets its bytes
 * with its page, one that has a page is refused (EEXIST). The mapping is read-only, so that no stray store of the daemon reaches a slot,
 * and an empty slot has nothing to be read there (SIGBUS). It costs half of what a store to each page does: nothing is cleared.
 *
 * Life: open (slots are filled; nobody else can write, map writable, truncate or punch, by
 * F_SEAL_FUTURE_WRITE|GROW|SHRINK) -> sealed (mapping gone, F_SEAL_WRITE|F_SEAL_SEAL: not even the daemon) -> freed by
 * the kernel with its last mapping and fd (I3). There is no call that reuses or punches a slot. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/cleanup.h"

/* The same as the protocol's SEGMENT_SLOTS_MAX (asserted in daemon/store.c). */
#define SEGMENT_LIMIT_SLOTS (1U << 18)

/* What the label has room for. Longer, or empty: nobody takes the segment over, it lives as long as its mappings. */
#define SEGMENT_KEY_BYTES 3072U

struct segment_file {
        int fd;         /* the daemon's, read-write; -1 once sealed, and when taken over */
        int client_fd;  /* opened O_RDONLY: what clients get */
        int filler;     /* not its own */
        uint8_t *slots; /* what is filled; NULL once sealed */
        uint32_t n_slots;
        uint64_t inode; /* what the owner of a mapping of it reads in /proc/self/maps */
        int node; /* that its memory is to come from; -1: any */
        bool has_label;
};

/* A userfaultfd of ours (device: /dev/userfaultfd), which fills the slots of any number of segments and outlives them. Or -errno. */
int segment_filler_open(int device);

/* node: that its memory is to come from (numa_bind: a wish), -1: any. key: that of its domain, for the label. 0 or -errno. */
int segment_file_new(int filler, uint32_t n_slots, int node, const void *key, size_t key_size, struct segment_file **ret);

/* Takes over what segment_file_new of an earlier daemon made: fd is its client_fd, which stays the caller's on failure. Nothing can
 * have changed it since: that its seals, owner and mode are those of a segment is checked, and the label's shape.
 * ret_key: SEGMENT_KEY_BYTES. 0; -EINVAL or other -errno with static text. */
int segment_file_adopt(int fd, struct segment_file **ret, void *ret_key, size_t *ret_key_size, const char **ret_reason);
/* Fills neighbouring slots, never filled before, with pages of bytes that do not change meanwhile. Returns how many, from the first on, or
 * -errno: none, -EEXIST when the first has been filled. Any thread. */
int segment_file_fill(const struct segment_file *s, uint32_t slot, const void *bytes, uint32_t n_slots);
/* Slots from the given one on, for as many as fit `bytes` at most; read without allocating where nothing was written (zeros there).
 * Returns how many, or -errno. */
int segment_file_read(const struct segment_file *s, uint32_t slot, void *bytes, size_t size);

/* Drops the mapping and seals for good. Can wait for pins to go away (hundreds of milliseconds): call on a worker.
 * 0, also when already sealed; -errno: sealing failed, but the daemon's mapping is gone and F_SEAL_FUTURE_WRITE still
 * stands, so the content cannot change all the same. */
int segment_file_seal(struct segment_file *s);
struct segment_file *segment_file_free(struct segment_file *s);
DEFINE_CLEANUP(struct segment_file *, segment_file_free)
