/* One userfaultfd of the agent, and what its messages mean (design 4). A VMA belongs to one context; to change it,
 * context_unregister, then context_register in the other: registering again with other modes is a silent no-op or
 * loses writes. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "common/uapi.h"

struct context {
        int fd; /* -1: not open */
};

struct context_events {
        void (*fault)(void *userdata, uint64_t address, uint64_t flags); /* UFFD_PAGEFAULT_FLAG_* */
        void (*remove)(void *userdata, uint64_t start, uint64_t end);    /* before the zap: the caller still waits */
        void (*remap)(void *userdata, uint64_t from, uint64_t to, uint64_t length); /* after the move: the caller still waits */
        void *userdata;
};

/* device: fd of /dev/userfaultfd; features: UFFD_FEATURE_*. 0 or -errno. */
int context_open(struct context *c, int device_fd, uint64_t features);
void context_close(struct context *c);

int context_register(const struct context *c, uint64_t start, uint64_t end, uint64_t mode);
int context_unregister(const struct context *c, uint64_t start, uint64_t end);
/* For what must not be left half-done: tried again while the kernel has no memory for it. The range must be the whole of its VMA, or
 * become what its neighbours are: then it needs no other VMA, and a limit on those cannot be in the way. */
int context_register_surely(const struct context *c, uint64_t start, uint64_t end, uint64_t mode);
int context_unregister_surely(const struct context *c, uint64_t start, uint64_t end);
void context_wake(const struct context *c, uint64_t start, uint64_t end);

/* Reads every message that is there; never blocks. Returns how many. An unread *event* makes other ioctls of the
 * context fail with EAGAIN. */
unsigned context_drain(const struct context *c, const struct context_events *events);

/* One try each; 0 or -errno (-EAGAIN: drain and try again). len in bytes. */
int context_move(const struct context *c, uint64_t dst, uint64_t src, uint64_t length);
int context_copy(const struct context *c, uint64_t dst, uint64_t src, uint64_t length, uint64_t *ret_copied);
int context_continue(const struct context *c, uint64_t start, uint64_t end, uint64_t *ret_end);
int context_zeropage(const struct context *c, uint64_t start);
int context_writeprotect(const struct context *c, uint64_t start, uint64_t end, bool protect);

/* Categories of the pages of one block as bit masks (bit i = page i of the 64 from start); own pagemap. */
struct look {
        uint64_t present, file, zero, huge, swapped, written;
};
int look_at(int pagemap_fd, uint64_t start, uint32_t n_pages, struct look *ret);
/* The same without `file`, for which the kernel looks at each page itself (docs/kernel.md): where there can be none. */
int look_at_entries(int pagemap_fd, uint64_t start, uint32_t n_pages, struct look *ret);
