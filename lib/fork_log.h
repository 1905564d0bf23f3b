/* Discards that a forked child's book may lack.
 *
 * Reading a REMOVE event lets its caller go on, and only then is the discard put into the book. A fork may come in between: then the
 * child has the page tables without the page, and the book without the discard, and would read what the segment holds. So:
 *
 *   agent   counts its readings, in private memory: odd while it reads. What it reads while a fork is under way (gate) it puts into
 *           this log, too, which forked children share; then it says, also here, which reading is over.
 *   parent  a forking thread does not return before a reading that it meets is over. So every discard in that reading began
 *           before fork returned: to find it done or not done is legal for the child.
 *   child   finds an odd count in its copy when, and only when, its book may lack something; waits until the log says that this
 *           reading is over, and puts the discards of that reading into its book.
 *
 * Why the copy of the count decides: a discard that is in the child's page tables was done before the kernel began to copy (both hold
 * the mmap lock), so the agent had begun to read. If its store to the book is not in the child's copy, the store waited for the copy
 * to end or went to the parent's own page; so did the store of the even count, which comes after it.
 * Why the gate decides: the agent looks at it after the book has the discard. If it finds no fork, the fork begins later, and the
 * child's book has it.
 *
 * Not covered: a fork without handlers (clone by a `syscall` instruction), and a child whose parent was killed, or stopped for
 * FORK_LOG_WAIT_USEC, exactly between reading and noting. */
#pragma once

#include <stdatomic.h>
#include <stdint.h>

#include "lib/agent_start.h"

/* A reading takes microseconds. When it is not over then, its process is stopped. */
#define FORK_LOG_WAIT_USEC 10000000U

/* Where a child finds the log of this process; one more page of memory, one more mapping. 0 or -errno. */
int fork_log_open(struct agent_control *c);

/* The agent: around each reading, and for each discard, when the book has it. */
void fork_log_begin(struct agent_control *c);
void fork_log_note(struct agent_control *c, uint64_t start, uint64_t end);
void fork_log_end(struct agent_control *c);

/* The forking thread, gate still up. */
void fork_log_wait(const struct agent_control *c);

/* The child: completes its book, and forgets the log, which is its parent's. */
void fork_log_inherit(struct agent_control *c);
