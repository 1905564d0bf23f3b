/* USDT probes of userksmd, provider `userksm`, with the names of kernel KSM's tracepoints (include/trace/events/ksm.h) and their
 * arguments in the same order, as near as there is something near.
 *
 *     bpftrace -e 'usdt:/usr/sbin/userksmd:userksm:ksm_merge_with_ksm_page /arg4 == 0/ { @[arg3] = count(); }'
 *     perf buildid-cache --add /usr/sbin/userksmd; perf record -e sdt_userksm:ksm_start_scan -p $(pidof userksmd)
 *     readelf -n /usr/sbin/userksmd
 *
 * What stands for what:
 *
 *     kernel            here
 *     mm                client: the id that `ksmctl status` prints, one a registered process; never used twice while one lives
 *     pfn of a page     page: its address >> 12 in that process. Frames are no business of a process without privilege
 *     rmap_item         item: the daemon's page record, block << 6 | index in the block
 *     ksm_page, its pfn ksm_page: segment << 32 | slot in the segment; 0: the zero page
 *     err               0 or -errno; PROBE_ERR_... below
 *
 * Each is one nop and a note in the ELF file (sys/sdt.h): no call, no branch, nothing loaded when nobody looks but what is in registers
 * anyway. So they may stand in the core. They are absent from a build with -Dprobes=false only.
 *
 * Any thread; all of them are in the main loop. */
#pragma once

#include <stdint.h>

#if USERKSM_PROBES
/* Registers and constants only: whoever looks need not follow pointers to get the arguments. */
#define STAP_SDT_ARG_CONSTRAINT nr
#include <sys/sdt.h>
#define PROBE_1(name, a) STAP_PROBE1(userksm, name, a)
#define PROBE_2(name, a, b) STAP_PROBE2(userksm, name, a, b)
#define PROBE_3(name, a, b, c) STAP_PROBE3(userksm, name, a, b, c)
#define PROBE_4(name, a, b, c, d) STAP_PROBE4(userksm, name, a, b, c, d)
#define PROBE_5(name, a, b, c, d, e) STAP_PROBE5(userksm, name, a, b, c, d, e)
#else
#define PROBE_1(name, a) ((void) (a))
#define PROBE_2(name, a, b) ((void) (a), (void) (b))
#define PROBE_3(name, a, b, c) ((void) (a), (void) (b), (void) (c))
#define PROBE_4(name, a, b, c, d) ((void) (a), (void) (b), (void) (c), (void) (d))
#define PROBE_5(name, a, b, c, d, e) ((void) (a), (void) (b), (void) (c), (void) (d), (void) (e))
#endif

/* Each function gives its arguments their types. Inlined even without optimisation, so that a note stands where the event is. */
#define PROBE static inline __attribute__((always_inline)) void

/* The first client's pass of a full scan begins; the last one's has ended. seq: full scans before this one (full_scans). rmap_entries:
 * pages whose state is kept (tracked_pages). */
PROBE probe_ksm_start_scan(uint64_t seq, uint64_t rmap_entries) {
        PROBE_2(ksm_start_scan, seq, rmap_entries);
}
PROBE probe_ksm_stop_scan(uint64_t seq, uint64_t rmap_entries) {
        PROBE_2(ksm_stop_scan, seq, rmap_entries);
}

/* A process is a client from now on, or no longer. The kernel's have mm alone; the pid is for whoever wants to name it. */
PROBE probe_ksm_enter(uint64_t client, int32_t pid) {
        PROBE_2(ksm_enter, client, pid);
}
PROBE probe_ksm_exit(uint64_t client, int32_t pid) {
        PROBE_2(ksm_exit, client, pid);
}

/* The agent's answer about a page that was to become the kernel's zero page. */
PROBE probe_ksm_merge_one_page(uint64_t page, uint64_t item, uint64_t client, int32_t err) {
        PROBE_4(ksm_merge_one_page, page, item, client, err);
}
/* The agent's answer about a page that was to map a shared page. */
PROBE probe_ksm_merge_with_ksm_page(uint64_t ksm_page, uint64_t page, uint64_t item, uint64_t client, int32_t err) {
        PROBE_5(ksm_merge_with_ksm_page, ksm_page, page, item, client, err);
}
/* `err` of both. KSM says -EFAULT for all of them. */
#define PROBE_ERR_CHANGED (-EFAULT)         /* its bytes are not (or no longer) those of the shared page */
#define PROBE_ERR_PINNED_OR_FORKED (-EBUSY) /* the kernel did not certify it as private and unpinned */
#define PROBE_ERR_VMA_GONE (-ENOENT)        /* no such mapping any more, or one that is left alone */
#define PROBE_ERR_BUDGET (-ENOMEM)          /* too few VMAs or too little memory */
#define PROBE_ERR_AGAIN (-EAGAIN)           /* not now: the program is changing its mappings, or a certificate must wait */
#define PROBE_ERR_OTHER (-EIO)              /* a system call failed */

/* A shared page has no sharer left and takes none any more. */
PROBE probe_ksm_remove_ksm_page(uint64_t ksm_page) {
        PROBE_1(ksm_remove_ksm_page, ksm_page);
}
/* A page shares `ksm_page` no longer: written, discarded, unmapped, restored, or its process is gone. The kernel's has the pfn of the
 * shared page first, too. */
PROBE probe_ksm_remove_rmap_item(uint64_t ksm_page, uint64_t item, uint64_t client) {
        PROBE_3(ksm_remove_rmap_item, ksm_page, item, client);
}

/* The advisor (advisor_mode=scan-time) has set pages_to_scan after a full scan that took so many seconds and so much of a core. */
PROBE probe_ksm_advisor(int64_t scan_time_sec, uint64_t pages_to_scan, uint32_t cpu_percent) {
        PROBE_3(ksm_advisor, scan_time_sec, pages_to_scan, cpu_percent);
}
