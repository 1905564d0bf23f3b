/* A process as an offline analyser sees it: its private memory, read through /proc.
 *
 * Candidates are the anonymous pages of private mappings, copies of file pages (.data, relocated constants) among them,
 * and the pages of userksm's segments (merged already). Not candidates: the kernel's zero page (it costs nothing),
 * pages of other files, swapped pages, and a page in transition (EIO; counted).
 *
 * The memory is read through /proc/PID/mem, which cannot hang on a page whose owner does not answer. The process is not
 * stopped: a page that changes meanwhile counts as it was when read. Needs the right to ptrace the process. */
#pragma once

#include <stdint.h>

enum target_ranges {
        TARGET_ALL,       /* every private mapping */
        TARGET_ANONYMOUS, /* readable and writable anonymous ones (or merged): what userksm accepts */
        TARGET_MERGEABLE, /* those offered for merging: VmFlags mg (kernel KSM), um, uw, ui (registered with userksm) */
};

struct target_result {
        char comm[16];
        uint64_t n_vmas;      /* of the whole process */
        uint64_t unreadable;  /* pages */
        uint64_t swapped;     /* pages */
};

/* Called in address order. Negative: stop with that error. */
typedef int (*target_page_fn)(uint64_t page, uint32_t vma, const void *bytes, void *userdata);

/* 0 or a negative errno: -ESRCH no such process or gone meanwhile, -EPERM, -EACCES. */
int target_read(int pid, enum target_ranges ranges, target_page_fn fn, void *userdata, struct target_result *ret);
