/* The agent: the one thread that changes mappings for userksm in this process; and how program threads talk to it.
 *
 * Program threads never see the agent's file descriptors (it has a table of its own). They put a request into a
 * mailbox and ring the bell: a byte of a page that a userfaultfd of the agent watches (lib/mailbox.h). Every request
 * is synchronous. None may be made while inside map_enter/map_leave: the agent would wait for the caller. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/userksm.h"

/* flags: enum hello_flags of proto/messages.h. Idempotent; with HELLO_MERGE_ANY again turns discovery on. 0 or -errno. */
int agent_start(const char *socket_path, unsigned flags);
/* True when an agent thread runs in this process (false again in a forked child until it has its own). */
bool agent_running(void);
/* True when the agent hears discards (it has userfaultfds): false until a daemon was met once in this process. */
bool agent_has_contexts(void);
/* True in a thread while it makes one of the agent's threads: a pthread_create of the shim passes that on as it is. */
extern __thread bool agent_making_thread __attribute__((tls_model("initial-exec")));
#define AGENT_THREADS 2U /* the agent and its watchdog */
/* In a forked child of a process that had an agent: starts the child's. Called by wrappers at their entry, outside of
 * every lock; a few loads when there is nothing to do. Also where the agent is woken when many notes wait. */
extern _Atomic uint32_t *agent_calm; /* never NULL; 1 = nothing to do. In a page that fork wipes once an agent was started */
void agent_attend(void);
static inline void agent_ensure_after_fork(void) {
        if (__builtin_expect(atomic_load_explicit(agent_calm, memory_order_relaxed) != 1, 0))
                agent_attend();
}

/* What the atfork handlers do, for forks that run none (_Fork, raw clone through syscall()). prepare and then exactly one of
 * parent or child, in the forking thread. */
void agent_fork_prepare(void);
void agent_fork_parent(void);
void agent_fork_child(void);

/* As userksm_register and friends (same errors). */
int agent_register(uint64_t start, uint64_t length);
int agent_unregister(uint64_t start, uint64_t length);
/* For madvise(MADV_MERGEABLE): registers whatever in the range is eligible, skips the rest (already registered, file,
 * shared, gaps ...). 0, or -EAGAIN when the kernel lacks the memory. Alignment is checked by the caller. */
int agent_advise_mergeable(uint64_t start, uint64_t length);
/* For MADV_UNMERGEABLE: as agent_unregister, but a range (or part of it) that is not registered is fine. */
int agent_advise_unmergeable(uint64_t start, uint64_t length);
int agent_merge(uint64_t start, uint64_t length, uint64_t *saved_bytes);
int agent_stats(struct userksm_stats *stats);

/* Give merged pages of the range private copies, now; ranges stay registered. 0; 1 = pages that were copied on write stay
 * in their file mapping (they may be pinned); -ENOMEM. 0 without an agent or when nothing is merged there. */
int agent_restore(uint64_t start, uint64_t length);
/* Restore, and never merge in the range again until it is unmapped (mlock, WIPEONFORK, DONTDUMP, mbind ...). */
int agent_exclude(uint64_t start, uint64_t length);
/* Stop userfaultfd use of the range before the program registers its own: exclude + unregister from all contexts. */
int agent_release(uint64_t start, uint64_t length);
/* Merge-any off for the whole process (prctl(PR_SET_MEMORY_MERGE, 0)): restore and unregister what discovery found. */
int agent_merge_any_stop(void);
bool agent_merge_any(void);
/* Restores everything and never makes a system call again: before a seccomp filter for all threads (SECCOMP_FILTER_FLAG_TSYNC),
 * which could end the program for what the agent does. 0, or -errno with everything as before. */
int agent_retire(void);
/* No transitions at all while set (mlockall). */
void agent_suspend(bool suspended);

/* The program has unmapped or replaced [start, start + length): drop ranges and books there. Asynchronous and cheap; may be
 * called inside the mapping lock. */
void agent_note_unmapped(uint64_t start, uint64_t length);

/* mremap succeeded: what was registered in the old place is registered in the new one (the kernel drops the userfaultfd
 * context of moved memory, KSM's VM_MERGEABLE travels along), and so are MADV_DONTFORK and what forbids merging. keep: the old
 * mapping is still there, empty (MREMAP_DONTUNMAP). Asynchronous, inside the lock. */
void agent_note_moved(uint64_t old_start, uint64_t old_length, uint64_t new_start, uint64_t new_length, bool keep);

/* The writable data of every loaded object but the program is left alone by discovery; once more after dlopen. */
void agent_note_objects(void);

/* Address ranges never to be merged, kept for discovery: thread stacks. Async, cheap, inside the lock or not. */
void agent_note_stack(uint64_t start, uint64_t length);

/* madvise(MADV_DONTFORK, DOFORK, HUGEPAGE or NOHUGEPAGE) succeeded on the range: merging goes on, replaced pages keep the attribute.
 * QEMU does this to guest memory. Async, inside the lock. */
void agent_note_advice(uint64_t start, uint64_t length, int advice);

/* In a forked child whose agent has no contexts (yet): make [start, start + length) read as zeros where it is merged (what
 * MADV_DONTNEED must do); inside the mapping lock. 0 or -errno. No-op where nothing is merged. */
int agent_discard_local(uint64_t start, uint64_t length);
