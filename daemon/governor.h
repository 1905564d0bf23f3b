/* How much processor time scanning may take now, and how fast it goes. Beside the advisor, which sets pages_to_scan as kernel KSM's does:
 * the governor bounds what scanning costs, whoever asks for it.
 *
 *     stopped   run is not 1
 *     rest      only_under_pressure, and memory is not short: nobody's pages are looked at, but for merges on demand
 *     idle      the last full scan found next to nothing: idle_cpu_permille
 *     work      something is new, or scanning finds equal pages: max_cpu_permille
 *     hurry     memory is short: max_cpu_permille, and pages are looked at four times as often
 *
 * Memory is short while pressure_permille or low_memory_permille says so; a state once entered is left at half the pressure, or with an
 * eighth more available, so that it does not flicker.
 *
 * The bound is a token bucket, filled by time and drained by CPU time that was really used: of the workers, and of the loop where it
 * handles what they found. Loop's thread only. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "common/counters.h"
#include "daemon/core/core.h"
#include "daemon/sys/pressure.h"

/* -- the decision: pure ---------------------------------------------------------------------------------------------------- */

struct governor_facts {
        bool knows_pressure, knows_available; /* a file may be missing */
        unsigned pressure_permille, available_permille;
        bool has_work; /* core_has_work */
};
struct governor_shortage {
        bool by_pressure, by_available;
};
struct governor_decision {
        enum governor_state state;
        enum core_pace pace;
        unsigned cpu_permille;
};
/* *shortage is what was decided last time, and changed to what is so now. */
struct governor_decision governor_decide(const struct tunables *t, const struct governor_facts *facts, struct governor_shortage *shortage);

/* -- in the daemon --------------------------------------------------------------------------------------------------------- */

struct governor {
        struct pressure pressure;
        struct governor_facts facts; /* at the last look */
        struct governor_shortage shortage;
        struct governor_decision now;
        uint64_t look_due_usec, said_usec;
        bool said_short;
        int64_t tokens_nsec; /* a microsecond at a permille of a core is one */
        uint64_t refilled_usec, cpu_usec;
};

/* What is missing is said in the log, and not known. */
void governor_open(struct governor *g, const char *pressure_path, uint64_t now);
void governor_close(struct governor *g);
/* Reads the files if a second has passed. */
void governor_look(struct governor *g, uint64_t now);
/* Decides, tells the core its pace, says in the log when memory became short and when no longer, and settles the account: cpu_usec is
 * what scanning has used since the start. 0: go ahead; else microseconds to wait. */
uint64_t governor_wait(struct governor *g, struct core *core, uint64_t now, uint64_t cpu_usec);
void governor_counters(const struct governor *g, struct counters *ret);
