/* The advisor (advisor_mode=scan-time): after each full scan pages_to_scan is set anew, so that the next one takes
 * advisor_target_scan_time. The arithmetic is that of the kernel's ksmd, whole numbers and all, so that who knows the one knows the
 * other; three things differ:
 *
 * - advisor_min_pages_to_scan bounds every result. The kernel begins there, and may go below.
 * - A scan is timed from its own beginning, and charged with its own CPU time, from the first on. The kernel's first result after
 *   scan-time was set is about the time since boot.
 * - What the kernel's products would wrap at does not fit here either, and is the greatest there is. */
#include "common/probes.h"
#include "daemon/core/internal.h"

/* Percent of the newest value in the moving average. */
#define WEIGHT 30
/* The advisor does not hold the daemon below this much of a core, in percent: too slow to learn anything. */
#define MIN_CPU 10

static uint64_t at_least_1(uint64_t n) {
        return MAX(n, UINT64_C(1));
}

uint64_t advisor_step(struct advisor *a, const struct tunables *t, uint64_t scan_usec, uint64_t cpu_usec) {
        uint64_t pages_now = (uint64_t) t->pages_to_scan;
        uint64_t scan_sec = at_least_1(scan_usec / 1000000);
        uint64_t cpu_percent = at_least_1(cpu_usec / 1000 * 100 / (scan_sec * 1000));
        uint64_t last_sec = a->scan_sec > 0 ? a->scan_sec : scan_sec;
        uint64_t factor = at_least_1((uint64_t) t->advisor_target_scan_time * 100 / scan_sec);
        uint64_t change = at_least_1(scan_sec * 100 / last_sec);
        /* Pages that a percent of CPU time is worth. */
        uint64_t pages_per_percent = at_least_1(pages_now / cpu_percent);
        unsigned __int128 pages;

        change = ((100 - WEIGHT) * a->change + WEIGHT * change) / 100;
        pages = (unsigned __int128) (pages_now * 100 / factor) * change / 100;
        pages = MIN(pages, (unsigned __int128) pages_per_percent * (uint64_t) t->advisor_max_cpu);
        pages = MAX(pages, (unsigned __int128) pages_per_percent * MIN_CPU);
        pages = MIN(pages, (unsigned __int128) t->advisor_max_pages_to_scan);
        pages = MAX(pages, (unsigned __int128) t->advisor_min_pages_to_scan);
        a->change = change;
        a->scan_sec = scan_sec;
        pages = MAX(pages, 1U);
        probe_ksm_advisor((int64_t) scan_sec, (uint64_t) pages, (uint32_t) cpu_percent);
        return (uint64_t) pages; /* with 0 the next scan would never end */
}

static void set_pages(struct core *c, uint64_t pages) {
        c->tunables.pages_to_scan = (int64_t) pages;
        c->read_tokens = MIN(c->read_tokens, (double) pages);
}

void advisor_mode_changed(struct core *c, uint64_t now_usec) {
        if (c->tunables.advisor_mode == ADVISOR_NONE) {
                set_pages(c, (uint64_t) tunable_table[TUNABLE_pages_to_scan].def);
                return;
        }
        c->advisor = (struct advisor){ 0 };
        advisor_scan_begins(c, now_usec);
        set_pages(c, at_least_1((uint64_t) c->tunables.advisor_min_pages_to_scan));
}

void advisor_scan_begins(struct core *c, uint64_t now_usec) {
        c->advisor.begin_usec = now_usec;
        c->advisor.begin_cpu_usec = c->cpu_usec;
}

void advisor_scan_ends(struct core *c, uint64_t now_usec) {
        struct advisor *a = &c->advisor;

        if (c->tunables.advisor_mode == ADVISOR_SCAN_TIME)
                set_pages(c, advisor_step(a, &c->tunables, now_usec - a->begin_usec, c->cpu_usec - a->begin_cpu_usec));
        advisor_scan_begins(c, now_usec);
}
