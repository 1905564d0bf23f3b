/* What the limits of control groups leave, of trees of files that read like the kernel's, and of this process's own groups. */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "daemon/sys/memory_group.h"

#define MIB (UINT64_C(1) << 20)
#define NONE UINT64_MAX
/* What version 1 says for no limit: the most whole pages. */
#define V1_NO_LIMIT "9223372036854771712"

static char root[] = "/tmp/userksm-groups-XXXXXX";

static void put(const char *directory, const char *name, const char *text) {
        char path[256];
        (void) snprintf(path, sizeof(path), "%s/%s", root, directory);
        assert_true(mkdir(path, 0755) == 0 || errno == EEXIST);
        (void) snprintf(path, sizeof(path), "%s/%s/%s", root, directory, name);
        FILE *f = fopen(path, "we");
        assert_non_null(f);
        assert_true(fputs(text, f) >= 0 && fclose(f) == 0);
}

static void put_mib(const char *directory, const char *name, uint64_t mib) {
        char text[32];
        (void) snprintf(text, sizeof(text), "%llu\n", (unsigned long long) (mib * MIB));
        put(directory, name, text);
}

static int make_root(void **state) {
        return mkdtemp(root) ? 0 : -1;
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *where) {
        return remove(path);
}

static int remove_root(void **state) {
        int r = nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
        (void) strcpy(strrchr(root, '-'), "-XXXXXX");
        return r;
}

/* The mount's root in the hierarchy, its place below our directory, its type and options. */
static void open_group(struct memory_group *g, const char *cgroup, const char *mount_root, const char *place, const char *type) {
        char mountinfo[1024];
        (void) snprintf(mountinfo, sizeof(mountinfo),
                        "23 1 0:20 / / rw - ext4 /dev/cgroup rw\n"
                        "24 23 0:21 / /proc rw,nosuid shared:13 - proc proc rw\n"
                        "31 23 0:29 / /elsewhere rw - cgroup cgroup rw,cpu,cpuacct\n"
                        "32 23 0:30 %s %s/%s rw,relatime shared:9 master:1 - %s\n",
                        mount_root, root, place, type);
        assert_int_equal(memory_group_open_texts(g, cgroup, mountinfo), 0);
}

static uint64_t left_of(const char *cgroup, const char *mount_root, const char *place, const char *type) {
        struct memory_group g;
        open_group(&g, cgroup, mount_root, place, type);
        uint64_t left = memory_group_left(&g);
        memory_group_close(&g);
        return left;
}

#define V2 "cgroup2 cgroup2 rw,nsdelegate"
#define V1 "cgroup cgroup rw,memory"
#define OURS "0::/system.slice/userksmd.service\n"

static void test_nothing_there(void **state) {
        assert_int_equal(left_of("", "/", "m", V2), NONE);
        assert_int_equal(left_of("12:cpu:/x\n", "/", "m", V2), NONE);
        assert_int_equal(left_of(OURS, "/", "m", V2), NONE);
        put("m", "cgroup.procs", "1\n");
        assert_int_equal(left_of(OURS, "/", "m", V2), NONE);
        assert_int_equal(left_of(OURS, "/", "m", "tmpfs tmpfs rw"), NONE);
        assert_int_equal(left_of("4:memory:/a\n", "/", "m", "cgroup cgroup rw,cpu"), NONE);
        /* No line of it is what it should be. */
        assert_int_equal(left_of("::::\n0:\n\n:memory\n", "/", "m", V2), NONE);
        struct memory_group g;
        assert_int_equal(memory_group_open_texts(&g, OURS, "1 2 - cgroup2\n- cgroup2\n1 2 3 / - cgroup2 a b\n\n"), 0);
        assert_int_equal(memory_group_left(&g), NONE);
        memory_group_close(&g);
}

static void test_own_and_above(void **state) {
        put("m", "memory.stat", "inactive_file 0\n"); /* the root has no limit */
        put_mib("m/system.slice", "memory.current", 900);
        put("m/system.slice", "memory.max", "max\n");
        put("m/system.slice", "memory.high", "max\n");
        put_mib("m/system.slice/userksmd.service", "memory.current", 300);
        put_mib("m/system.slice/userksmd.service", "memory.max", 1000);
        assert_int_equal(left_of(OURS, "/", "m", V2), 700 * MIB);
        put_mib("m/system.slice/userksmd.service", "memory.high", 800);
        assert_int_equal(left_of(OURS, "/", "m", V2), 500 * MIB);
        put_mib("m/system.slice", "memory.max", 1100);
        assert_int_equal(left_of(OURS, "/", "m", V2), 200 * MIB);
        /* Over a limit: memory.high, or a limit that was lowered. */
        put_mib("m/system.slice", "memory.high", 850);
        assert_int_equal(left_of(OURS, "/", "m", V2), 0);
        /* A container: what is above it cannot be seen, and its own group is the mount's root. */
        assert_int_equal(left_of(OURS, "/system.slice/userksmd.service", "m/system.slice/userksmd.service", V2), 500 * MIB);
        assert_int_equal(left_of("0::/\n", "/", "m/system.slice/userksmd.service", V2), 500 * MIB);
        assert_int_equal(left_of("0::/../other\n", "/", "m/system.slice/userksmd.service", V2), 500 * MIB);
        /* A name that begins as the mount's root does. */
        assert_int_equal(left_of("0::/system.slice2\n", "/system.slice", "m/system.slice/userksmd.service", V2), 500 * MIB);
}

/* Limits change while we run; a group that goes away sets none. */
static void test_changes(void **state) {
        struct memory_group g;
        put_mib("m/system.slice", "memory.high", 1000);
        put_mib("m/system.slice", "memory.max", 2000);
        open_group(&g, OURS, "/", "m", V2);
        assert_int_equal(memory_group_left(&g), 100 * MIB);
        put("m/system.slice", "memory.high", "max\n");
        put("m/system.slice/userksmd.service", "memory.high", "max\n");
        assert_int_equal(memory_group_left(&g), 700 * MIB);
        put_mib("m/system.slice/userksmd.service", "memory.current", 400);
        assert_int_equal(memory_group_left(&g), 600 * MIB);
        put("m/system.slice/userksmd.service", "memory.current", "");
        assert_int_equal(memory_group_left(&g), 1100 * MIB);
        memory_group_close(&g);
        assert_int_equal(memory_group_left(&g), NONE);
}

/* What can be dropped is as good as free, but for what must be written; asked only where little is left. */
static void test_page_cache(void **state) {
        const char *group = "m/system.slice/userksmd.service";
        put_mib(group, "memory.current", 990);
        assert_int_equal(left_of(OURS, "/", "m", V2), 10 * MIB);
        put(group, "memory.stat",
            "anon 1048576\nfile 900000000\nshmem 700000000\nfile_dirty 2097152\nfile_writeback 1048576\n"
            "workingset_refault_inactive_file 99999999999\ninactive_anon 5\ninactive_file 41943040\nactive_file 20971520\n");
        assert_int_equal(left_of(OURS, "/", "m", V2), (10 + 40 + 20 - 2 - 1) * MIB);
        put_mib(group, "memory.current", 1000 - MEMORY_GROUP_SURE_BYTES / MIB);
        assert_int_equal(left_of(OURS, "/", "m", V2), MEMORY_GROUP_SURE_BYTES);
        put(group, "memory.stat", "file_dirty 2097152\ninactive_file 1048576\nactive_file");
        put_mib(group, "memory.current", 995);
        assert_int_equal(left_of(OURS, "/", "m", V2), 5 * MIB);
}

static void test_version_1(void **state) {
        static const char *const lines[] = { "9:name=systemd:/x\n4:memory:/a/b\n3:cpu,cpuacct:/\n0::/system.slice/userksmd.service\n",
                                             "0::/system.slice/userksmd.service\n12:hugetlb,memory:/a/b\n" };
        put("one", "memory.limit_in_bytes", V1_NO_LIMIT "\n");
        put_mib("one", "memory.usage_in_bytes", 100000);
        put("one/a", "memory.limit_in_bytes", V1_NO_LIMIT "\n");
        put_mib("one/a", "memory.usage_in_bytes", 700);
        put_mib("one/a/b", "memory.usage_in_bytes", 500);
        put_mib("one/a/b", "memory.limit_in_bytes", 512);
        put("one/a/b", "memory.stat", "inactive_file 999999999\ntotal_inactive_file 4194304\ntotal_active_file 2097152\ntotal_dirty 1048576\n");
        for (size_t i = 0; i < ARRAY_SIZE(lines); i++)
                assert_int_equal(left_of(lines[i], "/", "one", V1), (12 + 4 + 2 - 1) * MIB);
        put_mib("one/a", "memory.limit_in_bytes", 710);
        assert_int_equal(left_of(lines[0], "/", "one", V1), 10 * MIB);
}

static void test_odd_names(void **state) {
        put_mib("with space", "memory.max", 300);
        put_mib("with space", "memory.current", 100);
        assert_int_equal(left_of("0::/\n", "/", "with\\040space", V2), 200 * MIB);
        /* Of more levels than fit the nearest count. */
        char path[256] = "deep", cgroup[256] = "0::";
        for (unsigned i = 0; i < MEMORY_GROUP_LEVELS + 4; i++) {
                put_mib(path, "memory.max", i < 4 ? 1 : 500);
                put_mib(path, "memory.current", 0);
                put(path, "memory.stat", "\n");
                (void) strcat(path, "/d");
                (void) strcat(cgroup, "/d");
        }
        put_mib(path, "memory.max", 400);
        put_mib(path, "memory.current", 100);
        assert_int_equal(left_of(cgroup, "/", "deep", V2), 300 * MIB);
}

/* Whatever they are: a limit that can be read is more than what is used, or none. */
static void test_this_process(void **state) {
        struct memory_group g;
        int r = memory_group_open(&g);
        assert_int_equal(r, 0);
        uint64_t left = memory_group_left(&g);
        printf("%u levels, %llu MiB left\n", g.n_levels, (unsigned long long) left >> 20);
        assert_true(left > 0);
        memory_group_close(&g);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_nothing_there), cmocka_unit_test(test_own_and_above), cmocka_unit_test(test_changes),
                cmocka_unit_test(test_page_cache),    cmocka_unit_test(test_version_1),     cmocka_unit_test(test_odd_names),
                cmocka_unit_test(test_this_process),
        };
        return cmocka_run_group_tests(tests, make_root, remove_root);
}
