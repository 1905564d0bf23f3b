/* What the daemon says, gathered and printed: by `status` and `stats`. */
#pragma once

#include <stdio.h>

#include "ctl/admin.h"
#include "ctl/placement.h"

struct report {
        struct msg_admin_welcome welcome;
        struct counters counters;
        struct tunable_values tunables;
        struct client_list clients; /* owned by the caller */
        struct placement *places;   /* of each client; NULL: not asked for */
        struct range_list *ranges;  /* of each client; NULL: not asked for */
        struct domain_list domains;
        bool with_domains;
        uint64_t uptime_usec;
};

enum report_parts { REPORT_COUNTERS_ONLY = 0, REPORT_WITH_PROCESSES = 1 };

/* All print to f and return 0 or -ENOMEM. */
int report_print_status(const struct report *r, bool wide, FILE *f);
void report_print_governor(const struct report *r, FILE *f);    /* a line: what it does, and why */
void report_print_never_short(const struct report *r, FILE *f); /* a line if it waits for what cannot come */
int report_print_processes(const struct report *r, FILE *f); /* lines of "name value", ranges below */
int report_print_domains(const struct report *r, FILE *f);
int report_print_json(const struct report *r, enum report_parts parts, FILE *f);
int report_print_counters(const struct report *r, FILE *f);
void report_print_counter_help(FILE *f); /* what each counter means */
