/* ksmctl: what all verbs share. A verb is one file that defines one `struct verb`; verbs.c has the table of them.
 *
 * Verbs print results to stdout and complaints to stderr, and return an exit status. Everything that comes from the
 * daemon or from a client (names, numbers) is treated as data to print, never trusted further. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/* The values of sysexits.h where one fits. `run` returns its command's status instead (verb_run.c). */
enum exit_status {
        STATUS_OK = 0,
        STATUS_FAILED = 1,       /* the daemon tried and could not, or only in part */
        STATUS_USAGE = 64,       /* EX_USAGE: the command line is wrong; nothing was done */
        STATUS_NO_PROCESS = 67,  /* EX_NOUSER: no such process is connected */
        STATUS_UNAVAILABLE = 69, /* EX_UNAVAILABLE: no daemon; `check`: something required is missing */
        STATUS_OSERR = 71,       /* EX_OSERR: a system call of ksmctl itself failed */
        STATUS_PROTOCOL = 76,    /* EX_PROTOCOL: the daemon speaks another protocol, or broke it */
        STATUS_NOPERM = 77,      /* EX_NOPERM: not allowed */
};

struct ctl {
        const char *socket_path;
        bool socket_given; /* by --socket: the user means this daemon and no other */
};

struct verb {
        const char *name;
        const char *arguments; /* "[NAME...]" */
        const char *summary;   /* one line, lower case */
        const char *help;      /* paragraphs, no trailing empty line */
        int (*run)(const struct ctl *ctl, int argc, char **argv); /* argv[0] is the verb */
};
extern const struct verb *const verbs[]; /* ends with NULL */

void verb_print_help(const struct verb *v);
/* For getopt's '?' and wrong arguments: prints the verb's usage line to stderr, returns STATUS_USAGE. */
int verb_usage(const struct verb *v);

/* "ksmctl: ..." and a newline to stderr, in one write. */
__attribute__((format(printf, 1, 2))) void complain(const char *format, ...);

/* The option every verb has. */
#define HELP_OPTION { "help", no_argument, NULL, 'h' }
