#include "daemon/sys/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "common/fault.h"
#include "common/uapi.h"

static int memfd_open(void) {
        int fd = memfd_create("userksm", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
        if (fd < 0 && errno == EINVAL) /* before Linux 6.3 */
                fd = memfd_create("userksm", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        return fd < 0 ? -errno : fd;
}

int segment_file_new(uint32_t n_slots, struct segment_file **ret) {
        if (n_slots == 0 || n_slots > SEGMENT_LIMIT_SLOTS)
                return -EINVAL;
        _cleanup_(segment_file_freep) struct segment_file *s = malloc(sizeof(*s));
        if (!s)
                return -ENOMEM;
        *s = (struct segment_file){ .fd = -1, .client_fd = -1, .n_slots = n_slots };
        int fd = memfd_open();
        if (fd < 0)
                return fd;
        s->fd = fd;
        /* A memfd starts as 0777: anyone holding a read-only fd could reopen it writable through /proc. */
        size_t size = n_slots * KSM_PAGE_SIZE;
        if (fchmod(fd, 0400) < 0 || ftruncate(fd, (off_t) size) < 0)
                return -errno;
        void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (p == MAP_FAILED)
                return -errno;
        s->slots = p;
        fault_point(FAULT_segment_made);
        /* After our mapping, before anyone else has an fd. */
        if (fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_GROW | F_SEAL_SHRINK) < 0)
                return -errno;
        char path[64];
        (void) snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        s->client_fd = open(path, O_RDONLY | O_CLOEXEC);
        if (s->client_fd < 0)
                return -errno;
        fault_point(FAULT_segment_opened);
        *ret = TAKE_PTR(s);
        return 0;
}

int segment_file_seal(struct segment_file *s) {
        if (s->fd < 0)
                return 0;
        if (s->slots && munmap(s->slots, s->n_slots * KSM_PAGE_SIZE) < 0)
                return -errno;
        s->slots = NULL;
        fault_point(FAULT_segment_unmapped);
        int r = fcntl(s->fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SEAL) < 0 ? -errno : 0;
        s->fd = close_fd(s->fd);
        fault_point(FAULT_segment_sealed);
        return r;
}

struct segment_file *segment_file_free(struct segment_file *s) {
        if (!s)
                return NULL;
        if (s->slots)
                (void) munmap(s->slots, s->n_slots * KSM_PAGE_SIZE);
        close_fd(s->fd);
        close_fd(s->client_fd);
        free(s);
        return NULL;
}
