/* The administrator's rules, as `ksmctl check` reports them. */
#pragma once

#include "common/rules.h"

#define RULES_PROBLEMS_MAX 16 /* lines shown; all are counted */

struct rules_report {
        const char *directory;
        unsigned n_files, n_rules, n_problems;
        char problems[RULES_PROBLEMS_MAX][256]; /* "FILE:LINE: what is wrong" */
};

/* Of the directory that programs of this user would read. */
void rules_report(struct rules_report *ret);
