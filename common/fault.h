/* Fault points: named places at which a test may kill, stop or delay this process, and calls that it may make fail.
 *
 * `fault_point(FAULT_name)` stands after every step of a transition and of the protocol; `fault_call(FAULT_name)` before every
 * system call of the agent. They are in every build, so that what is tested is what is shipped: unarmed each costs one load and a
 * branch that is never taken, next to a system call. Points and calls come from one table, common/fault_points.h.
 *
 * Armed by USERKSM_FAULT in the environment, which nobody reads in a setuid or setcap program (secure_getenv): whoever sets the
 * environment of any other program can do worse to it. Either one order,
 *
 *     NAME:ACTION[:NTH[:VALUE]]      at the NTH time (1) that this process passes the point
 *
 * or the absolute path of a file that holds a struct fault_page, shared by all processes of a test: orders are written there while
 * they run, and every passage is counted. NAME may be `any` (all points) or `call` (all calls).
 *
 *     kill          SIGKILL to this process                       stop      SIGSTOP; the test goes on with SIGCONT
 *     delay         sleeps VALUE microseconds, before a call      random    a quarter of all passages sleep up to VALUE
 *     fail          the call fails once, errno VALUE              fail-on   ... that time and ever after
 *     count         nothing
 *
 * Any thread; errno is kept. Functions of libc that the shim interposes are not used. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/fault_points.h"

enum fault_side { FAULT_AGENT, FAULT_DAEMON, FAULT_CALL };

enum fault_id {
#define FAULT_ID(side, name, text) FAULT_##name,
        FAULT_TABLE(FAULT_ID)
#undef FAULT_ID
        FAULT_MAX_,
};

struct fault_info {
        enum fault_side side;
        const char *name;
        const char *text; /* what has just happened; of a call: who makes it */
};
extern const struct fault_info fault_table[FAULT_MAX_];

enum fault_action {
        FAULT_COUNT,
        FAULT_KILL,
        FAULT_STOP,
        FAULT_DELAY,
        FAULT_RANDOM,
        FAULT_FAIL,
        FAULT_FAIL_ON,
        FAULT_ACTION_MAX_,
};

/* `order` when it is not an id plus one. */
#define FAULT_NONE 0U
#define FAULT_ANY_POINT 0xfffffffeU
#define FAULT_ANY_CALL 0xffffffffU

/* Known to tests/fault/arena.py. An order is complete once `order` is written, the last of it. */
struct fault_page {
        _Atomic uint32_t order;     /* id + 1, or one of the above */
        _Atomic uint32_t action;
        _Atomic uint32_t pid;       /* who is meant; 0: whoever passes first */
        _Atomic uint32_t left;      /* passages until it acts, that one included */
        _Atomic uint32_t value;
        _Atomic uint32_t fired;     /* how often it acted */
        _Atomic uint32_t fired_pid; /* and in which process last */
        _Atomic uint32_t fired_id;  /* and where: id + 1 */
        _Atomic uint64_t reached[FAULT_MAX_];
};

/* NULL: unarmed. Tests arm and disarm while other threads pass, so each passage looks once. */
extern struct fault_page *_Atomic fault_page;

/* Arms what `specification` says; NULL or "" disarms. `map` maps the file at an absolute path, shared and writable, or returns NULL.
 * 0, -EINVAL: no such point or action, -ENOENT: no such file. */
int fault_arm(const char *specification, void *(*map)(const char *path, size_t length));

void fault_pass(struct fault_page *page, enum fault_id id);
int fault_fail(struct fault_page *page, enum fault_id id);

static inline void fault_point(enum fault_id id) {
        struct fault_page *page = atomic_load_explicit(&fault_page, memory_order_acquire);
        if (__builtin_expect(page != NULL, 0))
                fault_pass(page, id);
}

/* 0, or the negative errno that the call is to fail with. */
static inline int fault_call(enum fault_id id) {
        struct fault_page *page = atomic_load_explicit(&fault_page, memory_order_acquire);
        return __builtin_expect(page != NULL, 0) ? fault_fail(page, id) : 0;
}
