/* The probe itself: what it finds here, that it leaves nothing behind, and that it names what is missing. */
#include <dirent.h>
#include <fcntl.h>
#include <seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "common/kernel.h"
#include "tests/support/kernel.h"

#define NOBODY 65534

static size_t count_lines(const char *path) {
        FILE *f = fopen(path, "re");
        size_t n = 0;
        int c;

        CHECK(f);
        while ((c = getc(f)) != EOF)
                n += c == '\n';
        fclose(f);
        return n;
}

static size_t count_fds(void) {
        DIR *d = opendir("/proc/self/fd");
        size_t n = 0;

        CHECK(d);
        while (readdir(d))
                n++;
        closedir(d);
        return n;
}

static struct kernel_info probe(void) {
        struct kernel_info k;
        char line[512];

        CHECK_EQ(kernel_probe(&k), 0);
        for (int i = 0; i < KERNEL_CHECK_MAX_; i++) {
                CHECK(k.checks[i].name && k.checks[i].found[0]); /* every check was made */
                printf("%d %s\n", k.checks[i].status, kernel_check_text(&k.checks[i], line, sizeof(line)));
        }
        printf("%u us\n", k.probe_usec);
        return k;
}

/* The other tests of this suite run where this one passes; on a kernel that is too old it says why they do not. */
static void this_kernel_has_what_is_required(void) {
        struct kernel_info k = probe();
        const struct kernel_check *missing = kernel_first_missing(&k);
        char line[512];

        if (missing)
                fact_skip("%s", kernel_check_text(missing, line, sizeof(line)));
        CHECK((k.uffd_features & SHARED_FEATURES) == SHARED_FEATURES);
        CHECK(k.max_map_count > 0 && k.nofile > 0);
}

static void probe_leaves_no_trace(void) {
        struct kernel_info k = probe(); /* stdio and libc have made their mappings now */
        size_t fds = count_fds(), vmas = count_lines("/proc/self/maps");

        CHECK_EQ(kernel_probe(&k), 0);
        CHECK_EQ(count_fds(), fds);
        CHECK_EQ(count_lines("/proc/self/maps"), vmas);
        CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
}

/* Runs in a child, so that what it gives up does not matter; its exit status is the test's. */
static void in_child(void (*run)(void)) {
        int status;
        pid_t pid = fork();

        CHECK(pid >= 0);
        if (pid == 0) {
                alarm(FACT_WATCHDOG_SEC);
                run();
                fflush(stdout);
                _exit(0);
        }
        CHECK(waitpid(pid, &status, 0) == pid);
        CHECK_EQ(status, 0);
}

static void probe_as_nobody(void) {
        struct kernel_info k;

        CHECK(setresgid(NOBODY, NOBODY, NOBODY) == 0 && setresuid(NOBODY, NOBODY, NOBODY) == 0);
        CHECK(prctl(PR_SET_DUMPABLE, 1) == 0); /* a program that started as nobody is */
        k = probe();
        CHECK_EQ(k.checks[KERNEL_CHECK_uffd_device].status, KERNEL_NOT_PERMITTED);
        CHECK_EQ(k.checks[KERNEL_CHECK_process_vm_readv].status, KERNEL_NOT_PERMITTED);
        CHECK(kernel_first_missing(&k) == &k.checks[KERNEL_CHECK_uffd_device]); /* all the rest works */
}

static void unprivileged_probe_says_what_is_not_permitted(void) {
        if (geteuid() != 0)
                fact_skip("needs root to become nobody");
        if (access("/dev/userfaultfd", F_OK) < 0)
                fact_skip("no /dev/userfaultfd");
        in_child(probe_as_nobody);
}

static void probe_without_membarrier(void) {
        scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
        const struct rlimit few = { 64, 64 };
        struct kernel_info k;
        char line[512];

        CHECK(filter);
        CHECK_EQ(seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(membarrier), 0), 0);
        CHECK_EQ(seccomp_load(filter), 0);
        CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
        k = probe();
        CHECK(kernel_first_missing(&k) == &k.checks[KERNEL_CHECK_membarrier]);
        CHECK(strstr(kernel_check_text(&k.checks[KERNEL_CHECK_membarrier], line, sizeof(line)), "CONFIG_MEMBARRIER"));
        CHECK_EQ(k.checks[KERNEL_CHECK_nofile].status, KERNEL_MISSING);
}

/* The self-checks must not pass on a kernel that does nothing: each fault makes its own check fail. */
static void probe_without_userfaultfd_and_memfd(void) {
        scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
        struct kernel_info k;

        CHECK(filter);
        CHECK_EQ(seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOTTY), SCMP_SYS(ioctl), 1,
                                  SCMP_A1_32(SCMP_CMP_EQ, (uint32_t) USERFAULTFD_IOC_NEW)), 0);
        CHECK_EQ(seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(memfd_create), 0), 0);
        /* PAGEMAP_SCAN "succeeds" and finds nothing */
        CHECK_EQ(seccomp_rule_add(filter, SCMP_ACT_ERRNO(0), SCMP_SYS(ioctl), 1,
                                  SCMP_A1_32(SCMP_CMP_EQ, (uint32_t) PAGEMAP_SCAN)), 0);
        CHECK_EQ(seccomp_load(filter), 0);
        k = probe();
        CHECK_EQ(k.checks[KERNEL_CHECK_pagemap_scan].status, KERNEL_MISSING);
        CHECK_EQ(k.checks[KERNEL_CHECK_userfaultfd].status, KERNEL_MISSING);
        CHECK_EQ(k.checks[KERNEL_CHECK_move_works].status, KERNEL_MISSING);
        CHECK_EQ(k.checks[KERNEL_CHECK_memfd_seals].status, KERNEL_MISSING);
        CHECK_EQ(k.checks[KERNEL_CHECK_uffd_move].status, KERNEL_MISSING);
        CHECK_EQ(k.checks[KERNEL_CHECK_procmap_query].status, KERNEL_OK);
}

/* A kernel whose WP does not stick and whose MOVE moves nothing, though both report success. */
static void probe_a_lying_kernel(void) {
        scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
        struct kernel_info k;

        CHECK(filter);
        CHECK_EQ(seccomp_rule_add(filter, SCMP_ACT_ERRNO(0), SCMP_SYS(ioctl), 1,
                                  SCMP_A1_32(SCMP_CMP_EQ, (uint32_t) UFFDIO_MOVE)), 0);
        CHECK_EQ(seccomp_rule_add(filter, SCMP_ACT_ERRNO(0), SCMP_SYS(ioctl), 1,
                                  SCMP_A1_32(SCMP_CMP_EQ, (uint32_t) UFFDIO_CONTINUE)), 0);
        CHECK_EQ(seccomp_load(filter), 0);
        k = probe();
        CHECK_EQ(k.checks[KERNEL_CHECK_move_works].status, KERNEL_MISSING);
        CHECK_EQ(k.checks[KERNEL_CHECK_continue_works].status, KERNEL_MISSING);
        CHECK_EQ(k.checks[KERNEL_CHECK_scan_works].status, KERNEL_OK);
        CHECK(kernel_first_missing(&k) == &k.checks[KERNEL_CHECK_move_works]);
}

static void need_a_good_kernel(void) {
        struct kernel_info k;

        CHECK_EQ(kernel_probe(&k), 0);
        if (kernel_first_missing(&k))
                fact_skip("%s is missing already", kernel_first_missing(&k)->what);
}

static void probe_names_what_a_filter_forbids(void) {
        need_a_good_kernel();
        in_child(probe_without_membarrier);
        in_child(probe_without_userfaultfd_and_memfd);
}

static void probe_sees_through_success_that_did_nothing(void) {
        need_a_good_kernel();
        in_child(probe_a_lying_kernel);
}

static void versions_are_parsed_and_ordered(void) {
        static const struct {
                const char *text;
                int result;
                struct kernel_version v;
                int order; /* against 6.12.37 */
        } rows[] = {
                { "6.12.37", 0, { 6, 12, 37 }, 0 },
                { "6.12.37-1-cloud-amd64", 0, { 6, 12, 37 }, 0 },
                { "6.12.36", 0, { 6, 12, 36 }, -1 },
                { "6.12", 0, { 6, 12, 0 }, -1 },
                { "6.9.100", 0, { 6, 9, 100 }, -1 },
                { "7.0-rc3", 0, { 7, 0, 0 }, 1 },
                { "6.18.44-fc-v669", 0, { 6, 18, 44 }, 1 },
                { "10.2.1+", 0, { 10, 2, 1 }, 1 },
                { "6", -EINVAL, { 0 }, 0 },
                { "", -EINVAL, { 0 }, 0 },
                { "linux", -EINVAL, { 0 }, 0 },
        };

        for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
                struct kernel_version v = { 0 };

                CHECK_EQ(kernel_version_parse(rows[i].text, &v), rows[i].result);
                CHECK_EQ(kernel_version_compare(v, rows[i].v), 0);
                if (rows[i].result == 0)
                        CHECK_EQ(kernel_version_compare(v, (struct kernel_version){ 6, 12, 37 }), rows[i].order);
        }
}

FACTS(FACT(this_kernel_has_what_is_required),
      FACT(probe_leaves_no_trace),
      FACT(unprivileged_probe_says_what_is_not_permitted),
      FACT(probe_names_what_a_filter_forbids),
      FACT(probe_sees_through_success_that_did_nothing),
      FACT(versions_are_parsed_and_ordered))
