#include "daemon/sys/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/fault.h"
#include "common/uapi.h"
#include "daemon/sys/numa.h"

#define SEALS_OPEN (F_SEAL_FUTURE_WRITE | F_SEAL_GROW | F_SEAL_SHRINK)
#define SEGMENT_MODE 0400 /* a memfd starts as 0777: anyone holding a read-only fd could reopen it writable through /proc */
/* Changes with the meaning of the label or of the slots: a daemon takes over only what it would have made itself. */
#define LABEL_VERSION 1
#define NODE_IDS 1024 /* the kernel's most, CONFIG_NODES_SHIFT */

struct label {
        char magic[16];
        uint32_t version, n_slots, key_size;
        uint32_t nid; /* the node + 1 that its memory is to come from; 0: any */
        uint8_t key[SEGMENT_KEY_BYTES];
};
_Static_assert(sizeof(struct label) <= KSM_PAGE_SIZE, "the label is one page");
static const char label_magic[16] = "userksm segment";

static int memfd_open(void) {
        int fd = memfd_create("userksm", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
        if (fd < 0 && errno == EINVAL) /* before Linux 6.3 */
                fd = memfd_create("userksm", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        return fd < 0 ? -errno : fd;
}

/* Written before the fd is anyone else's, and not through a mapping: where the kernel has no page to give (vm.overcommit_memory=2)
 * a write says so, and a mapping sends SIGBUS. */
static int write_label(struct segment_file *s, const void *key, size_t key_size) {
        if (key_size == 0 || key_size > SEGMENT_KEY_BYTES)
                return 0;
        struct label label = { .version = LABEL_VERSION, .n_slots = s->n_slots, .key_size = (uint32_t) key_size, .nid = (uint32_t) (s->node + 1) };
        memcpy(label.magic, label_magic, sizeof(label_magic));
        memcpy(label.key, key, key_size);
        ssize_t n = pwrite(s->fd, &label, sizeof(label), (off_t) (s->n_slots * KSM_PAGE_SIZE));
        if (n != (ssize_t) sizeof(label))
                return n < 0 ? -errno : -ENOSPC;
        s->has_label = true;
        return 0;
}

int segment_filler_open(int device) {
        /* Who touches an empty slot is told so at once: nobody answers faults. */
        struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_SIGBUS };
        int fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
        if (fd < 0)
                return -errno;
        if (ioctl(fd, UFFDIO_API, &api) < 0) {
                int r = -errno;
                close_fd(fd);
                return r;
        }
        return fd;
}

/* Before the seals: later no mapping may be filled. */
static int map_slots(struct segment_file *s) {
        const size_t size = s->n_slots * KSM_PAGE_SIZE;
        void *p = mmap(NULL, size, PROT_READ, MAP_SHARED, s->fd, 0);
        if (p == MAP_FAILED)
                return -errno;
        s->slots = p;
        struct uffdio_register r = { .range = { (uint64_t) (uintptr_t) p, size }, .mode = UFFDIO_REGISTER_MODE_MISSING };
        if (ioctl(s->filler, UFFDIO_REGISTER, &r) < 0)
                return -errno;
        return s->node < 0 ? 0 : numa_bind(p, size, s->node);
}

int segment_file_new(int filler, uint32_t n_slots, int node, const void *key, size_t key_size, struct segment_file **ret) {
        if (n_slots == 0 || n_slots > SEGMENT_LIMIT_SLOTS)
                return -EINVAL;
        _cleanup_(segment_file_freep) struct segment_file *s = malloc(sizeof(*s));
        if (!s)
                return -ENOMEM;
        *s = (struct segment_file){ .fd = -1, .client_fd = -1, .filler = filler, .n_slots = n_slots, .node = node };
        int fd = memfd_open();
        if (fd < 0)
                return fd;
        s->fd = fd;
        struct stat st;
        size_t size = (n_slots + 1) * KSM_PAGE_SIZE;
        if (fchmod(fd, SEGMENT_MODE) < 0 || ftruncate(fd, (off_t) size) < 0 || fstat(fd, &st) < 0)
                return -errno;
        s->inode = st.st_ino;
        int r = map_slots(s);
        if (r == 0)
                r = write_label(s, key, key_size);
        if (r < 0)
                return r;
        fault_point(FAULT_segment_made);
        /* After our mapping, before anyone else has an fd. */
        if (fcntl(fd, F_ADD_SEALS, SEALS_OPEN) < 0)
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

static const char *refuse_file(int fd, const struct stat *st) {
        int seals = fcntl(fd, F_GET_SEALS), flags = fcntl(fd, F_GETFL);
        if (seals < 0 || !S_ISREG(st->st_mode))
                return "not a memfd";
        if (st->st_uid != geteuid())
                return "not made by this user";
        if ((st->st_mode & 07777) != SEGMENT_MODE || (seals & SEALS_OPEN) != SEALS_OPEN || (flags & O_ACCMODE) != O_RDONLY)
                return "its bytes could be changed";
        return NULL;
}

static const char *refuse_label(const struct label *label, const struct stat *st) {
        if (memcmp(label->magic, label_magic, sizeof(label_magic)) != 0)
                return "no segment of userksm";
        if (label->version != LABEL_VERSION)
                return "made by another version";
        if (label->n_slots == 0 || label->n_slots > SEGMENT_LIMIT_SLOTS || label->key_size == 0 ||
            label->key_size > SEGMENT_KEY_BYTES || label->nid > NODE_IDS || (uint64_t) st->st_size != (label->n_slots + 1) * KSM_PAGE_SIZE)
                return "its label does not fit it";
        return NULL;
}

int segment_file_adopt(int fd, struct segment_file **ret, void *ret_key, size_t *ret_key_size, const char **ret_reason) {
        struct label label;
        struct stat st;
        if (fstat(fd, &st) < 0) {
                *ret_reason = "fstat";
                return -errno;
        }
        *ret_reason = refuse_file(fd, &st);
        if (*ret_reason)
                return -EINVAL;
        if (st.st_size < (off_t) KSM_PAGE_SIZE ||
            pread(fd, &label, sizeof(label), st.st_size - (off_t) KSM_PAGE_SIZE) != sizeof(label)) {
                *ret_reason = "its label cannot be read";
                return -EINVAL;
        }
        *ret_reason = refuse_label(&label, &st);
        if (*ret_reason)
                return -EINVAL;
        struct segment_file *s = malloc(sizeof(*s));
        if (!s) {
                *ret_reason = "out of memory";
                return -ENOMEM;
        }
        *s = (struct segment_file){ .fd = -1, .client_fd = fd, .filler = -1, .n_slots = label.n_slots, .node = (int) label.nid - 1, .inode = st.st_ino, .has_label = true };
        memcpy(ret_key, label.key, label.key_size);
        *ret_key_size = label.key_size;
        *ret = s;
        return 0;
}

int segment_file_fill(const struct segment_file *s, uint32_t slot, const void *bytes, uint32_t n_slots) {
        struct uffdio_copy copy = {
                .dst = (uint64_t) (uintptr_t) (s->slots + slot * KSM_PAGE_SIZE),
                .src = (uint64_t) (uintptr_t) bytes,
                .len = n_slots * KSM_PAGE_SIZE,
                .mode = UFFDIO_COPY_MODE_DONTWAKE,
        };
        int r = ioctl(s->filler, UFFDIO_COPY, &copy) < 0 ? -errno : 0;
        return copy.copy > 0 ? (int) ((size_t) copy.copy / KSM_PAGE_SIZE) : r;
}

int segment_file_read(const struct segment_file *s, uint32_t slot, void *bytes, size_t size) {
        size_t n = MIN((size_t) (s->n_slots - slot), size / KSM_PAGE_SIZE);
        ssize_t r = pread(s->client_fd, bytes, n * KSM_PAGE_SIZE, (off_t) (slot * KSM_PAGE_SIZE));
        return r < 0 ? -errno : (int) ((size_t) r / KSM_PAGE_SIZE);
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
