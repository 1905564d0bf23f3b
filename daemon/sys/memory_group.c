#include "daemon/sys/memory_group.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "common/cleanup.h"

/* Version 1 says so for "max": the largest number of whole pages. */
#define NO_LIMIT_FROM (UINT64_C(1) << 62)
#define NUMBER_BYTES 32
/* Some 60 lines; what matters stands in the first 40. */
#define STAT_BYTES 8192

struct memory_group_files {
        const char *filesystem, *option; /* of the mount; option NULL: any */
        const char *limits[2], *usage;
        const char *cache[2], *unwritten[2]; /* lines of memory.stat: what can be dropped, and what of it must be written before */
};
static const struct memory_group_files version_1 = {
        .filesystem = "cgroup",
        .option = "memory",
        .limits = { "memory.limit_in_bytes" },
        .usage = "memory.usage_in_bytes",
        .cache = { "total_inactive_file", "total_active_file" },
        .unwritten = { "total_dirty", "total_writeback" },
};
static const struct memory_group_files version_2 = {
        .filesystem = "cgroup2",
        .limits = { "memory.max", "memory.high" },
        .usage = "memory.current",
        .cache = { "inactive_file", "active_file" },
        .unwritten = { "file_dirty", "file_writeback" },
};

/* -- which groups ---------------------------------------------------------------------------------------------------- */

static bool has_word(const char *list, size_t size, const char *word) {
        for (size_t i = 0, n; i < size; i += n + 1) {
                n = strcspn(list + i, ", \n");
                n = MIN(n, size - i);
                if (n == strlen(word) && memcmp(list + i, word, n) == 0)
                        return true;
        }
        return false;
}

/* Copies up to a space or newline; \040 and the like stand for what would end a word. False: no room. */
static bool copy_word(char *to, size_t capacity, const char *from) {
        size_t n = 0;
        for (; *from && *from != ' ' && *from != '\n' && n < capacity; n++) {
                bool is_octal = from[0] == '\\' && from[1] >= '0' && from[1] <= '3' && from[2] >= '0' && from[2] <= '7' && from[3] >= '0' &&
                                from[3] <= '7';
                int byte = is_octal ? (from[1] - '0') * 64 + (from[2] - '0') * 8 + from[3] - '0' : *from;
                to[n] = (char) byte;
                from += is_octal ? 4 : 1;
        }
        if (n == capacity)
                return false;
        to[n] = '\0';
        return true;
}

/* The path in the hierarchy that has the memory controller: version 1's where it is listed there, else version 2's. */
static const struct memory_group_files *find_path(const char *text, char path[static PATH_MAX]) {
        const struct memory_group_files *found = NULL;
        for (const char *line = text; *line; line += strcspn(line, "\n"), line += *line == '\n') {
                const char *list = strchr(line, ':'), *value = list ? strchr(list + 1, ':') : NULL;
                if (!value || value > line + strcspn(line, "\n"))
                        continue;
                bool is_first = has_word(list + 1, (size_t) (value - list - 1), "memory");
                if (!is_first && strncmp(line, "0::", 3) != 0)
                        continue;
                size_t n = strcspn(value + 1, "\n");
                if (n >= PATH_MAX || found == &version_1)
                        continue;
                memcpy(path, value + 1, n);
                path[n] = '\0';
                found = is_first ? &version_1 : &version_2;
        }
        return found;
}

/* The part of path below root; NULL: it is not. */
static const char *below(const char *root, const char *path) {
        size_t n = strcmp(root, "/") == 0 ? 0 : strlen(root);
        return strncmp(path, root, n) == 0 && (path[n] == '/' || path[n] == '\0') ? path + n : NULL;
}

/* ID PARENT DEVICE ROOT MOUNT OPTIONS [FIELD]... - TYPE SOURCE SUPER-OPTIONS: where the group is seen, and how much of that is the mount. */
static bool find_directory(const struct memory_group_files *files, const char *mountinfo, const char *path, char directory[static PATH_MAX],
                           size_t *ret_mount_size) {
        char root[PATH_MAX];
        for (const char *line = mountinfo; *line; line += strcspn(line, "\n"), line += *line == '\n') {
                const char *end = line + strcspn(line, "\n"), *type = strstr(line, " - "), *word = line;
                if (!type || type > end)
                        continue;
                type += 3;
                if (!has_word(type, strcspn(type, " "), files->filesystem) ||
                    (files->option && !has_word(type, (size_t) (end - type), files->option)))
                        continue;
                for (unsigned i = 0; i < 3; i++)
                        word += strcspn(word, " ") + 1;
                if (word >= type || !copy_word(root, sizeof(root), word))
                        continue;
                word += strcspn(word, " ") + 1;
                if (word >= type || !copy_word(directory, PATH_MAX, word))
                        continue;
                /* Not below the mount: of a namespace that is not ours. What is mounted is above us all the same. */
                const char *rest = below(root, path);
                size_t n = strlen(directory);
                *ret_mount_size = n;
                if (rest && strcmp(rest, "/") != 0 && strncmp(rest, "/..", 3) != 0 && n + strlen(rest) < PATH_MAX)
                        memcpy(directory + n, rest, strlen(rest) + 1);
                return true;
        }
        return false;
}

/* -- files ------------------------------------------------------------------------------------------------------------- */

static int open_file(const char *directory, const char *name) {
        char path[PATH_MAX];
        if (!name || snprintf(path, sizeof(path), "%s/%s", directory, name) >= (int) sizeof(path))
                return -1;
        return open(path, O_RDONLY | O_CLOEXEC);
}

/* Not where nothing of it is there. -errno: something is there and cannot be known. */
static int add_level(struct memory_group *g, const char *directory) {
        const struct memory_group_files *f = g->files;
        struct memory_group_level *l = &g->levels[g->n_levels];
        *l = (struct memory_group_level){ { -1, -1 }, -1, -1 };
        int r = 0;
        for (unsigned i = 0; i < ARRAY_SIZE(f->limits); i++) {
                l->limit_fds[i] = open_file(directory, f->limits[i]);
                if (l->limit_fds[i] < 0 && f->limits[i] && errno != ENOENT)
                        r = -errno;
        }
        if (r == 0 && l->limit_fds[0] < 0 && l->limit_fds[1] < 0)
                return 0;
        l->usage_fd = open_file(directory, f->usage);
        if (l->usage_fd < 0 && r == 0)
                r = -errno;
        l->stat_fd = open_file(directory, "memory.stat");
        g->n_levels++;
        return r;
}

int memory_group_open_texts(struct memory_group *g, const char *cgroup, const char *mountinfo) {
        char path[PATH_MAX] = "", directory[PATH_MAX];
        size_t mount_size;
        int r = 0;
        *g = (struct memory_group){ .files = find_path(cgroup, path) };
        if (!g->files || !find_directory(g->files, mountinfo, path, directory, &mount_size))
                return 0;
        for (size_t n = strlen(directory); n >= mount_size && g->n_levels < MEMORY_GROUP_LEVELS && r == 0;) {
                directory[n] = '\0';
                r = add_level(g, directory);
                do
                        n--;
                while (n > mount_size && directory[n] != '/');
                if (n < mount_size)
                        break;
        }
        if (r < 0)
                memory_group_close(g);
        return r;
}

/* A whole file of the kernel's, NUL-terminated. NULL: no memory, or it cannot be read (errno). */
static char *read_text(const char *path) {
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        size_t n = 0, capacity = 16384;
        _cleanup_free_ char *text = fd >= 0 ? malloc(capacity) : NULL;
        for (ssize_t k = 1; text && k > 0; n += (size_t) k) {
                if (n + 1 == capacity) {
                        char *larger = realloc(text, capacity *= 2);
                        if (!larger)
                                return NULL;
                        text = larger;
                }
                k = read(fd, text + n, capacity - n - 1);
                if (k < 0)
                        return NULL;
        }
        if (text)
                text[n] = '\0';
        return TAKE_PTR(text);
}

static int open_of(struct memory_group *g, const char *cgroup_path) {
        *g = (struct memory_group){ 0 };
        _cleanup_free_ char *cgroup = read_text(cgroup_path);
        if (!cgroup)
                return errno == ENOENT ? 0 : -errno; /* a kernel without control groups */
        _cleanup_free_ char *mountinfo = read_text("/proc/self/mountinfo");
        return mountinfo ? memory_group_open_texts(g, cgroup, mountinfo) : -errno;
}

int memory_group_open(struct memory_group *g) {
        return open_of(g, "/proc/self/cgroup");
}

int memory_group_open_pid(struct memory_group *g, pid_t pid) {
        char path[sizeof("/proc//cgroup") + 3 * sizeof(pid)];
        (void) snprintf(path, sizeof(path), "/proc/%d/cgroup", (int) pid);
        return open_of(g, path);
}

void memory_group_close(struct memory_group *g) {
        for (struct memory_group_level *l = g->levels; l < g->levels + g->n_levels; l++) {
                close_fd(l->limit_fds[0]);
                close_fd(l->limit_fds[1]);
                close_fd(l->usage_fd);
                close_fd(l->stat_fd);
        }
        g->n_levels = 0;
}

/* -- what is left ------------------------------------------------------------------------------------------------------ */

/* UINT64_MAX for "max", and for what cannot be read. */
static uint64_t read_number(int fd) {
        char text[NUMBER_BYTES];
        ssize_t n = fd >= 0 ? pread(fd, text, sizeof(text) - 1, 0) : -1;
        if (n <= 0 || text[0] < '0' || text[0] > '9')
                return UINT64_MAX;
        text[n] = '\0';
        errno = 0;
        uint64_t number = strtoull(text, NULL, 10);
        return errno || number >= NO_LIMIT_FROM ? UINT64_MAX : number;
}

static uint64_t stat_value(const char *text, const char *name) {
        size_t n = strlen(name);
        for (const char *line = text; *line; line += strcspn(line, "\n"), line += *line == '\n')
                if (strncmp(line, name, n) == 0 && line[n] == ' ')
                        return strtoull(line + n, NULL, 10);
        return 0;
}

static uint64_t can_be_dropped(const struct memory_group *g, int fd) {
        const struct memory_group_files *f = g->files;
        char text[STAT_BYTES];
        ssize_t n = fd >= 0 ? pread(fd, text, sizeof(text) - 1, 0) : -1;
        if (n <= 0)
                return 0;
        text[n] = '\0';
        uint64_t cache = 0, unwritten = 0;
        for (unsigned i = 0; i < 2; i++) {
                cache += stat_value(text, f->cache[i]);
                unwritten += stat_value(text, f->unwritten[i]);
        }
        return cache - MIN(cache, unwritten);
}

uint64_t memory_group_left(const struct memory_group *g) {
        uint64_t least = UINT64_MAX;
        for (const struct memory_group_level *l = g->levels; l < g->levels + g->n_levels; l++) {
                uint64_t limit = MIN(read_number(l->limit_fds[0]), read_number(l->limit_fds[1]));
                uint64_t usage = limit == UINT64_MAX ? UINT64_MAX : read_number(l->usage_fd);
                if (usage == UINT64_MAX)
                        continue;
                uint64_t left = limit - MIN(limit, usage);
                if (left < MIN(least, MEMORY_GROUP_SURE_BYTES)) {
                        usage -= MIN(usage, can_be_dropped(g, l->stat_fd));
                        left = limit - MIN(limit, usage);
                }
                least = MIN(least, left);
        }
        return least;
}
