#include "daemon/governor.h"

#include "common/cleanup.h"
#include "common/log.h"
#include "daemon/bounds.h"

#define BURST_NSEC ((int64_t) (GOVERNOR_BURST_USEC * 1000))

/* -- the decision ---------------------------------------------------------------------------------------------------------- */

static bool is_pressed(const struct tunables *t, const struct governor_facts *f, bool was) {
        unsigned threshold = (unsigned) t->pressure_permille;
        if (threshold == 0 || !f->knows_pressure)
                return false;
        return f->pressure_permille >= (was ? (threshold + 1) / 2 : threshold);
}

static bool is_low(const struct tunables *t, const struct governor_facts *f, bool was) {
        unsigned threshold = (unsigned) t->low_memory_permille;
        if (threshold == 0 || !f->knows_available)
                return false;
        return f->available_permille < (was ? threshold + threshold / 8 : threshold);
}

struct governor_decision governor_decide(const struct tunables *t, const struct governor_facts *facts, struct governor_shortage *shortage) {
        const unsigned most = (unsigned) t->max_cpu_permille, idle = MIN((unsigned) t->idle_cpu_permille, most);
        shortage->by_pressure = is_pressed(t, facts, shortage->by_pressure);
        shortage->by_available = is_low(t, facts, shortage->by_available);
        if (t->run != 1)
                return (struct governor_decision){ GOVERNOR_STOPPED, CORE_PACE_NORMAL, most };
        if (shortage->by_pressure || shortage->by_available)
                return (struct governor_decision){ GOVERNOR_HURRY, CORE_PACE_FAST, most };
        if (t->only_under_pressure)
                return (struct governor_decision){ GOVERNOR_REST, CORE_PACE_REST, most };
        if (facts->has_work)
                return (struct governor_decision){ GOVERNOR_WORK, CORE_PACE_NORMAL, most };
        return (struct governor_decision){ GOVERNOR_IDLE, CORE_PACE_NORMAL, idle };
}

/* -- in the daemon --------------------------------------------------------------------------------------------------------- */

void governor_open(struct governor *g, const char *pressure_path, uint64_t now) {
        *g = (struct governor){ .tokens_nsec = BURST_NSEC, .refilled_usec = now };
        int r = pressure_open(&g->pressure, pressure_path);
        if (r < 0)
                (void) log_full_errno(LOG_NOTICE, r, "%s: memory pressure is not known", g->pressure.stall_fd < 0 ? pressure_path : "/proc/meminfo");
        governor_look(g, now);
        if (r == 0 && !g->facts.knows_pressure)
                log_notice("%s: says nothing that is understood, memory pressure is not known", pressure_path);
}

void governor_close(struct governor *g) {
        pressure_close(&g->pressure);
}

static void say(struct governor *g, uint64_t now) {
        bool is_short = g->shortage.by_pressure || g->shortage.by_available;
        if (is_short == g->said_short || (g->said_usec > 0 && now < g->said_usec + LOG_WINDOW_USEC))
                return;
        g->said_short = is_short;
        g->said_usec = now;
        if (!is_short)
                log_info("memory is no longer short");
        else if (g->shortage.by_pressure)
                log_info("memory is short: processes waited for it %u.%u %% of the last 10 s", g->facts.pressure_permille / 10,
                         g->facts.pressure_permille % 10);
        else
                log_info("memory is short: %u.%u %% is available", g->facts.available_permille / 10, g->facts.available_permille % 10);
}

void governor_look(struct governor *g, uint64_t now) {
        if (now < g->look_due_usec)
                return;
        g->look_due_usec = now + GOVERNOR_LOOK_USEC;
        g->facts.knows_pressure = pressure_stall_permille(&g->pressure, &g->facts.pressure_permille) == 0;
        g->facts.knows_available = pressure_available_permille(&g->pressure, &g->facts.available_permille) == 0;
}

uint64_t governor_wait(struct governor *g, struct core *core, uint64_t now, uint64_t cpu_usec) {
        const uint64_t elapsed = MIN(now - g->refilled_usec, (uint64_t) BURST_NSEC); /* as long as it takes at one permille */
        g->facts.has_work = core_has_work(core);
        g->now = governor_decide(core_tunables(core), &g->facts, &g->shortage);
        say(g, now);
        core_set_pace(core, g->now.pace, now);
        core_cpu_used(core, cpu_usec);
        g->tokens_nsec += (int64_t) (elapsed * g->now.cpu_permille) - (int64_t) (cpu_usec - g->cpu_usec) * 1000;
        g->tokens_nsec = MIN(g->tokens_nsec, BURST_NSEC);
        g->refilled_usec = now;
        g->cpu_usec = cpu_usec;
        return g->tokens_nsec >= 0 ? 0 : (uint64_t) -g->tokens_nsec / g->now.cpu_permille + 1;
}

void governor_counters(const struct governor *g, struct counters *ret) {
        ret->governor = g->now.state;
        ret->cpu_allowed_permille = g->now.cpu_permille;
        ret->memory_pressure_permille = g->facts.knows_pressure ? (int64_t) g->facts.pressure_permille : -1;
        ret->memory_available_permille = g->facts.knows_available ? (int64_t) g->facts.available_permille : -1;
}
