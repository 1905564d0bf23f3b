#include "lib/vma.h"

#include <errno.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/uapi.h"
#include "lib/sys.h"

/* Name that userksmd gives its memfds; shows as "/memfd:userksm (deleted)". */
#define SEGMENT_NAME "/memfd:userksm"

/* The kernel needs a few bytes for the name. Callers take a failure for "nothing there", so it must not come of that. */
#define QUERY_TRIES 1000U

static long query(int maps_fd, struct procmap_query *q) {
        long r;
        for (unsigned tries = 0; (r = sys_ioctl(maps_fd, PROCMAP_QUERY, q)) == -ENOMEM && tries < QUERY_TRIES; tries++)
                sys_yield();
        return r;
}

int vma_query(int maps_fd, uint64_t addr, bool next, struct vma *ret) {
        char name[64] = "";
        struct procmap_query q = {
                .size = sizeof(q),
                .query_flags = next ? PROCMAP_QUERY_COVERING_OR_NEXT_VMA : 0,
                .query_addr = addr,
                .vma_name_size = sizeof(name),
                .vma_name_addr = (uint64_t) name,
        };
        long r = query(maps_fd, &q);
        if (r == -ENAMETOOLONG) { /* a long file name: its presence is all that matters */
                q.vma_name_size = 0;
                q.vma_name_addr = 0;
                r = query(maps_fd, &q);
                name[0] = '?';
                q.vma_name_size = 1;
        }
        if (r < 0)
                return (int) r;
        bool named = q.vma_name_size > 0 && strcmp(name, "[heap]") != 0;
        *ret = (struct vma) {
                .start = q.vma_start,
                .end = q.vma_end,
                .flags = q.vma_flags,
                .offset = q.vma_offset,
                .inode = q.inode,
                .anonymous = !q.inode && !named && !own_holds(q.vma_start),
                .segment = q.inode && !(q.vma_flags & PROCMAP_QUERY_VMA_SHARED) &&
                           strncmp(name, SEGMENT_NAME, strlen(SEGMENT_NAME)) == 0,
        };
        return 0;
}

bool vma_is_candidate(const struct vma *v) {
        const uint64_t want = PROCMAP_QUERY_VMA_READABLE | PROCMAP_QUERY_VMA_WRITABLE;
        const uint64_t mask = want | PROCMAP_QUERY_VMA_EXECUTABLE | PROCMAP_QUERY_VMA_SHARED;
        return v->anonymous && (v->flags & mask) == want;
}

int vma_prot(const struct vma *v) {
        return (v->flags & PROCMAP_QUERY_VMA_READABLE ? PROT_READ : 0) |
               (v->flags & PROCMAP_QUERY_VMA_WRITABLE ? PROT_WRITE : 0) |
               (v->flags & PROCMAP_QUERY_VMA_EXECUTABLE ? PROT_EXEC : 0);
}

/* -- smaps ------------------------------------------------------------------------------------------------ */

static uint64_t parse_hex(const char **p) {
        uint64_t v = 0;
        for (;; (*p)++) {
                char c = **p;
                if (c >= '0' && c <= '9')
                        v = v << 4 | (uint64_t) (c - '0');
                else if (c >= 'a' && c <= 'f')
                        v = v << 4 | (uint64_t) (c - 'a' + 10);
                else
                        return v;
        }
}

/* What MAP_FIXED would lose, or what must not be shared: locked, wipeonfork, dontdump, hugetlb, sealed, io memory, raw pfns,
 * mixed map. dontfork and huge page advice are put back by the transitions. */
static const struct {
        char flag[3];
        unsigned special;
} special_flags[] = {
        { "lo", VMA_FORBIDDEN }, { "wf", VMA_FORBIDDEN }, { "dd", VMA_FORBIDDEN }, { "ht", VMA_FORBIDDEN },
        { "sl", VMA_FORBIDDEN }, { "io", VMA_FORBIDDEN }, { "pf", VMA_FORBIDDEN }, { "mm", VMA_FORBIDDEN },
        { "dc", VMA_DONTFORK }, { "hg", VMA_HUGEPAGE }, { "nh", VMA_NOHUGEPAGE },
};

static unsigned special_of(const char *p) {
        unsigned special = 0;
        for (; p[0] && p[1]; p += p[2] == ' ' ? 3 : 2)
                for (unsigned i = 0; i < ARRAY_SIZE(special_flags); i++)
                        if (p[0] == special_flags[i].flag[0] && p[1] == special_flags[i].flag[1])
                                special |= special_flags[i].special;
        return special;
}

struct smaps_state {
        uint64_t start, end;
        unsigned special;
};

static void parse_line(const char *line, struct smaps_state *s) {
        static const char flags_key[] = "VmFlags: ", pkey_key[] = "ProtectionKey:";
        if (strncmp(line, flags_key, sizeof(flags_key) - 1) == 0) {
                s->special |= special_of(line + sizeof(flags_key) - 1);
        } else if (strncmp(line, pkey_key, sizeof(pkey_key) - 1) == 0) {
                const char *p = line + sizeof(pkey_key) - 1;
                while (*p == ' ')
                        p++;
                s->special |= *p != '0' ? VMA_FORBIDDEN : 0;
        } else if ((line[0] >= '0' && line[0] <= '9') || (line[0] >= 'a' && line[0] <= 'f')) {
                const char *p = line;
                uint64_t start = parse_hex(&p);
                if (*p++ != '-')
                        return;
                s->start = start;
                s->end = parse_hex(&p);
                s->special = 0;
        }
}

int vma_each_special(int smaps_fd, char *buffer, uint32_t buffer_size,
                     void (*f)(void *userdata, uint64_t start, uint64_t end, unsigned special), void *userdata) {
        struct smaps_state s = { 0 };
        uint32_t have = 0;
        uint64_t offset = 0;
        for (;;) {
                long n = sys_pread(smaps_fd, buffer + have, buffer_size - 1 - have, offset);
                if (n < 0)
                        return (int) n;
                if (n == 0)
                        return 0;
                offset += (uint64_t) n;
                have += (uint32_t) n;
                buffer[have] = 0;
                char *line = buffer, *newline;
                while ((newline = strchr(line, '\n'))) {
                        *newline = 0;
                        parse_line(line, &s);
                        /* VmFlags is the last line of a VMA. */
                        if (line[0] == 'V' && strncmp(line, "VmFlags", 7) == 0 && s.special)
                                f(userdata, s.start, s.end, s.special);
                        line = newline + 1;
                }
                have -= (uint32_t) (line - buffer);
                if (have == buffer_size - 1)
                        return -EOVERFLOW; /* a line longer than the buffer: not a kernel we know */
                memmove(buffer, line, have);
        }
}
