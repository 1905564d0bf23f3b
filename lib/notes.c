#include "lib/notes.h"

#include <stdatomic.h>

/* Notes between two turns of the agent; each is a munmap or a thread start, so 4096 covers bursts of a second. */
#define NOTES 4096U

static struct {
        _Atomic uint64_t turn; /* index + 1 when the entry holds note `index` */
        struct note note;
} ring[NOTES];
static _Atomic uint64_t head, tail;
static _Atomic bool lost;

void notes_put(struct note note) {
        uint64_t i = atomic_load(&head);
        do {
                if (i - atomic_load(&tail) >= NOTES) {
                        atomic_store(&lost, true);
                        return;
                }
        } while (!atomic_compare_exchange_weak(&head, &i, i + 1));
        ring[i % NOTES].note = note;
        atomic_store_explicit(&ring[i % NOTES].turn, i + 1, memory_order_release);
}

bool notes_crowded(void) {
        return atomic_load_explicit(&head, memory_order_relaxed) - atomic_load_explicit(&tail, memory_order_relaxed) >
               NOTES / 2;
}

bool notes_get(struct note *ret) {
        uint64_t i = atomic_load(&tail);
        if (atomic_load_explicit(&ring[i % NOTES].turn, memory_order_acquire) != i + 1)
                return false;
        *ret = ring[i % NOTES].note;
        atomic_store(&tail, i + 1);
        return true;
}

bool notes_take_lost(void) {
        return atomic_exchange(&lost, false);
}

void notes_fork_child(void) {
        for (uint64_t i = atomic_load(&tail); i < atomic_load(&head); i++)
                if (atomic_load(&ring[i % NOTES].turn) != i + 1) {
                        ring[i % NOTES].note = (struct note) { .kind = NOTE_NOTHING };
                        atomic_store(&ring[i % NOTES].turn, i + 1);
                }
}
