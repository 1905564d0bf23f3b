/* The protocol between daemon, agents and admin tools: message types, bodies, and the one table of their
 * shapes.
 *
 * Transport: SOCK_SEQPACKET on a Unix socket; one frame a packet; native byte order and layout (both ends
 * are on one machine). A frame is a header, a fixed body, then n elements of one type. Decoding is strict
 * (proto/codec.h): exact size, count within its limit, reserved fields zero, exact number of fds, known
 * type for the receiver's role; anything else is a violation and the connection is closed.
 *
 * The first frame decides the role: HELLO (an agent) or ADMIN_HELLO (ksmctl and friends). Frames of the
 * other role, or before the first, are violations. A wrong version is answered with REFUSED, then closed.
 *
 * Addresses and lengths are in bytes and page aligned unless a name says _pages. */
#pragma once

#include <stdint.h>

/* Bumped on any change of layout or meaning; equal or refused. */
#define PROTO_VERSION 1
/* One packet: more than the largest table row below, less than any sane SO_SNDBUF. */
#define FRAME_MAX_BYTES 16384
#define FRAME_MAX_FDS 4

/* The header has this layout in every version, so that a wrong version can be told from a wrong frame. */
struct frame_header {
        uint32_t size;    /* of the whole packet, header included */
        uint16_t type;    /* enum message_type */
        uint16_t version; /* PROTO_VERSION */
        uint32_t count;   /* elements that follow the fixed body */
        uint32_t reserved;
};

enum hello_flags {
        HELLO_SHIM = 1 << 0,      /* libc's mapping calls are interposed */
        HELLO_MERGE_ANY = 1 << 1, /* every eligible mapping is registered */
        HELLO_REPORTS = 1 << 2,   /* sends RUNS when WELCOME asks for it */
        HELLO_NODES = 1 << 3,     /* answers NODES_REQUEST */
        HELLO_FLAGS_ALL = HELLO_SHIM | HELLO_MERGE_ANY | HELLO_REPORTS | HELLO_NODES,
};

/* agent -> daemon, with fds { /proc/self/pagemap, /proc/self/mem }, both opened read-only by the agent
 * itself: consent, bound to its mm. */
struct msg_hello {
        uint32_t flags;
        uint32_t page_size;     /* 4096 to 65536; the daemon refuses all but 4096, in words */
        uint32_t max_map_count; /* vm.max_map_count as the agent reads it, 0 if it cannot */
        uint32_t n_vmas;        /* VMAs of the process at this time */
        char comm[16];          /* NUL padded, display only */
};

/* daemon -> agent, with fd { /dev/userfaultfd }. */
struct msg_welcome {
        uint32_t client;
        uint32_t flags; /* enum welcome_flags; 0 to who did not say HELLO_REPORTS */
};
enum welcome_flags {
        WELCOME_REPORT = 1 << 0, /* there are segments that runs of this process may map: send RUNS */
        WELCOME_FLAGS_ALL = WELCOME_REPORT,
};

/* daemon -> anyone, then the connection is closed. */
struct msg_refused {
        int32_t error; /* errno value */
        uint32_t reserved;
        char reason[112]; /* NUL padded text for a person */
};

/* No user address is above it: 57-bit address spaces (five-level page tables), the kernel's half excluded. */
#define ADDRESS_LIMIT (UINT64_C(1) << 56)

/* Not empty, ends at or below ADDRESS_LIMIT. */
struct range_element {
        uint64_t start, length;
};
#define RANGES_MAX 512

/* agent -> daemon: elements = ranges now tracked (registered with the track userfaultfd). Overlap with a known
 * range is merged into it. */
struct msg_range_add {
        uint32_t n_vmas; /* VMAs of the process now: input of the VMA budget */
        uint32_t reserved;
};
/* agent -> daemon: elements = ranges no longer registered; anything merged in them was restored or unmapped. */
struct msg_range_del {
        uint64_t reserved;
};
/* agent -> daemon: elements = pages that no longer map what the daemon merged there (unmapped, removed,
 * restored on the program's behalf); the ranges stay registered. */
struct msg_gone {
        uint64_t reserved;
};

/* agent -> daemon, after WELCOME_REPORT and RANGE_ADD, in any number of frames: elements = runs of pages that this process maps from
 * segments already, from before this connection (a daemon that was restarted, a fork). Known by inode, because the ids of segments
 * are the daemon's. What is not a segment of the client's own domain is passed over without a word. */
struct msg_runs {
        uint64_t reserved;
};
struct run_element {
        uint64_t page;  /* address >> 12 of the first page */
        uint64_t inode; /* of the segment's memfd */
        uint32_t n_pages; /* 1..64, within one 64-page aligned block */
        uint32_t slot;    /* of the first page; slots are consecutive */
};
/* A frame costs the daemon some 100 us at most, like the others. */
#define RUNS_MAX 128

/* agent -> daemon: merge what can be merged now in the range; answered by MERGE_DONE. */
struct msg_merge_request {
        uint64_t cookie, start, length;
};
/* daemon -> agent and daemon -> admin. */
struct msg_merge_done {
        uint64_t cookie;
        uint64_t saved_bytes;
        int32_t error; /* 0 or errno value */
        uint32_t reserved;
};

/* agent -> daemon, at most once a second while something changed. Totals since the agent started. */
struct msg_agent_stats {
        uint64_t cpu_usec;
        uint64_t transitions;
        uint64_t busy;  /* transitions put off: a thread was inside a mapping call */
        uint64_t waits[8]; /* wait_bucket_usec of common/counters.h */
        uint32_t n_vmas;
        uint32_t flags; /* enum agent_flags, as it is now */
};
enum agent_flags {
        AGENT_RAW = 1 << 0,       /* mappings are changed without libc, merging has stopped here */
        AGENT_MERGE_ANY = 1 << 1, /* as HELLO_MERGE_ANY: the program may turn it on and off (PR_SET_MEMORY_MERGE) */
        AGENT_FLAGS_ALL = AGENT_RAW | AGENT_MERGE_ANY,
};

/* daemon -> agent, with fd { segment, O_RDONLY }: known until SEGMENT_DROP or disconnect. */
struct msg_segment {
        uint32_t segment; /* id, unique in the daemon's life */
        uint32_t n_slots; /* 1..SEGMENT_SLOTS_MAX */
};
/* 1 GiB: far above the store's largest segment (16 MiB), low enough that slot arithmetic fits 32 bits. */
#define SEGMENT_SLOTS_MAX (1u << 18)
struct msg_segment_drop {
        uint32_t segment;
        uint32_t reserved;
};

/* daemon -> agent: one transition over pages of one 64-page aligned block, elements = the extents (at least one) of
 * the same kind, ascending, not overlapping. Answered by exactly one APPLIED with the same op. */
enum apply_kind {
        APPLY_MERGE = 1,   /* pages -> slots segment:slot.. (equal bytes expected) */
        APPLY_ZERO = 2,    /* pages, all zero expected -> anonymous memory that was never touched */
        APPLY_RESTORE = 3, /* merged pages -> private anonymous copies */
};
/* The pages of MERGE and ZERO may be plain anonymous memory or lie inside merged runs: copied on write, discarded (and filled
 * again), or mapping another slot; both kinds in one block are all right. The agent sees by itself which is which. A page that is
 * there already is OK. Pages copied on write (RESTORE has them, too) are replaced only if the kernel shows that nobody has them pinned:
 * PINNED_OR_FORKED else; LATER when asking it again so soon would cost the program too much. */
struct extent_element {
        uint64_t page;    /* address >> 12 of the first page */
        uint32_t n_pages; /* 1..64, within the block */
        uint32_t segment; /* MERGE only, else 0 */
        uint32_t slot;    /* MERGE only, else 0: first slot; slots are consecutive */
        uint32_t reserved;
};
struct msg_apply {
        uint64_t op;   /* chosen by the daemon, not zero */
        uint32_t kind; /* enum apply_kind */
        uint32_t reserved;
};

/* What became of one page; index = page & 63. APPLY_NOT_ASKED for pages outside the request. */
enum apply_status {
        APPLY_NOT_ASKED = 0,
        APPLY_OK = 1,
        APPLY_CHANGED = 2,          /* bytes differ: the page is as it was */
        APPLY_PINNED_OR_FORKED = 3, /* the kernel refused to certify it */
        APPLY_VMA_GONE = 4,         /* not mapped as expected, or not eligible */
        APPLY_BUDGET = 5,           /* ENOMEM: VMA limit or memory */
        APPLY_BUSY = 6,             /* mapping calls in progress: ask again later */
        APPLY_ERROR = 7,
        APPLY_LATER = 8,            /* the kernel cannot be asked again so soon; pages that need no such question need not wait */
        APPLY_STATUS_MAX_
};
struct msg_applied {
        uint64_t op;
        uint32_t duration_usec; /* hole open, for the books */
        uint32_t reserved;
        uint8_t status[64]; /* enum apply_status */
};

/* daemon -> agent, to who said HELLO_NODES: elements = blocks of pages whose NUMA nodes it wants to know, ascending. For a daemon
 * that the kernel does not let ask of other processes. Answered by exactly one NODES with the same op and an element for each of
 * these; in the order of asking. */
struct msg_nodes_request {
        uint64_t op; /* chosen by the daemon, not zero */
};
struct nodes_wanted_element {
        uint64_t page;   /* address >> 12 of the block's first page: a multiple of 64 */
        uint64_t wanted; /* bit i: page + i */
};
/* 4096 pages: less than a millisecond of the agent's time, and the answer fits a frame. */
#define NODES_BLOCKS_MAX 64
struct msg_nodes {
        uint64_t op;
};
/* A node (0 to NODE_MAX), or a negative errno: -ENOENT for an absent page and for what was not asked. A hint, as all that agents say. */
struct nodes_element {
        int16_t node[64];
};
#define NODE_MAX 1023

struct msg_ping {
        uint64_t cookie;
};

/* Admin frames: request -> one reply, in order. */
struct msg_admin_hello {
        uint32_t flags; /* 0 */
        uint32_t reserved;
};
struct msg_admin_welcome {
        uint32_t daemon_pid;
        uint32_t privileged; /* 1: may set, merge, unmerge; 0: may only read */
        char version[56];    /* NUL padded */
};
struct msg_stats_request {
        uint64_t reserved;
};
/* elements = int64 in the order of COUNTERS; a reader ignores counters it does not know (newer at the end). */
struct msg_stats_reply {
        uint64_t uptime_usec;
};
#define COUNTERS_MAX 512

struct msg_clients_request {
        uint32_t after; /* client id to continue after; 0 = from the first */
        uint32_t reserved;
};
struct client_element {
        uint32_t client, pid, uid, flags /* hello_flags */;
        uint32_t domain, n_ranges;
        uint64_t registered_pages, tracked_pages, merged_pages, zero_pages, unshared_pages;
        int64_t profit_bytes;
        uint64_t cpu_usec; /* of its agent */
        uint32_t vmas_used, vma_budget;
        uint32_t state; /* enum client_state */
        uint32_t reserved;
        char comm[16];
};
enum client_state {
        CLIENT_ACTIVE = 0,
        CLIENT_RAW = 1,    /* changes mappings without libc: left alone */
        CLIENT_PARKED = 2, /* did not answer within a second */
        CLIENT_STATE_MAX_
};
/* More follow when count == CLIENTS_MAX: ask again with after = the last id. Ascending ids. */
struct msg_clients_reply {
        uint64_t reserved;
};
#define CLIENTS_MAX 96

struct tunable_element {
        uint32_t id, reserved; /* enum tunable_id of common/tunables.h; a reader ignores ids it does not know */
        int64_t value;
};
#define TUNABLES_MAX 256
struct msg_tunables_request {
        uint64_t reserved;
};
struct msg_tunables_reply {
        uint64_t reserved;
};
/* Answered by ADMIN_DONE: EINVAL outside the tunable's range, ENOENT unknown id, EPERM not privileged. */
struct msg_tunable_set {
        uint32_t id;
        uint32_t flags; /* enum unmerge_flags: for run=2 */
        int64_t value;
};
/* Sums of each merge domain. next: id to continue after, 0: that was all. Who is not privileged is told of those of his own processes. */
struct msg_domains_request {
        uint32_t after; /* domain id; 0 = from the first */
        uint32_t reserved;
};
struct domain_element {
        uint32_t domain, n_clients, n_segments, reserved;
        uint64_t registered_pages, tracked_pages, merged_pages, zero_pages, unshared_pages, volatile_pages;
        uint64_t shared_pages; /* distinct ones: merged_pages - shared_pages are saved */
        uint64_t segment_pages, dead_pages; /* written ones; of them, those that nobody shares */
        char key[96]; /* NUL padded, display only: "uid=1000 scope=/app.slice"; cut off at the end */
};
struct msg_domains_reply {
        uint32_t next;
        uint32_t reserved;
};
#define DOMAINS_MAX 64

/* Sums of each range of a client, from a page on; answered by ADMIN_DONE with ENOENT when there is no such client that the asker may see. */
struct msg_ranges_request {
        uint32_t client, reserved;
        uint64_t page; /* address >> 12 */
};
/* A range, or a piece of one: then the next begins where this one ends, and both are the same range. */
struct client_range_element {
        uint64_t page, n_pages, tracked_pages, merged_pages, zero_pages, unshared_pages;
        uint32_t flags; /* enum range_flags */
        uint32_t reserved;
};
enum range_flags {
        RANGE_UNMERGED = 1 << 0,  /* taken out of merging by ADMIN_UNMERGE */
        RANGE_CONTINUED = 1 << 1, /* a piece: the range goes on behind it */
        RANGE_FLAGS_ALL = RANGE_UNMERGED | RANGE_CONTINUED,
};
struct msg_ranges_reply {
        uint64_t next; /* page to continue from, above all pages of this reply; 0: that was all */
};
#define CLIENT_RANGES_REPLY_MAX 256

/* pid 0 = all processes. The reply ADMIN_DONE comes when it is done; others are served meanwhile. */
struct msg_admin_merge {
        uint32_t pid, reserved;
};
struct msg_admin_unmerge {
        uint32_t pid;
        uint32_t flags;         /* enum unmerge_flags */
        uint64_t page, n_pages; /* this part of the process only; n_pages 0 = all of it */
};
enum unmerge_flags {
        UNMERGE_FORCE = 1 << 0, /* although there seems to be too little memory */
        UNMERGE_FLAGS_ALL = UNMERGE_FORCE,
};
/* An unmerge is refused with ENOMEM, and nothing of it done, when the private copies would not fit in memory. */
struct msg_admin_done {
        int32_t error; /* 0 or errno value */
        uint32_t pid;  /* ENOMEM: of the process whose control group has too little left; 0: the machine */
        uint64_t pages; /* merged or restored; ENOMEM: that are needed */
        uint64_t left;  /* unmerge: pages that could not be restored; ENOMEM: that can be had */
};

enum message_role { ROLE_AGENT = 1, ROLE_ADMIN = 2, ROLE_DAEMON = 4 }; /* who may send it */

/* X(number, NAME, senders, body, element, max elements, fds) */
#define MESSAGES(X)                                                                                                   \
        X(1, HELLO, ROLE_AGENT, struct msg_hello, uint8_t, 0, 2)                                                      \
        X(2, WELCOME, ROLE_DAEMON, struct msg_welcome, uint8_t, 0, 1)                                                 \
        X(3, REFUSED, ROLE_DAEMON, struct msg_refused, uint8_t, 0, 0)                                                 \
        X(4, RANGE_ADD, ROLE_AGENT, struct msg_range_add, struct range_element, RANGES_MAX, 0)                        \
        X(5, RANGE_DEL, ROLE_AGENT, struct msg_range_del, struct range_element, RANGES_MAX, 0)                        \
        X(6, GONE, ROLE_AGENT, struct msg_gone, struct range_element, RANGES_MAX, 0)                                  \
        X(7, MERGE_REQUEST, ROLE_AGENT, struct msg_merge_request, uint8_t, 0, 0)                                      \
        X(8, MERGE_DONE, ROLE_DAEMON, struct msg_merge_done, uint8_t, 0, 0)                                           \
        X(9, AGENT_STATS, ROLE_AGENT, struct msg_agent_stats, uint8_t, 0, 0)                                          \
        X(10, SEGMENT, ROLE_DAEMON, struct msg_segment, uint8_t, 0, 1)                                                \
        X(11, SEGMENT_DROP, ROLE_DAEMON, struct msg_segment_drop, uint8_t, 0, 0)                                      \
        X(12, APPLY, ROLE_DAEMON, struct msg_apply, struct extent_element, 64, 0)                                     \
        X(13, APPLIED, ROLE_AGENT, struct msg_applied, uint8_t, 0, 0)                                                 \
        X(14, PING, ROLE_DAEMON, struct msg_ping, uint8_t, 0, 0)                                                      \
        X(15, PONG, ROLE_AGENT, struct msg_ping, uint8_t, 0, 0)                                                       \
        X(16, RUNS, ROLE_AGENT, struct msg_runs, struct run_element, RUNS_MAX, 0)                                     \
        X(17, NODES_REQUEST, ROLE_DAEMON, struct msg_nodes_request, struct nodes_wanted_element, NODES_BLOCKS_MAX, 0)  \
        X(18, NODES, ROLE_AGENT, struct msg_nodes, struct nodes_element, NODES_BLOCKS_MAX, 0)                         \
        X(32, ADMIN_HELLO, ROLE_ADMIN, struct msg_admin_hello, uint8_t, 0, 0)                                         \
        X(33, ADMIN_WELCOME, ROLE_DAEMON, struct msg_admin_welcome, uint8_t, 0, 0)                                    \
        X(34, STATS_REQUEST, ROLE_ADMIN, struct msg_stats_request, uint8_t, 0, 0)                                     \
        X(35, STATS_REPLY, ROLE_DAEMON, struct msg_stats_reply, int64_t, COUNTERS_MAX, 0)                             \
        X(36, CLIENTS_REQUEST, ROLE_ADMIN, struct msg_clients_request, uint8_t, 0, 0)                                 \
        X(37, CLIENTS_REPLY, ROLE_DAEMON, struct msg_clients_reply, struct client_element, CLIENTS_MAX, 0)            \
        X(38, TUNABLES_REQUEST, ROLE_ADMIN, struct msg_tunables_request, uint8_t, 0, 0)                               \
        X(39, TUNABLES_REPLY, ROLE_DAEMON, struct msg_tunables_reply, struct tunable_element, TUNABLES_MAX, 0)        \
        X(40, TUNABLE_SET, ROLE_ADMIN, struct msg_tunable_set, uint8_t, 0, 0)                                         \
        X(41, ADMIN_MERGE, ROLE_ADMIN, struct msg_admin_merge, uint8_t, 0, 0)                                         \
        X(42, ADMIN_UNMERGE, ROLE_ADMIN, struct msg_admin_unmerge, uint8_t, 0, 0)                                     \
        X(43, ADMIN_DONE, ROLE_DAEMON, struct msg_admin_done, uint8_t, 0, 0)                                          \
        X(44, DOMAINS_REQUEST, ROLE_ADMIN, struct msg_domains_request, uint8_t, 0, 0)                                 \
        X(45, DOMAINS_REPLY, ROLE_DAEMON, struct msg_domains_reply, struct domain_element, DOMAINS_MAX, 0)            \
        X(46, RANGES_REQUEST, ROLE_ADMIN, struct msg_ranges_request, uint8_t, 0, 0)                                   \
        X(47, RANGES_REPLY, ROLE_DAEMON, struct msg_ranges_reply, struct client_range_element, CLIENT_RANGES_REPLY_MAX, 0)

enum message_type {
#define X(number, NAME, ...) MSG_##NAME = number,
        MESSAGES(X)
#undef X
};

/* Header + body + elements fit FRAME_MAX_BYTES, and bodies and elements are multiples of 8 bytes: checked in codec.c
 * for every row. */
