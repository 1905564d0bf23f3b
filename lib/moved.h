/* Merged memory that the program moved by an mremap around libc.
 *
 * The shim restores before it lets an mremap through, so EVENT_REMAP comes only of a program that calls the kernel itself: no transition
 * runs in it from then on (agent.raw). What it moved stays merged, and what it discarded before or discards later must read as zeros.
 *
 * The event is read at any time, also while program threads look at the book inside the mapping lock, or fork. The book must not
 * grow then, so what was moved is kept in two sets of the agent's own, and goes into the book in the agent's next turn, with the lock
 * held (moved_settle). Where the sets and the book both know an address, the sets are right.
 *
 * No access at the new place is answered before the event is read: the kernel fails CONTINUE and ZEROPAGE until then (docs/kernel.md).
 *
 * Not covered: an mremap during a transition of the same block; one that grows in place, of which the kernel tells nobody; a fork between
 * event and settling. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct agent;

/* Pages of [from, from + length) are at `to` now; those behind them, if the mapping grew, are new and read as zeros (where the segment
 * ends before, an access ends the program). */
void moved_note(struct agent *a, uint64_t from, uint64_t to, uint64_t length);
/* A discard: see book_mark_removed. */
void moved_mark_removed(struct agent *a, uint64_t start, uint64_t end);
bool moved_contains(const struct agent *a, uint64_t address);
/* Of a page that moved_contains: it must read as zeros. */
bool moved_is_removed(const struct agent *a, uint64_t address);
void moved_settle(struct agent *a);
