/* The probe: asks what can be asked without a trace, lets a child do the rest (kernel_selfcheck.c), and judges both
 * into the table of kernel.h. */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/membarrier.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <time.h>

#include "common/cleanup.h"
#include "common/kernel.h"
#include "common/kernel_selfcheck.h"
#include "common/uapi.h"

#define MIN_MAP_COUNT 65530 /* the kernel's default; the programs measured in docs/ fit it */
#define MIN_NOFILE 4096

static const struct kernel_version oldest = { 6, 12, 37 };

/* Where a race makes UFFDIO_MOVE report EEXIST for pages that it moved; [first, fixed). Stable kernels in between may have
 * the fix: the agent judges by the destination on all of them. */
static const struct kernel_version move_lies_from = { 6, 18, 0 }, move_lies_until = { 7, 2, 5 };

/* -- versions ---------------------------------------------------------------------------------------------------- */

int kernel_version_parse(const char *release, struct kernel_version *ret) {
        struct kernel_version v = { 0 };
        int n = sscanf(release, "%9u.%9u.%9u", &v.major, &v.minor, &v.patch);

        if (n < 2)
                return -EINVAL;
        *ret = v;
        return 0;
}

int kernel_version_compare(struct kernel_version a, struct kernel_version b) {
        if (a.major != b.major)
                return a.major < b.major ? -1 : 1;
        if (a.minor != b.minor)
                return a.minor < b.minor ? -1 : 1;
        return a.patch < b.patch ? -1 : a.patch > b.patch;
}

/* -- setting results --------------------------------------------------------------------------------------------- */

__attribute__((format(printf, 4, 5))) static void set(struct kernel_info *k, enum kernel_check_id id,
                                                      enum kernel_status status, const char *format, ...) {
        va_list ap;

        k->checks[id].status = status;
        va_start(ap, format);
        vsnprintf(k->checks[id].found, sizeof(k->checks[id].found), format, ap);
        va_end(ap);
}

static enum kernel_status status_if(bool ok) {
        return ok ? KERNEL_OK : KERNEL_MISSING;
}

static void set_selfcheck(struct kernel_info *k, enum kernel_check_id id, const struct kernel_selfcheck_result *r) {
        if (r->error == 0)
                set(k, id, KERNEL_OK, "yes");
        else if (r->error == -ENODATA)
                set(k, id, KERNEL_MISSING, "the self-check did not come to an end");
        else if (r->error == -EPROTO)
                set(k, id, KERNEL_MISSING, "%s", r->step);
        else
                set(k, id, r->error == -EPERM || r->error == -EACCES ? KERNEL_NOT_PERMITTED : KERNEL_MISSING, "%s: %s",
                    r->step, strerror(-r->error));
}

/* First line of a small file; "" and -errno when it cannot be read. */
static int read_line(const char *path, char *line, size_t size) {
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t n;

        line[0] = '\0';
        if (fd < 0)
                return -errno;
        n = read(fd, line, size - 1);
        if (n < 0)
                return -errno;
        line[n] = '\0';
        line[strcspn(line, "\n")] = '\0';
        return 0;
}

static void set_file(struct kernel_info *k, enum kernel_check_id id, const char *path) {
        char line[KERNEL_FOUND_BYTES];

        if (read_line(path, line, sizeof(line)) < 0)
                set(k, id, KERNEL_OK, "not in this kernel");
        else
                set(k, id, KERNEL_OK, "%s", line);
}

/* -- groups of checks -------------------------------------------------------------------------------------------- */

static void probe_version(struct kernel_info *k) {
        struct utsname u = { 0 };
        bool lies;

        if (uname(&u) < 0 || kernel_version_parse(u.release, &k->version) < 0) {
                set(k, KERNEL_CHECK_version, KERNEL_MISSING, "no version in \"%.64s\"", u.release);
                return;
        }
        set(k, KERNEL_CHECK_version, status_if(kernel_version_compare(k->version, oldest) >= 0), "%.64s", u.release);
        lies = kernel_version_compare(k->version, move_lies_from) >= 0 &&
               kernel_version_compare(k->version, move_lies_until) < 0;
        set(k, KERNEL_CHECK_move_report, KERNEL_OK, "%s",
            lies ? "may report failure for a move that happened; tolerated" : "exact");
}

static void probe_uffd_features(struct kernel_info *k, const struct kernel_selfcheck *s) {
        static const struct {
                enum kernel_check_id id;
                uint64_t feature;
        } wanted[] = {
                { KERNEL_CHECK_uffd_wp_async, UFFD_FEATURE_WP_ASYNC },
                { KERNEL_CHECK_uffd_wp_unpopulated, UFFD_FEATURE_WP_UNPOPULATED },
                { KERNEL_CHECK_uffd_wp_shmem, UFFD_FEATURE_WP_HUGETLBFS_SHMEM },
                { KERNEL_CHECK_uffd_move, UFFD_FEATURE_MOVE },
                { KERNEL_CHECK_uffd_minor_shmem, UFFD_FEATURE_MINOR_SHMEM },
                { KERNEL_CHECK_uffd_event_remove, UFFD_FEATURE_EVENT_REMOVE },
                { KERNEL_CHECK_uffd_event_remap, UFFD_FEATURE_EVENT_REMAP },
        };

        k->uffd_features = s->uffd_features;
        for (size_t i = 0; i < ARRAY_SIZE(wanted); i++) {
                bool there = s->uffd_features & wanted[i].feature;

                if (s->uffd_features)
                        set(k, wanted[i].id, status_if(there), there ? "yes" : "no");
                else /* no context, no answer: as userfaultfd itself */
                        set(k, wanted[i].id, k->checks[KERNEL_CHECK_userfaultfd].status, "could not ask");
        }
}

static int probe_by_child(struct kernel_info *k) {
        static const struct {
                enum kernel_check_id id;
                enum kernel_selfcheck_id from;
        } map[] = {
                { KERNEL_CHECK_pagemap_scan, SELFCHECK_PAGEMAP_SCAN },
                { KERNEL_CHECK_procmap_query, SELFCHECK_PROCMAP_QUERY },
                { KERNEL_CHECK_userfaultfd, SELFCHECK_USERFAULTFD },
                { KERNEL_CHECK_uffd_device, SELFCHECK_UFFD_DEVICE },
                { KERNEL_CHECK_move_works, SELFCHECK_MOVE },
                { KERNEL_CHECK_scan_works, SELFCHECK_SCAN },
                { KERNEL_CHECK_continue_works, SELFCHECK_CONTINUE },
                { KERNEL_CHECK_close_range, SELFCHECK_CLOSE_RANGE },
                { KERNEL_CHECK_memfd_seals, SELFCHECK_MEMFD_SEALS },
                { KERNEL_CHECK_memfd_noexec, SELFCHECK_MEMFD_NOEXEC },
        };
        struct kernel_selfcheck s;
        int r = kernel_selfcheck_run(&s);

        if (r < 0)
                return r;
        for (size_t i = 0; i < ARRAY_SIZE(map); i++)
                set_selfcheck(k, map[i].id, &s.results[map[i].from]);
        probe_uffd_features(k, &s);
        return 0;
}

/* A query only: registering would change the process. */
static void probe_membarrier(struct kernel_info *k) {
        const long both = MEMBARRIER_CMD_PRIVATE_EXPEDITED | MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED;
        long commands = syscall(SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0);

        if (commands < 0)
                set(k, KERNEL_CHECK_membarrier, errno == EPERM ? KERNEL_NOT_PERMITTED : KERNEL_MISSING, "membarrier: %s",
                    strerror(errno));
        else
                set(k, KERNEL_CHECK_membarrier, status_if((commands & both) == both), (commands & both) == both ? "yes" : "no");
}

static void probe_privilege(struct kernel_info *k) {
        struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
        struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = { 0 };

        k->can_ptrace = syscall(SYS_capget, &header, data) == 0 && (data[0].effective & (1U << CAP_SYS_PTRACE));
        set(k, KERNEL_CHECK_process_vm_readv, k->can_ptrace ? KERNEL_OK : KERNEL_NOT_PERMITTED, "%s",
            k->can_ptrace ? "CAP_SYS_PTRACE" : "no CAP_SYS_PTRACE");
        set_file(k, KERNEL_CHECK_yama, "/proc/sys/kernel/yama/ptrace_scope");
}

static void probe_limits(struct kernel_info *k) {
        struct rlimit limit = { 0 };
        char line[32];

        if (read_line("/proc/sys/vm/max_map_count", line, sizeof(line)) < 0 || sscanf(line, "%9u", &k->max_map_count) != 1)
                set(k, KERNEL_CHECK_max_map_count, KERNEL_NOT_PERMITTED, "cannot read /proc/sys/vm/max_map_count");
        else
                set(k, KERNEL_CHECK_max_map_count, status_if(k->max_map_count >= MIN_MAP_COUNT), "%u", k->max_map_count);
        (void) getrlimit(RLIMIT_NOFILE, &limit);
        k->nofile = limit.rlim_max;
        if (limit.rlim_max == RLIM_INFINITY)
                set(k, KERNEL_CHECK_nofile, KERNEL_OK, "unlimited");
        else
                set(k, KERNEL_CHECK_nofile, status_if(limit.rlim_max >= MIN_NOFILE), "%llu",
                    (unsigned long long) limit.rlim_max);
}

static void probe_ksm(struct kernel_info *k) {
        char line[8];

        if (read_line("/sys/kernel/mm/ksm/run", line, sizeof(line)) < 0)
                set(k, KERNEL_CHECK_kernel_ksm, KERNEL_OK, "not in this kernel");
        else
                set(k, KERNEL_CHECK_kernel_ksm, status_if(line[0] != '1'), "run is %s", line);
}

/* "always [madvise] never" -> madvise */
static void probe_thp(struct kernel_info *k) {
        char line[64], mode[16];
        const char *bracket;

        if (read_line("/sys/kernel/mm/transparent_hugepage/enabled", line, sizeof(line)) == 0 &&
            (bracket = strchr(line, '[')) && sscanf(bracket, "[%15[a-z]]", mode) == 1)
                set(k, KERNEL_CHECK_thp, KERNEL_OK, "%s", mode);
        else
                set(k, KERNEL_CHECK_thp, KERNEL_OK, "not in this kernel");
}

/* Asks as the daemon does, of a socket whose peer is ourselves. */
static void probe_lsm_label(struct kernel_info *k) {
        char label[64] = "";
        socklen_t size = sizeof(label) - 1;
        int pair[2];

        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
                set(k, KERNEL_CHECK_lsm_label, KERNEL_OK, "could not ask: %s", strerror(errno));
                return;
        }
        if (getsockopt(pair[0], SOL_SOCKET, SO_PEERSEC, label, &size) < 0)
                set(k, KERNEL_CHECK_lsm_label, KERNEL_OK, "%s", errno == ENOPROTOOPT ? "none" : strerror(errno));
        else
                set(k, KERNEL_CHECK_lsm_label, KERNEL_OK, "%s", label);
        close_fd(pair[0]);
        close_fd(pair[1]);
}

/* -- the interface ----------------------------------------------------------------------------------------------- */

static uint64_t now_usec(void) {
        struct timespec t;

        (void) clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t) t.tv_sec * 1000000 + (uint64_t) t.tv_nsec / 1000;
}

int kernel_probe(struct kernel_info *ret) {
        static const struct kernel_check table[KERNEL_CHECK_MAX_] = {
#define X(id, n, w, r) { .name = #id, .what = w, .remedy = r, .need = KERNEL_##n, .status = KERNEL_MISSING },
                KERNEL_CHECKS(X)
#undef X
        };
        uint64_t start_usec = now_usec();
        long page_size = sysconf(_SC_PAGESIZE);
        int r;

        memset(ret, 0, sizeof(*ret));
        memcpy(ret->checks, table, sizeof(table));
        probe_version(ret);
        set(ret, KERNEL_CHECK_page_size, status_if(page_size == (long) KSM_PAGE_SIZE), "%ld", page_size);
        r = probe_by_child(ret);
        if (r < 0)
                return r;
        probe_membarrier(ret);
        probe_privilege(ret);
        probe_limits(ret);
        probe_ksm(ret);
        set_file(ret, KERNEL_CHECK_uffd_sysctl, "/proc/sys/vm/unprivileged_userfaultfd");
        probe_thp(ret);
        probe_lsm_label(ret);
        ret->probe_usec = (uint32_t) (now_usec() - start_usec);
        return 0;
}

const struct kernel_check *kernel_first_missing(const struct kernel_info *info) {
        for (int i = 0; i < KERNEL_CHECK_MAX_; i++)
                if (info->checks[i].need == KERNEL_REQUIRED && info->checks[i].status != KERNEL_OK)
                        return &info->checks[i];
        return NULL;
}

const char *kernel_check_text(const struct kernel_check *check, char *buffer, size_t size) {
        snprintf(buffer, size, "%s: %s%s%s", check->what, check->found,
                 check->status == KERNEL_OK ? "" : "; ", check->status == KERNEL_OK ? "" : check->remedy);
        return buffer;
}
