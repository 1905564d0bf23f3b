#include "tests/support/task_state.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

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

bool task_waits_in(pid_t tid, const char *name) {
        char path[64], text[128] = "";
        if (!strchr("SD", task_state(tid)))
                return false;
        (void) snprintf(path, sizeof(path), "/proc/self/task/%d/wchan", tid);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
        if (fd >= 0)
                close(fd);
        if (n > 0 && strcmp(text, "0") != 0)
                return strstr(text, name);
        return strchr("SD", task_state(tid)); /* "0" also says that it runs */
}
