/* Asks a process itself on which NUMA nodes its pages are, where the kernel does not let us ask (daemon/sys/numa.h: who is neither its user
 * nor privileged). A frame at a time for each question; the answers are hints, as all that agents say.
 *
 * Loop's thread only. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "daemon/client.h"

/* The caller's, and with it the arrays, until `done`. */
struct nodes_question {
        const uint64_t *pages; /* page numbers, ascending */
        size_t n_pages;
        int16_t *ret_nodes; /* as numa_nodes has them */
        /* Called once, and not from within nodes_ask. error: 0, and all nodes are there; or why some are not: those have it for a node. */
        void (*done)(struct nodes_question *q, int error);
        /* private */
        size_t next, end; /* pages [next, end) are being asked for */
};

/* 0: `done` will be called, at the latest when the client goes, or has not answered for CLIENT_PARK_USEC. Otherwise it will not, and
 * there is no answer to be had: -EOPNOTSUPP, its agent cannot tell; -EAGAIN, too many questions at once; other -errno, the session was
 * closed and the client may be gone. n_pages > 0. */
int nodes_ask(struct client *c, struct nodes_question *q);

/* For client.c. A NODES frame came: 0, or -EPROTO when it answers nothing. It may ask further, and the client be gone when that fails. */
int nodes_told(struct client *c, const struct frame *f);
/* Ends all questions. Answers that come all the same are taken without a word. */
void nodes_give_up(struct client *c, int error);
