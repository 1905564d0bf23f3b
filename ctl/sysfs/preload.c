/* libuserksm-sysfs.so, preloaded by `ksmctl run --sysfs` beside the shim: who opens /proc/PID/ksm_merging_pages or ksm_stat gets
 * userksm's numbers, from the tree that is mounted there. Every other path goes to the next library as it is. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define TREE "/sys/kernel/mm/ksm/process"
#define PATH_BYTES 96

#define EXPORT __attribute__((visibility("default")))

/* glibc's, of a program built with _FORTIFY_SOURCE; no header has them all. */
int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
int __openat_2(int directory, const char *path, int flags);
int __openat64_2(int directory, const char *path, int flags);

/* At first use: a constructor of another library may open files before ours has run. Two threads find the same. */
#define REAL(name)                                                        \
        ({                                                                \
                static __typeof__(&name) real;                            \
                                                                          \
                if (!real)                                                \
                        real = (__typeof__(&name)) dlsym(RTLD_NEXT, #name); \
                real;                                                     \
        })

/* The path in the tree, in buffer, or the path itself. */
static const char *redirect(const char *path, char buffer[PATH_BYTES]) {
        static const char *const names[] = { "ksm_merging_pages", "ksm_stat" };
        const char *who, *slash, *name = NULL;
        size_t n;

        if (!path || strncmp(path, "/proc/", 6) != 0)
                return path;
        who = path + 6;
        slash = strchr(who, '/');
        for (size_t i = 0; slash && i < sizeof(names) / sizeof(names[0]); i++)
                if (strcmp(slash + 1, names[i]) == 0)
                        name = names[i];
        if (!name)
                return path;
        n = (size_t) (slash - who);
        if ((n == 4 && memcmp(who, "self", n) == 0) || (n == 11 && memcmp(who, "thread-self", n) == 0))
                snprintf(buffer, PATH_BYTES, TREE "/%d/%s", (int) getpid(), name);
        else if (n < 11 && strspn(who, "0123456789") == n)
                snprintf(buffer, PATH_BYTES, TREE "/%.*s/%s", (int) n, who, name);
        else
                return path;
        /* The program may have left the mount namespace that has the tree. */
        return access(TREE, F_OK) == 0 ? buffer : path;
}

static mode_t mode_of(int flags, va_list ap) {
        return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(ap, mode_t) : 0;
}

#define OPEN(name)                                                      \
        EXPORT int name(const char *path, int flags, ...) {             \
                char buffer[PATH_BYTES];                                \
                int saved = errno;                                      \
                va_list ap;                                             \
                mode_t mode;                                            \
                                                                        \
                va_start(ap, flags);                                    \
                mode = mode_of(flags, ap);                              \
                va_end(ap);                                             \
                path = redirect(path, buffer);                          \
                errno = saved;                                          \
                return REAL(name)(path, flags, mode);                   \
        }
#define OPENAT(name)                                                    \
        EXPORT int name(int directory, const char *path, int flags, ...) { \
                char buffer[PATH_BYTES];                                \
                int saved = errno;                                      \
                va_list ap;                                             \
                mode_t mode;                                            \
                                                                        \
                va_start(ap, flags);                                    \
                mode = mode_of(flags, ap);                              \
                va_end(ap);                                             \
                path = redirect(path, buffer);                          \
                errno = saved;                                          \
                return REAL(name)(directory, path, flags, mode);        \
        }
#define FOPEN(name)                                                     \
        EXPORT FILE *name(const char *path, const char *mode) {         \
                char buffer[PATH_BYTES];                                \
                int saved = errno;                                      \
                                                                        \
                path = redirect(path, buffer);                          \
                errno = saved;                                          \
                return REAL(name)(path, mode);                          \
        }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
FOPEN(fopen)
FOPEN(fopen64)

EXPORT int __open_2(const char *path, int flags) {
        char buffer[PATH_BYTES];

        return REAL(__open_2)(redirect(path, buffer), flags);
}

EXPORT int __open64_2(const char *path, int flags) {
        char buffer[PATH_BYTES];

        return REAL(__open64_2)(redirect(path, buffer), flags);
}

EXPORT int __openat_2(int directory, const char *path, int flags) {
        char buffer[PATH_BYTES];

        return REAL(__openat_2)(directory, redirect(path, buffer), flags);
}

EXPORT int __openat64_2(int directory, const char *path, int flags) {
        char buffer[PATH_BYTES];

        return REAL(__openat64_2)(directory, redirect(path, buffer), flags);
}
