/* The order of the checks is that of causes: a static program never reads LD_PRELOAD; a privileged one ignores it; one
 * whose environment was emptied never sees it; one that has the shim loaded failed later. */
#include "ctl/run_diagnose.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>

#include "common/cleanup.h"

#define SHIM_NAME "libuserksm-preload.so"

static int open_proc(pid_t pid, const char *name) {
        char path[64];
        int fd;

        snprintf(path, sizeof(path), "/proc/%d/%s", (int) pid, name);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        return fd < 0 ? -errno : fd;
}

enum linkage { LINKAGE_UNKNOWN, LINKAGE_STATIC, LINKAGE_DYNAMIC, LINKAGE_32_BIT };

/* Dynamic = names an interpreter, which is what reads LD_PRELOAD. */
static enum linkage linkage_of(pid_t pid) {
        _cleanup_close_ int fd = open_proc(pid, "exe");
        Elf64_Ehdr header;

        if (fd < 0 || pread(fd, &header, sizeof(header), 0) != sizeof(header) ||
            memcmp(header.e_ident, ELFMAG, SELFMAG) != 0)
                return LINKAGE_UNKNOWN;
        if (header.e_ident[EI_CLASS] != ELFCLASS64)
                return LINKAGE_32_BIT;
        for (unsigned i = 0; i < header.e_phnum; i++) {
                Elf64_Phdr segment;
                off_t offset = (off_t) (header.e_phoff + (uint64_t) i * sizeof(segment));

                if (pread(fd, &segment, sizeof(segment), offset) != sizeof(segment))
                        return LINKAGE_UNKNOWN;
                if (segment.p_type == PT_INTERP)
                        return LINKAGE_DYNAMIC;
        }
        return LINKAGE_STATIC;
}

/* The kernel's word for setuid, setgid and file capabilities. */
static bool is_secure(pid_t pid) {
        _cleanup_close_ int fd = open_proc(pid, "auxv");
        Elf64_auxv_t entry;

        while (fd >= 0 && read(fd, &entry, sizeof(entry)) == sizeof(entry) && entry.a_type != AT_NULL)
                if (entry.a_type == AT_SECURE)
                        return entry.a_un.a_val != 0;
        return false;
}

/* Whether a file of /proc/PID has `needle`, in lines (maps) or NUL separated strings (environ). -errno when
 * unreadable. */
static int proc_contains(pid_t pid, const char *name, const char *needle) {
        _cleanup_close_ int fd = open_proc(pid, name);
        size_t allocated = 0;
        char *line = NULL;
        ssize_t n;
        int found = 0;
        FILE *f;

        if (fd < 0)
                return fd;
        f = fdopen(fd, "r");
        if (!f)
                return -errno;
        fd = -1;
        while (!found && (n = getdelim(&line, &allocated, '\n', f)) > 0)
                found = memmem(line, (size_t) n, needle, strlen(needle)) != NULL;
        free(line);
        fclose(f);
        return found;
}

void diagnose_process(pid_t pid, char *text, size_t size) {
        enum linkage linkage = linkage_of(pid);
        int loaded = proc_contains(pid, "maps", SHIM_NAME), asked = proc_contains(pid, "environ", SHIM_NAME);
        const char *why;

        if (loaded == -ENOENT || loaded == -ESRCH)
                why = "it has ended";
        else if (linkage == LINKAGE_STATIC)
                why = "its program is linked statically: it loads no libraries, and its memory cannot be merged";
        else if (linkage == LINKAGE_32_BIT)
                why = "it is a 32-bit program: only 64-bit ones can be merged";
        else if (is_secure(pid))
                why = "it runs with privileges from its file (setuid, setgid or capabilities): such programs load no "
                      "preloaded library, by design; run it from a process that has the privileges already";
        else if (loaded == 1)
                why = "the library is loaded there but the daemon has not accepted it: see the daemon's log, 'ksmctl check' "
                      "for what userfaultfd needs, and whether a rule in /etc/userksm/rules.d says off";
        else if (asked == 0)
                why = "it was started with an environment of its own, without LD_PRELOAD (env -i, sudo, su, a "
                      "container runtime): put 'ksmctl run' inside of that";
        else if (loaded == 0)
                why = "its dynamic linker did not load the library: another libc than glibc (musl), another root "
                      "directory, or no right to read the library";
        else
                why = "its state cannot be read (no permission)";
        snprintf(text, size, "%s", why);
}
