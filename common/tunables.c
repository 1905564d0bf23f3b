#include "common/tunables.h"

#include <errno.h>
#include <string.h>

const struct tunable_info tunable_table[TUNABLE_MAX_] = {
#define X(name, min, max, def, unit, text) [TUNABLE_##name] = { #name, min, max, def, unit, text },
        TUNABLES(X)
#undef X
};

void tunables_init(struct tunables *t) {
        for (int i = 0; i < TUNABLE_MAX_; i++)
                ((int64_t *) t)[i] = tunable_table[i].def;
}

int tunable_find(const char *name) {
        for (int i = 0; i < TUNABLE_MAX_; i++)
                if (strcmp(tunable_table[i].name, name) == 0)
                        return i;
        return -ENOENT;
}

int64_t tunable_get(const struct tunables *t, enum tunable_id id) {
        return ((const int64_t *) t)[id];
}

int tunable_set(struct tunables *t, enum tunable_id id, int64_t value) {
        if (value < tunable_table[id].min || value > tunable_table[id].max)
                return -EINVAL;
        ((int64_t *) t)[id] = value;
        return 0;
}
