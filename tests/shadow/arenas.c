/* Arenas and contents. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "tests/shadow/shadow.h"

/* Far from where the kernel and the agent put theirs, so that a hole stays one. */
#define ARENA_BASE 0x300000000000UL
#define ARENA_STRIDE (1UL << 30)
#define UNIFORM_CONTENTS 6U

static const struct {
        enum arena_kind kind;
        uint32_t pages;
} plans[FAMILIES][ARENAS] = {
        [FAMILY_SEQUENCE] = {
                { ARENA_ANON, 128 }, { ARENA_ANON, 128 }, { ARENA_HUGE, 1024 }, { ARENA_NORESERVE, 128 },
                { ARENA_ANON, 64 }, { ARENA_SHARED, 64 }, { ARENA_FILE_PRIVATE, 64 }, { ARENA_FILE_SHARED, 64 },
                { ARENA_ROAMING, 96 }, { ARENA_ROAMING, 64 }, { ARENA_ANON, 700 }, { ARENA_BRK, 0 },
        },
        [FAMILY_PARALLEL] = { /* three for each of three threads */
                { ARENA_ANON, 128 }, { ARENA_ANON, 128 }, { ARENA_HUGE, 1024 },
                { ARENA_ROAMING, 96 }, { ARENA_HUGE, 1024 }, { ARENA_NORESERVE, 128 },
                { ARENA_NORESERVE, 128 }, { ARENA_FILE_PRIVATE, 64 }, { ARENA_ANON, 64 },
                { ARENA_NONE, 0 }, { ARENA_NONE, 0 }, { ARENA_NONE, 0 },
        },
        [FAMILY_RACE] = {
                { ARENA_ANON, 128 }, { ARENA_ANON, 128 }, { ARENA_HUGE, 1024 }, { ARENA_NORESERVE, 128 },
                { ARENA_NONE, 0 },
        },
        [FAMILY_RAW] = {
                { ARENA_ANON, 128 }, { ARENA_ANON, 128 }, { ARENA_ANON, 512 }, { ARENA_NORESERVE, 128 },
                { ARENA_ANON, 64 }, { ARENA_SHARED, 64 }, { ARENA_FILE_PRIVATE, 64 }, { ARENA_FILE_SHARED, 64 },
                { ARENA_ROAMING, 96 }, { ARENA_ROAMING, 64 }, { ARENA_ANON, 64 }, { ARENA_BRK, 0 },
        },
};

void contents_init(void) {
        uint8_t (*c)[PAGE] = shared_alloc(CONTENTS * PAGE);
        for (uint32_t i = 1; i < CONTENTS; i++) {
                uint64_t x = i * 0x9e3779b97f4a7c15ULL;
                for (size_t at = 0; at < PAGE; at += 8) {
                        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
                        uint64_t v = i <= UNIFORM_CONTENTS ? i * 0x0101010101010101ULL : x;
                        memcpy(&c[i][at], &v, 8);
                }
        }
        run.contents = (const uint8_t (*)[PAGE]) c;
}

static int arena_file(const struct arena *a) {
        char path[256];
        snprintf(path, sizeof(path), "%s/arena%u", run.directory, (unsigned) (a - run.arenas));
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        check(fd >= 0, "%s", path);
        for (uint32_t i = 0; i < FILE_PAGES; i++)
                check(pwrite(fd, content(i + 3), PAGE, (off_t) (i * PAGE)) == PAGE, "%s: write", path);
        return fd;
}

/* As it was in the beginning: its own kind of mapping, readable and writable. */
void arena_reset(struct arena *a, bool filled) {
        static const int flags[] = {
                [ARENA_ANON] = MAP_PRIVATE | MAP_ANONYMOUS,
                [ARENA_NORESERVE] = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                [ARENA_HUGE] = MAP_PRIVATE | MAP_ANONYMOUS,
                [ARENA_SHARED] = MAP_SHARED | MAP_ANONYMOUS,
                [ARENA_FILE_PRIVATE] = MAP_PRIVATE,
                [ARENA_FILE_SHARED] = MAP_SHARED,
                [ARENA_ROAMING] = MAP_PRIVATE | MAP_ANONYMOUS,
        };
        if (a->kind == ARENA_NONE || a->kind == ARENA_BRK || !a->pages)
                return;
        bool file = a->kind == ARENA_FILE_PRIVATE || a->kind == ARENA_FILE_SHARED;
        _cleanup_close_ int fd = file ? arena_file(a) : -1;
        size_t bytes = a->pages * PAGE;
        void *p = mmap(a->base, bytes, PROT_READ | PROT_WRITE, flags[a->kind] | (a->base ? MAP_FIXED : 0), fd, 0);
        check(p != MAP_FAILED && (!a->base || p == a->base), "arena of kind %d", a->kind);
        a->base = p;
        if (a->kind == ARENA_HUGE)
                (void) madvise(p, bytes, MADV_HUGEPAGE);
        if (!file && a->kind != ARENA_SHARED)
                (void) madvise(p, bytes, MADV_MERGEABLE);
        for (uint32_t i = 0; filled && !file && i < a->pages; i++)
                memcpy(a->base + i * PAGE, content(i), PAGE);
}

void arenas_init(void) {
        for (unsigned i = 0; i < ARENAS; i++) {
                struct arena *a = &run.arenas[i];
                a->kind = plans[run.program.family][i].kind;
                if (!plans[run.program.family][i].pages && a->kind != ARENA_BRK)
                        a->kind = ARENA_NONE;
                a->pages = plans[run.program.family][i].pages;
                bool placed = a->kind != ARENA_ROAMING && a->kind != ARENA_BRK;
                a->base = placed ? (uint8_t *) (ARENA_BASE + i * ARENA_STRIDE) : NULL;
                if (a->kind == ARENA_BRK) {
                        /* On a page boundary, whatever came before. */
                        uintptr_t now = (uintptr_t) sbrk(0);
                        check(sbrk((intptr_t) (-now & (PAGE - 1))) != (void *) -1, "sbrk");
                        a->base = sbrk(0);
                }
                arena_reset(a, true);
        }
}

static struct span clip(const struct arena *a, uint32_t page, size_t bytes) {
        if (!a->pages || !a->base)
                return (struct span) { a->base, 0 };
        page %= a->pages;
        size_t room = (a->pages - page) * PAGE;
        return (struct span) { a->base + page * PAGE, bytes < room ? bytes : room };
}

struct span op_span(const struct op *o) {
        return clip(&run.arenas[o->arena], o->page, o->pages * PAGE);
}

struct span op_span_to(const struct op *o, size_t bytes) {
        return clip(&run.arenas[o->to], o->to_page, bytes);
}

struct span op_span_bytes(const struct op *o) {
        struct span s = op_span(o);
        size_t head = o->arg % PAGE, tail = (o->arg >> 12) % PAGE;
        if (s.bytes > head + tail && (o->arg >> 24) % 4) {
                s.at += head;
                s.bytes -= head + tail;
        }
        return s;
}
