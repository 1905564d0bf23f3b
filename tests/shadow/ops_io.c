/* System calls that read and write the pages: files, vectors, pipes, O_DIRECT, io_uring with fixed buffers. */
#include <fcntl.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "tests/shadow/shadow.h"

#define VECTORS 3
#define PIPE_BYTES (8 * PAGE) /* less than a pipe holds */
#define FIXED_BYTES (16 * PAGE)

struct uring {
        struct io_uring ring;
        uint8_t *at; /* registered; NULL: nothing */
        size_t bytes;
};

static off_t pattern_offset(const struct op *o) {
        return (off_t) (o->value % (PATTERN_PAGES * PAGE)); /* near the end: short reads */
}

static struct record with_memory(long result, struct span s) {
        struct record r = outcome(result);
        r.digest = digest_memory(s.at, s.bytes);
        return r;
}

/* What arrived in the scratch file. */
static struct record with_file(struct actor *a, long result) {
        struct record r = outcome(result);
        if (result > 0) {
                ssize_t n = pread(a->scratch, a->bounce, (size_t) result, 0);
                r.digest = digest_bytes((uint64_t) n, a->bounce, n > 0 ? (size_t) n : 0);
        }
        return r;
}

struct record op_read_in(struct actor *a, const struct op *o) {
        struct span s = op_span_bytes(o);
        if (o->arg & 1)
                return with_memory(pread(run.pattern, s.at, s.bytes, pattern_offset(o)), s);
        check(lseek(a->pattern, pattern_offset(o), SEEK_SET) >= 0, "lseek");
        return with_memory(read(a->pattern, s.at, s.bytes), s);
}

struct record op_write_out(struct actor *a, const struct op *o) {
        struct span s = op_span_bytes(o);
        return with_file(a, pwrite(a->scratch, s.at, s.bytes, 0));
}

/* Three pieces of the range, not in order. */
static void split(struct span s, uint32_t arg, struct iovec v[VECTORS]) {
        size_t a = s.bytes ? arg % s.bytes : 0, b = s.bytes > a ? (arg >> 8) % (s.bytes - a) : 0;
        v[0] = (struct iovec) { s.at + a, b };
        v[1] = (struct iovec) { s.at, a };
        v[2] = (struct iovec) { s.at + a + b, s.bytes - a - b };
}

struct record op_readv_in(struct actor *a, const struct op *o) {
        struct span s = op_span_bytes(o);
        struct iovec v[VECTORS];
        split(s, o->arg, v);
        return with_memory(preadv(run.pattern, v, VECTORS, pattern_offset(o)), s);
}

struct record op_writev_out(struct actor *a, const struct op *o) {
        struct iovec v[VECTORS];
        split(op_span_bytes(o), o->arg, v);
        return with_file(a, pwritev(a->scratch, v, VECTORS, 0));
}

struct record op_pipe_in(struct actor *a, const struct op *o) {
        struct span s = op_span_bytes(o);
        s.bytes = MIN(s.bytes, PIPE_BYTES);
        memcpy(a->bounce, content(o->value), PAGE);
        for (size_t i = 1; i < PIPE_BYTES / PAGE; i++)
                memcpy(a->bounce + i * PAGE, content((uint32_t) (o->value + i)), PAGE);
        ssize_t in = write(a->pipe[1], a->bounce, s.bytes);
        ssize_t n = read(a->pipe[0], s.at, s.bytes);
        struct record r = with_memory(n, s);
        for (ssize_t left = in - MAX(n, 0); left > 0;) { /* nothing may stay for the next one */
                ssize_t got = read(a->pipe[0], a->bounce, (size_t) left);
                check(got > 0, "pipe");
                left -= got;
        }
        return r;
}

/* By write, or by vmsplice, which gives the pipe the pages themselves. */
struct record op_pipe_out(struct actor *a, const struct op *o) {
        struct span s = op_span_bytes(o);
        struct iovec v = { s.at, MIN(s.bytes, PIPE_BYTES) };
        ssize_t n = o->arg & 1 ? write(a->pipe[1], v.iov_base, v.iov_len) : vmsplice(a->pipe[1], &v, 1, 0);
        struct record r = outcome(n);
        size_t done = 0;
        while (n > 0 && done < (size_t) n) {
                ssize_t got = read(a->pipe[0], a->bounce + done, (size_t) n - done);
                check(got > 0, "pipe");
                done += (size_t) got;
        }
        r.digest = digest_bytes(0, a->bounce, done);
        return r;
}

/* Past the page cache: the device reads and writes the pages themselves. */
struct record op_direct_in(struct actor *a, const struct op *o) {
        struct span s = op_span(o);
        if (run.pattern_direct < 0)
                return (struct record) { .result = SKIPPED };
        off_t at = (off_t) (o->value % PATTERN_PAGES * PAGE);
        return with_memory(pread(run.pattern_direct, s.at, MIN(s.bytes, 8 * PAGE), at), s);
}

struct record op_direct_out(struct actor *a, const struct op *o) {
        struct span s = op_span(o);
        if (a->direct < 0)
                return (struct record) { .result = SKIPPED };
        struct record r = outcome(pwrite(a->direct, s.at, MIN(s.bytes, 8 * PAGE), 0));
        if (r.result > 0) {
                ssize_t n = pread(a->direct, a->bounce, (size_t) r.result, 0);
                r.digest = digest_bytes((uint64_t) n, a->bounce, n > 0 ? (size_t) n : 0);
        }
        return r;
}

/* -- io_uring ------------------------------------------------------------------------------------------------- */

static struct uring *uring_of(struct actor *a) {
        if (!a->uring) {
                a->uring = calloc(1, sizeof(*a->uring));
                check(a->uring, "memory");
                int r = io_uring_queue_init(4, &a->uring->ring, 0);
                check(r == 0, "io_uring_queue_init: %s", strerror(-r));
        }
        return a->uring;
}

void uring_close(struct actor *a) {
        if (!a->uring)
                return;
        io_uring_queue_exit(&a->uring->ring);
        free(a->uring);
        a->uring = NULL;
}

/* The pages stay pinned while other operations go on, until the next one registers others. */
struct record op_uring_register(struct actor *a, const struct op *o) {
        struct uring *u = uring_of(a);
        struct span s = op_span(o);
        struct iovec v = { s.at, MIN(s.bytes, FIXED_BYTES) };
        if (u->at)
                check(io_uring_unregister_buffers(&u->ring) == 0, "io_uring_unregister_buffers");
        u->at = NULL;
        int r = o->arg % 4 ? io_uring_register_buffers(&u->ring, &v, 1) : 0;
        if (r == 0 && o->arg % 4) {
                u->at = s.at;
                u->bytes = v.iov_len;
        }
        return (struct record) { .result = r };
}

static int uring_transfer(struct uring *u, bool in, int fd, struct span s, off_t at) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
        struct io_uring_cqe *cqe;
        check(sqe, "no submission entry");
        if (in)
                io_uring_prep_read_fixed(sqe, fd, s.at, (unsigned) s.bytes, (uint64_t) at, 0);
        else
                io_uring_prep_write_fixed(sqe, fd, s.at, (unsigned) s.bytes, (uint64_t) at, 0);
        int r;
        do
                r = io_uring_submit_and_wait(&u->ring, 1);
        while (r == -EINTR);
        while ((r = io_uring_wait_cqe(&u->ring, &cqe)) == -EINTR)
                ;
        check(r == 0, "io_uring_wait_cqe: %s", strerror(-r));
        int result = cqe->res;
        io_uring_cqe_seen(&u->ring, cqe);
        return result;
}

static struct span registered_part(const struct uring *u, uint32_t arg) {
        size_t head = arg % u->bytes;
        return (struct span) { u->at + head, u->bytes - head };
}

struct record op_uring_in(struct actor *a, const struct op *o) {
        struct uring *u = uring_of(a);
        if (!u->at)
                return (struct record) { .result = SKIPPED };
        struct span s = registered_part(u, o->arg);
        int n = uring_transfer(u, true, run.pattern, s, pattern_offset(o));
        return (struct record) { .result = n, .digest = digest_memory(s.at, s.bytes) };
}

struct record op_uring_out(struct actor *a, const struct op *o) {
        struct uring *u = uring_of(a);
        if (!u->at)
                return (struct record) { .result = SKIPPED };
        return with_file(a, uring_transfer(u, false, a->scratch, registered_part(u, o->arg), 0));
}
