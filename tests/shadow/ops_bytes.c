/* Loads, stores, fills, copies; and waiting for pages to be merged. */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "tests/shadow/shadow.h"

#define PAGEMAP_FILE (1ULL << 61)
#define PAGEMAP_PRESENT (1ULL << 63)
#define SETTLE_STEP_USEC 2000U
#define STORES_MAX 4U

/* One to four bytes, some pages apart. */
struct record op_load(struct actor *a, const struct op *o) {
        struct span s = op_span(o);
        struct record r = { 0 };
        for (uint32_t i = 0; i <= o->arg % STORES_MAX && s.bytes; i++) {
                size_t at = (o->value + (uint64_t) i * (o->arg | 1)) % s.bytes;
                uint8_t byte = 0;
                int fault = guarded_load(&byte, s.at + at, 1);
                r.result = r.result * 2 + fault;
                r.digest = r.digest * 257 + byte;
        }
        return r;
}

struct record op_store(struct actor *a, const struct op *o) {
        struct span s = op_span(o);
        struct record r = { 0 };
        for (uint32_t i = 0; i <= o->arg % STORES_MAX && s.bytes; i++) {
                size_t at = (o->value + (uint64_t) i * (o->arg | 1)) % s.bytes;
                uint8_t byte = (uint8_t) (o->arg >> (8 + i));
                r.result = r.result * 2 + guarded_store(s.at + at, &byte, 1);
        }
        return r;
}

/* Whole pages: the contents in order from somewhere, one content throughout, or zeros. */
struct record op_fill(struct actor *a, const struct op *o) {
        struct span s = op_span(o);
        struct record r = { 0 };
        for (size_t i = 0; i < s.bytes / PAGE; i++) {
                uint32_t c = o->arg % 8 == 0 ? 0 : o->arg % 8 < 3 ? o->value : (uint32_t) (o->value % 4 * 8 + o->page + i);
                r.result += guarded_copy(s.at + i * PAGE, content(c), PAGE) * (int) (i + 1);
        }
        if ((run.plant & PLANT_BYTE) && o->value % 16 == 0 && s.bytes) { /* what a lost write looks like */
                uint8_t wrong = 0x5a;
                (void) guarded_store(s.at + o->arg % s.bytes, &wrong, 1);
        }
        return r;
}

struct record op_digest(struct actor *a, const struct op *o) {
        struct arena *arena = &run.arenas[o->arena];
        struct span s = op_span(o);
        if (o->arg % 8 == 0 && arena->pages <= 256)
                s = (struct span) { arena->base, arena->pages * PAGE };
        return (struct record) { .digest = digest_memory(s.at, s.bytes) };
}

struct record op_copy(struct actor *a, const struct op *o) {
        struct span from = op_span_bytes(o), to = op_span_to(o, from.bytes);
        return (struct record) { .result = guarded_copy(to.at, from.at, to.bytes) };
}

/* Pages of private anonymous arenas that map something else: only merging makes them so. */
static uint64_t count_merged(struct actor *a) {
        uint64_t entries[1024], n = 0;
        for (unsigned i = 0; i < ARENAS; i++) {
                const struct arena *arena = &run.arenas[i];
                if (arena->kind != ARENA_ANON && arena->kind != ARENA_NORESERVE && arena->kind != ARENA_HUGE &&
                    arena->kind != ARENA_ROAMING)
                        continue;
                ssize_t got = pread(a->pagemap, entries, arena->pages * 8, (off_t) ((uintptr_t) arena->base / PAGE * 8));
                for (ssize_t k = 0; k < got / 8; k++)
                        n += (entries[k] & PAGEMAP_FILE) && (entries[k] & PAGEMAP_PRESENT);
        }
        return n;
}

/* Until merging has stopped to find more, and no longer than settle_usec. */
struct record op_settle(struct actor *a, const struct op *o) {
        if (!run.settle_usec)
                return (struct record) { 0 };
        uint64_t end = now_usec() + run.settle_usec, last = 0, now;
        for (;;) {
                (void) usleep(SETTLE_STEP_USEC);
                now = count_merged(a);
                if (now_usec() >= end || (now && now == last))
                        break;
                last = now;
        }
        atomic_fetch_add(&run.control->merged_seen, now);
        atomic_fetch_add(&run.control->merged_looks, 1);
        return (struct record) { 0 };
}
