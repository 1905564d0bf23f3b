#include "lib/mailbox.h"

#include <errno.h>
#include <fcntl.h>

#include "common/cleanup.h"
#include "lib/sys.h"

/* POSTED and PARKED belong to who changes them first: the agent takes, or the caller withdraws. TAKEN is the agent's. */
enum request_state { FREE, FILLING, POSTED, TAKEN, PARKED, DONE, ABANDONED };

static struct request requests[REQUESTS];
static _Atomic uint32_t freed;  /* futex word: a slot became free */
static _Atomic uint32_t posted; /* futex word: counts requests; mailbox_sleep waits on it */
static struct context bell = { -1 };
static _Atomic uintptr_t bell_page;

static struct request *claim(void) {
        for (;;) {
                uint32_t seen = atomic_load(&freed);
                for (unsigned i = 0; i < REQUESTS; i++) {
                        uint32_t expected = FREE;
                        if (atomic_compare_exchange_strong(&requests[i].state, &expected, FILLING)) {
                                requests[i].generation++;
                                return &requests[i];
                        }
                }
                (void) sys_futex_wait(&freed, seen, NULL);
        }
}

static void release(struct request *r) {
        atomic_store(&r->state, FREE);
        atomic_fetch_add(&freed, 1);
        (void) sys_futex_wake(&freed, 1);
}

int mailbox_call(struct request *io, uint64_t timeout_usec) {
        struct request *r = claim();
        r->kind = io->kind;
        r->start = io->start;
        r->length = io->length;
        r->saved_bytes = 0;
        atomic_store(&r->state, POSTED);
        atomic_fetch_add(&posted, 1);
        (void) sys_futex_wake(&posted, 1);
        volatile const char *page = (volatile const char *) atomic_load(&bell_page);
        if (page)
                (void) *page;

        uint64_t deadline = timeout_usec ? now_usec() + timeout_usec : 0;
        uint32_t state;
        while ((state = atomic_load(&r->state)) != DONE) {
                struct timespec ts, *tp = NULL;
                if (deadline) {
                        uint64_t now = now_usec();
                        if (now >= deadline) {
                                /* Taken: the agent frees the slot when it is done. */
                                uint32_t next = state == TAKEN ? ABANDONED : FILLING;
                                if (!atomic_compare_exchange_strong(&r->state, &state, next))
                                        continue;
                                if (next == FILLING)
                                        release(r);
                                return -ETIMEDOUT;
                        }
                        ts = (struct timespec) { (time_t) ((deadline - now) / 1000000),
                                                 (long) ((deadline - now) % 1000000 * 1000) };
                        tp = &ts;
                }
                (void) sys_futex_wait(&r->state, state, tp);
        }
        io->saved_bytes = r->saved_bytes;
        io->stats = r->stats;
        int result = r->result;
        release(r);
        return result;
}

int mailbox_open(int device_fd) {
        uint64_t page = (uint64_t) own_alloc(KSM_PAGE_SIZE);
        if (!page)
                return -ENOMEM;
        int r = context_open(&bell, device_fd, 0);
        if (r == 0)
                r = context_register(&bell, page, page + KSM_PAGE_SIZE, UFFDIO_REGISTER_MODE_MISSING);
        if (r < 0) {
                context_close(&bell);
                own_free((void *) page, KSM_PAGE_SIZE);
                return r;
        }
        atomic_store(&bell_page, page);
        return 0;
}

void mailbox_close(void) {
        /* The page stays: somebody may be about to read it. Without its context it is plain memory. */
        context_close(&bell);
}

void mailbox_sleep(uint64_t usec) {
        uint32_t seen = atomic_load(&posted);
        for (unsigned i = 0; i < REQUESTS; i++)
                if (atomic_load(&requests[i].state) == POSTED)
                        return;
        const struct timespec ts = { (time_t) (usec / 1000000), (long) (usec % 1000000 * 1000) };
        (void) sys_futex_wait(&posted, seen, &ts);
}

int mailbox_bell_fd(void) {
        return bell.fd;
}

void mailbox_answer_bell(void) {
        const struct context_events ignore = { 0 };
        uint64_t page = atomic_load(&bell_page);
        (void) context_drain(&bell, &ignore);
        (void) context_zeropage(&bell, page);
        context_wake(&bell, page, page + KSM_PAGE_SIZE);
        /* Armed again before the mailbox is looked at: who rings from here on is heard, who rang before is seen. */
        (void) sys_drop(page, KSM_PAGE_SIZE);
}

void mailbox_refuse(void) {
        uint32_t seen = atomic_load(&posted);
        for (struct request *r; (r = mailbox_next());)
                mailbox_finish(r, -ENOTCONN);
        (void) sys_futex_wait(&posted, seen, NULL);
}

struct request *mailbox_next(void) {
        for (unsigned i = 0; i < REQUESTS; i++) {
                uint32_t expected = POSTED;
                if (atomic_compare_exchange_strong(&requests[i].state, &expected, TAKEN))
                        return &requests[i];
        }
        return NULL;
}

void mailbox_finish(struct request *r, int result) {
        r->result = result;
        uint32_t expected = TAKEN;
        if (atomic_compare_exchange_strong(&r->state, &expected, DONE))
                (void) sys_futex_wake(&r->state, 1);
        else
                release(r); /* ABANDONED: nobody waits */
}

uint32_t mailbox_cookie(const struct request *r) {
        return r->generation * REQUESTS + (uint32_t) (r - requests);
}

void mailbox_park(struct request *r) {
        uint32_t expected = TAKEN;
        if (!atomic_compare_exchange_strong(&r->state, &expected, PARKED))
                release(r); /* ABANDONED */
}

static bool unpark(struct request *r) {
        uint32_t expected = PARKED;
        return atomic_compare_exchange_strong(&r->state, &expected, TAKEN);
}

struct request *mailbox_unpark(uint32_t cookie) {
        struct request *r = &requests[cookie % REQUESTS];
        /* Only the agent parks, so a generation that is right stays right until it is taken or withdrawn. */
        return mailbox_cookie(r) == cookie && unpark(r) ? r : NULL;
}

struct request *mailbox_unpark_any(void) {
        for (unsigned i = 0; i < REQUESTS; i++)
                if (unpark(&requests[i]))
                        return &requests[i];
        return NULL;
}

void mailbox_fork_child(void) {
        for (unsigned i = 0; i < REQUESTS; i++)
                atomic_store(&requests[i].state, FREE);
        bell.fd = -1; /* the parent agent's table, not ours */
        own_free((void *) atomic_exchange(&bell_page, 0), KSM_PAGE_SIZE);
}
