/* I/O into and out of pages that are being merged: read and write, pipes, vmsplice, O_DIRECT, io_uring with fixed buffers. */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "tests/e2e/torture.h"

#define PIPE_PAGES 8U     /* less than a pipe holds */
#define FIXED_PAGES 16U   /* registered at once */
#define FIXED_ROUNDS 24U  /* then others are */

struct uring {
        struct io_uring ring;
        struct region *region;
        uint32_t first, rounds; /* registered pages; rounds left, 0 = none registered */
};

void io_open(struct thread *t, const char *directory) {
        char path[256];
        snprintf(path, sizeof(path), "%s/torture.XXXXXX", directory);
        t->file = mkostemp(path, O_CLOEXEC);
        check(t->file >= 0, "%s: %s", path, strerror(errno));
        t->direct = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
        if (t->direct < 0)
                atomic_fetch_add(&torture.skipped_direct, 1);
        check(unlink(path) == 0, "unlink %s: %s", path, strerror(errno));
        check(ftruncate(t->file, RUN_MAX * PAGE) == 0, "ftruncate: %s", strerror(errno));
        t->uring = calloc(1, sizeof(*t->uring));
        check(t->uring, "memory");
        if (io_uring_queue_init(4, &t->uring->ring, 0) < 0) {
                free(t->uring);
                t->uring = NULL;
                atomic_fetch_add(&torture.skipped_uring, 1);
        }
}

static void exactly(ssize_t r, size_t size, const char *what) {
        check(r == (ssize_t) size, "%s: %zd of %zu, %s", what, r, size, strerror(errno));
}

/* memory -> file -> elsewhere */
static void file_out(struct thread *t, struct run *run, int fd) {
        size_t size = run->n * PAGE;
        exactly(pwrite(fd, run->memory, size, 0), size, "pwrite");
        exactly(pread(t->file, t->bounce, size, 0), size, "pread");
        run_verify(run, t->bounce, "in a file written from it");
}

/* file -> memory. The file gets its bytes from the shadow. */
static void file_in(struct thread *t, struct run *run, int fd) {
        size_t size = run->n * PAGE;
        fill_pattern(t, run->shadow, run->first, run->n);
        exactly(pwrite(t->file, run->shadow, size, 0), size, "pwrite");
        exactly(pread(fd, run->memory, size, 0), size, "pread");
        run_verify(run, NULL, "after a read from a file");
}

static void pipe_out(struct thread *t, struct run *run, bool splice) {
        struct run part = *run;
        part.n = part.n < PIPE_PAGES ? part.n : PIPE_PAGES;
        size_t size = part.n * PAGE;
        struct iovec v = { part.memory, size };
        exactly(splice ? vmsplice(t->pipe[1], &v, 1, 0) : write(t->pipe[1], part.memory, size), size, "write to a pipe");
        for (size_t done = 0; done < size;) {
                ssize_t n = read(t->pipe[0], t->bounce + done, size - done);
                check(n > 0, "read from a pipe: %s", strerror(errno));
                done += (size_t) n;
        }
        run_verify(&part, t->bounce, splice ? "through vmsplice" : "through a pipe");
}

static void pipe_in(struct thread *t, struct run *run) {
        struct run part = *run;
        part.n = part.n < PIPE_PAGES ? part.n : PIPE_PAGES;
        size_t size = part.n * PAGE;
        fill_pattern(t, part.shadow, part.first, part.n);
        exactly(write(t->pipe[1], part.shadow, size), size, "write to a pipe");
        for (size_t done = 0; done < size;) {
                ssize_t n = read(t->pipe[0], part.memory + done, size - done);
                check(n > 0, "read from a pipe: %s", strerror(errno));
                done += (size_t) n;
        }
        run_verify(&part, NULL, "after a read from a pipe");
}

void io_once(struct thread *t, struct run *run) {
        int direct = t->direct >= 0 ? t->direct : t->file;
        switch (random_below(t, 7)) {
        case 0: file_out(t, run, t->file); break;
        case 1: file_in(t, run, t->file); break;
        case 2: file_out(t, run, direct); break;
        case 3: file_in(t, run, direct); break;
        case 4: pipe_out(t, run, false); break;
        case 5: pipe_out(t, run, true); break;
        default: pipe_in(t, run); break;
        }
}

/* -- io_uring ---------------------------------------------------------------------------------------------------- */

/* Registered pages are pinned for as long as they are registered; in between they are merged as others. */
static void uring_register(struct thread *t, struct uring *u) {
        unsigned pinned = (torture.n_regions - REGION_PINNED + REGION_KINDS_ - 1) / REGION_KINDS_;
        if (pinned == 0)
                return;
        u->region = &torture.regions[REGION_PINNED + REGION_KINDS_ * random_below(t, pinned)];
        u->first = random_below(t, REGION_PAGES / FIXED_PAGES) * FIXED_PAGES;
        struct run run; /* held: another thread's mprotect would fail it EFAULT, as it should */
        if (!run_lock(t, &run, u->region, u->first, FIXED_PAGES))
                return;
        struct iovec v = { u->region->memory + u->first * PAGE, FIXED_PAGES * PAGE };
        int r = io_uring_register_buffers(&u->ring, &v, 1);
        check(r == 0, "io_uring_register_buffers: %s", strerror(-r));
        run_unlock(&run);
        u->rounds = FIXED_ROUNDS;
}

static void uring_transfer(struct uring *u, bool in, int fd, void *memory, size_t size) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
        check(sqe, "no submission entry");
        if (in)
                io_uring_prep_read_fixed(sqe, fd, memory, (unsigned) size, 0, 0);
        else
                io_uring_prep_write_fixed(sqe, fd, memory, (unsigned) size, 0, 0);
        struct io_uring_cqe *cqe;
        int r = io_uring_submit_and_wait(&u->ring, 1);
        check(r == 1, "io_uring_submit: %s", strerror(-r));
        r = io_uring_wait_cqe(&u->ring, &cqe);
        check(r == 0, "io_uring_wait_cqe: %s", strerror(-r));
        check(cqe->res == (int) size, "io_uring: %d of %zu", cqe->res, size);
        io_uring_cqe_seen(&u->ring, cqe);
}

void uring_once(struct thread *t) {
        struct uring *u = t->uring;
        if (!u)
                return;
        if (u->rounds == 0)
                uring_register(t, u);
        if (u->rounds == 0)
                return;
        uint32_t n = 1 + random_below(t, FIXED_PAGES);
        struct run run;
        if (run_lock(t, &run, u->region, u->first + random_below(t, FIXED_PAGES - n + 1), n)) {
                int fd = t->direct >= 0 && random_below(t, 2) ? t->direct : t->file;
                size_t size = n * PAGE;
                if (random_below(t, 2)) {
                        fill_pattern(t, run.shadow, run.first, n);
                        exactly(pwrite(t->file, run.shadow, size, 0), size, "pwrite");
                        uring_transfer(u, true, fd, run.memory, size);
                        run_verify(&run, NULL, "after an io_uring read into a fixed buffer");
                        run_note(t, &run, "uring in");
                } else {
                        uring_transfer(u, false, fd, run.memory, size);
                        exactly(pread(t->file, t->bounce, size, 0), size, "pread");
                        run_verify(&run, t->bounce, "in a file written from a fixed buffer");
                        run_note(t, &run, "uring out");
                }
                run_unlock(&run);
        }
        if (--u->rounds == 0)
                check(io_uring_unregister_buffers(&u->ring) == 0, "io_uring_unregister_buffers");
}
