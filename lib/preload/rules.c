/* What the administrator's rules (common/rules.h) say of this program. Called once, before main, not in setuid programs; by system calls
 * of our own, for other interposers are not ready yet. Without a directory of rules that is one openat. */
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/rules.h"
#include "lib/preload/preload.h"
#include "lib/sys.h"

#define PATH_BYTES 4096 /* PATH_MAX; what is longer cannot be known */

static int io_open(int directory, const char *name, int flags) {
        return (int) sys_call(SYS_openat, directory < 0 ? AT_FDCWD : directory, (long) name, flags, 0, 0, 0);
}

static int io_stat(int fd, struct rules_stat *ret) {
        struct stat s; /* glibc's is the kernel's on the machines that sys.h is written for */
        long r = sys_call(SYS_fstat, fd, (long) &s, 0, 0, 0, 0);
        if (r < 0)
                return (int) r;
        *ret = (struct rules_stat) { .uid = s.st_uid, .mode = s.st_mode };
        return 0;
}

static long io_list(int fd, void *buffer, size_t size) {
        return sys_call(SYS_getdents64, fd, (long) buffer, (long) size, 0, 0, 0);
}

static long io_read(int fd, void *buffer, size_t size) {
        return sys_call(SYS_read, fd, (long) buffer, (long) size, 0, 0, 0);
}

static void io_close(int fd) {
        (void) sys_close(fd);
}

struct own_facts {
        struct rule_facts f; /* first */
        char exe[PATH_BYTES], cgroup[PATH_BYTES];
};

static void find_exe(struct rule_facts *f) {
        struct own_facts *own = (struct own_facts *) f;
        long n = sys_call(SYS_readlinkat, AT_FDCWD, (long) "/proc/self/exe", (long) own->exe, sizeof(own->exe), 0, 0);
        if (n > 0 && n < (long) sizeof(own->exe))
                f->exe = (struct rule_text) { own->exe, (size_t) n };
}

static void find_cgroup(struct rule_facts *f) {
        struct own_facts *own = (struct own_facts *) f;
        int fd = io_open(-1, "/proc/self/cgroup", O_RDONLY | O_CLOEXEC);
        size_t length = 0;
        long n = fd;
        while (fd >= 0 && length < sizeof(own->cgroup) && (n = io_read(fd, own->cgroup + length, sizeof(own->cgroup) - length)) > 0)
                length += (size_t) n;
        if (fd >= 0)
                io_close(fd);
        if (n != 0) /* no such file, an error, or more than fits */
                return;
        f->cgroup = rule_cgroup_path(own->cgroup, length);
        if (f->cgroup.text)
                f->unit = rule_cgroup_unit(f->cgroup);
}

enum rule_action shim_rules(const char *directory) {
        const uint32_t uid = (uint32_t) sys_call(SYS_getuid, 0, 0, 0, 0, 0, 0);
        const struct rules_io io = {
                .open = io_open, .stat = io_stat, .list = io_list, .read = io_read, .close = io_close, .uid = uid
        };
        struct own_facts own;
        own.f = (struct rule_facts) { .uid = uid, .find_exe = find_exe, .find_cgroup = find_cgroup };
        return rules_decide(&io, directory, &own.f);
}
