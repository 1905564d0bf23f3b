/* A program written for kernel KSM: it knows madvise, prctl, /sys/kernel/mm/ksm and /proc, and nothing of userksm. It follows the
 * patterns of the kernel's own tests (tools/testing/selftests/mm/ksm_tests.c, ksm_functional_tests.c). test_sysfs.py runs it under kernel
 * KSM and under `ksmctl run --sysfs` and compares what it prints: one line a case.
 *
 * usage: ksm_program CASE */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#define PR_GET_MEMORY_MERGE 68
#endif

#define KSM "/sys/kernel/mm/ksm/"
#define PAGE_BYTES 4096UL
/* A scan of a busy machine; the kernel's tests allow 120 s for all of theirs. */
#define SCAN_TIMEOUT_SEC 60

static void die(const char *what) {
        printf("%s: %s\n", what, strerror(errno));
        exit(1);
}

static long read_number(const char *path) {
        char text[64];
        int fd = open(path, O_RDONLY);
        ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

        if (n <= 0)
                die(path);
        close(fd);
        text[n] = 0;
        return strtol(text, NULL, 10);
}

static long ksm(const char *name) {
        char path[128];

        snprintf(path, sizeof(path), KSM "%s", name);
        return read_number(path);
}

static void set_ksm(const char *name, long value) {
        char path[128], text[32];
        int fd, n = snprintf(text, sizeof(text), "%ld", value);

        snprintf(path, sizeof(path), KSM "%s", name);
        fd = open(path, O_WRONLY);
        if (fd < 0 || write(fd, text, (size_t) n) != n)
                die(path);
        close(fd);
}

/* What the kernel's tests do: two full scans see everything that was there before, a third one for good measure. */
static void scan(int n_scans) {
        long first = ksm("full_scans");
        time_t end = time(NULL) + SCAN_TIMEOUT_SEC;

        set_ksm("run", 1);
        while (ksm("full_scans") < first + n_scans) {
                if (time(NULL) > end) {
                        printf("no %d full scans within %d s\n", n_scans, SCAN_TIMEOUT_SEC);
                        exit(1);
                }
                usleep(500);
        }
}

static uint8_t *map_pages(long n_pages, int byte) {
        uint8_t *p = mmap(NULL, (size_t) n_pages * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        if (p == MAP_FAILED)
                die("mmap");
        if (madvise(p, (size_t) n_pages * PAGE_BYTES, MADV_NOHUGEPAGE) < 0 && errno != EINVAL)
                die("MADV_NOHUGEPAGE");
        memset(p, byte, (size_t) n_pages * PAGE_BYTES);
        return p;
}

static uint8_t *map_mergeable(long n_pages, int byte) {
        uint8_t *p = map_pages(n_pages, byte);

        if (madvise(p, (size_t) n_pages * PAGE_BYTES, MADV_MERGEABLE) < 0)
                die("MADV_MERGEABLE");
        return p;
}

/* How many page frames n pages map. */
static long frames(const uint8_t *p, long n_pages) {
        uint64_t *entries = calloc((size_t) n_pages, sizeof(*entries));
        int fd = open("/proc/self/pagemap", O_RDONLY);
        long n = 0;

        if (fd < 0 || pread(fd, entries, (size_t) n_pages * 8, (off_t) ((uintptr_t) p / PAGE_BYTES * 8)) != n_pages * 8)
                die("pagemap");
        close(fd);
        for (long i = 0; i < n_pages; i++) {
                bool is_new = entries[i] >> 63;

                for (long k = 0; k < i && is_new; k++)
                        is_new = (entries[i] ^ entries[k]) & ((UINT64_C(1) << 55) - 1);
                n += is_new;
        }
        free(entries);
        return n;
}

static bool holds(const uint8_t *p, long n_pages, int byte) {
        for (size_t i = 0; i < (size_t) n_pages * PAGE_BYTES; i++)
                if (p[i] != byte)
                        return false;
        return true;
}

static void print_counts(const char *when) {
        printf("%s: shared %ld sharing %ld zero %ld\n", when, ksm("pages_shared"), ksm("pages_sharing"), ksm("ksm_zero_pages"));
}

/* -- cases --------------------------------------------------------------------------------------------------------------- */

static void merge(void) {
        uint8_t *p = map_mergeable(10, '*');

        scan(2);
        print_counts("10 equal pages");
        printf("frames %ld, bytes %d\n", frames(p, 10), holds(p, 10, '*'));
}

static void merge_many(void) {
        uint8_t *p = map_mergeable(512, 0xcf);

        scan(2);
        print_counts("512 equal pages");
        printf("frames %ld\n", frames(p, 512));
}

static void merge_unique(void) {
        uint8_t *p = map_mergeable(64, 0);

        for (int i = 0; i < 64; i++)
                memset(p + (size_t) i * PAGE_BYTES, 0, PAGE_BYTES), p[(size_t) i * PAGE_BYTES] = (uint8_t) (1 + i / 2);
        scan(3);
        print_counts("32 pairs");
        memset(p, 0x7e, PAGE_BYTES);
        scan(2);
        printf("one written: frames %ld\n", frames(p, 64));
}

/* The kernel's assert_ksm_pages_count. */
static void sharing_cap(void) {
        static const struct {
                long pages, cap;
        } tables[] = { { 7, 3 }, { 8, 3 }, { 9, 3 }, { 10, 2 }, { 11, 10 } };

        for (size_t i = 0; i < sizeof(tables) / sizeof(tables[0]); i++) {
                long n = tables[i].pages, cap = tables[i].cap, q = n / cap, r = n % cap;
                long shared = r > 1 ? q + 1 : q, sharing = r > 1 ? n - shared : q * (cap - 1);
                uint8_t *p;

                set_ksm("run", 2);
                set_ksm("max_page_sharing", cap);
                p = map_mergeable(n, '*');
                scan(3);
                printf("%ld pages, cap %ld: %s\n", n, cap,
                       ksm("pages_shared") == shared && ksm("pages_sharing") == sharing ? "as the kernel's tests expect" : "other");
                munmap(p, (size_t) n * PAGE_BYTES);
        }
        set_ksm("run", 2);
}

static void zero_pages(void) {
        uint8_t *p;

        set_ksm("use_zero_pages", 1);
        p = map_mergeable(20, 0);
        scan(2);
        print_counts("20 pages of zeros");
        memset(p, 1, 5 * PAGE_BYTES);
        scan(1);
        printf("5 written: zero %ld, bytes %d\n", ksm("ksm_zero_pages"), holds(p + 5 * PAGE_BYTES, 15, 0));
        if (madvise(p, 20 * PAGE_BYTES, MADV_UNMERGEABLE) < 0)
                die("MADV_UNMERGEABLE");
        printf("unmerged: zero %ld\n", ksm("ksm_zero_pages"));
}

static void zero_pages_as_others(void) {
        uint8_t *p;

        set_ksm("use_zero_pages", 0);
        p = map_mergeable(20, 0);
        scan(3);
        print_counts("20 pages of zeros");
        printf("bytes %d\n", holds(p, 20, 0));
}

static void unmerge_by_writing(void) {
        uint8_t *p = map_mergeable(2, '*');

        scan(2);
        print_counts("merged");
        p[0] = '-';
        p[PAGE_BYTES] = '+';
        scan(1);
        print_counts("written");
        printf("frames %ld, bytes %d\n", frames(p, 2), p[0] == '-' && p[PAGE_BYTES] == '+' && p[1] == '*');
}

static void unmergeable(void) {
        uint8_t *p = map_mergeable(512, 0xcf);

        (void) map_mergeable(2, '*'); /* without anything to scan the kernel's scans may stop */
        scan(2);
        if (madvise(p, 512 * PAGE_BYTES, MADV_UNMERGEABLE) < 0)
                die("MADV_UNMERGEABLE");
        printf("frames %ld, bytes %d\n", frames(p, 512), holds(p, 512, 0xcf));
        scan(3); /* the kernel's counters follow with the next whole scan */
        print_counts("unmerged");
}

static void unmergeable_discarded(void) {
        uint8_t *p = map_mergeable(512, 0xcf);

        scan(2);
        if (madvise(p, 256 * PAGE_BYTES, MADV_DONTNEED) < 0 || madvise(p, 512 * PAGE_BYTES, MADV_UNMERGEABLE) < 0)
                die("madvise");
        printf("frames %ld, bytes %d %d\n", frames(p + 256 * PAGE_BYTES, 256), holds(p, 256, 0), holds(p + 256 * PAGE_BYTES, 256, 0xcf));
}

/* The write returns when all is unmerged; what was advised stays so. */
static void run_2(void) {
        uint8_t *p = map_mergeable(512, 0xcf), *z = map_mergeable(16, 0);

        scan(2);
        printf("merged: %d\n", ksm("pages_sharing") > 0);
        set_ksm("run", 2);
        print_counts("run=2");
        printf("unshared %ld volatile %ld run %ld\n", ksm("pages_unshared"), ksm("pages_volatile"), ksm("run"));
        printf("frames %ld, bytes %d %d\n", frames(p, 512), holds(p, 512, 0xcf), holds(z, 16, 0));
        scan(2);
        print_counts("run=1 again");
}

static void run_0(void) {
        uint8_t *p = map_mergeable(10, '*');
        long scans;

        scan(2);
        set_ksm("run", 0);
        scans = ksm("full_scans");
        p[0] = '-';
        usleep(300000);
        printf("stopped: scans go on %d, still shared %d\n", ksm("full_scans") > scans + 1, frames(p + PAGE_BYTES, 9) == 1);
}

static void prctl_merge(void) {
        uint8_t *p = map_pages(64, 0x5a);

        printf("get %d", prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0));
        printf(" set %d", prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0));
        printf(" get %d", prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0));
        printf(" wrong %d", prctl(PR_SET_MEMORY_MERGE, 1, 1, 0, 0) < 0 ? errno : 0);
        printf(" wrong %d\n", prctl(PR_GET_MEMORY_MERGE, 1, 0, 0, 0) < 0 ? errno : 0);
        scan(3);
        printf("frames %ld\n", frames(p, 64));
        printf("clear %d", prctl(PR_SET_MEMORY_MERGE, 0, 0, 0, 0));
        printf(" get %d\n", prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0));
        printf("frames %ld, bytes %d\n", frames(p, 64), holds(p, 64, 0x5a));
}

static int child_status(pid_t pid) {
        int status;

        if (pid < 0 || waitpid(pid, &status, 0) != pid)
                die("fork");
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* After so many scans, of equal pages that nobody offered. userksm looks for new mappings once a second, so the first scans may not know
 * of them yet (docs/sysfs.md, "Memory that nobody offered"). */
static long frames_unasked(const uint8_t *p, long n_pages, int n_scans) {
        scan(n_scans);
        for (unsigned tries = 0; tries < 20 && frames(p, n_pages) != 1; tries++)
                scan(2);
        return frames(p, n_pages);
}

static void prctl_fork(void) {
        pid_t pid;

        if (prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0) < 0)
                die("PR_SET_MEMORY_MERGE");
        pid = fork();
        if (pid == 0)
                _exit(prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0));
        printf("in the child %d\n", child_status(pid));
        pid = fork();
        if (pid == 0) {
                uint8_t *p = map_pages(64, 0x5b);

                _exit((int) frames_unasked(p, 64, 2));
        }
        printf("frames of what it maps %d\n", child_status(pid));
}

/* The image of prctl_exec: merges without asking. */
static void in_exec(void) {
        uint8_t *p = map_pages(64, 0x5b);
        long n = frames_unasked(p, 64, 3);

        printf("get %d, frames %ld\n", prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0), n);
}

static void prctl_exec(void) {
        pid_t pid;

        if (prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0) < 0)
                die("PR_SET_MEMORY_MERGE");
        pid = fork();
        if (pid == 0) {
                execl("/proc/self/exe", "ksm_program", "in_exec", (char *) NULL);
                _exit(99);
        }
        printf("the image ended with %d\n", child_status(pid));
}

static void forked(void) {
        uint8_t *p = map_mergeable(64, '*');
        pid_t pid;

        scan(2);
        pid = fork();
        if (pid == 0) {
                if (!holds(p, 64, '*'))
                        _exit(1);
                memset(p, '+', 32 * PAGE_BYTES);
                _exit(!holds(p, 32, '+') || !holds(p + 32 * PAGE_BYTES, 32, '*'));
        }
        printf("child %d, bytes %d, frames %ld\n", child_status(pid), holds(p, 64, '*'), frames(p, 64));
}

static void counters(void) {
        long scanned = ksm("pages_scanned");
        uint8_t *p = map_mergeable(64, '*');

        for (size_t i = 0; i < 32; i++)
                p[i * PAGE_BYTES] = (uint8_t) i; /* unique ones */
        scan(3);
        printf("scanned %d, alone %d, profit %d, chains %ld, dups %ld\n", ksm("pages_scanned") >= scanned + 64,
               ksm("pages_unshared") + ksm("pages_volatile") > 0, ksm("general_profit") > 0, ksm("stable_node_chains"),
               ksm("stable_node_dups"));
}

/* A line of /proc/PID/ksm_stat; -1: none. */
static long stat_line(const char *pid, const char *name) {
        char path[64], line[128];
        long value = -1;
        FILE *f;

        snprintf(path, sizeof(path), "/proc/%s/ksm_stat", pid);
        f = fopen(path, "r");
        if (!f)
                die(path);
        while (fgets(line, sizeof(line), f))
                if (strncmp(line, name, strlen(name)) == 0 && line[strlen(name)] == ' ')
                        value = strtol(line + strlen(name), NULL, 10);
        fclose(f);
        return value;
}

static void proc_files(void) {
        char pid[16], parent[16];

        printf("before: %ld\n", read_number("/proc/self/ksm_merging_pages"));
        set_ksm("use_zero_pages", 1);
        (void) map_mergeable(64, '*');
        (void) map_mergeable(16, 0);
        scan(3);
        snprintf(pid, sizeof(pid), "%d", getpid());
        snprintf(parent, sizeof(parent), "%d", getppid());
        printf("ksm_merging_pages %ld %ld, zero %ld, rmap items %d, profit %d\n", read_number("/proc/self/ksm_merging_pages"),
               stat_line(pid, "ksm_merging_pages"), stat_line("self", "ksm_zero_pages"), stat_line("self", "ksm_rmap_items") >= 64,
               stat_line("thread-self", "ksm_process_profit") > 0);
        printf("parent %ld, other %d, comm %d\n", stat_line(parent, "ksm_merging_pages"), open("/proc/self/ksm_none", O_RDONLY),
               open("/proc/self/comm", O_RDONLY) >= 0);
}

/* -- what differs: docs/sysfs.md ------------------------------------------------------------------------------------------ */

static void prot_none(void) {
        uint8_t *p = map_pages(64, '*');

        if (mprotect(p, 64 * PAGE_BYTES, PROT_NONE) < 0 || madvise(p, 64 * PAGE_BYTES, MADV_MERGEABLE) < 0)
                die("madvise");
        scan(3);
        printf("frames %ld\n", frames(p, 64));
}

static void change_cap_live(void) {
        char text[] = "300";
        int fd;

        (void) map_mergeable(64, '*');
        scan(2);
        fd = open(KSM "max_page_sharing", O_WRONLY);
        printf("max_page_sharing while pages are shared: %s\n", write(fd, text, 3) == 3 ? "taken" : strerror(errno));
        close(fd);
}

int main(int argc, char **argv) {
        static const struct {
                const char *name;
                void (*run)(void);
        } cases[] = {
#define X(name) { #name, name }
                X(merge), X(merge_many), X(merge_unique), X(sharing_cap), X(zero_pages), X(zero_pages_as_others), X(unmerge_by_writing),
                X(unmergeable), X(unmergeable_discarded), X(run_2), X(run_0), X(prctl_merge), X(prctl_fork), X(in_exec), X(prctl_exec),
                X(forked), X(counters), X(prot_none), X(proc_files), X(change_cap_live),
#undef X
        };

        setvbuf(stdout, NULL, _IOLBF, 0);
        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
                if (argc == 2 && strcmp(argv[1], cases[i].name) == 0) {
                        if (cases[i].run != in_exec) { /* as each of the kernel's tests begins */
                                set_ksm("run", 2);
                                set_ksm("sleep_millisecs", 0);
                                set_ksm("pages_to_scan", 10000);
                                set_ksm("max_page_sharing", 256);
                                set_ksm("use_zero_pages", 0);
                        }
                        cases[i].run();
                        return 0;
                }
        return 64;
}
