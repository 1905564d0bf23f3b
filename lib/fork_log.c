#include "lib/fork_log.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "common/cleanup.h"
#include "lib/book.h"
#include "lib/sys.h"

/* More discards than a process can make while one of its forks is under way; older ones are overwritten. */
#define LOG_ENTRIES 128U

struct fork_log {
        long pid;              /* whose it is */
        _Atomic uint32_t over; /* the even count that the last reading ended with */
        _Atomic uint32_t n;    /* noted so far */
        struct {
                uint32_t reading; /* its odd count */
                uint64_t start, end;
        } entries[LOG_ENTRIES];
};
_Static_assert(sizeof(struct fork_log) <= KSM_PAGE_SIZE, "one page");

int fork_log_open(struct agent_control *c) {
        if (c->log)
                return 0;
        long p = sys_mmap(own_hint(KSM_PAGE_SIZE), KSM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (sys_is_error(p))
                return (int) p;
        c->log = (struct fork_log *) p;
        c->log->pid = sys_call(SYS_getpid, 0, 0, 0, 0, 0, 0);
        return 0;
}

void fork_log_begin(struct agent_control *c) {
        atomic_fetch_add(&c->readings, 1);
}

void fork_log_note(struct agent_control *c, uint64_t start, uint64_t end) {
        atomic_thread_fence(memory_order_seq_cst); /* the book first, then the look at the gate */
        if (!c->log || !(atomic_load(&c->gate) & ~GATE_WORKING))
                return;
        uint32_t n = atomic_load(&c->log->n);
        c->log->entries[n % LOG_ENTRIES].reading = atomic_load(&c->readings);
        c->log->entries[n % LOG_ENTRIES].start = start;
        c->log->entries[n % LOG_ENTRIES].end = end;
        atomic_store(&c->log->n, n + 1);
}

void fork_log_end(struct agent_control *c) {
        uint32_t over = atomic_load(&c->readings) + 1;
        if (c->log)
                atomic_store(&c->log->over, over);
        atomic_store(&c->readings, over);
}

void fork_log_wait(const struct agent_control *c) {
        uint32_t met = atomic_load(&c->readings);
        if (!fork_same_process(c)) /* the child of a fork without handlers forks: nobody reads there */
                return;
        while ((met & 1) && atomic_load(&c->readings) == met)
                sys_yield();
}

/* 0: the parent is in another PID namespace. */
static bool is_orphan(const struct fork_log *log) {
        long parent = sys_call(SYS_getppid, 0, 0, 0, 0, 0, 0);
        return parent != 0 && parent != log->pid;
}

static bool wait_over(const struct fork_log *log, uint32_t reading) {
        uint64_t deadline = now_usec() + FORK_LOG_WAIT_USEC;
        while ((int32_t) (atomic_load(&log->over) - reading) < 0) {
                if (now_usec() > deadline || is_orphan(log))
                        return false;
                sys_yield();
        }
        return true;
}

void fork_log_inherit(struct agent_control *c) {
        uint32_t reading = atomic_exchange(&c->readings, 0);
        if (!c->log)
                return;
        if ((reading & 1) && wait_over(c->log, reading)) {
                uint32_t n = atomic_load(&c->log->n);
                for (uint32_t i = 0; i < LOG_ENTRIES && i < n; i++)
                        if (c->log->entries[i].reading == reading)
                                book_mark_removed(c->log->entries[i].start, c->log->entries[i].end);
        }
        sys_munmap((uint64_t) c->log, KSM_PAGE_SIZE);
        c->log = NULL;
}
