/* What the agent keeps about its process: sets of addresses against a plain array, notes that come faster than they are read, and
 * the segments that a daemon hands over, which it need not be trusted with. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "lib/notes.c" /* NOLINT(bugprone-suspicious-include): the ring itself, a note half written is made by hand */
#include "lib/rangeset.h"
#include "lib/segments.h"
#include "lib/sys.h"

/* -- sets of addresses ----------------------------------------------------------------------------------------------- */

#define PLACES 64U
#define CHANGES 20000U

static bool model[PLACES];

static uint64_t at(unsigned place) {
        return (uint64_t) (place + 1) * KSM_PAGE_SIZE;
}

/* Number of maximal runs of set places in the model; and each is an interval of the set. */
static void assert_same(const struct rangeset *s) {
        unsigned n = 0, bytes = 0;
        for (unsigned i = 0, k; i < PLACES; i = k) {
                for (k = i + 1; k < PLACES && model[k] == model[i]; k++)
                        ;
                assert_int_equal(rangeset_contains(s, at(i), at(k)), model[i]);
                assert_int_equal(rangeset_overlaps(s, at(i), at(k)), model[i]);
                const struct interval *x = rangeset_from(s, at(i));
                if (model[i]) {
                        assert_non_null(x);
                        assert_int_equal(x->start, at(i));
                        assert_int_equal(x->end, at(k));
                        n++;
                        bytes += k - i;
                } else if (x)
                        assert_int_equal(x->start, at(k));
                else
                        assert_int_equal(k, PLACES);
        }
        assert_int_equal(s->n, n);
        assert_int_equal(rangeset_bytes(s), bytes * KSM_PAGE_SIZE);
}

static void test_rangeset(void **state) {
        struct rangeset s = { 0 };
        uint64_t x = 88172645463325252ULL;
        for (unsigned n = 0; n < CHANGES; n++) {
                x ^= x << 13, x ^= x >> 7, x ^= x << 17;
                unsigned from = (unsigned) (x >> 8) % PLACES, to = from + (unsigned) (x >> 16) % (PLACES / 4 + 1);
                to = MIN(to, PLACES);
                bool add = x & 1, any = false, all = true;
                for (unsigned i = from; i < to; i++) {
                        any |= model[i];
                        all &= model[i];
                }
                if (from < to) {
                        assert_int_equal(rangeset_overlaps(&s, at(from), at(to)), any);
                        assert_int_equal(rangeset_contains(&s, at(from), at(to)), all);
                }
                assert_int_equal((add ? rangeset_add : rangeset_remove)(&s, at(from), at(to)), 0);
                for (unsigned i = from; i < to; i++)
                        model[i] = add;
                assert_same(&s);
        }
        rangeset_clear(&s);
        assert_int_equal(s.n, 0);
}

/* -- notes ------------------------------------------------------------------------------------------------------------- */

#define MANY_NOTES 10000U

/* In order; what finds no room is lost, and that is known. */
static void test_notes(void **state) {
        struct note note;
        unsigned n = 0;
        assert_false(notes_crowded());
        for (unsigned i = 0; i < MANY_NOTES; i++)
                notes_put((struct note) { .kind = NOTE_UNMAPPED, .start = at(i), .end = at(i + 1) });
        assert_true(notes_crowded());
        assert_true(notes_take_lost());
        assert_false(notes_take_lost());
        while (notes_get(&note)) {
                assert_int_equal(note.kind, NOTE_UNMAPPED);
                assert_int_equal(note.start, at(n));
                n++;
        }
        assert_in_range(n, 1, MANY_NOTES - 1);
        assert_false(notes_crowded());
        notes_put((struct note) { .kind = NOTE_EXCLUDE, .start = at(0), .end = at(1) });
        assert_true(notes_get(&note));
        assert_int_equal(note.kind, NOTE_EXCLUDE);
        assert_false(notes_take_lost());
}

/* A fork may come while another thread has taken its place in the ring and not filled it: in the child nobody ever will, and what
 * is noted behind it must be read all the same. */
static void test_note_half_written(void **state) {
        struct note note = { 0 };
        assert_false(notes_get(&note));
        atomic_fetch_add(&head, 1);
        notes_put((struct note) { .kind = NOTE_UNMAPPED, .start = at(7), .end = at(8) });
        assert_false(notes_get(&note));
        notes_fork_child();
        assert_true(notes_get(&note));
        assert_int_equal(note.kind, NOTE_NOTHING);
        assert_true(notes_get(&note));
        assert_int_equal(note.kind, NOTE_UNMAPPED);
        assert_int_equal(note.start, at(7));
        assert_false(notes_get(&note));
}

/* -- segments ---------------------------------------------------------------------------------------------------------- */

#define SLOTS 8U
#define SEALS (F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW)

static int memfd(unsigned n_pages, int seals) {
        int fd = memfd_create("userksm", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        assert_true(fd >= 0);
        assert_int_equal(ftruncate(fd, n_pages * KSM_PAGE_SIZE), 0);
        assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
        return fd;
}

static void assert_refused(struct segments *s, uint32_t id, int fd, int error) {
        assert_int_equal(segments_add(s, id, SLOTS, fd), error);
        assert_int_equal(fcntl(fd, F_GETFD), -1); /* it was taken, and closed */
}

/* A segment that could be changed or cut short is not mapped, and none can be exchanged under its id. */
static void test_untrusted_segments(void **state) {
        struct segments s = { 0 };
        int good = memfd(SLOTS, SEALS);
        assert_int_equal(segments_add(&s, 3, SLOTS, good), 0);
        assert_refused(&s, 4, memfd(SLOTS, 0), -EPERM);
        assert_refused(&s, 4, memfd(SLOTS, F_SEAL_SHRINK | F_SEAL_GROW), -EPERM);
        assert_refused(&s, 4, memfd(SLOTS, F_SEAL_FUTURE_WRITE | F_SEAL_GROW), -EPERM);
        assert_refused(&s, 4, memfd(SLOTS, F_SEAL_WRITE | F_SEAL_GROW), -EPERM);
        assert_refused(&s, 4, memfd(SLOTS - 1, SEALS), -EPERM);
        assert_refused(&s, 4, open("/dev/zero", O_RDONLY | O_CLOEXEC), -EPERM);
        assert_refused(&s, 3, memfd(SLOTS, SEALS), -EEXIST);
        assert_int_equal(segments_find(&s, 3)->fd, good);
        assert_null(segments_find(&s, 4));
        assert_int_equal(segments_add(&s, 4, SLOTS, memfd(SLOTS, F_SEAL_WRITE | F_SEAL_SHRINK)), 0);
        segments_drop_all(&s);
        assert_int_equal(s.n, 0);
}

static void test_many_segments(void **state) {
        enum { MANY = 400 }; /* more than there is room for at first */
        struct segments s = { 0 };
        int fds[MANY];
        for (unsigned i = 0; i < MANY; i++) {
                unsigned id = 1 + i * 7 % MANY;
                fds[id - 1] = memfd(id % 2 + 1, SEALS);
                assert_int_equal(segments_add(&s, id, id % 2 + 1, fds[id - 1]), 0);
        }
        for (unsigned id = 1; id <= MANY; id += 3) {
                segments_drop(&s, id);
                assert_int_equal(fcntl(fds[id - 1], F_GETFD), -1);
                segments_drop(&s, id); /* nothing */
        }
        for (unsigned id = 1; id <= MANY; id++) {
                const struct segment *x = segments_find(&s, id);
                assert_int_equal(x != NULL, id % 3 != 1);
                if (x) {
                        assert_int_equal(x->id, id);
                        assert_int_equal(x->fd, fds[id - 1]);
                        assert_int_equal(x->n_slots, id % 2 + 1);
                }
        }
        segments_drop_all(&s);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_rangeset),
                cmocka_unit_test(test_notes),
                cmocka_unit_test(test_note_half_written),
                cmocka_unit_test(test_untrusted_segments),
                cmocka_unit_test(test_many_segments),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
