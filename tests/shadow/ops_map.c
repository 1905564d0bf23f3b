/* Operations that make, move, change and drop mappings. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "tests/shadow/shadow.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#define BRK_PAGES_MAX 128

static int prot_of(uint32_t arg) {
        static const int prots[8] = { PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ,
                                      PROT_READ | PROT_WRITE, PROT_NONE, PROT_READ | PROT_WRITE,
                                      PROT_READ | PROT_WRITE | PROT_EXEC };
        return prots[arg % 8];
}

/* Whether the call put it where it should be; addresses themselves are never reported. */
static struct record placed(const void *p, const void *expected) {
        return p == MAP_FAILED ? outcome(-1) : (struct record) { .result = !expected || p == expected ? 0 : 1 };
}

struct record op_map_anon(struct actor *a, const struct op *o) {
        struct span s = op_span(o);
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
        flags |= o->arg & 0x100 ? MAP_NORESERVE : 0;
        flags |= o->arg & 0x200 && o->arg & 0x400 ? MAP_POPULATE : 0;
        struct record r = placed(calls_of(o)->mmap(s.at, s.bytes, prot_of(o->arg), flags, -1, 0), s.at);
        if (r.result == 0 && (o->arg & 0x3000))
                r.result += madvise(s.at, s.bytes, MADV_MERGEABLE) * 10;
        return r;
}

struct record op_map_noreplace(struct actor *a, const struct op *o) {
        struct span s = op_span(o);
        return placed(mmap(s.at, s.bytes, prot_of(o->arg), MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0), s.at);
}

struct record op_map_shared(struct actor *a, const struct op *o) {
        struct span s = op_span(o);
        return placed(mmap(s.at, s.bytes, prot_of(o->arg), MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0), s.at);
}

struct record op_map_file(struct actor *a, const struct op *o) {
        struct span s = op_span(o);
        off_t at = (off_t) (o->value % PATTERN_PAGES * PAGE); /* may reach beyond its end */
        return placed(mmap(s.at, s.bytes, prot_of(o->arg), MAP_PRIVATE | MAP_FIXED, run.pattern, at), s.at);
}

/* Somewhere, for a moment. */
struct record op_map_where(struct actor *a, const struct op *o) {
        size_t bytes = o->pages * PAGE;
        uint8_t *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        struct record r = placed(p, NULL);
        if (p == MAP_FAILED)
                return r;
        for (uint32_t i = 0; i < o->pages; i += 1 + o->arg % 3)
                (void) guarded_copy(p + i * PAGE, content(o->value + i), PAGE);
        r.digest = digest_memory(p, bytes);
        r.result += munmap(p, bytes);
        return r;
}

struct record op_reset(struct actor *a, const struct op *o) {
        struct arena *arena = &run.arenas[o->arena];
        if (uffd_is_open())
                return (struct record) { .result = SKIPPED };
        arena_reset(arena, arena->pages <= 128);
        return (struct record) { .digest = digest_memory(arena->base, arena->pages * PAGE) };
}

/* Holes only where the kernel puts nothing of its own: others may map something there in the meantime. */
static bool is_placed(const struct op *o, uint32_t arena) {
        enum arena_kind kind = run.arenas[arena].kind;
        return kind != ARENA_ROAMING && kind != ARENA_BRK && kind != ARENA_NONE;
}

#define SKIP_UNLESS(x)                                               \
        do {                                                         \
                if (!(x))                                            \
                        return (struct record) { .result = SKIPPED }; \
        } while (0)

struct record op_unmap(struct actor *a, const struct op *o) {
        struct span s = op_span(o);
        SKIP_UNLESS(is_placed(o, o->arena));
        return outcome(calls_of(o)->munmap(s.at, s.bytes));
}

struct record op_remap_shrink(struct actor *a, const struct op *o) {
        struct span s = op_span(o);
        SKIP_UNLESS(is_placed(o, o->arena) && s.bytes > PAGE);
        size_t keep = PAGE * (1 + o->arg % (s.bytes / PAGE - 1));
        return placed(calls_of(o)->mremap(s.at, s.bytes, keep, o->arg & 0x100000 ? MREMAP_MAYMOVE : 0, NULL), s.at);
}

static void renew(uint8_t *at, size_t bytes) {
        check(!bytes || mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at, "mmap");
}

/* In place where the pages behind were unmapped for it, else elsewhere and back. What lies behind afterwards is new memory whether
 * or not it grew, so that a program goes on the same way where the two may differ (exception "mremap of several mappings"). */
struct record op_remap_grow(struct actor *a, const struct op *o) {
        struct span s = op_span(o);
        struct arena *arena = &run.arenas[o->arena];
        SKIP_UNLESS(is_placed(o, o->arena) && s.bytes && !uffd_is_open());
        size_t room = (size_t) (arena->base + arena->pages * PAGE - s.at);
        size_t to = s.bytes + PAGE * (1 + (o->arg >> 8) % 16);
        to = to < room ? to : room;
        if (o->arg & 1)
                (void) munmap(s.at + s.bytes, to - s.bytes);
        uint8_t *p = calls_of(o)->mremap(s.at, s.bytes, to, o->arg & 2 ? MREMAP_MAYMOVE : 0, NULL);
        struct record r = placed(p, s.at);
        r.digest = p == MAP_FAILED ? 0 : digest_memory(p, to);
        if (p != MAP_FAILED && p != s.at)
                r.result += 10 * (mremap(p, to, to, MREMAP_MAYMOVE | MREMAP_FIXED, s.at) != s.at);
        renew(s.at + s.bytes, to - s.bytes);
        return r;
}

struct record op_remap_away(struct actor *a, const struct op *o) {
        struct span s = op_span(o);
        SKIP_UNLESS(is_placed(o, o->arena) && s.bytes && !uffd_is_open());
        void *to = mmap(NULL, s.bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        check(to != MAP_FAILED, "mmap");
        void *p = calls_of(o)->mremap(s.at, s.bytes, s.bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to);
        struct record r = placed(p, to);
        r.digest = p == MAP_FAILED ? 0 : digest_memory(p, s.bytes);
        if (p != MAP_FAILED && mremap(p, s.bytes, s.bytes, MREMAP_MAYMOVE | MREMAP_FIXED, s.at) == s.at)
                return r; /* nothing is left there but what others may have mapped since */
        r.result += 10;
        r.error = errno;
        (void) munmap(to, s.bytes);
        return r;
}

struct record op_remap_fixed(struct actor *a, const struct op *o) {
        struct span from = op_span(o), to = op_span_to(o, from.bytes);
        SKIP_UNLESS(is_placed(o, o->arena) && is_placed(o, o->to) && from.bytes && from.bytes == to.bytes && !uffd_is_open());
        return placed(calls_of(o)->mremap(from.at, from.bytes, to.bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to.at), to.at);
}

struct record op_remap_dontunmap(struct actor *a, const struct op *o) {
        struct span from = op_span(o), to = op_span_to(o, from.bytes);
        SKIP_UNLESS(is_placed(o, o->arena) && is_placed(o, o->to) && from.bytes && from.bytes == to.bytes && !uffd_is_open());
        int flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
        (void) munlock(from.at, from.bytes); /* exception "MREMAP_DONTUNMAP of locked memory" */
        struct record r = placed(calls_of(o)->mremap(from.at, from.bytes, to.bytes, flags, to.at), to.at);
        r.digest = digest_memory(from.at, from.bytes);
        return r;
}

/* The whole arena goes where the kernel likes it, and may change its size there; page by page where the kernel does not move it as
 * a whole (exception "mremap of several mappings"). */
struct record op_remap_roam(struct actor *a, const struct op *o) {
        struct arena *arena = &run.arenas[o->arena];
        SKIP_UNLESS(arena->kind == ARENA_ROAMING && !uffd_is_open());
        uint32_t pages = 48 + o->arg % 64, kept = MIN(pages, arena->pages);
        uint8_t *p = mremap(arena->base, arena->pages * PAGE, pages * PAGE, MREMAP_MAYMOVE);
        struct record r = placed(p, NULL);
        if (p == MAP_FAILED) {
                p = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
                check(p != MAP_FAILED, "mmap");
                for (uint32_t i = 0; i < kept; i++)
                        if (mremap(arena->base + i * PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, p + i * PAGE) != p + i * PAGE)
                                r.result -= 10;
                if (kept < arena->pages)
                        (void) munmap(arena->base + kept * PAGE, (arena->pages - kept) * PAGE);
        }
        renew(p + kept * PAGE, (pages - kept) * PAGE);
        arena->base = p;
        arena->pages = pages;
        r.digest = digest_memory(p, pages * PAGE);
        return r;
}

struct record op_protect(struct actor *a, const struct op *o) {
        struct span s = op_span(o);
        return outcome(calls_of(o)->mprotect(s.at, s.bytes, prot_of(o->arg)));
}

struct record op_lock(struct actor *a, const struct op *o) {
        struct span s = op_span(o);
        return outcome(o->arg & 1 ? mlock(s.at, s.bytes) : mlock2(s.at, s.bytes, MLOCK_ONFAULT));
}

struct record op_unlock(struct actor *a, const struct op *o) {
        struct span s = op_span(o);
        return outcome(munlock(s.at, s.bytes));
}

struct record op_lock_all(struct actor *a, const struct op *o) {
        SKIP_UNLESS(!uffd_is_open());
        struct record r = outcome(mlockall(MCL_CURRENT | (o->arg & 1 ? MCL_FUTURE : 0)));
        r.result = r.result * 10 + munlockall();
        return r;
}

struct record op_sync(struct actor *a, const struct op *o) {
        struct span s = op_span(o);
        return outcome(msync(s.at, s.bytes, o->arg & 1 ? MS_ASYNC : MS_INVALIDATE));
}

/* Which pages are there is nobody's promise (exception "mincore"); whether there are gaps is. */
struct record op_incore(struct actor *a, const struct op *o) {
        struct span s = op_span(o);
        return outcome(mincore(s.at, s.bytes, a->bounce));
}

/* -- brk ------------------------------------------------------------------------------------------------------ */

static struct record brk_changed(struct arena *arena, uint32_t pages, long r) {
        struct record said = outcome(r);
        if (r == 0)
                arena->pages = pages;
        said.digest = digest_memory(arena->base, arena->pages * PAGE);
        return said;
}

struct record op_brk_by(struct actor *a, const struct op *o) {
        struct arena *arena = &run.arenas[o->arena];
        SKIP_UNLESS(arena->kind == ARENA_BRK);
        int pages = (int) (o->arg % 32) - 12;
        pages = MIN(pages, BRK_PAGES_MAX - (int) arena->pages);
        pages = MAX(pages, -(int) arena->pages);
        uint8_t *old = sbrk(pages * (intptr_t) PAGE);
        bool right = old == arena->base + arena->pages * PAGE;
        return brk_changed(arena, (uint32_t) ((int) arena->pages + pages), old == (void *) -1 ? -1 : right ? 0 : 1);
}

struct record op_brk_to(struct actor *a, const struct op *o) {
        struct arena *arena = &run.arenas[o->arena];
        SKIP_UNLESS(arena->kind == ARENA_BRK);
        uint32_t pages = o->arg % BRK_PAGES_MAX;
        return brk_changed(arena, pages, brk(arena->base + pages * PAGE));
}
