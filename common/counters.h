/* The counters of `stats`: one table, from which come the daemon's struct, the wire order, the names in
 * JSON and the manual page. X(name, unit, text). Append only: the order is the wire order.
 *
 * Names and meanings up to general_profit are those of /sys/kernel/mm/ksm (kernel admin guide, "Kernel
 * Samepage Merging"); the rest is ours. Every value is a signed 64-bit integer. */
#pragma once

#include <stdint.h>

#define COUNTERS(X)                                                                                                   \
        X(pages_shared, PAGES, "shared pages in use (slots with at least one sharer)")                               \
        X(pages_sharing, PAGES, "further mappings of them: pages saved, the first mapping of each not counted")      \
        X(pages_unshared, PAGES, "pages unique so far, hashed and watched for a match")                              \
        X(pages_volatile, PAGES, "pages that changed too recently to be read")                                       \
        X(ksm_zero_pages, PAGES, "pages given back because they held only zeros")                                    \
        X(full_scans, COUNT, "times every registered range was walked to its end, and what had settled was read")    \
        X(pages_scanned, PAGES, "pages read and hashed")                                                             \
        X(pages_skipped, PAGES, "present pages that a pass did not read because nothing wrote them")                 \
        X(stable_node_chains, COUNT, "contents that needed more than one shared page (max_page_sharing)")            \
        X(stable_node_dups, COUNT, "shared pages in those chains")                                                   \
        X(general_profit, BYTES, "saved bytes (sharing + zero) less our metadata and dead_bytes")                    \
        X(clients, COUNT, "processes connected")                                                                     \
        X(domains, COUNT, "merge domains in use")                                                                    \
        X(registered_pages, PAGES, "address space registered")                                                       \
        X(tracked_pages, PAGES, "pages present in it and known to the daemon")                                       \
        X(runs, COUNT, "merged runs (extents) mapped")                                                               \
        X(vmas_used, COUNT, "estimated VMAs that merged runs take")                                                  \
        X(vma_budget, COUNT, "VMAs that merged runs may take, all clients together")                                 \
        X(segments, COUNT, "segments (memfds) open")                                                                 \
        X(segment_bytes, BYTES, "bytes of shared pages ever published in open segments")                             \
        X(dead_bytes, BYTES, "of them, bytes that nobody shares any more")                                           \
        X(metadata_bytes, BYTES, "memory of the daemon's books")                                                     \
        X(merges, PAGES, "pages merged so far")                                                                      \
        X(unshares, PAGES, "merged pages that a write, an unmap or an unmerge took out again")                       \
        X(failed_changed, PAGES, "merges refused because the page had changed")                                      \
        X(failed_pinned_or_forked, PAGES, "merges refused because the page was pinned or shared by fork")            \
        X(failed_vma_gone, PAGES, "merges refused because the mapping was gone or not eligible")                     \
        X(failed_budget, PAGES, "merges refused because a limit (VMAs, segment bytes) was reached")                  \
        X(failed_error, PAGES, "merges refused by an unexpected error")                                              \
        X(agent_busy, COUNT, "transitions put off because the program was changing its mappings")                    \
        X(raw_syscalls, COUNT, "processes left alone because they change mappings without libc")                     \
        X(daemon_cpu_usec, USEC, "CPU time of the daemon")                                                           \
        X(agents_cpu_usec, USEC, "CPU time of the agents of connected processes")                                    \
        X(transitions, COUNT, "transitions completed by agents")                                                     \
        X(wait_le_64_usec, COUNT, "accesses that waited at most 64 us on a page in transition")                      \
        X(wait_le_128_usec, COUNT, "... at most 128 us")                                                             \
        X(wait_le_256_usec, COUNT, "... at most 256 us")                                                             \
        X(wait_le_512_usec, COUNT, "... at most 512 us")                                                             \
        X(wait_le_1024_usec, COUNT, "... at most 1 ms")                                                              \
        X(wait_le_4096_usec, COUNT, "... at most 4 ms")                                                              \
        X(wait_le_16384_usec, COUNT, "... at most 16 ms")                                                            \
        X(wait_gt_16384_usec, COUNT, "... longer")                                                                   \
        X(turn_le_256_usec, COUNT, "turns of the daemon's loop that kept others waiting at most 256 us")             \
        X(turn_le_1024_usec, COUNT, "... at most 1 ms")                                                              \
        X(turn_le_4096_usec, COUNT, "... at most 4 ms")                                                              \
        X(turn_le_16384_usec, COUNT, "... at most 16 ms")                                                            \
        X(turn_le_50000_usec, COUNT, "... at most 50 ms")                                                            \
        X(turn_le_250000_usec, COUNT, "... at most 250 ms")                                                          \
        X(turn_gt_250000_usec, COUNT, "... longer")                                                                  \
        X(turn_longest_usec, USEC, "the longest so far")                                                             \
        X(turn_cpu_le_256_usec, COUNT, "the same by CPU time of the loop: turns of at most 256 us")                  \
        X(turn_cpu_le_1024_usec, COUNT, "... at most 1 ms")                                                          \
        X(turn_cpu_le_4096_usec, COUNT, "... at most 4 ms")                                                          \
        X(turn_cpu_le_16384_usec, COUNT, "... at most 16 ms")                                                        \
        X(turn_cpu_le_50000_usec, COUNT, "... at most 50 ms")                                                        \
        X(turn_cpu_le_250000_usec, COUNT, "... at most 250 ms")                                                      \
        X(turn_cpu_gt_250000_usec, COUNT, "... longer")                                                              \
        X(turn_cpu_longest_usec, USEC, "the longest so far")                                                         \
        X(threads_lost, COUNT, "worker threads that hang on memory or descriptors of a client now")                  \
        X(log_suppressed, COUNT, "log lines about clients left out because there were too many")                      \
        X(segments_adopted, COUNT, "segments taken over from an earlier daemon")                                     \
        X(pages_adopted, PAGES, "merged pages that processes reported: mapped since before this daemon, or a fork")    \
        X(sessions_refused, COUNT, "connections refused so far because descriptors, memory or places were lacking") \
        X(memory_left_bytes, BYTES, "memory that the limits of the daemon's control groups leave it; 2^63 - 1: no limit")                 \
        X(memory_short, COUNT, "1: too little of it is left to share anything new")                                  \
        X(dups_for_runs, COUNT, "of stable_node_dups, those kept because dropping them would split a run")            \
        X(governor, COUNT, "what scanning does: 0 stopped (run), 1 rests (only_under_pressure), 2 idle, 3 works, 4 hurries (memory is short)") \
        X(cpu_allowed_permille, COUNT, "CPU time that scanning may take now, thousandths of one core")               \
        X(memory_pressure_permille, COUNT, "time of the last 10 s that processes waited for memory, in thousandths; -1: not known") \
        X(memory_available_permille, COUNT, "memory of the machine that is available, in thousandths; -1: not known") \
        X(settled_scans, COUNT, "full scans that programs written for kernel KSM count: what was registered before the last but one is merged") \
        X(slots_misplaced, PAGES, "shared pages that the kernel has migrated to another NUMA node, not filed there yet (merge_across_nodes 0)")

enum counter_unit { UNIT_COUNT, UNIT_PAGES, UNIT_BYTES, UNIT_USEC };

enum counter_id {
#define X(name, unit, text) COUNTER_##name,
        COUNTERS(X)
#undef X
                COUNTER_MAX_
};

struct counters {
#define X(name, unit, text) int64_t name;
        COUNTERS(X)
#undef X
};
_Static_assert(sizeof(struct counters) == COUNTER_MAX_ * sizeof(int64_t), "counters is an array by name");

/* Values of `governor`; daemon/governor.h says what they mean. Append only. */
enum governor_state { GOVERNOR_STOPPED, GOVERNOR_REST, GOVERNOR_IDLE, GOVERNOR_WORK, GOVERNOR_HURRY };

/* Buckets of the wait histogram above, upper bounds in microseconds; the last bucket has none. */
#define WAIT_BUCKETS 8
static const uint32_t wait_bucket_usec[WAIT_BUCKETS - 1] = { 64, 128, 256, 512, 1024, 4096, 16384 };
/* The same of the two turn histograms. */
#define TURN_BUCKETS 7
static const uint32_t turn_bucket_usec[TURN_BUCKETS - 1] = { 256, 1024, 4096, 16384, 50000, 250000 };
