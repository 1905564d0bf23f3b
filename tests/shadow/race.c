/* Racing: three threads at the same pages at the same time. What they read, and what is there in the end, must be legal:
 *
 * An operation has an effect on a byte: its own value (each operation of a round has another), or zero when it discards.
 * At the end of a round a byte holds the last effect of one of the threads on it; what it held before, if none had one.
 * A thread that reads in between finds its own last effect (or what was there before the round), or any effect of another
 * thread. Nothing orders different threads within a round, so more cannot be said; whatever else is read is wrong. */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "tests/shadow/shadow.h"

#define RACE_PAGES 4U
#define RACE_BYTES (RACE_PAGES * PAGE)
#define RACE_OPS_MAX 64U /* in a round */
#define FIRST_VALUE 128U /* of the effects: no content's page consists of such bytes alone, most have some */
#define ARENAS_RACED 4U
#define SETTLE_ROUNDS 64U

struct effect {
        uint32_t actor, start, end;
        uint8_t value;
        bool none;
};

static struct {
        pthread_barrier_t barrier;
        int values;       /* file: RACE_BYTES of each value */
        uint8_t *initial; /* the window's bytes when the round began */
        uint8_t *window;
        struct effect effects[RACE_OPS_MAX];
} race;

void race_init(void) {
        race.initial = shared_alloc(RACE_BYTES);
        race.values = memfd_create("values", MFD_CLOEXEC);
        check(race.values >= 0 && pthread_barrier_init(&race.barrier, NULL, THREADS) == 0, "race");
        for (unsigned v = 0; v < RACE_OPS_MAX; v++) {
                memset(race.initial, (int) (FIRST_VALUE + v), RACE_BYTES);
                check(pwrite(race.values, race.initial, RACE_BYTES, (off_t) (v * RACE_BYTES)) == (ssize_t) RACE_BYTES, "pwrite");
        }
}

/* -- what is legal ---------------------------------------------------------------------------------------------------- */

/* For [start, end), in which every byte has the same effects: by reader at its operation `before`, or by nobody in the end. */
static void legal_values(uint32_t start, uint32_t reader, uint32_t before, uint32_t n, bool legal[256], bool *ret_initial) {
        memset(legal, 0, 256);
        bool any = false, own = false;
        for (unsigned t = 0; t < THREADS; t++) {
                int last = -1;
                for (uint32_t k = 0; k < n; k++) {
                        const struct effect *e = &race.effects[k];
                        if (e->none || e->actor != t || start < e->start || start >= e->end || (t == reader && k >= before))
                                continue;
                        last = e->value;
                        if (reader < THREADS && t != reader)
                                legal[e->value] = true;
                }
                if (last < 0)
                        continue;
                any = true;
                own |= t == reader;
                legal[last] = true;
        }
        *ret_initial = reader < THREADS ? !own : !any;
}

static bool check_segment(const uint8_t *bytes, uint32_t start, uint32_t end, uint32_t reader, uint32_t before, uint32_t n,
                          uint32_t round) {
        bool legal[256], initial;
        legal_values(start, reader, before, n, legal, &initial);
        for (uint32_t i = start; i < end; i++) {
                if (legal[bytes[i]] || (initial && bytes[i] == race.initial[i]))
                        continue;
                dprintf(2, "shadow: round %u, actor %u, operation %u: byte %u of the window is %u, was %u\n", round, reader,
                        before, i, bytes[i], race.initial[i]);
                return false;
        }
        return true;
}

/* bytes: of the whole window, of which [start, end) is looked at. */
static bool check_legal(const uint8_t *bytes, uint32_t start, uint32_t end, uint32_t reader, uint32_t before, uint32_t n,
                        uint32_t round) {
        for (uint32_t at = start; at < end;) {
                uint32_t next = end;
                for (uint32_t k = 0; k < n; k++) {
                        const struct effect *e = &race.effects[k];
                        if (!e->none && e->start > at && e->start < next)
                                next = e->start;
                        if (!e->none && e->end > at && e->end < next)
                                next = e->end;
                }
                if (!check_segment(bytes, at, next, reader, before, n, round))
                        return false;
                at = next;
        }
        return true;
}

/* -- a round ---------------------------------------------------------------------------------------------------------- */

static bool discards(const struct op *o) {
        return o->kind == OP_dontneed || o->kind == OP_map_anon;
}

static void effect_of(const struct op *o, uint32_t k, struct effect *e) {
        *e = (struct effect) { .actor = o->actor, .start = o->page % RACE_PAGES * PAGE, .value = (uint8_t) (FIRST_VALUE + k) };
        e->end = (uint32_t) MIN(e->start + (1 + o->pages % 3) * PAGE, RACE_BYTES);
        if (discards(o)) {
                e->value = 0;
                return;
        }
        if (o->arg % 4) { /* not on page boundaries */
                uint32_t bytes = e->end - e->start;
                e->start += o->value % bytes;
                e->end -= o->arg % (e->end - e->start);
        }
        e->none = o->kind != OP_store && o->kind != OP_read_in;
}

static bool legal_child(const struct op *o, uint8_t *bytes, uint32_t k, uint32_t n) {
        pid_t pid = fork();
        check(pid >= 0, "fork");
        if (pid == 0) {
                int fault = guarded_copy(bytes, race.window, RACE_BYTES);
                _exit(fault == 0 && check_legal(bytes, 0, RACE_BYTES, o->actor, k, n, o->round) ? 0 : 1);
        }
        int status = -1;
        while (waitpid(pid, &status, 0) < 0)
                check(errno == EINTR, "waitpid");
        return status == 0;
}

static bool race_op(struct actor *a, const struct op *o, uint32_t k, uint32_t n) {
        struct effect *e = &race.effects[k];
        uint32_t bytes = e->end - e->start;
        uint8_t *at = race.window + e->start, *page = race.window + e->start / PAGE * PAGE;
        size_t length = (e->end - e->start / PAGE * PAGE + PAGE - 1) & ~(PAGE - 1);
        switch (o->kind) {
        case OP_store:
                memset(a->bounce, e->value, bytes);
                return guarded_copy(at, a->bounce, bytes) == 0;
        case OP_read_in:
                return pread(race.values, at, bytes, (off_t) (k * RACE_BYTES)) == (ssize_t) bytes;
        case OP_load:
                return guarded_copy(a->bounce + e->start, at, bytes) == 0 &&
                       check_legal(a->bounce, e->start, e->end, o->actor, k, n, o->round);
        case OP_write_out:
                return pwrite(a->scratch, at, bytes, 0) == (ssize_t) bytes &&
                       pread(a->scratch, a->bounce + e->start, bytes, 0) == (ssize_t) bytes &&
                       check_legal(a->bounce, e->start, e->end, o->actor, k, n, o->round);
        case OP_dontneed: return madvise(at, bytes, MADV_DONTNEED) == 0;
        case OP_map_anon:
                return mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at &&
                       madvise(at, bytes, MADV_MERGEABLE) == 0;
        case OP_cold: return madvise(page, length, MADV_COLD) == 0;
        case OP_pageout: return madvise(page, length, MADV_PAGEOUT) == 0;
        case OP_populate_read: return madvise(page, length, 22) == 0;
        case OP_populate_write: return madvise(page, length, 23) == 0;
        case OP_fork_check: return legal_child(o, a->bounce, k, n);
        default: return true;
        }
}

/* Another window each round; many of them, so that one lies still for a while before it comes again. */
static void round_begin(uint32_t round, uint32_t first, uint32_t n) {
        struct arena *arena = &run.arenas[round % ARENAS_RACED];
        race.window = arena->base + round / ARENAS_RACED * 7 % (arena->pages / RACE_PAGES) * RACE_BYTES;
        if (guarded_copy(race.initial, race.window, RACE_BYTES) != 0)
                fail("the window cannot be read");
        for (uint32_t k = 0; k < n; k++)
                effect_of(&run.program.ops[first + k], k, &race.effects[k]);
}

static void round_end(struct actor *a, uint32_t round, uint32_t first, uint32_t n) {
        if (guarded_copy(a->bounce, race.window, RACE_BYTES) != 0 ||
            !check_legal(a->bounce, 0, RACE_BYTES, THREADS, 0, n, round))
                run.log[first + n - 1] = (struct record) { .result = 2 };
        for (uint32_t i = 0; i < RACE_PAGES && round % 4; i++)
                (void) guarded_copy(race.window + i * PAGE, content(round % 8 * 4 + i), PAGE);
        if (run.settle_usec && round % SETTLE_ROUNDS == 0) {
                struct op settle = { .kind = OP_settle };
                (void) execute(a, &settle);
        }
}

void race_thread(struct actor *a) {
        for (uint32_t first = 0, n; first < run.program.n; first += n) {
                uint32_t round = run.program.ops[first].round;
                for (n = 1; n < RACE_OPS_MAX && first + n < run.program.n && run.program.ops[first + n].round == round; n++)
                        ;
                if (a->index == 0)
                        round_begin(round, first, n);
                (void) pthread_barrier_wait(&race.barrier);
                for (uint32_t k = 0; k < n; k++) {
                        const struct op *o = &run.program.ops[first + k];
                        if (o->actor == a->index)
                                run.log[first + k].result = race_op(a, o, k, n) ? 1 : 0;
                }
                (void) pthread_barrier_wait(&race.barrier);
                if (a->index == 0)
                        round_end(a, round, first, n);
        }
}
