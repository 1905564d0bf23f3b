#include "lib/watch.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>

#include "common/cleanup.h"
#include "lib/agent.h"
#include "lib/sys.h"

#define WATCH_PERIOD_USEC 5000U  /* a move takes at most some 100 us; long enough not to cost */
#define WATCH_IDLE_PERIODS 40U   /* 0.2 s without a move: sleep until the next */

static void watch_break(struct watch *w) {
        for (unsigned i = 0; i < BLOCK_PAGES; i++)
                (void) context_zeropage(w->spare, w->scratch + ((uint64_t) i << KSM_PAGE_SHIFT));
        atomic_fetch_add(&w->broken, 1);
}

static void watch_sleep(struct watch *w) {
        atomic_store(&w->asleep, 1);
        while (!atomic_load(&w->awake))
                (void) sys_futex_wait(&w->awake, 0, NULL);
        atomic_store(&w->asleep, 0);
}

static void *watch_main(void *p) {
        struct watch *w = p;
        const struct timespec period = { .tv_nsec = WATCH_PERIOD_USEC * 1000L };
        uint32_t last = 0;
        unsigned idle = WATCH_IDLE_PERIODS;
        for (;;) {
                uint32_t now = atomic_load(&w->sequence);
                if (atomic_load(&w->retired))
                        atomic_store(&w->awake, 0);
                else if (now != last) {
                        last = now;
                        idle = 0;
                } else if (now & 1) {
                        watch_break(w);
                } else if (++idle >= WATCH_IDLE_PERIODS) {
                        atomic_store(&w->awake, 0);
                        idle = 0;
                        /* A move that began meanwhile saw us awake. */
                        if (atomic_load(&w->sequence) != last)
                                atomic_store(&w->awake, 1);
                }
                if (!atomic_load(&w->awake))
                        watch_sleep(w);
                else
                        (void) sys_call(SYS_nanosleep, (long) &period, 0, 0, 0, 0, 0);
        }
        return NULL;
}

void watch_aim(struct watch *w, const struct context *spare, uint64_t scratch) {
        w->spare = spare;
        w->scratch = scratch;
}

void watch_retire(struct watch *w) {
        atomic_store(&w->retired, 1);
        while (!atomic_load(&w->asleep))
                sys_yield();
}

int watch_start(struct watch *w) {
        w->stack = own_alloc(WATCH_STACK_BYTES);
        if (!w->stack)
                return -EAGAIN;
        pthread_attr_t attr;
        pthread_attr_init(&attr);
        pthread_t thread;
        int r = pthread_attr_setstack(&attr, w->stack, WATCH_STACK_BYTES);
        agent_making_thread = true;
        if (r == 0)
                r = fault_call(FAULT_sys_thread) ? EAGAIN : pthread_create(&thread, &attr, watch_main, w); /* signals: blocked, as the agent's are */
        agent_making_thread = false;
        pthread_attr_destroy(&attr);
        if (r != 0) {
                own_free(w->stack, WATCH_STACK_BYTES);
                return -EAGAIN;
        }
        return 0;
}

void watch_begin(struct watch *w) {
        atomic_fetch_add(&w->sequence, 1);
        if (!atomic_load(&w->awake)) {
                atomic_store(&w->awake, 1);
                (void) sys_futex_wake(&w->awake, 1);
        }
}

void watch_end(struct watch *w) {
        atomic_fetch_add(&w->sequence, 1);
}
