#include "lib/segments.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "common/cleanup.h"
#include "common/uapi.h"
#include "lib/sys.h"

#define SEGMENTS_MIN 256U

static uint32_t position(const struct segments *s, uint32_t id) {
        uint32_t low = 0, high = s->n;
        while (low < high) {
                uint32_t mid = low + (high - low) / 2;
                if (s->v[mid].id >= id)
                        high = mid;
                else
                        low = mid + 1;
        }
        return low;
}

const struct segment *segments_find(const struct segments *s, uint32_t id) {
        uint32_t i = position(s, id);
        return i < s->n && s->v[i].id == id ? &s->v[i] : NULL;
}

/* I2: immutable once published, and never shorter than n_slots, or a merged page would raise SIGBUS. */
static int check(int fd, uint32_t n_slots, uint64_t *ret_inode) {
        const long need = F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK;
        long seals = sys_call(SYS_fcntl, fd, F_GET_SEALS, 0, 0, 0, 0);
        if (seals < 0 || !((seals & need) == need || (seals & (F_SEAL_WRITE | F_SEAL_SHRINK)) ==
                                                             (F_SEAL_WRITE | F_SEAL_SHRINK)))
                return -EPERM;
        struct stat st;
        if (fstat(fd, &st) < 0 || (uint64_t) st.st_size < (uint64_t) n_slots << KSM_PAGE_SHIFT)
                return -EPERM;
        *ret_inode = st.st_ino;
        return 0;
}

int segments_add(struct segments *s, uint32_t id, uint32_t n_slots, int fd) {
        uint32_t i = position(s, id);
        uint64_t inode = 0;
        int r = i < s->n && s->v[i].id == id ? -EEXIST : check(fd, n_slots, &inode);
        if (r == 0 && s->n == s->capacity) {
                uint32_t capacity = MAX(SEGMENTS_MIN, s->capacity * 2);
                struct segment *v = own_alloc(capacity * sizeof(*v));
                if (v) {
                        if (s->n)
                                memcpy(v, s->v, s->n * sizeof(*v));
                        own_free(s->v, s->capacity * sizeof(*v));
                        s->v = v;
                        s->capacity = capacity;
                } else
                        r = -ENOMEM;
        }
        if (r < 0) {
                sys_close(fd);
                return r;
        }
        memmove(s->v + i + 1, s->v + i, (s->n - i) * sizeof(*s->v));
        s->v[i] = (struct segment) { .id = id, .n_slots = n_slots, .fd = fd, .inode = inode };
        s->n++;
        return 0;
}

void segments_drop(struct segments *s, uint32_t id) {
        uint32_t i = position(s, id);
        if (i >= s->n || s->v[i].id != id)
                return;
        sys_close(s->v[i].fd);
        memmove(s->v + i, s->v + i + 1, (s->n - i - 1) * sizeof(*s->v));
        s->n--;
}

void segments_drop_all(struct segments *s) {
        for (uint32_t i = 0; i < s->n; i++)
                sys_close(s->v[i].fd);
        s->n = 0;
}
