#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "ctl/ctl.h"
#include "ctl/verb_list.h"

const struct verb *const verbs[] = {
#define X(name) &verb_##name,
        VERBS(X)
#undef X
                NULL
};

void verb_print_help(const struct verb *v) {
        printf("Usage: ksmctl [--socket PATH] %s %s\n\n%s\n", v->name, v->arguments, v->help);
}

int verb_usage(const struct verb *v) {
        complain("usage: ksmctl %s %s (ksmctl %s --help says more)", v->name, v->arguments, v->name);
        return STATUS_USAGE;
}

void complain(const char *format, ...) {
        char line[2048];
        size_t n = (size_t) snprintf(line, sizeof(line), "ksmctl: ");
        va_list arguments;
        int r;

        va_start(arguments, format);
        r = vsnprintf(line + n, sizeof(line) - n - 1, format, arguments);
        va_end(arguments);
        if (r < 0)
                return;
        n = strlen(line);
        line[n++] = '\n';
        fflush(stdout);
        for (size_t done = 0; done < n;) {
                ssize_t written = write(STDERR_FILENO, line + done, n - done);

                if (written <= 0)
                        return; /* nobody left to tell */
                done += (size_t) written;
        }
}
