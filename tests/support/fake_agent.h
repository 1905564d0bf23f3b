/* An agent in miniature, for tests of the daemon: one thread, no races, real memory, its own userfaultfds. It does what it
 * is asked, after checking that the daemon's advice is right: pages to be merged equal the slots named, pages to be zeroed
 * are zero. Every reply that is not as the test ordered ends the test. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/support/daemon_process.h"

#define FAKE_SEGMENTS_MAX 256

struct fake_agent {
        int fd, track, shared;
        uint32_t client;
        uint8_t *memory;
        size_t n_pages;
        struct fake_segment {
                uint32_t id, n_slots;
                int fd;
                const uint8_t *slots;
        } segments[FAKE_SEGMENTS_MAX];
        unsigned n_segments;
        /* What happened so far. */
        uint64_t merged, zeroed, restored, applies, dropped, pings;
        bool merge_done;
        struct msg_merge_done last_merge_done;
        /* Orders. */
        bool mute;         /* reads, but answers nothing */
        uint8_t refuse;    /* this apply_status for every page, nothing done; 0 = do it */
        struct msg_applied held; /* an answer that mute kept back */
        bool has_held;
};

/* Connects; no memory yet. */
void fake_agent_start(struct fake_agent *a, const struct daemon_process *d);
/* Maps n pages (64-page aligned) and registers them for tracking; the caller fills them, then announces. */
void fake_agent_map(struct fake_agent *a, size_t n_pages);
void fake_agent_announce(struct fake_agent *a);
/* Handles one frame if one comes within the time. */
bool fake_agent_step(struct fake_agent *a, int timeout_msec);
/* The same for an agent that the daemon is about to disconnect: false when it has. */
bool fake_agent_step_unless_closed(struct fake_agent *a, int timeout_msec);
void fake_agent_stop(struct fake_agent *a);
static inline uint8_t *fake_page(const struct fake_agent *a, size_t i) {
        return a->memory + i * 4096;
}
