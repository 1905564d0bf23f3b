#include "bench/target.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "common/cleanup.h"
#include "common/uapi.h"

/* Prefix of a segment's name in maps: memfds of userksm are called userksm or userksm-something. */
#define SEGMENT_PREFIX "/memfd:userksm"
#define READ_PAGES 64
#define REGIONS 512

static void fclosep(FILE **f) {
        if (*f)
                (void) fclose(*f);
}

struct reader {
        int pagemap_fd, mem_fd;
        target_page_fn fn;
        void *userdata;
        struct target_result *result;
};

struct mapping {
        uint64_t start, end;
        bool is_private, segment; /* not shared; private mapping of a segment */
        bool anonymous;           /* readable, writable, no file */
        bool mergeable;
};

static int open_proc(int pid, const char *name) {
        char path[64];
        int fd;

        (void) snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
                return errno == ENOENT ? -ESRCH : -errno;
        return fd;
}

static int read_pages(struct reader *rd, uint64_t start, uint64_t end, uint32_t vma) {
        char buffer[READ_PAGES * KSM_PAGE_SIZE];
        int r;

        while (start < end) {
                size_t size = MIN(end - start, sizeof(buffer));
                ssize_t n = pread(rd->mem_fd, buffer, size, (off_t) start);

                if (n == 0)
                        return -ESRCH; /* no mm any more */
                if (n < (ssize_t) KSM_PAGE_SIZE) {
                        rd->result->unreadable++;
                        start += KSM_PAGE_SIZE;
                        continue;
                }
                n -= n % (ssize_t) KSM_PAGE_SIZE;
                for (ssize_t at = 0; at < n; at += (ssize_t) KSM_PAGE_SIZE) {
                        r = rd->fn((start + (uint64_t) at) >> KSM_PAGE_SHIFT, vma, buffer + at, rd->userdata);
                        if (r < 0)
                                return r;
                }
                start += (uint64_t) n;
        }
        return 0;
}

static bool mapping_in(const struct mapping *m, enum target_ranges ranges) {
        if (!m->is_private)
                return false;
        switch (ranges) {
        case TARGET_ALL:
                return true;
        case TARGET_ANONYMOUS:
                return m->anonymous || m->segment;
        case TARGET_MERGEABLE:
                return m->mergeable;
        }
        return false;
}

static int read_mapping(struct reader *rd, const struct mapping *mapping, uint32_t vma) {
        struct page_region regions[REGIONS];
        struct pm_scan_arg arg = {
                .size = sizeof(arg),
                .end = mapping->end,
                .vec = (uintptr_t) regions,
                .vec_len = REGIONS,
                .category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                .return_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_PFNZERO | PAGE_IS_FILE,
        };
        uint64_t start = mapping->start;
        int r, n;

        while (start < mapping->end) {
                arg.start = start;
                n = ioctl(rd->pagemap_fd, PAGEMAP_SCAN, &arg);
                if (n < 0)
                        return -errno;
                for (int i = 0; i < n; i++) {
                        const struct page_region *region = &regions[i];

                        if (region->categories & PAGE_IS_PFNZERO)
                                continue;
                        if ((region->categories & PAGE_IS_FILE) && !mapping->segment)
                                continue;
                        if (region->categories & PAGE_IS_SWAPPED) {
                                rd->result->swapped += (region->end - region->start) >> KSM_PAGE_SHIFT;
                                continue;
                        }
                        r = read_pages(rd, region->start, region->end, vma);
                        if (r < 0)
                                return r;
                }
                if (arg.walk_end <= start)
                        break; /* mm gone */
                start = arg.walk_end;
        }
        return 0;
}

/* Reads the next mapping of smaps; VmFlags ends its record. 1 = one read, 0 = end. */
static int next_mapping(FILE *smaps, struct mapping *ret) {
        char line[512];

        while (fgets(line, sizeof(line), smaps)) {
                unsigned long start, end, inode;
                char perms[5];
                int name_at = 0;

                if (strncmp(line, "VmFlags:", 8) == 0) {
                        ret->mergeable = strstr(line, " mg") || strstr(line, " um") || strstr(line, " uw") ||
                                         strstr(line, " ui");
                        return 1;
                }
                if (sscanf(line, "%lx-%lx %4s %*x %*s %lu %n", &start, &end, perms, &inode, &name_at) < 4)
                        continue;
                const char *name = name_at > 0 ? line + name_at : "";
                ret->start = start;
                ret->end = end;
                ret->is_private = perms[3] == 'p' && strncmp(name, "[v", 2) != 0; /* not vdso and its like */
                ret->segment = strncmp(name, SEGMENT_PREFIX, strlen(SEGMENT_PREFIX)) == 0;
                ret->anonymous = strncmp(perms, "rw", 2) == 0 && inode == 0;
        }
        return 0;
}

static void read_comm(int pid, char comm[16]) {
        _cleanup_close_ int fd = open_proc(pid, "comm");
        ssize_t n = fd >= 0 ? read(fd, comm, 15) : 0;

        comm[n > 0 ? n : 0] = '\0';
        comm[strcspn(comm, "\n")] = '\0';
}

int target_read(int pid, enum target_ranges ranges, target_page_fn fn, void *userdata, struct target_result *ret) {
        _cleanup_(fclosep) FILE *smaps = NULL;
        _cleanup_close_ int pagemap_fd = -1, mem_fd = -1, smaps_fd = -1;
        struct reader rd = { .fn = fn, .userdata = userdata, .result = ret };
        struct mapping mapping = {};
        uint32_t vma = 0;
        int r;

        *ret = (struct target_result){};
        read_comm(pid, ret->comm);
        rd.pagemap_fd = pagemap_fd = open_proc(pid, "pagemap");
        if (pagemap_fd < 0)
                return pagemap_fd;
        rd.mem_fd = mem_fd = open_proc(pid, "mem");
        if (mem_fd < 0)
                return mem_fd;
        smaps_fd = open_proc(pid, "smaps");
        if (smaps_fd < 0)
                return smaps_fd;
        smaps = fdopen(smaps_fd, "re");
        if (!smaps)
                return -errno;
        (void) take_fd(&smaps_fd);

        while (next_mapping(smaps, &mapping) > 0) {
                ret->n_vmas++;
                if (!mapping_in(&mapping, ranges))
                        continue;
                r = read_mapping(&rd, &mapping, vma++);
                if (r < 0)
                        return r;
        }
        return ferror(smaps) ? -ESRCH : 0;
}
