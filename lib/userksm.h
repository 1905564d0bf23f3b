/* userksm: same-page merging for this process, through the userksmd daemon.
 *
 * Contract
 *  - Exactness: no byte that the program reads differs because of this library, whatever the daemon does, including
 *    dying. Without a daemon every call succeeds as documented and nothing is merged.
 *  - Errors: 0 (or a documented value) or a negative errno; errno itself is not touched. A failed call changed nothing.
 *  - Threads: every function may be called from any thread at any time, not from signal handlers.
 *  - The library starts one thread of its own (the agent, all signals blocked, private file descriptors) at
 *    userksm_init. It never calls malloc.
 *  - fork: the child keeps its memory and starts an agent of its own by itself; it is registered like the parent.
 *  - exec: nothing survives; the new program starts afresh.
 *  - Mapping calls: a page in transition must not be unmapped, remapped or have its attributes changed. A program
 *    running under the shim (libuserksm-preload.so, `ksmctl run`) needs no care. A program that only links this
 *    library must use the userksm_m* wrappers below, or bracket its calls with userksm_map_lock, for addresses
 *    inside registered ranges; memory of malloc must not be registered without the shim (libc unmaps it by itself). */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Starts the agent (once; later calls return 0). socket_path NULL: $USERKSM_SOCKET, else /run/userksm/userksm.sock. It
 * connects in the background, now or when a daemon appears. -EAGAIN: no thread could be created; -ENAMETOOLONG. */
int userksm_init(const char *socket_path);

/* Registers [addr, addr + length): private anonymous readable and writable memory, page multiples.
 *  -EINVAL   addr or length not a page multiple, length 0, wraps, or shared, file, hugetlb, read-only, PROT_NONE memory, or
 *            a range overlapping one already registered only in part
 *  -EEXIST   already registered, exactly or wholly inside a registered range
 *  -ENOMEM   part of it is not mapped, or no memory for the books
 *  -EBUSY    part of it belongs to another userfaultfd
 *  -EPERM    memory that must stay as it is: mlocked, WIPEONFORK, DONTDUMP, sealed, policy or key of its own */
int userksm_register(void *addr, size_t length);

/* Gives every merged page in the range a private copy (synchronously) and forgets it.
 *  -EINVAL as above; -ENOENT nothing registered there; -ENOMEM not enough memory for the copies: what is left stays merged
 *  and registered. */
int userksm_unregister(void *addr, size_t length);

/* Merges now what can be merged now in the range (pages unwritten for about 10 ms). Returns when done; bytes saved by
 * this call in *saved_bytes (may be NULL).
 *  -ENOENT not registered; -ENOTCONN no daemon; -ETIMEDOUT the daemon did not answer for 30 s. */
int userksm_merge(void *addr, size_t length, uint64_t *saved_bytes);

struct userksm_stats {
        size_t size; /* in: sizeof(struct userksm_stats); fields beyond it are not written */
        uint64_t registered_bytes;
        uint64_t merged_bytes;     /* mapped from shared segments now, by the agent's books */
        uint64_t agent_cpu_usec;
        uint64_t transitions;
        uint64_t busy;             /* transitions put off because a thread was inside a mapping call */
        uint32_t connected;        /* 1: a daemon has accepted us */
        uint32_t raw_syscalls;     /* 1: the program changes mappings without libc: merging has stopped */
};
int userksm_stats(struct userksm_stats *stats);

/* Brackets mapping calls made by other means. Nests; keep short: no transition runs in between. */
void userksm_map_lock(void);
void userksm_map_unlock(void);

/* As libc's calls (same results and errno), safe inside registered ranges. */
int userksm_munmap(void *addr, size_t length);
void *userksm_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset);
void *userksm_mremap(void *addr, size_t old_length, size_t new_length, int flags, void *new_addr);
int userksm_madvise(void *addr, size_t length, int advice);
int userksm_mprotect(void *addr, size_t length, int prot);
int userksm_mlock(const void *addr, size_t length);

#ifdef __cplusplus
}
#endif
