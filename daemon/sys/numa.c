#include "daemon/sys/numa.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/uapi.h"

/* 1 << CONFIG_NODES_SHIFT is at most 1024. */
#define NODES_MAX 1024
/* Longer lists are of machines with more than a hundred odd pieces. */
#define LIST_BYTES 1024
/* Some 180 lines of up to 40 characters, and room to grow. */
#define VMSTAT_BYTES 16384

int numa_nodes(pid_t pid, const uint64_t *pages, size_t n_pages, int16_t *ret_nodes) {
        void *addresses[NUMA_CALL_PAGES];
        int status[NUMA_CALL_PAGES];
        for (size_t i = 0, n; i < n_pages; i += n) {
                n = MIN(n_pages - i, (size_t) NUMA_CALL_PAGES);
                for (size_t k = 0; k < n; k++)
                        addresses[k] = (void *) (uintptr_t) (pages[i + k] << KSM_PAGE_SHIFT);
                if (syscall(SYS_move_pages, pid, n, addresses, NULL, status, 0) < 0)
                        return -errno;
                for (size_t k = 0; k < n; k++)
                        ret_nodes[i + k] = (int16_t) status[k];
        }
        return 0;
}

int numa_bind(void *start, size_t bytes, int node) {
        enum { WORD_BITS = 8 * sizeof(unsigned long) };
        unsigned long mask[NODES_MAX / WORD_BITS] = { 0 };
        if (node < 0 || node >= NODES_MAX)
                return -EINVAL;
        mask[node / WORD_BITS] = 1UL << (node % WORD_BITS);
        /* The kernel takes maxnode to be one more than the bits that it reads. */
        return syscall(SYS_mbind, start, bytes, MPOL_PREFERRED, mask, (unsigned long) NODES_MAX + 1, 0) < 0 ? -errno : 0;
}

/* Text of a file of the kernel's, which gives out a page of it a read. Bytes or -errno. */
static int read_text(int fd, char *text, size_t capacity) {
        size_t n = 0;
        for (ssize_t k = 1; k > 0 && n < capacity - 1; n += (size_t) k) {
                k = pread(fd, text + n, capacity - 1 - n, (off_t) n);
                if (k < 0)
                        return -errno;
        }
        text[n] = '\0';
        return (int) n;
}

static bool parse_number(const char **text, unsigned *ret) {
        char *end;
        if (**text < '0' || **text > '9')
                return false;
        unsigned long number = strtoul(*text, &end, 10);
        *text = end;
        *ret = (unsigned) number;
        return number < NODES_MAX;
}

int numa_parse_list(const char *text, unsigned *ret_count) {
        unsigned count = 0, first, last;
        for (;; text++) {
                if (!parse_number(&text, &first))
                        return -EBADMSG;
                last = first;
                if (*text == '-') {
                        text++;
                        if (!parse_number(&text, &last) || last < first)
                                return -EBADMSG;
                }
                count += last - first + 1;
                if (*text != ',')
                        break;
        }
        *ret_count = count;
        return *text == '\n' && text[1] == '\0' ? 0 : -EBADMSG;
}

unsigned numa_count(void) {
        char text[LIST_BYTES];
        unsigned count;
        _cleanup_close_ int fd = open("/sys/devices/system/node/has_memory", O_RDONLY | O_CLOEXEC);
        return fd >= 0 && read_text(fd, text, sizeof(text)) > 0 && numa_parse_list(text, &count) == 0 ? count : 1;
}

int numa_open_vmstat(void) {
        int fd = open("/proc/vmstat", O_RDONLY | O_CLOEXEC | O_NOCTTY);
        return fd < 0 ? -errno : fd;
}

int numa_parse_vmstat(const char *text, uint64_t *ret) {
        static const char key[] = "\npgmigrate_success ";
        const char *value = strstr(text, key);
        if (!value)
                return -EBADMSG;
        value += sizeof(key) - 1;
        if (*value < '0' || *value > '9')
                return -EBADMSG;
        *ret = strtoull(value, NULL, 10);
        return 0;
}

int numa_migrations(int vmstat_fd, uint64_t *ret) {
        char text[VMSTAT_BYTES];
        int r = read_text(vmstat_fd, text, sizeof(text));
        return r < 0 ? r : numa_parse_vmstat(text, ret);
}
