/* The mapping lock (design 6.0): no call that changes the program's mappings overlaps a transition.
 *
 * Asymmetric. A program thread raises a word of its own (a plain store) around every mapping call and looks whether a
 * transition is active. The agent sets "active", issues membarrier(PRIVATE_EXPEDITED), and looks at every word:
 * after the barrier either the agent sees the raised word, or the thread sees "active" and waits. So a call costs a
 * few ns and two transitions never need the program's cooperation.
 *
 * The word holds a nesting depth and the bit PASSED ("the check was made and the word stayed raised since"); a signal
 * handler that interrupts a thread between raising and checking sees PASSED clear and makes the check itself.
 *
 * The agent never blocks on a word: it tries for a bounded time, draining events meanwhile (the holder may wait
 * for an event that only the agent reads), then gives up until later. A longjmp out of a bracket leaves the word raised:
 * that starves merging, never deadlocks; it shows as `busy` in the stats.
 *
 * Everything here is async-signal-safe and needs no initialisation. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define MAP_DEPTH_MASK 0x7fffffffU
#define MAP_PASSED 0x80000000U

struct map_slot {
        _Atomic uint32_t word; /* depth | MAP_PASSED; written by its thread only */
        _Atomic uint32_t tid;  /* 0 = free */
        _Atomic uint64_t exits; /* brackets left so far; written by its thread only */
        uint64_t pad[6];        /* a cache line of its own */
};

extern __thread struct map_slot *map_slot_self __attribute__((tls_model("initial-exec")));
extern _Atomic uint32_t map_active; /* bit 0: transition active; futex word */

struct map_slot *map_slot_attach(void);
void map_wait_inactive(struct map_slot *s);

static inline void map_enter(void) {
        struct map_slot *s = map_slot_self;
        if (__builtin_expect(!s, 0))
                s = map_slot_attach();
        uint32_t w = atomic_load_explicit(&s->word, memory_order_relaxed) + 1;
        atomic_store_explicit(&s->word, w, memory_order_relaxed);
        /* The agent's membarrier orders this store against the load below; the compiler must not swap them. */
        atomic_signal_fence(memory_order_seq_cst);
        if (w & MAP_PASSED)
                return;
        if (__builtin_expect(atomic_load_explicit(&map_active, memory_order_acquire), 0))
                map_wait_inactive(s);
        w = atomic_load_explicit(&s->word, memory_order_relaxed);
        atomic_store_explicit(&s->word, w | MAP_PASSED, memory_order_relaxed);
}

static inline void map_leave(void) {
        struct map_slot *s = map_slot_self;
        uint32_t w = atomic_load_explicit(&s->word, memory_order_relaxed) - 1;
        if (!(w & MAP_DEPTH_MASK)) {
                w = 0;
                uint64_t exits = atomic_load_explicit(&s->exits, memory_order_relaxed);
                atomic_store_explicit(&s->exits, exits + 1, memory_order_relaxed);
        }
        atomic_signal_fence(memory_order_seq_cst);
        atomic_store_explicit(&s->word, w, memory_order_release);
}

/* The calling thread is in a bracket. */
static inline bool map_inside(void) {
        return map_slot_self && atomic_load_explicit(&map_slot_self->word, memory_order_relaxed) & MAP_DEPTH_MASK;
}

/* -- agent side -- */

/* Once per process (and again in a forked child): -errno when membarrier is not there. In a process with several threads the kernel
 * waits for a grace period of RCU (sync_runqueues_membarrier_state in kernel/sched/membarrier.c): 10 ms, and seconds on a machine
 * that does not let a preempted reader go on. With one thread, or when it was done before, it returns at once. */
int map_lock_init(void);
/* True: active, and no thread is inside a bracket until map_lock_release. False after about `spin_usec`: given up.
 * drain is called between looks. */
bool map_lock_acquire(unsigned spin_usec, void (*drain)(void *), void *userdata);
void map_lock_release(void);
/* Some thread is inside a bracket right now. */
bool map_lock_any_inside(void);
/* Brackets left so far by all threads. A REMOVE event is read while its caller waits inside the kernel: if nobody is inside
 * after the read and nobody has left since before it, the caller was in no bracket at all. */
uint64_t map_lock_exits(void);
/* After fork, in the child: forget the other threads' words. */
void map_lock_fork_child(void);
