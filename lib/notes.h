/* Notes from program threads to the agent that need no answer: "unmapped here", "never merge that". Lock-free and
 * async-signal-safe for writers; one reader. A note made inside the mapping lock is read before the next transition,
 * because that transition waits for the lock. When the ring is full, `lost` is set: the agent then distrusts its books
 * and asks the kernel. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum note_kind { NOTE_NOTHING, NOTE_UNMAPPED, NOTE_EXCLUDE, NOTE_DONTFORK, NOTE_DOFORK, NOTE_HUGEPAGE, NOTE_NOHUGEPAGE,
                 NOTE_MOVED, NOTE_MOVED_KEEPING };

struct note {
        enum note_kind kind;
        uint64_t start, end;
        uint64_t to, to_end; /* MOVED; KEEPING: MREMAP_DONTUNMAP */
};

void notes_put(struct note note);
/* Half full: time for the agent to read them, before some are lost. */
bool notes_crowded(void);
/* False when empty (or the next note is still being written). */
bool notes_get(struct note *ret);
bool notes_take_lost(void);
/* In a forked child: drops notes that other threads of the parent were writing. */
void notes_fork_child(void);
