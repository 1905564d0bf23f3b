/* An agent without a daemon: the test's main thread plays the agent thread and calls transitions directly. Two segments are there:
 * slot s of 1 holds content s % CONTENTS, so consecutive pages find consecutive slots; slot s of 2 content (s + SHIFT) % CONTENTS,
 * and its last slot is beyond what the daemon said. */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "lib/agent_loop.h"
#include "lib/sys.h"
#include "lib/transition.h"

#define PAGES BLOCK_PAGES
#define CONTENTS 8 /* page contents: 0 is all zeros */
#define SEGMENT_SLOTS 512
#define SHIFT 3
#define BROKEN_TRIES 20U /* a move that does not end by itself, never does */
#define BUSY_TRIES 200U /* more than any load needs; few enough for a test that wants the answer BUSY */

/* A test under fire works on a part of the pages, and asks for a part: TSan makes it ten times as slow, and a race shows all the same. */
#ifdef __SANITIZE_THREAD__
#define FIRE_PART 10U
#else
#define FIRE_PART 1U
#endif

extern struct agent A;

int rig_setup(void **state);
void fill(uint8_t *page, unsigned content);
/* A registered block of 64 pages, untouched. */
uint8_t *block_new(void);
/* One whose pages map slot 0 and following of segment 1. */
uint8_t *block_merged(void);
uint8_t *page_at(uint8_t *block, unsigned i);
/* Writers go on: the round that comes next asks again anyway. */
uint32_t apply_once(uint32_t kind, const uint8_t *block, unsigned at, unsigned n, unsigned slot, uint8_t *status);
/* Ask again, up to BUSY_TRIES times, for the pages that are busy or wait for a witness. */
uint32_t apply(uint32_t kind, const uint8_t *block, unsigned at, unsigned n, unsigned slot, uint8_t *status);
/* Merges one page; its status. */
uint8_t apply_one(const uint8_t *page, uint32_t segment, uint32_t slot);
/* Where the page's mapping lies in the segment, by what the kernel says; UINT64_MAX: not in it. */
uint64_t slot_of(const uint8_t *page, uint32_t segment);
uint64_t tracked_pages(const uint8_t *block); /* those present that a scan may protect: in `track` or `shared` */
uint64_t file_pages(const uint8_t *block); /* those that map the segment now */
/* Asked by other threads: a race, and meant. */
bool in_transition(void);
bool is_free(const uint8_t *block); /* no userfaultfd has any of it: a new one may */

/* Thread functions on a block; whoever waits for them has to play the agent: join_draining. */
void *discard(void *block); /* MADV_DONTNEED, as the shim does it */
void *touch(void *block);   /* returns the sum of all bytes */
void *join_draining(pthread_t t);
