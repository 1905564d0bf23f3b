#include "lib/maplock.h"

#include <errno.h>
#include <linux/membarrier.h>
#include <signal.h>

#include "lib/sys.h"

/* Threads with a word of their own. Beyond it merging stops for good (`overflow`): correct, and no program that the
 * project is for comes near. 64 bytes each, touched only when used. */
#define MAP_SLOTS 65536U
/* Dead threads' slots are looked for whenever the high-water mark would pass a multiple of this. */
#define MAP_SLOT_GC 64U

static struct map_slot slots[MAP_SLOTS];
static struct map_slot overflow_slot; /* shared; its word is meaningless, `overflow` keeps the agent away */
static _Atomic uint32_t overflow;
static _Atomic uint32_t high_water;
static _Atomic uint32_t waiters;

__thread struct map_slot *map_slot_self __attribute__((tls_model("initial-exec")));
_Atomic uint32_t map_active;

static uint32_t own_tid(void) {
        return (uint32_t) sys_call(SYS_gettid, 0, 0, 0, 0, 0, 0);
}

static bool slot_claim(struct map_slot *s, uint32_t expected_tid, uint32_t tid) {
        return atomic_compare_exchange_strong(&s->tid, &expected_tid, tid);
}

/* A slot whose thread is gone: nothing was said at its exit, because libc frees memory after the last destructor of
 * ours could have run. */
static struct map_slot *slot_reclaim(uint32_t n, uint32_t tid) {
        long pid = sys_call(SYS_getpid, 0, 0, 0, 0, 0, 0);
        for (uint32_t i = 0; i < n; i++) {
                uint32_t old = atomic_load(&slots[i].tid);
                if (old && old != tid && sys_call(SYS_tgkill, pid, old, 0, 0, 0, 0) != -ESRCH)
                        continue;
                if (slot_claim(&slots[i], old, tid)) {
                        atomic_store(&slots[i].word, 0);
                        return &slots[i];
                }
        }
        return NULL;
}

struct map_slot *map_slot_attach(void) {
        uint32_t tid = own_tid();
        struct map_slot *s = NULL;
        uint32_t n = atomic_load(&high_water);
        if (n && n % MAP_SLOT_GC == 0)
                s = slot_reclaim(n, tid);
        while (!s) {
                n = atomic_load(&high_water);
                if (n >= MAP_SLOTS) {
                        s = slot_reclaim(MAP_SLOTS, tid);
                        if (!s) {
                                atomic_store(&overflow, 1);
                                s = &overflow_slot;
                        }
                        break;
                }
                if (slot_claim(&slots[n], 0, tid))
                        s = &slots[n];
                uint32_t expected = n;
                atomic_compare_exchange_strong(&high_water, &expected, n + 1);
        }
        map_slot_self = s;
        return s;
}

void map_wait_inactive(struct map_slot *s) {
        /* Lower the word while waiting: a signal handler may have interrupted a thread between raising and checking, and
         * the agent must not wait for us while we wait for it. Raised again, the check is made again. */
        uint32_t saved = atomic_load_explicit(&s->word, memory_order_relaxed);
        do {
                atomic_store(&s->word, 0);
                atomic_fetch_add(&waiters, 1);
                while (atomic_load(&map_active))
                        (void) sys_futex_wait(&map_active, 1, NULL);
                atomic_fetch_sub(&waiters, 1);
                atomic_store(&s->word, saved);
                atomic_signal_fence(memory_order_seq_cst);
        } while (atomic_load(&map_active));
}

int map_lock_init(void) {
        return (int) sys_call(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0, 0, 0, 0);
}

bool map_lock_any_inside(void) {
        uint32_t n = atomic_load(&high_water);
        for (uint32_t i = 0; i < n; i++)
                if (atomic_load_explicit(&slots[i].word, memory_order_acquire) & MAP_DEPTH_MASK)
                        return true;
        return false;
}

uint64_t map_lock_exits(void) {
        uint64_t sum = 0;
        uint32_t n = atomic_load(&high_water);
        for (uint32_t i = 0; i < n; i++)
                sum += atomic_load_explicit(&slots[i].exits, memory_order_acquire);
        return sum;
}

bool map_lock_acquire(unsigned spin_usec, void (*drain)(void *), void *userdata) {
        atomic_store(&map_active, 1);
        if (sys_call(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0, 0, 0, 0) < 0) {
                map_lock_release();
                return false;
        }
        if (atomic_load(&overflow)) { /* set before its threads looked: the barrier shows it, or they wait */
                map_lock_release();
                return false;
        }
        uint64_t deadline = 0;
        while (map_lock_any_inside()) {
                uint64_t now = now_usec();
                if (!deadline)
                        deadline = now + spin_usec;
                else if (now > deadline) {
                        map_lock_release();
                        return false;
                }
                drain(userdata);
                sys_yield();
        }
        return true;
}

void map_lock_release(void) {
        atomic_store(&map_active, 0);
        if (atomic_load(&waiters))
                (void) sys_futex_wake(&map_active, INT32_MAX);
}

void map_lock_fork_child(void) {
        uint32_t n = atomic_load(&high_water);
        for (uint32_t i = 0; i < n; i++) {
                if (&slots[i] == map_slot_self) {
                        atomic_store(&slots[i].tid, own_tid());
                        continue;
                }
                atomic_store(&slots[i].word, 0);
                atomic_store(&slots[i].tid, 0);
        }
        atomic_store(&map_active, 0);
        atomic_store(&waiters, 0);
}
