/* What the governor does, and why. */
#include <inttypes.h>

#include "ctl/render.h"
#include "ctl/report.h"

static const char *percent(char text[TEXT_BYTES], int64_t permille) {
        snprintf(text, TEXT_BYTES, "%" PRId64 ".%" PRId64 " %%", permille / 10, permille % 10);
        return text;
}

/* What memory is like. The threshold is said beside what it is held against, where it counts. */
static void print_memory(const struct report *r, FILE *f) {
        const struct counters *c = &r->counters;
        const struct tunables *t = &r->tunables.values;
        char a[TEXT_BYTES], b[TEXT_BYTES];

        if (c->memory_pressure_permille < 0)
                fprintf(f, "how long processes wait for it is not known (pressure_file)");
        else if (t->pressure_permille == 0)
                fprintf(f, "how long processes wait for it does not count (pressure_permille=0)");
        else
                fprintf(f, "processes waited for it %s of the last 10 s (short from %s on)", percent(a, c->memory_pressure_permille),
                        percent(b, t->pressure_permille));
        if (c->memory_available_permille < 0)
                fprintf(f, "; how much is available is not known\n");
        else if (t->low_memory_permille == 0)
                fprintf(f, "; how much is available does not count (low_memory_permille=0)\n");
        else
                fprintf(f, "; %s is available (short below %s)\n", percent(a, c->memory_available_permille), percent(b, t->low_memory_permille));
}

void report_print_governor(const struct report *r, FILE *f) {
        const struct counters *c = &r->counters;
        char a[TEXT_BYTES];

        switch (c->governor) {
        case GOVERNOR_REST:
                fprintf(f, "it rests: only_under_pressure is set, and memory is not short: ");
                print_memory(r, f);
                break;
        case GOVERNOR_IDLE:
                fprintf(f, "it idles: nothing is new, and the last full scan found next to nothing to merge; scanning takes at most %s of a "
                           "core (idle_cpu_permille)\n",
                        percent(a, c->cpu_allowed_permille));
                break;
        case GOVERNOR_WORK:
                fprintf(f, "it works: something is new, or the last full scan found equal pages; scanning takes at most %s of a core "
                           "(max_cpu_permille)\n",
                        percent(a, c->cpu_allowed_permille));
                break;
        case GOVERNOR_HURRY:
                fprintf(f, "it hurries, looks at pages four times as often and takes at most %s of a core for it (max_cpu_permille): memory is "
                           "short: ",
                        percent(a, c->cpu_allowed_permille));
                print_memory(r, f);
                break;
        default: /* stopped, which is said among what needs attention, or a newer daemon */
                break;
        }
}

void report_print_never_short(const struct report *r, FILE *f) {
        const struct counters *c = &r->counters;
        const struct tunables *t = &r->tunables.values;
        bool can_press = c->memory_pressure_permille >= 0 && t->pressure_permille > 0;
        bool can_be_low = c->memory_available_permille >= 0 && t->low_memory_permille > 0;

        if (c->governor == GOVERNOR_REST && !can_press && !can_be_low)
                fprintf(f, "! only_under_pressure is set, but nothing says when memory is short: see pressure_file, pressure_permille and "
                           "low_memory_permille\n");
}
