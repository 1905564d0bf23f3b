/* Requests of program threads to the agent, with an answer.
 *
 * The agent sleeps in poll on fds of its own table, which program threads cannot reach. So they ring a bell: they read a
 * byte of a page that a userfaultfd of the agent watches in MISSING mode; the fault is the wake-up, the agent answers it
 * with a zero page and takes the page away again before it looks at the mailbox. Until a daemon has passed the device for it
 * there is no bell (and no userfaultfd(2) either, which a seccomp filter may answer by killing): an agent without any
 * fd sleeps on a futex; during the handshake it looks every MAILBOX_POLL_USEC.
 *
 * Request slots are in static memory, which is never merged: the agent must not touch the program's pages. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "lib/context.h"
#include "lib/userksm.h"

#define MAILBOX_POLL_USEC 20000U
/* Threads that may wait at once; further ones wait for a slot. */
#define REQUESTS 32U

enum request_kind {
        REQUEST_REGISTER = 1,
        REQUEST_UNREGISTER,
        REQUEST_ADVISE_MERGEABLE,
        REQUEST_ADVISE_UNMERGEABLE,
        REQUEST_MERGE,
        REQUEST_STATS,
        REQUEST_RESTORE,
        REQUEST_EXCLUDE,
        REQUEST_RELEASE,
        REQUEST_MERGE_ANY, /* start: 1 on, 0 off */
        REQUEST_SUSPEND,   /* start: 1 on, 0 off */
        REQUEST_UNSHARE,   /* a forked child without a daemon: plain copies of all merged pages */
        REQUEST_NOTES,     /* read the notes: done before any request */
        REQUEST_RETIRE,    /* restore everything and make no system call any more */
        REQUEST_FORK,      /* prepare: removed pages get their zeros */
};

struct request {
        _Atomic uint32_t state; /* enum request_state; futex word */
        _Atomic uint32_t generation; /* of the slot's use */
        enum request_kind kind;
        uint64_t start, length;
        uint64_t saved_bytes;       /* MERGE */
        struct userksm_stats stats; /* STATS */
        int result;
};

/* -- program threads -- */

/* Posts and waits. timeout_usec 0 = for ever. Returns the agent's result, or -ETIMEDOUT. *io carries arguments in and
 * results out. Must not be called inside the mapping lock, nor by the agent. */
int mailbox_call(struct request *io, uint64_t timeout_usec);

/* -- the agent -- */

int mailbox_open(int device_fd);             /* the bell; in a forked child again. 0 or -errno (then polling) */
void mailbox_close(void);
void mailbox_refuse(void);                   /* a retired agent: sleeps, answers requests with -ENOTCONN; futex only */
void mailbox_sleep(uint64_t usec);           /* without bell: until a request is posted, at most so long */
int mailbox_bell_fd(void);                   /* -1 when polling */
void mailbox_answer_bell(void);              /* after poll said that the bell rang */
struct request *mailbox_next(void);          /* a posted request, now taken; NULL when none */
void mailbox_finish(struct request *r, int result);
/* A taken request whose answer comes later, from elsewhere. Its caller may give up meanwhile, and the slot be used again:
 * the cookie names the request, not the slot. mailbox_unpark takes it up again, to be finished; NULL when nobody waits. */
uint32_t mailbox_cookie(const struct request *r);
void mailbox_park(struct request *r);
struct request *mailbox_unpark(uint32_t cookie);
struct request *mailbox_unpark_any(void);
void mailbox_fork_child(void);
