/* ksmctl: global options, then one verb. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl/admin.h"
#include "ctl/ctl.h"

static void print_help(void) {
        printf("Usage: ksmctl [OPTION...] VERB [ARGUMENT...]\n\n"
               "Run programs with same-page merging by userksmd, and look at and steer what it does.\n\n"
               "Verbs (ksmctl VERB --help says more about each):\n");
        for (const struct verb *const *v = verbs; *v; v++)
                printf("  %-8s %s\n", (*v)->name, (*v)->summary);
        printf("\nOptions:\n"
               "  --socket PATH   the daemon's socket; a leading '@' names an abstract one\n"
               "                  (default: $USERKSM_SOCKET, else " DEFAULT_SOCKET_PATH ")\n"
               "  -h, --help      this text\n"
               "  -V, --version   the version\n\n"
               "Exit status:\n"
               "  0   done\n"
               "  1   the daemon tried and failed, or succeeded only in part\n"
               "  64  wrong command line; nothing was done\n"
               "  67  no such process is connected to the daemon\n"
               "  69  no daemon is reachable; check: something required is missing\n"
               "  71  a system call of ksmctl itself failed\n"
               "  76  the daemon speaks another version of the protocol, or broke it\n"
               "  77  not allowed\n"
               "  run has its own: that of the command\n\n"
               "ksmctl(1) and docs/ksmctl.md are the manual.\n");
}

static const struct verb *find_verb(const char *name) {
        for (const struct verb *const *v = verbs; *v; v++)
                if (strcmp((*v)->name, name) == 0)
                        return *v;
        return NULL;
}

static int dispatch(int argc, char **argv) {
        static const struct option options[] = {
                HELP_OPTION,
                { "socket", required_argument, NULL, 's' },
                { "version", no_argument, NULL, 'V' },
                { 0 },
        };
        const char *environment = getenv("USERKSM_SOCKET");
        struct ctl ctl = { .socket_path = environment && *environment ? environment : DEFAULT_SOCKET_PATH };
        const struct verb *verb;
        int o;

        while ((o = getopt_long(argc, argv, "+hV", options, NULL)) >= 0)
                switch (o) {
                case 'h':
                        print_help();
                        return STATUS_OK;
                case 'V':
                        printf("ksmctl (userksm) " USERKSM_VERSION "\n");
                        return STATUS_OK;
                case 's':
                        ctl.socket_path = optarg;
                        ctl.socket_given = true;
                        break;
                default:
                        complain("ksmctl --help lists the options");
                        return STATUS_USAGE;
                }
        if (optind == argc) {
                complain("a verb is missing; ksmctl --help lists them");
                return STATUS_USAGE;
        }
        verb = find_verb(argv[optind]);
        if (!verb) {
                complain("there is no verb '%s'; ksmctl --help lists them", argv[optind]);
                return STATUS_USAGE;
        }
        argc -= optind;
        argv += optind;
        optind = 0; /* glibc: start over */
        return verb->run(&ctl, argc, argv);
}

int main(int argc, char **argv) {
        int status = dispatch(argc, argv);

        if ((fflush(stdout) != 0 || ferror(stdout)) && status == STATUS_OK) {
                complain("cannot write the output: %m");
                return STATUS_OSERR;
        }
        return status;
}
