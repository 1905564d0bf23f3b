/* madvise and its relatives: the merge advice becomes registration, and advice that means something else on a merged page
 * (a private file mapping) than on anonymous memory is preceded by a restore. */
#include <errno.h>
#include <sys/uio.h>

#include "lib/book.h"
#include "lib/preload/preload.h"
#include "lib/sys.h"
#include "lib/transition.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif
/* Dropped pages are restored at once, unless the program writes them again in between (and has them pinned). */
#define GUARD_TRIES 16U
/* Linux 6.14: the caller itself, in place of a pidfd. */
#define PIDFD_SELF_THREAD (-10000)
#define PIDFD_SELF_THREAD_GROUP (-10001)

static int fail(int error) {
        errno = error;
        return -1;
}

/* As the kernel checks every madvise: 1 = go on with *ret; 0 = nothing to do, succeed; -errno. */
static int check_range(void *addr, size_t length, struct span *ret) {
        uint64_t start = (uint64_t) addr;
        if (start & (KSM_PAGE_SIZE - 1))
                return -EINVAL;
        uint64_t rounded = page_ceil(length), end;
        if (length && !rounded)
                return -EINVAL;
        if (__builtin_add_overflow(start, rounded, &end))
                return -EINVAL;
        *ret = (struct span) { start, end };
        return end > start;
}

/* MADV_MERGEABLE, MADV_UNMERGEABLE. The kernel applies them to what can be merged, passes over what cannot, and says ENOMEM
 * in the end when the range has gaps. msync(MS_ASYNC) walks VMAs and does nothing else: it finds the gaps. */
static int advise_merge(void *addr, size_t length, bool mergeable) {
        struct span span;
        int r = check_range(addr, length, &span);
        if (r <= 0)
                return r < 0 ? fail(-r) : 0;
        uint64_t bytes = span.end - span.start;
        bool gaps = sys_call(SYS_msync, (long) span.start, (long) bytes, MS_ASYNC, 0, 0, 0) == -ENOMEM;
        if (mergeable) {
                r = shim_start_agent(false);
                if (r == 0)
                        r = REQUEST(agent_advise_mergeable(span.start, bytes));
        } else {
                r = agent_running() ? REQUEST(agent_advise_unmergeable(span.start, bytes)) : 0;
        }
        /* The kernel says EAGAIN when it lacks the memory for its books, ENOMEM when for the copies. */
        if (r == -EAGAIN || r == -ENOMEM)
                return fail(-r);
        return gaps ? fail(ENOMEM) : 0;
}

static bool may_hold_merged(const struct span *span) {
        map_enter();
        bool any = book_any_merged(span->start, span->end);
        map_leave();
        return any;
}

/* With an agent: it learns of the range from the kernel before the pages go, and answers the next access with zeros. A forked
 * child without one replaces the merged part by itself. Inside the lock. */
static int discard(void *addr, size_t length, int advice, const struct span *span) {
        int r = REAL(madvise)(addr, length, advice);
        if (r == 0 || errno == ENOMEM) { /* ENOMEM: done, and there were gaps */
                int saved = errno;
                int discarded = agent_discard_local(span->start, span->end - span->start);
                if (discarded < 0)
                        r = fail(-discarded);
                else
                        errno = saved;
        }
        return r;
}

static int advise_dontneed(void *addr, size_t length, int advice, const struct span *span) {
        enter();
        int r = discard(addr, length, advice, span);
        leave();
        return r;
}

/* The first merged run in [start, end), as far as it lies in one block. */
static bool find_merged(uint64_t start, uint64_t end, struct span *ret) {
        struct book_walk w = { .start = start, .end = end };
        uint64_t block, mask;
        unsigned i = 0, n;
        if (!book_walk_next(&w, &block, &mask) || !next_run(mask, &i, &n))
                return false;
        uint64_t base = block << (BLOCK_SHIFT + KSM_PAGE_SHIFT);
        *ret = (struct span) { page_address(base, i), page_address(base, i + n) };
        return true;
}

/* What stays merged, because a page of it may be pinned, is a private mapping of a file: of that the kernel says EACCES, of memory without a
 * file EINVAL. It goes over the mappings in their order, so what lies before is its to judge. Inside the lock. */
static int refuse_remove(void *addr, const struct span *span) {
        struct span run;
        if (!find_merged(span->start, span->end, &run))
                return fail(EACCES);
        if (run.start > span->start && REAL(madvise)(addr, run.start - span->start, MADV_REMOVE) < 0 && errno != ENOMEM)
                return -1;
        return fail(EINVAL);
}

static int advise_restored(void *addr, size_t length, int advice, const struct span *span) {
        int left = enter_restored(span->start, span->end);
        int saved = errno;
        int r = REAL(madvise)(addr, length, advice);
        if (r < 0 && left != 0 && advice == MADV_REMOVE && errno == EACCES)
                r = refuse_remove(addr, span);
        leave();
        /* The kernel may free such pages at any time, or never: what stays in a file mapping is never freed. */
        if (r < 0 && left != 0 && advice == MADV_FREE && errno == EINVAL) {
                errno = saved;
                r = 0;
        }
        return r;
}

static int guard_piece(uint64_t start, uint64_t end) {
        return end > start ? REAL(madvise)((void *) start, end - start, MADV_GUARD_INSTALL) : 0;
}

/* MADV_GUARD_INSTALL on [*at, end) as far as nothing is merged there; then what is merged next is dropped, which the advice would
 * do anyway, and *at is its start. Dropped pages can be restored, whatever pinned them. 0 or -1 as madvise. */
static int guard_to_merged(uint64_t *at, uint64_t end) {
        struct span run = { end, end };
        int left = enter_restored(*at, end), r, saved = errno;
        if (left == 0 || !find_merged(*at, end, &run))
                run = (struct span) { end, end };
        r = guard_piece(*at, run.start);
        bool gaps = r < 0 && errno == ENOMEM;
        if ((r == 0 || gaps) && run.end > run.start)
                r = discard((void *) run.start, run.end - run.start, MADV_DONTNEED, &run);
        leave();
        if (r == 0 && gaps)
                r = fail(ENOMEM);
        else if (r == 0)
                errno = saved;
        *at = run.start;
        return r;
}

/* Pages that cannot be restored, because they may be pinned, stay in the file mapping of their run. There the kernel would never
 * come to an end: it puts guards into empty entries only, and what it zaps to have them empty leaves a marker of the write
 * protection behind. So merged pages go first, in the order in which the kernel goes over mappings: at one that refuses (locked
 * memory: EINVAL) everything behind it stays as it is. */
static int advise_guard(void *addr, size_t length) {
        struct span span;
        if (check_range(addr, length, &span) <= 0)
                return REAL(madvise)(addr, length, MADV_GUARD_INSTALL);
        bool gaps = false;
        uint64_t at = span.start, before;
        for (unsigned tries = 0; at < span.end && tries < GUARD_TRIES;) {
                before = at;
                if (guard_to_merged(&at, span.end) < 0) {
                        if (errno != ENOMEM)
                                return -1;
                        gaps = true;
                }
                tries = at == before ? tries + 1 : 0;
        }
        if (at < span.end)
                return fail(EAGAIN);
        return gaps ? fail(ENOMEM) : 0;
}

static int advise_plain(void *addr, size_t length, int advice) {
        enter();
        int r = REAL(madvise)(addr, length, advice);
        leave();
        return r;
}

static int advise_kept(void *addr, size_t length, int advice, const struct span *span) {
        enter();
        int r = REAL(madvise)(addr, length, advice);
        if (r == 0 || errno == ENOMEM) /* ENOMEM: done, and there were gaps */
                agent_note_advice(span->start, span->end - span->start, advice);
        leave();
        return r;
}

/* How an advice meets merged pages. */
enum treatment {
        TREAT_PLAIN,    /* means the same on them, or is only a hint */
        TREAT_DONTNEED, /* drops pages: zeros must come back */
        TREAT_RESTORE,  /* fails or means something else on a file mapping */
        TREAT_GUARD,    /* drops pages, and never ends on a merged run */
        TREAT_EXCLUDE,  /* sets what a replaced mapping would lose */
        TREAT_KEEP,     /* set on merged memory too, and by the agent again when it replaces a mapping (QEMU's guest RAM) */
        TREAT_MERGE,
};

static enum treatment treatment_of(int advice) {
        switch (advice) {
        case MADV_DONTNEED:
        case MADV_DONTNEED_LOCKED:
                return TREAT_DONTNEED;
        case MADV_FREE:
        case MADV_REMOVE:
        case MADV_COLLAPSE:
        case MADV_GUARD_REMOVE:
                return TREAT_RESTORE;
        case MADV_GUARD_INSTALL:
                return TREAT_GUARD;
        case MADV_WIPEONFORK:
        case MADV_DONTDUMP:
                return TREAT_EXCLUDE;
        case MADV_DONTFORK:
        case MADV_DOFORK:
        case MADV_HUGEPAGE:
        case MADV_NOHUGEPAGE:
                return TREAT_KEEP;
        case MADV_MERGEABLE:
        case MADV_UNMERGEABLE:
                return TREAT_MERGE;
        default:
                return TREAT_PLAIN;
        }
}

static int advise(void *addr, size_t length, int advice) {
        struct span span;
        enum treatment treatment = treatment_of(advice);
        if (treatment == TREAT_MERGE && shim_enabled())
                return advise_merge(addr, length, advice == MADV_MERGEABLE);
        if (treatment == TREAT_PLAIN || treatment == TREAT_MERGE || check_range(addr, length, &span) <= 0)
                return advise_plain(addr, length, advice);
        if (treatment == TREAT_DONTNEED)
                return advise_dontneed(addr, length, advice, &span);
        if (treatment == TREAT_GUARD)
                return advise_guard(addr, length);
        if (treatment == TREAT_KEEP)
                return advise_kept(addr, length, advice, &span);
        if (treatment == TREAT_EXCLUDE && agent_running()) {
                (void) REQUEST(agent_exclude(span.start, span.end - span.start));
                return advise_plain(addr, length, advice);
        }
        return advise_restored(addr, length, advice, &span);
}

SHIM_EXPORT int madvise(void *addr, size_t length, int advice) {
        return advise(addr, length, advice);
}

/* POSIX_MADV_DONTNEED does nothing in glibc; the others are hints. */
SHIM_EXPORT int posix_madvise(void *addr, size_t length, int advice) {
        enter();
        int r = REAL(posix_madvise)(addr, length, advice);
        leave();
        return r;
}

/* MADV_COLLAPSE by a pidfd, which may be one's own or another's: only then is the restore for nothing. Between it and the call a
 * page could be merged again only after a pass without a write; it is not collapsed then. */
static void prepare_vector(const struct iovec *vector, size_t n) {
        for (size_t i = 0; i < n; i++) {
                struct span span;
                if (check_range(vector[i].iov_base, vector[i].iov_len, &span) > 0 && may_hold_merged(&span))
                        (void) REQUEST(agent_restore(span.start, span.end - span.start));
        }
}

/* Since 6.13 a process may give itself any advice by process_madvise, and other processes only hints (and MADV_COLLAPSE). An empty
 * vector is refused as any would be, and does nothing. */
static bool advises_itself(real_process_madvise_fn f, int pidfd, int advice, unsigned flags) {
        bool by_name = pidfd == PIDFD_SELF_THREAD || pidfd == PIDFD_SELF_THREAD_GROUP;
        int saved = errno;
        bool self = (by_name || advice != MADV_COLLAPSE) && f(pidfd, NULL, 0, advice, flags) == 0;
        errno = saved;
        return self;
}

/* As the kernel: bytes done before the first that fails. */
static ssize_t advise_each(const struct iovec *vector, size_t n, int advice) {
        ssize_t done = 0;
        for (size_t i = 0; i < n; i++) {
                if (advise(vector[i].iov_base, vector[i].iov_len, advice) < 0)
                        return done ? done : -1;
                done += (ssize_t) vector[i].iov_len;
        }
        return done;
}

SHIM_EXPORT ssize_t process_madvise(int pidfd, const struct iovec *vector, size_t n, int advice, unsigned flags) {
        real_process_madvise_fn f = REAL(process_madvise);
        if (!f) {
                errno = ENOSYS;
                return -1;
        }
        enum treatment treatment = treatment_of(advice);
        if (treatment != TREAT_PLAIN && n <= UIO_MAXIOV && advises_itself(f, pidfd, advice, flags))
                return advise_each(vector, n, advice);
        if (treatment == TREAT_RESTORE && agent_running())
                prepare_vector(vector, n);
        enter();
        ssize_t r = f(pidfd, vector, n, advice, flags);
        leave();
        return r;
}
