/* Reads pages of a client's memory.
 *
 * Two ways. process_vm_readv takes scattered pages in one call but is bound to a pid: after an exec it would read
 * the new program, and it can wait for ever on memory whose owner does not answer. So it is only for hashing (a hash is a
 * hint), only for a process whose agent answered lately, only between two looks at its pidfd, and only if it has no more than its
 * user's rights afterwards. The mem fd is bound to the mm that the client consented to; a page in transition reads as EIO. What is
 * published goes through it, always.
 *
 * process_vm_readv pins what it reads, and the kernel pins no page that a fork shares: it makes a private copy first. A
 * daemon that read so would undo the sharing between a server and its workers. Such pages are read through the mem fd,
 * which only looks.
 *
 * Either can hang in the end (a page of a FUSE file, say): callers are worker threads and may be given up. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/sys/process.h"

/* At most this many pages a call, so that vectors live on the stack and the buffer stays in the L2 cache. */
#define READER_PAGES_MAX 64

/* Reads the pages (page numbers, ascending) one after another into buffer. ok[i]: page i was read in full. `fast` permits
 * process_vm_readv. */
void reader_read(struct process *p, bool fast, const uint64_t *pages, unsigned n_pages, uint8_t *buffer,
                 bool *ok);
/* Reads neighbouring pages through the mem fd into `to`. How many were read in full, from the front, or -errno: none. Behind them `to`
 * holds anything. */
int reader_read_exact(const struct process *p, uint64_t page, unsigned n_pages, void *to);
