/* What the kernel says about this process's mappings: one VMA by address (PROCMAP_QUERY), and the attributes that only
 * /proc/self/smaps shows. The agent's books may be stale; these are not, as long as the mapping lock is held. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct vma {
        uint64_t start, end;
        uint64_t flags;  /* PROCMAP_QUERY_VMA_* */
        uint64_t offset; /* of file mappings */
        uint64_t inode;
        /* No file, no name but [heap], and not the agent's own, which may stand where the program had registered memory that libc
         * unmapped by itself: may be merged as far as this tells. */
        bool anonymous;
        bool segment;    /* a private mapping of a segment of userksmd (by its memfd name) */
};

/* The VMA that covers addr, or with `next` the first one at or above it. 0, -ENOENT, other -errno. */
int vma_query(int maps_fd, uint64_t addr, bool next, struct vma *ret);

/* anonymous, private, readable and writable, not executable */
bool vma_is_candidate(const struct vma *v);

int vma_prot(const struct vma *v); /* PROT_* */

enum vma_special {
        VMA_FORBIDDEN = 1, /* locked, WIPEONFORK, DONTDUMP, hugetlb, sealed, device, protection key: left alone */
        VMA_DONTFORK = 2,  /* must stay so when its pages are replaced (QEMU marks guest memory like this) */
        VMA_HUGEPAGE = 4,
        VMA_NOHUGEPAGE = 8,
};
/* Reads smaps from fd and calls f for every VMA with one of the above. buffer: scratch space. Cost: the kernel walks every
 * page table of the process. 0 or -errno. */
int vma_each_special(int smaps_fd, char *buffer, uint32_t buffer_size,
                     void (*f)(void *userdata, uint64_t start, uint64_t end, unsigned special), void *userdata);
