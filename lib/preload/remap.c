/* mremap. Merged pages are mappings of their own: mremap refuses a range of several mappings (EFAULT), and growing one would
 * show what lies behind the run in its segment. So they are restored first; and because restored memory may stay in
 * pieces (it keeps page offsets of its own), a range in pieces that was one mapping to the program is moved piece by piece.
 *
 * Pages that were copied on write and may be pinned cannot be restored: mremap then fails with ENOMEM, and nothing changed.
 * realloc copies instead (alloc.c). */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>

#include "common/uapi.h"
#include "lib/book.h"
#include "lib/preload/preload.h"
#include "lib/sys.h"
#include "lib/vma.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

#define TASK_END ((1ULL << 47) - KSM_PAGE_SIZE)

struct remap {
        uint64_t old, old_bytes, new_bytes; /* page multiples */
        uint64_t to;                        /* MREMAP_FIXED */
        int flags;
};

static uint64_t real_remap(uint64_t old, uint64_t old_bytes, uint64_t new_bytes, int flags, uint64_t to) {
        return (uint64_t) REAL(mremap)((void *) old, old_bytes, new_bytes, flags, (void *) to);
}

static bool failed(uint64_t addr) {
        return addr == (uint64_t) MAP_FAILED;
}

/* A move without change of size: since 6.17 the kernel takes it over several mappings, one after the other; but it stops with
 * EFAULT at one that a userfaultfd watches, when those before it have been moved already. */
static bool kernel_moves_many(const struct remap *r) {
        return (r->flags & MREMAP_FIXED) && r->old_bytes == r->new_bytes;
}

/* True when there is more than one mapping in [start, end) and no gap, and they are private anonymous memory of one protection:
 * what one mapping of the program may have become under us. */
static bool in_pieces(int maps_fd, uint64_t start, uint64_t end, uint64_t *ret_last_start) {
        const uint64_t same = PROCMAP_QUERY_VMA_READABLE | PROCMAP_QUERY_VMA_WRITABLE | PROCMAP_QUERY_VMA_EXECUTABLE;
        uint64_t at = start, flags = 0;
        unsigned n = 0;
        while (at < end) {
                struct vma v;
                if (vma_query(maps_fd, at, false, &v) < 0)
                        return false;
                if (!v.anonymous || (v.flags & PROCMAP_QUERY_VMA_SHARED))
                        return false;
                if (n++ == 0)
                        flags = v.flags & same;
                else if ((v.flags & same) != flags)
                        return false;
                *ret_last_start = MAX(at, v.start);
                at = v.end;
        }
        return n > 1;
}

/* Moves [old, old + bytes) to [to, ...), one mapping at a time; the last one gets last_extra bytes more (or is not there to
 * grow). Returns how far it came. */
static uint64_t move_pieces(int maps_fd, uint64_t old, uint64_t bytes, uint64_t to, uint64_t last_extra, int flags) {
        uint64_t done = 0;
        while (done < bytes) {
                struct vma v;
                if (vma_query(maps_fd, old + done, false, &v) < 0)
                        break;
                uint64_t piece = MIN(v.end, old + bytes) - (old + done);
                uint64_t extra = done + piece == bytes ? last_extra : 0;
                if (failed(real_remap(old + done, piece, piece + extra, flags | MREMAP_MAYMOVE | MREMAP_FIXED, to + done)))
                        break;
                done += piece;
        }
        return done;
}

/* The whole range in pieces goes to a new place. Undone when a piece cannot be moved. */
static uint64_t remap_moving(int maps_fd, const struct remap *r) {
        uint64_t keep = MIN(r->old_bytes, r->new_bytes), extra = r->new_bytes - keep;
        bool fixed = r->flags & MREMAP_FIXED;
        uint64_t to = (uint64_t) REAL(mmap)(fixed ? (void *) r->to : NULL, r->new_bytes, PROT_NONE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (fixed ? MAP_FIXED : 0), -1, 0);
        if (failed(to))
                return to;
        uint64_t done = move_pieces(maps_fd, r->old, keep, to, extra, r->flags & MREMAP_DONTUNMAP);
        if (done < keep) {
                (void) move_pieces(maps_fd, to, done, r->old, 0, 0);
                (void) REAL(munmap)((void *) to, r->new_bytes);
                errno = ENOMEM;
                return (uint64_t) MAP_FAILED;
        }
        if (keep < r->old_bytes)
                (void) REAL(munmap)((void *) (r->old + keep), r->old_bytes - keep);
        return to;
}

static uint64_t remap_pieces(int maps_fd, const struct remap *r, uint64_t last) {
        uint64_t result = (uint64_t) MAP_FAILED;
        if (!(r->flags & (MREMAP_FIXED | MREMAP_DONTUNMAP))) {
                uint64_t bytes = r->old + r->old_bytes - last;
                result = real_remap(last, bytes, bytes + r->new_bytes - r->old_bytes, 0, 0);
                if (!failed(result))
                        return r->old;
        }
        return r->flags & MREMAP_MAYMOVE ? remap_moving(maps_fd, r) : result;
}

/* True: the range is in pieces, and *ret_result is what became of it (errno set when it failed). */
static bool remap_in_pieces(const struct remap *r, uint64_t *ret_result) {
        int saved = errno;
        uint64_t last = 0;
        long maps_fd = sys_open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
        if (maps_fd < 0)
                return false;
        bool pieces = in_pieces((int) maps_fd, r->old, r->old + r->old_bytes, &last);
        if (pieces) {
                *ret_result = remap_pieces((int) maps_fd, r, last);
                errno = failed(*ret_result) ? ENOMEM : saved;
        }
        sys_close((int) maps_fd);
        return pieces;
}

/* Inside the lock, after success. Growth in place is a move onto itself; registration travels, as VM_MERGEABLE does. */
static void note_remapped(const struct remap *r, uint64_t result) {
        if (result == r->old && r->new_bytes <= r->old_bytes) {
                note_unmapped(r->old + r->new_bytes, r->old + r->old_bytes);
                return;
        }
        if (result != r->old)
                note_unmapped(result, result + r->new_bytes);
        if (r->old_bytes)
                agent_note_moved(r->old, r->old_bytes, result, r->new_bytes, r->flags & MREMAP_DONTUNMAP);
}

/* As the kernel does it since 6.17: mapping by mapping, gaps stay gaps but for one at the beginning, and at the first that fails it
 * stops. A mapping alone is moved whoever watches it. */
static uint64_t move_many(int maps_fd, const struct remap *r) {
        uint64_t at = r->old, end = r->old + r->old_bytes;
        struct vma v;
        while (at < end && vma_query(maps_fd, at, true, &v) == 0 && v.start < end && !(at == r->old && v.start > at)) {
                struct remap one = { .old = MAX(at, v.start), .flags = r->flags };
                one.old_bytes = one.new_bytes = MIN(v.end, end) - one.old;
                one.to = r->to + (one.old - r->old);
                if (failed(real_remap(one.old, one.old_bytes, one.new_bytes, one.flags, one.to)))
                        return (uint64_t) MAP_FAILED;
                note_remapped(&one, one.to);
                at = v.end;
        }
        if (at > r->old)
                return r->to;
        errno = EFAULT;
        return (uint64_t) MAP_FAILED;
}

/* What the kernel refuses before it looks at any mapping, it refuses. */
static bool is_sound_move(const struct remap *r) {
        uint64_t end;
        return r->old_bytes && !(r->to & (KSM_PAGE_SIZE - 1)) && !__builtin_add_overflow(r->to, r->new_bytes, &end) &&
               end <= TASK_END && (end <= r->old || r->old + r->old_bytes <= r->to) &&
               (r->flags & ~MREMAP_DONTUNMAP) == (MREMAP_MAYMOVE | MREMAP_FIXED);
}

static uint64_t remap_locked(const struct remap *r) {
        if (agent_running() && kernel_moves_many(r)) {
                int saved = errno;
                long maps_fd = sys_open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
                if (maps_fd >= 0) {
                        uint64_t result = move_many((int) maps_fd, r);
                        sys_close((int) maps_fd);
                        if (!failed(result))
                                errno = saved;
                        return result;
                }
        }
        uint64_t result = real_remap(r->old, r->old_bytes, r->new_bytes, r->flags, r->to);
        int error = errno;
        if (failed(result) && error == EFAULT && r->old_bytes && !kernel_moves_many(r) && !remap_in_pieces(r, &result))
                errno = error;
        if (!failed(result))
                note_remapped(r, result);
        return result;
}

SHIM_EXPORT void *mremap(void *old, size_t old_length, size_t new_length, int flags, ...) {
        va_list ap;
        va_start(ap, flags);
        uint64_t to = (uint64_t) va_arg(ap, void *);
        va_end(ap);
        struct remap r = { (uint64_t) old, page_ceil(old_length), page_ceil(new_length), to, flags };
        uint64_t end;
        /* What the kernel refuses, it refuses. */
        if ((r.old & (KSM_PAGE_SIZE - 1)) || __builtin_add_overflow(r.old, r.old_bytes, &end))
                return REAL(mremap)(old, old_length, new_length, flags, to);
        int left = 0;
        if (kernel_moves_many(&r) && !is_sound_move(&r))
                return REAL(mremap)(old, old_length, new_length, flags, to);
        if (r.new_bytes <= r.old_bytes && !(flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)))
                enter(); /* unmaps the tail at most */
        else
                left = enter_restored(r.old, end);
        uint64_t result = (uint64_t) MAP_FAILED;
        if (left != 0)
                errno = ENOMEM;
        else
                result = remap_locked(&r);
        leave();
        return (void *) result;
}
