/* madvise, every advice. */
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "tests/shadow/shadow.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

#define PIDFD_SELF_THREAD_GROUP (-10001) /* Linux 6.14; EBADF before */

static struct record advise(const struct op *o, int advice) {
        struct span s = op_span(o);
        return outcome(calls_of(o)->madvise(s.at, s.bytes, advice));
}

#define ADVICE(name, advice)                                             \
        struct record op_##name(struct actor *a, const struct op *o) {   \
                return advise(o, advice);                                \
        }
ADVICE(dontneed, MADV_DONTNEED)
ADVICE(remove, MADV_REMOVE)
ADVICE(hugepage, MADV_HUGEPAGE)
ADVICE(nohugepage, MADV_NOHUGEPAGE)
ADVICE(dontfork, MADV_DONTFORK)
ADVICE(dofork, MADV_DOFORK)
ADVICE(wipeonfork, MADV_WIPEONFORK)
ADVICE(keeponfork, MADV_KEEPONFORK)
ADVICE(cold, MADV_COLD)
ADVICE(pageout, MADV_PAGEOUT)
ADVICE(willneed, MADV_WILLNEED)
ADVICE(populate_read, MADV_POPULATE_READ)
ADVICE(populate_write, MADV_POPULATE_WRITE)
ADVICE(mergeable, MADV_MERGEABLE)
ADVICE(unmergeable, MADV_UNMERGEABLE)
ADVICE(dontdump, MADV_DONTDUMP)
ADVICE(dodump, MADV_DODUMP)
ADVICE(guard_install, MADV_GUARD_INSTALL)
ADVICE(guard_remove, MADV_GUARD_REMOVE)

/* Each page as it was, or zeros: which of them is the kernel's choice. What can be read at all is read. */
static bool is_old_or_zeros(struct span s, const uint8_t *old) {
        static const uint8_t zeros[PAGE];
        uint8_t page[PAGE];
        bool legal = true;
        for (size_t i = 0; i < s.bytes; i += PAGE)
                if (guarded_load(page, s.at + i, PAGE) == 0)
                        legal &= memcmp(page, old + i, PAGE) == 0 || memcmp(page, zeros, PAGE) == 0;
        return legal;
}

/* Afterwards the pages are written, or discarded, so that the program goes on the same way whatever became of them.
 * The planted fault: on every second one the wrapper is skipped. */
struct record op_free_lazily(struct actor *a, const struct op *o) {
        struct span s = op_span(o);
        struct op copy = *o;
        copy.raw |= (run.plant & PLANT_WRAPPER) && (o->arg & 1);
        for (size_t i = 0; i < s.bytes; i += PAGE)
                (void) guarded_load(a->bounce + i, s.at + i, PAGE);
        struct record r = advise(&copy, MADV_FREE);
        r.digest = !is_old_or_zeros(s, a->bounce); /* where it failed it has freed what comes before */
        for (size_t i = 0; i < s.bytes; i += PAGE)
                if (!(o->arg & 2) || guarded_copy(s.at + i, content(o->value), PAGE) != 0)
                        r.result += madvise(s.at + i, PAGE, MADV_DONTNEED) != 0;
        return r;
}

/* Whether huge pages can be had just now is nobody's promise (exception "collapse"). */
struct record op_collapse(struct actor *a, const struct op *o) {
        struct span s = op_span(o);
        (void) madvise(s.at, s.bytes, MADV_COLLAPSE);
        return (struct record) { .digest = digest_memory(s.at, s.bytes) };
}

/* What the kernel refuses: no page boundary, no such advice, the end of the address space. */
struct record op_advise_badly(struct actor *a, const struct op *o) {
        static const int advices[] = { MADV_DONTNEED, MADV_FREE, MADV_MERGEABLE, MADV_UNMERGEABLE, MADV_WIPEONFORK,
                                       MADV_POPULATE_WRITE, MADV_DONTFORK, 77 };
        struct span s = op_span(o);
        int advice = advices[o->arg % 8];
        switch (o->arg >> 8 & 3) {
        case 0: return outcome(madvise(s.at + 1 + o->value % 4000, s.bytes, advice));
        case 1: return outcome(madvise(s.at, 0, advice));
        case 2: return outcome(madvise(s.at, SIZE_MAX - o->value, advice));
        default: return outcome(madvise(s.at, s.bytes, 77));
        }
}

/* By process_madvise on oneself: two ranges, bytes done before one fails. */
struct record op_advise_vector(struct actor *a, const struct op *o) {
        static const int advices[] = { MADV_DONTNEED, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE, MADV_POPULATE_READ, MADV_COLD,
                                       MADV_DONTFORK, MADV_DOFORK, MADV_WILLNEED, MADV_MERGEABLE, MADV_REMOVE };
        struct span s = op_span(o), to = op_span_to(o, o->pages * PAGE);
        struct iovec v[2] = { { s.at, s.bytes }, { to.at, to.bytes } };
        ssize_t n = process_madvise(PIDFD_SELF_THREAD_GROUP, v, 2, advices[o->arg % 10], 0);
        struct record r = outcome(n);
        r.digest = digest_memory(s.at, s.bytes) * 31 + digest_memory(to.at, to.bytes);
        return r;
}
