/* What this kernel offers, probed once into one struct that the daemon's preflight, `ksmctl check` and the tests share.
 *
 * Contract
 *  - One table, KERNEL_CHECKS: name, how badly it is needed, what it is for, what to do when it is missing. All output
 *    about kernel features comes from it.
 *  - Cheap (a few milliseconds) and without a trace: what would stay behind (mappings, fds, contexts) happens in a short-lived
 *    child. The self-checks do on own memory what the agent does to a client's and look whether the kernel really did
 *    it: a feature bit is a promise, not a proof.
 *  - Works without privilege; what may not be looked at is KERNEL_NOT_PERMITTED, which says nothing about others. The
 *    self-checks then use a user-mode-only userfaultfd.
 *  - Call it before other threads start (it forks) and before a seccomp filter is loaded.
 *  - Checks that fail are not errors of the probe: kernel_probe fails only when it could not look at all (-ENOMEM,
 *    -EAGAIN: no process, -EMFILE). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum kernel_need {
        KERNEL_REQUIRED, /* without it nothing runs: exit status 69 */
        KERNEL_OPTIONAL, /* without it something is slower or smaller */
        KERNEL_INFO,     /* good to know when reading a report; never fails */
};

enum kernel_status { KERNEL_OK, KERNEL_MISSING, KERNEL_NOT_PERMITTED };

/* X(id, need, what it is, remedy). Order is that of the report: the first one missing is named by the preflight. */
#define KERNEL_CHECKS(X)                                                                                                \
        X(version, REQUIRED, "Linux 6.12.37 or newer",                                                                  \
          "boot a newer kernel: before 6.12.37 PAGEMAP_SCAN and UFFDIO_MOVE could lose data")                           \
        X(page_size, REQUIRED, "pages of 4096 bytes", "run on a machine with 4 KiB pages")                              \
        X(pagemap_scan, REQUIRED, "ioctl PAGEMAP_SCAN",                                                                 \
          "needs Linux 6.7 with CONFIG_PROC_PAGE_MONITOR=y, and /proc mounted")                                         \
        X(procmap_query, REQUIRED, "ioctl PROCMAP_QUERY", "needs Linux 6.11 with CONFIG_PROCMAP_QUERY=y")               \
        X(userfaultfd, REQUIRED, "userfaultfd", "needs a kernel with CONFIG_USERFAULTFD=y")                             \
        X(uffd_device, REQUIRED, "/dev/userfaultfd",                                                                    \
          "let the daemon's user open it for reading and writing (systemd/ has a udev rule)")                           \
        X(uffd_wp_async, REQUIRED, "UFFD_FEATURE_WP_ASYNC", "needs Linux 6.7 with CONFIG_PTE_MARKER_UFFD_WP=y")         \
        X(uffd_wp_unpopulated, REQUIRED, "UFFD_FEATURE_WP_UNPOPULATED",                                                 \
          "needs Linux 6.4 with CONFIG_PTE_MARKER_UFFD_WP=y")                                                           \
        X(uffd_wp_shmem, REQUIRED, "UFFD_FEATURE_WP_HUGETLBFS_SHMEM",                                                   \
          "needs a kernel with CONFIG_PTE_MARKER_UFFD_WP=y and CONFIG_SHMEM=y")                                         \
        X(uffd_move, REQUIRED, "UFFD_FEATURE_MOVE", "needs Linux 6.8 or newer")                                         \
        X(uffd_minor_shmem, REQUIRED, "UFFD_FEATURE_MINOR_SHMEM",                                                       \
          "needs a kernel with CONFIG_HAVE_ARCH_USERFAULTFD_MINOR=y and CONFIG_SHMEM=y")                                \
        X(uffd_event_remove, REQUIRED, "UFFD_FEATURE_EVENT_REMOVE", "needs a kernel with CONFIG_USERFAULTFD=y")         \
        X(uffd_event_remap, REQUIRED, "UFFD_FEATURE_EVENT_REMAP", "needs a kernel with CONFIG_USERFAULTFD=y")           \
        X(move_works, REQUIRED, "self-check: UFFDIO_MOVE moves pages and leaves holes",                                 \
          "if nothing above is missing, report this kernel as a bug; merging cannot work on it")                        \
        X(scan_works, REQUIRED, "self-check: PAGEMAP_SCAN write-protects and reports each write once",                  \
          "if nothing above is missing, report this kernel as a bug; writes would be missed on it")                     \
        X(continue_works, REQUIRED, "self-check: UFFDIO_CONTINUE maps a shared page protected, a write copies it",      \
          "if nothing above is missing, report this kernel as a bug; merging cannot work on it")                        \
        X(membarrier, REQUIRED, "membarrier PRIVATE_EXPEDITED", "needs a kernel with CONFIG_MEMBARRIER=y, and no seccomp " \
          "filter against membarrier")                                                                                  \
        X(close_range, REQUIRED, "close_range CLOSE_RANGE_UNSHARE", "needs Linux 5.9, and no seccomp filter against it") \
        X(memfd_seals, REQUIRED, "memfd with F_SEAL_FUTURE_WRITE", "needs a kernel with CONFIG_MEMFD_CREATE=y")         \
        X(memfd_noexec, REQUIRED, "memfd with MFD_NOEXEC_SEAL", "needs Linux 6.3 or newer")                             \
        X(process_vm_readv, OPTIONAL, "process_vm_readv on other processes",                                            \
          "grant CAP_SYS_PTRACE for the fast read path; without it pages are read through /proc/PID/mem")               \
        X(max_map_count, OPTIONAL, "vm.max_map_count of 65530 or more",                                                 \
          "sysctl -w vm.max_map_count=1048576: each merged run takes a mapping")                                        \
        X(nofile, OPTIONAL, "4096 open files or more", "raise LimitNOFILE= (ulimit -n): each client takes a few")       \
        X(kernel_ksm, OPTIONAL, "kernel KSM not running beside us",                                                     \
          "echo 2 > /sys/kernel/mm/ksm/run: it would spend CPU time on the same memory")                                \
        X(uffd_sysctl, INFO, "vm.unprivileged_userfaultfd", "")                                                         \
        X(move_report, INFO, "what UFFDIO_MOVE reports after a race", "")                                               \
        X(thp, INFO, "transparent huge pages", "")                                                                      \
        X(lsm_label, INFO, "security label of socket peers", "")                                                        \
        X(yama, INFO, "kernel.yama.ptrace_scope", "")

enum kernel_check_id {
#define X(id, need, what, remedy) KERNEL_CHECK_##id,
        KERNEL_CHECKS(X)
#undef X
                KERNEL_CHECK_MAX_
};

#define KERNEL_FOUND_BYTES 96
struct kernel_check {
        const char *name;   /* the id, for JSON and for grep */
        const char *what;   /* for people */
        const char *remedy; /* "" for INFO */
        enum kernel_need need;
        enum kernel_status status;
        char found[KERNEL_FOUND_BYTES]; /* what was seen: a value, or why not */
};

struct kernel_version {
        unsigned major, minor, patch;
};

struct kernel_info {
        struct kernel_version version;
        uint64_t uffd_features; /* 0: could not ask */
        uint32_t max_map_count; /* 0: could not read */
        uint64_t nofile;        /* RLIMIT_NOFILE, hard */
        bool can_ptrace;        /* CAP_SYS_PTRACE in effect */
        uint32_t probe_usec;
        struct kernel_check checks[KERNEL_CHECK_MAX_];
};

/* Fills *ret. 0 or -errno (see above); on error *ret is undefined. */
int kernel_probe(struct kernel_info *ret);

/* The first REQUIRED check that is not OK, or NULL. */
const struct kernel_check *kernel_first_missing(const struct kernel_info *info);

/* One line without newline, as preflight and `ksmctl check` print it: "what: found; remedy". Returns buffer. */
const char *kernel_check_text(const struct kernel_check *check, char *buffer, size_t size);

/* "6.12.37-1-cloud-amd64", "7.0-rc3", "6.12": leading numbers, missing ones are 0. -EINVAL without major.minor. */
int kernel_version_parse(const char *release, struct kernel_version *ret);
int kernel_version_compare(struct kernel_version a, struct kernel_version b); /* <0, 0, >0 */
