/* The one list of verbs, in the order of --help. */
#pragma once

#include "ctl/ctl.h"

#define VERBS(X) X(run) X(status) X(stats) X(get) X(set) X(merge) X(unmerge) X(check)

#define X(name) extern const struct verb verb_##name;
VERBS(X)
#undef X
