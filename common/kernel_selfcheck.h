/* The part of the kernel probe that acts: runs in a child made for it, on memory of its own. */
#pragma once

#include <stdint.h>

enum kernel_selfcheck_id {
        SELFCHECK_PAGEMAP_SCAN,
        SELFCHECK_PROCMAP_QUERY,
        SELFCHECK_USERFAULTFD,
        SELFCHECK_UFFD_DEVICE,
        SELFCHECK_MOVE,
        SELFCHECK_SCAN,
        SELFCHECK_CONTINUE,
        SELFCHECK_CLOSE_RANGE,
        SELFCHECK_MEMFD_SEALS,
        SELFCHECK_MEMFD_NOEXEC,
        SELFCHECK_MAX_
};

#define SELFCHECK_STEP_BYTES 64
struct kernel_selfcheck_result {
        int error;                       /* 0, -errno, or -EPROTO: the kernel did not do what it reported */
        char step[SELFCHECK_STEP_BYTES]; /* what failed; "" when nothing did */
};

struct kernel_selfcheck {
        uint64_t uffd_features;
        struct kernel_selfcheck_result results[SELFCHECK_MAX_];
};

/* Fills *ret. 0, or -errno when no child could be made. A child that dies or does not end within
 * SELFCHECK_TIMEOUT_MS leaves -ENODATA in the checks it did not reach. */
#define SELFCHECK_TIMEOUT_MS 3000
int kernel_selfcheck_run(struct kernel_selfcheck *ret);
