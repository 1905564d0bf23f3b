#include "tests/support/task_state.h"

#include <stdio.h>

char task_state(pid_t tid) {
        char path[64], state = 'R';
        (void) snprintf(path, sizeof(path), "/proc/self/task/%d/stat", tid);
        FILE *f = fopen(path, "re");
        if (f) {
                (void) !fscanf(f, "%*d (%*[^)]) %c", &state);
                fclose(f);
        }
        return state;
}
