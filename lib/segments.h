/* The segments a daemon has shown to this process: id to read-only fd. */
#pragma once

#include <stdint.h>

struct segment {
        uint32_t id, n_slots;
        int fd;
        uint64_t inode; /* as PROCMAP_QUERY tells it of a mapping */
};
struct segments {
        struct segment *v; /* ascending ids: the daemon counts upwards */
        uint32_t n, capacity;
};

/* Takes the fd. Checks that nobody can shrink or write the file behind our back (seals): -EPERM else. */
int segments_add(struct segments *s, uint32_t id, uint32_t n_slots, int fd);
const struct segment *segments_find(const struct segments *s, uint32_t id);
void segments_drop(struct segments *s, uint32_t id);
void segments_drop_all(struct segments *s);
