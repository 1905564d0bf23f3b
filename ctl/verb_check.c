/* check: is everything there that merging needs, and if not, what to do. The kernel's part is the probe that the daemon
 * makes at its start (common/kernel.h); added here is what of userksm itself is found and reachable. */
#include <errno.h>
#include <getopt.h>
#include <json-c/json.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/kernel.h"
#include "ctl/admin.h"
#include "ctl/paths.h"
#include "ctl/rules.h"
#include "ctl/verb_list.h"

/* One line of the report. need and status as those of the kernel's checks. */
struct finding {
        const char *name, *what, *remedy;
        enum kernel_need need;
        enum kernel_status status;
        char found[PATH_MAX];
};

enum { FIND_DAEMON, FIND_SHIM, FIND_SOCKET, FIND_RULES, N_OWN_FINDINGS = FIND_RULES + 1 + RULES_PROBLEMS_MAX };

static const char *status_word(const struct finding *f) {
        if (f->need == KERNEL_INFO)
                return "info";
        switch (f->status) {
        case KERNEL_OK:
                return "ok";
        case KERNEL_NOT_PERMITTED:
                return f->need == KERNEL_REQUIRED ? "NO RIGHT" : "no right";
        case KERNEL_MISSING:
                break;
        }
        return f->need == KERNEL_REQUIRED ? "MISSING" : "limited";
}

static void check_part(struct finding *f, const char *name, const char *what, int (*find)(char ret[PATH_MAX])) {
        *f = (struct finding) {
                .name = name,
                .what = what,
                .remedy = "build or install all of userksm, to the prefix that ksmctl was built for",
                .need = KERNEL_REQUIRED,
        };
        if (find(f->found) < 0)
                f->status = KERNEL_MISSING; /* found: where it was looked for */
}

static void check_socket(const struct ctl *ctl, struct finding *f) {
        struct admin a = ADMIN_INIT;
        int r = admin_connect(&a, ctl->socket_path);

        *f = (struct finding) {
                .name = "daemon_running",
                .what = "running daemon",
                .remedy = "systemctl start userksmd.socket, or start userksmd; ksmctl run brings its own",
                .need = KERNEL_OPTIONAL,
        };
        if (r < 0) {
                f->status = r == -EACCES || r == -EPERM ? KERNEL_NOT_PERMITTED : KERNEL_MISSING;
                if (f->status == KERNEL_NOT_PERMITTED)
                        f->remedy = "become a member of the group of the socket (userksm)";
                snprintf(f->found, sizeof(f->found), "%s: %s", ctl->socket_path, strerror(-r));
        } else
                snprintf(f->found, sizeof(f->found), "%s, pid %u, version %.*s", ctl->socket_path, a.welcome.daemon_pid,
                         (int) sizeof(a.welcome.version), a.welcome.version);
        admin_close(&a);
}

/* How many there are, then each that is wrong. Returns the number of findings. */
static size_t check_rules(struct finding *f) {
        static struct rules_report rules;
        size_t n = 0;

        rules_report(&rules);
        f[n] = (struct finding) { .name = "rules", .what = "rules of programs to be merged", .remedy = "", .need = KERNEL_INFO };
        snprintf(f[n].found, sizeof(f[n].found), "%u in %u files of %s, %u problems", rules.n_rules, rules.n_files, rules.directory,
                 rules.n_problems);
        for (n++; n <= MIN(rules.n_problems, (unsigned) RULES_PROBLEMS_MAX); n++) {
                f[n] = (struct finding) {
                        .name = "rule",
                        .what = "a rule that is not followed",
                        .remedy = "correct it (docs/shim.md, Rules); programs that are started from then on follow it",
                        .need = KERNEL_OPTIONAL,
                        .status = KERNEL_MISSING,
                };
                snprintf(f[n].found, sizeof(f[n].found), "%s", rules.problems[n - 1]);
        }
        return n;
}

static void take_kernel_finding(struct finding *f, const struct kernel_check *c) {
        *f = (struct finding) {
                .name = c->name,
                .what = c->what,
                .remedy = c->remedy,
                .need = c->need,
                .status = c->status,
        };
        snprintf(f->found, sizeof(f->found), "%s", c->found);
}

static void print_finding(const struct finding *f) {
        bool fine = f->status == KERNEL_OK || f->need == KERNEL_INFO;

        printf("%-8s  %s%s%s\n", status_word(f), f->what, *f->found ? ": " : "", f->found);
        if (!fine && *f->remedy)
                printf("          -> %s\n", f->remedy);
}

static int print_json(const struct finding *findings, size_t n, bool usable) {
        static const char *const needs[] = {
                [KERNEL_REQUIRED] = "required", [KERNEL_OPTIONAL] = "optional", [KERNEL_INFO] = "info"
        };
        static const char *const statuses[] = {
                [KERNEL_OK] = "ok", [KERNEL_MISSING] = "missing", [KERNEL_NOT_PERMITTED] = "not_permitted"
        };
        struct json_object *o = json_object_new_object(), *array = json_object_new_array();
        const char *text;

        json_object_object_add(o, "usable", json_object_new_boolean(usable));
        for (size_t i = 0; i < n; i++) {
                struct json_object *c = json_object_new_object();

                json_object_object_add(c, "name", json_object_new_string(findings[i].name));
                json_object_object_add(c, "what", json_object_new_string(findings[i].what));
                json_object_object_add(c, "need", json_object_new_string(needs[findings[i].need]));
                json_object_object_add(c, "status", json_object_new_string(statuses[findings[i].status]));
                json_object_object_add(c, "found", json_object_new_string(findings[i].found));
                json_object_object_add(c, "remedy", json_object_new_string(findings[i].remedy));
                json_object_array_add(array, c);
        }
        json_object_object_add(o, "checks", array);
        text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
        if (text)
                puts(text);
        json_object_put(o);
        return text ? 0 : -ENOMEM;
}

static int report_findings(const struct finding *findings, size_t n, bool json) {
        size_t missing = 0, limited = 0;

        for (size_t i = 0; i < n; i++) {
                missing += findings[i].need == KERNEL_REQUIRED && findings[i].status != KERNEL_OK;
                limited += findings[i].need == KERNEL_OPTIONAL && findings[i].status != KERNEL_OK;
        }
        if (json) {
                if (print_json(findings, n, missing == 0) < 0)
                        return STATUS_OSERR;
                return missing > 0 ? STATUS_UNAVAILABLE : STATUS_OK;
        }
        for (size_t i = 0; i < n; i++)
                print_finding(&findings[i]);
        if (missing > 0)
                printf("\n%zu of what is required %s missing%s\n", missing, missing == 1 ? "is" : "are",
                       geteuid() != 0 ? " for this user; the daemon's user may have it (try as root)" : "");
        else
                printf("\nmerging works here%s\n", limited > 0 ? ", with the limits above" : "");
        return missing > 0 ? STATUS_UNAVAILABLE : STATUS_OK;
}

static int run_check(const struct ctl *ctl, int argc, char **argv) {
        static const struct option options[] = { HELP_OPTION, { "json", no_argument, NULL, 'j' }, { 0 } };
        static struct finding findings[KERNEL_CHECK_MAX_ + N_OWN_FINDINGS];
        static struct kernel_info kernel;
        bool json = false;
        size_t n;
        int c, r;

        while ((c = getopt_long(argc, argv, "h", options, NULL)) >= 0)
                switch (c) {
                case 'h':
                        verb_print_help(&verb_check);
                        return STATUS_OK;
                case 'j':
                        json = true;
                        break;
                default:
                        return verb_usage(&verb_check);
                }
        if (optind < argc)
                return verb_usage(&verb_check);

        r = kernel_probe(&kernel);
        if (r < 0) {
                complain("cannot look at the kernel: %s", strerror(-r));
                return STATUS_OSERR;
        }
        for (size_t i = 0; i < KERNEL_CHECK_MAX_; i++)
                take_kernel_finding(&findings[i], &kernel.checks[i]);
        check_part(&findings[KERNEL_CHECK_MAX_ + FIND_DAEMON], "daemon_program", "userksmd", find_daemon);
        check_part(&findings[KERNEL_CHECK_MAX_ + FIND_SHIM], "preload_library", "libuserksm-preload.so", find_shim);
        check_socket(ctl, &findings[KERNEL_CHECK_MAX_ + FIND_SOCKET]);
        n = KERNEL_CHECK_MAX_ + FIND_RULES + check_rules(&findings[KERNEL_CHECK_MAX_ + FIND_RULES]);
        return report_findings(findings, n, json);
}

const struct verb verb_check = {
        .name = "check",
        .arguments = "[--json]",
        .summary = "is everything there that merging needs",
        .help =
        "Looks at the kernel (version, features, self-checks on memory of its own), at limits, sysctls and "
        "permissions,\n"
        "at the parts of userksm and at the rules in /etc/userksm/rules.d, and prints for each: ok; MISSING, with what to\n"
        "do about it; limited (works, but slower or less); NO RIGHT (this user may not look, or may not use it: try as\n"
        "root); or info.\n"
        "\n"
        "It is the same probe that the daemon makes when it starts, with the rights of who calls ksmctl: the daemon\n"
        "runs as its own user, which needs /dev/userfaultfd.\n"
        "\n"
        "Options:\n"
        "      --json  one object: usable, and checks with name, what, need, status, found, remedy\n"
        "  -h, --help  this text\n"
        "\n"
        "Exit status: 0 when all that is required is there, 69 when not.",
        .run = run_check,
};
