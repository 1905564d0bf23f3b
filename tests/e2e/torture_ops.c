/* Operations on a run of pages of a region: memory accesses, and what changes mappings. See torture.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/e2e/torture.h"

static void op_read(struct thread *t, struct run *run) {
        run_verify(run, NULL, "at a read");
}

static void op_fill(struct thread *t, struct run *run) {
        fill_pattern(t, run->shadow, run->first, run->n);
        memcpy(run->memory, run->shadow, run->n * PAGE);
}

/* A few bytes here and there: the native copy-on-write of a merged page. */
static void op_patch(struct thread *t, struct run *run) {
        for (uint32_t i = 0; i < run->n; i++) {
                size_t at = i * PAGE + random_below(t, PAGE - 8);
                uint64_t v = random_next(t);
                memcpy(run->shadow + at, &v, 8);
                memcpy(run->memory + at, &v, 8);
        }
}

static void op_mprotect(struct thread *t, struct run *run) {
        size_t size = run->n * PAGE;
        if (random_below(t, 2)) {
                check(mprotect(run->memory, size, PROT_NONE) == 0, "mprotect: %s", strerror(errno));
                check(mprotect(run->memory, size, PROT_READ | PROT_WRITE) == 0, "mprotect: %s", strerror(errno));
        } else {
                check(mprotect(run->memory, size, PROT_READ) == 0, "mprotect: %s", strerror(errno));
                run_verify(run, NULL, "while read-only");
                check(mprotect(run->memory, size, PROT_READ | PROT_WRITE) == 0, "mprotect: %s", strerror(errno));
                op_patch(t, run);
        }
        run_verify(run, NULL, "after mprotect");
}

static void op_dontneed(struct thread *t, struct run *run) {
        check(madvise(run->memory, run->n * PAGE, MADV_DONTNEED) == 0, "MADV_DONTNEED: %s", strerror(errno));
        memset(run->shadow, 0, run->n * PAGE);
        if (random_below(t, 2))
                run_verify(run, NULL, "after MADV_DONTNEED");
        else if (random_below(t, 2))
                op_patch(t, run);
}

/* Freed pages hold the old bytes or zeros until they are written. */
static void op_free(struct thread *t, struct run *run) {
        check(madvise(run->memory, run->n * PAGE, MADV_FREE) == 0, "MADV_FREE: %s", strerror(errno));
        for (uint32_t i = 0; i < run->n; i++) {
                uint8_t *p = run->memory + i * PAGE, *s = run->shadow + i * PAGE;
                uint8_t v = (uint8_t) random_next(t);
                ((volatile uint8_t *) p)[7] = v;
                if (memcmp(p, torture.series[0], 7) == 0 && memcmp(p + 8, torture.series[0], PAGE - 8) == 0)
                        memset(s, 0, PAGE);
                s[7] = v;
        }
        run_verify(run, NULL, "after MADV_FREE");
}

static void map_again(struct run *run, int fixed) {
        void *p = mmap(run->memory, run->n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | fixed, -1, 0);
        if (p == MAP_FAILED && errno == EEXIST) {
                run->lost = true;
                return;
        }
        check(p == run->memory, "mmap: %s", strerror(errno));
        memset(run->shadow, 0, run->n * PAGE);
        if (run->region->kind == REGION_HUGE)
                check(madvise(run->memory, run->n * PAGE, MADV_HUGEPAGE) == 0, "MADV_HUGEPAGE: %s", strerror(errno));
        check(madvise(run->memory, run->n * PAGE, MADV_MERGEABLE) == 0, "MADV_MERGEABLE: %s", strerror(errno));
}

static void op_munmap(struct thread *t, struct run *run) {
        check(munmap(run->memory, run->n * PAGE) == 0, "munmap: %s", strerror(errno));
        map_again(run, MAP_FIXED_NOREPLACE); /* another thread may have got the place meanwhile: it is not ours then */
        if (run->lost)
                return;
        if (random_below(t, 2))
                run_verify(run, NULL, "after munmap");
        op_fill(t, run);
}

static void op_mmap_fixed(struct thread *t, struct run *run) {
        map_again(run, MAP_FIXED);
        if (random_below(t, 2))
                run_verify(run, NULL, "after mmap");
        op_fill(t, run);
}

/* There and back; MREMAP_DONTUNMAP, because another thread's mmap could take the place left behind. ENOMEM: pages that may
 * be pinned cannot be moved (docs/shim.md); nothing has changed then. */
static void op_mremap(struct thread *t, struct run *run) {
        size_t size = run->n * PAGE;
        uint8_t *to = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        check(to != MAP_FAILED, "mmap: %s", strerror(errno));
        /* The range must be one mapping, as it is to a program that made it so; runs that we mapped anew are several. */
        void *p = mremap(run->memory, size, size, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to);
        if (p == MAP_FAILED) {
                check(errno == ENOMEM || errno == EFAULT, "mremap: %s", strerror(errno));
                run_verify(run, NULL, "after mremap failed"); /* `to` may be unmapped by now, and another's */
                return;
        }
        run_verify(run, to, "after mremap");
        for (uint32_t i = 0; i < run->n; i++) /* what was left behind is empty */
                compare(run->memory + i * PAGE, torture.series[0], PAGE, "behind mremap");
        if (mremap(to, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, run->memory) == MAP_FAILED) {
                check(errno == ENOMEM || errno == EFAULT, "mremap back: %s", strerror(errno));
                run->lost = true; /* run->memory may be unmapped */
                return;
        }
        check(madvise(run->memory, size, MADV_MERGEABLE) == 0, "MADV_MERGEABLE: %s", strerror(errno));
        run_verify(run, NULL, "after mremap back");
}

static void op_unmergeable(struct thread *t, struct run *run) {
        check(madvise(run->memory, run->n * PAGE, MADV_UNMERGEABLE) == 0, "MADV_UNMERGEABLE: %s", strerror(errno));
        run_verify(run, NULL, "after MADV_UNMERGEABLE");
        op_patch(t, run);
        check(madvise(run->memory, run->n * PAGE, MADV_MERGEABLE) == 0, "MADV_MERGEABLE: %s", strerror(errno));
}

/* Access by the kernel with FOLL_FORCE. It may not wait, neither on a page in transition nor on one that was given back and not
 * touched since (EIO, or a short transfer: docs/shim.md), so the page is touched and the access tried again. */
static void transfer_proc_mem(int fd, bool out, uint8_t *bytes, uint8_t *memory, size_t size) {
        uint64_t until = now_usec() + 20 * 1000000;
        for (size_t done = 0; done < size;) {
                off_t at = (off_t) (uintptr_t) (memory + done);
                ssize_t n = out ? pread(fd, bytes + done, size - done, at) : pwrite(fd, bytes + done, size - done, at);
                check(n >= 0 || errno == EIO, "/proc/self/mem: %s", strerror(errno));
                check(n > 0 || now_usec() < until, "/proc/self/mem: no access for 20 s");
                done += n > 0 ? (size_t) n : 0;
                if (done < size)
                        (void) *(volatile uint8_t *) (memory + done);
        }
}

static void op_proc_mem(struct thread *t, struct run *run) {
        int fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
        check(fd >= 0, "/proc/self/mem: %s", strerror(errno));
        bool out = random_below(t, 2);
        if (!out)
                fill_pattern(t, run->shadow, run->first, run->n);
        transfer_proc_mem(fd, out, out ? t->bounce : run->shadow, run->memory, run->n * PAGE);
        run_verify(run, out ? t->bounce : NULL, "through /proc/self/mem");
        close(fd);
}

struct op {
        const char *name;
        void (*run)(struct thread *t, struct run *run);
        uint32_t weight;
        bool remaps; /* not for pages that are registered with io_uring */
};
static const struct op ops[] = {
        { "read", op_read, 24, false },          { "fill", op_fill, 20, false },
        { "patch", op_patch, 14, false },        { "io", io_once, 16, false },
        { "mprotect", op_mprotect, 4, false },   { "proc_mem", op_proc_mem, 4, false },
        { "dontneed", op_dontneed, 6, true },    { "free", op_free, 3, true },
        { "munmap", op_munmap, 3, true },        { "mmap_fixed", op_mmap_fixed, 2, true },
        { "mremap", op_mremap, 2, true },        { "unmergeable", op_unmergeable, 2, false },
};
#define OPS (sizeof(ops) / sizeof(ops[0]))
#define WEIGHTS 100U

void ops_once(struct thread *t) {
        uint32_t dice = random_below(t, WEIGHTS);
        const struct op *op = ops;
        for (; op < &ops[OPS - 1] && dice >= op->weight; op++)
                dice -= op->weight;
        struct region *r = &torture.regions[random_below(t, torture.n_regions)];
        if (op->remaps && r->kind == REGION_PINNED)
                return;
        uint32_t n = 1 + random_below(t, random_below(t, 3) ? 8 : RUN_MAX);
        struct run run;
        if (!run_lock(t, &run, r, random_below(t, REGION_PAGES - n + 1), n))
                return;
        op->run(t, &run);
        if (run.lost)
                return; /* stays locked */
        run_note(t, &run, op->name);
        run_unlock(&run);
}
