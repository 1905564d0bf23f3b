#include "ctl/paths.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"

/* Relative ones are taken from the folder of the running ksmctl. Never from $PATH or $LD_LIBRARY_PATH: root
 * runs this. */
static const char *const shim_places[] = { "../lib/libuserksm-preload.so", USERKSM_LIBDIR "/libuserksm-preload.so" };
static const char *const daemon_places[] = { "../daemon/userksmd", USERKSM_LIBEXECDIR "/userksmd",
                                             USERKSM_SBINDIR "/userksmd", USERKSM_BINDIR "/userksmd" };
static const char *const sysfs_places[] = { "sysfs/userksm-sysfs", USERKSM_LIBEXECDIR "/userksm-sysfs" };
static const char *const sysfs_library_places[] = { "sysfs/libuserksm-sysfs.so", USERKSM_LIBDIR "/libuserksm-sysfs.so" };

static int own_folder(char folder[PATH_MAX]) {
        ssize_t n = readlink("/proc/self/exe", folder, PATH_MAX - 1);
        char *slash;

        if (n < 0)
                return -errno;
        folder[n] = 0;
        slash = strrchr(folder, '/');
        if (!slash)
                return -ENOENT;
        *slash = 0;
        return 0;
}

static int find(const char *const *places, size_t n, int access_mode, char ret[PATH_MAX]) {
        char folder[PATH_MAX], path[PATH_MAX], real[PATH_MAX], tried[PATH_MAX] = "";
        size_t used = 0;
        int r = own_folder(folder);

        for (size_t i = 0; i < n; i++) {
                bool relative = places[i][0] != '/';

                if (relative && r < 0)
                        continue;
                if (snprintf(path, sizeof(path), "%s%s%s", relative ? folder : "", relative ? "/" : "", places[i]) >=
                    (int) sizeof(path))
                        continue;
                if (access(path, access_mode) == 0 && realpath(path, real)) {
                        memcpy(ret, real, sizeof(real));
                        return 0;
                }
                used += (size_t) snprintf(tried + used, sizeof(tried) - used, "%s%s", used > 0 ? ", " : "", path);
                used = MIN(used, sizeof(tried) - 1);
        }
        memcpy(ret, tried, sizeof(tried));
        return -ENOENT;
}

int find_shim(char ret[PATH_MAX]) {
        return find(shim_places, ARRAY_SIZE(shim_places), R_OK, ret);
}

int find_daemon(char ret[PATH_MAX]) {
        return find(daemon_places, ARRAY_SIZE(daemon_places), X_OK, ret);
}

int find_sysfs_server(char ret[PATH_MAX]) {
        return find(sysfs_places, ARRAY_SIZE(sysfs_places), X_OK, ret);
}

int find_sysfs_library(char ret[PATH_MAX]) {
        return find(sysfs_library_places, ARRAY_SIZE(sysfs_library_places), R_OK, ret);
}
