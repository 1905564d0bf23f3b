/* get: tunables as they are. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

#include "ctl/explain.h"
#include "ctl/render.h"
#include "ctl/verb_list.h"

/* The text of each is printed behind its line: it has no width to align to. */
static int print_all(const struct tunable_values *v) {
        static const char *const titles[] = { "NAME", "VALUE", "UNIT", "DEFAULT", "RANGE" };
        char text[TUNABLE_TEXT_BYTES];
        struct table t;
        int r;

        table_init(&t, titles, 5, 1u | 4u | 16u);
        for (int i = 0; i < TUNABLE_MAX_; i++) {
                const struct tunable_info *info = &tunable_table[i];
                const enum tunable_id id = (enum tunable_id) i;

                if (!v->known[i])
                        continue;
                table_cell(&t, info->name);
                table_cell(&t, tunable_format(id, tunable_get(&v->values, id), text));
                table_cell(&t, info->unit);
                table_cell(&t, tunable_format_value(id, info->def, text));
                table_cell(&t, tunable_format_range(id, text));
        }
        r = table_print(&t, stdout);
        table_free(&t);
        return r;
}

static int print_named(const struct tunable_values *v, int n, char **names) {
        for (int i = 0; i < n; i++) {
                const enum tunable_id id = (enum tunable_id) tunable_find(names[i]);
                const int64_t value = tunable_get(&v->values, id);
                char text[TUNABLE_TEXT_BYTES];

                if (!v->known[id]) {
                        complain("this daemon has no tunable '%s': it is older than ksmctl", names[i]);
                        return STATUS_FAILED;
                }
                if (n > 1)
                        printf("%s=%s\n", names[i], tunable_format_value(id, value, text));
                else
                        printf("%s\n", tunable_format(id, value, text));
        }
        return STATUS_OK;
}

static int run_get(const struct ctl *ctl, int argc, char **argv) {
        static const struct option options[] = { HELP_OPTION, { 0 } };
        struct admin a = ADMIN_INIT;
        struct tunable_values values;
        int c, r, status;

        while ((c = getopt_long(argc, argv, "h", options, NULL)) >= 0) {
                if (c != 'h')
                        return verb_usage(&verb_get);
                verb_print_help(&verb_get);
                printf("\nTunables:\n");
                tunables_print_help(stdout);
                return STATUS_OK;
        }
        for (int i = optind; i < argc; i++)
                if (tunable_find(argv[i]) < 0) {
                        complain("there is no tunable '%s'; ksmctl get --help lists them", argv[i]);
                        return STATUS_USAGE;
                }

        status = admin_open(ctl, &a);
        if (status != STATUS_OK)
                return status;
        r = admin_tunables(&a, &values);
        if (r == 0 && optind == argc)
                r = print_all(&values);
        else if (r == 0)
                status = print_named(&values, argc - optind, argv + optind);
        if (r < 0)
                status = admin_explain(ctl, &a, r, "reading the tunables");
        admin_close(&a);
        return status;
}

const struct verb verb_get = {
        .name = "get",
        .arguments = "[NAME...]",
        .summary = "tunables of the running daemon",
        .help =
        "Without NAME: a table of all tunables with value, unit, default and range. With one NAME: its value alone,\n"
        "for scripts. With several: NAME=VALUE lines, as `ksmctl set` takes them. A choice is shown as the kernel's\n"
        "files in sysfs show it, \"[none] scan-time\".\n"
        "\n"
        "Options:\n"
        "  -h, --help  this text and what each tunable means",
        .run = run_get,
};
