#include "daemon/sys/pressure.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"

/* Two lines of some 60 characters; of meminfo the first three lines are enough. */
#define STALL_BYTES 512
#define MEMINFO_BYTES 512

static int open_file(const char *path, int *ret) {
        *ret = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
        return *ret < 0 ? -errno : 0;
}

int pressure_open(struct pressure *p, const char *stall_path) {
        int stall = open_file(stall_path, &p->stall_fd), meminfo = open_file("/proc/meminfo", &p->meminfo_fd);
        return stall < 0 ? stall : meminfo;
}

void pressure_close(struct pressure *p) {
        p->stall_fd = close_fd(p->stall_fd);
        p->meminfo_fd = close_fd(p->meminfo_fd);
}

static int read_text(int fd, char *text, size_t capacity) {
        ssize_t n = fd < 0 ? -1 : pread(fd, text, capacity - 1, 0);
        if (n < 0)
                return fd < 0 ? -EBADF : -errno;
        text[n] = '\0';
        return 0;
}

/* Whole thousandths of a text like "12.34" (percent). */
int pressure_parse_stall(const char *text, unsigned *ret_permille) {
        static const char key[] = "avg10=";
        const char *line = strncmp(text, "some ", 5) == 0 ? text : strstr(text, "\nsome ");
        const char *value = line ? strstr(line + 1, key) : NULL;
        char *end;
        if (!value || value > line + 1 + strcspn(line + 1, "\n"))
                return -EBADMSG;
        value += sizeof(key) - 1;
        unsigned long percent = strtoul(value, &end, 10);
        if (*value < '0' || *value > '9' || percent > 100 || *end != '.' || end[1] < '0' || end[1] > '9')
                return -EBADMSG;
        *ret_permille = MIN((unsigned) percent * 10 + (unsigned) (end[1] - '0'), 1000U);
        return 0;
}

static int find_kib(const char *text, const char *key, uint64_t *ret) {
        const char *line = strstr(text, key);
        char *end;
        if (!line || (line > text && line[-1] != '\n'))
                return -EBADMSG;
        line += strlen(key);
        line += strspn(line, " ");
        *ret = strtoull(line, &end, 10);
        return *line < '0' || *line > '9' || strncmp(end, " kB", 3) != 0 ? -EBADMSG : 0;
}

int pressure_parse_meminfo(const char *text, unsigned *ret_permille) {
        uint64_t total, available;
        if (find_kib(text, "MemTotal:", &total) < 0 || find_kib(text, "MemAvailable:", &available) < 0 || total == 0)
                return -EBADMSG;
        *ret_permille = (unsigned) (MIN(available, total) * (unsigned __int128) 1000 / total);
        return 0;
}

int pressure_parse_available(const char *text, uint64_t *ret_bytes) {
        uint64_t kib;
        if (find_kib(text, "MemAvailable:", &kib) < 0 || kib > UINT64_MAX / 1024)
                return -EBADMSG;
        *ret_bytes = kib * 1024;
        return 0;
}

int pressure_stall_permille(const struct pressure *p, unsigned *ret) {
        char text[STALL_BYTES];
        int r = read_text(p->stall_fd, text, sizeof(text));
        return r < 0 ? r : pressure_parse_stall(text, ret);
}

int pressure_available_permille(const struct pressure *p, unsigned *ret) {
        char text[MEMINFO_BYTES];
        int r = read_text(p->meminfo_fd, text, sizeof(text));
        return r < 0 ? r : pressure_parse_meminfo(text, ret);
}

int pressure_available_bytes(const struct pressure *p, uint64_t *ret) {
        char text[MEMINFO_BYTES];
        int r = read_text(p->meminfo_fd, text, sizeof(text));
        return r < 0 ? r : pressure_parse_available(text, ret);
}
