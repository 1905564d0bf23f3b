/* Prints a manual page: manual TEMPLATE VERSION. A template is man(7) source; a line of it that is one of
 *
 *     @options@    [daemon] of the configuration (daemon/config.h)
 *     @tunables@   [tunables] (common/tunables.h)
 *     @counters@   common/counters.h
 *     @verbs@      ksmctl's verbs with their help (ctl/verb_list.h)
 *     @files@      files of /sys/kernel/mm/ksm (ctl/sysfs/attribute.h), @domain_files@ those of a domain (ctl/sysfs/domain.h)
 *
 * stands for what the table says, and @version@ anywhere in a line for VERSION. So pages and --help cannot differ. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/counters.h"
#include "common/tunables.h"
#include "ctl/sysfs/attribute.h"
#include "ctl/sysfs/domain.h"
#include "daemon/config.h"
#include "docs/man/roff.h"

#define LINE_BYTES 1024

static void put_options(void) {
        static const struct {
                const char *name, *kind, *text;
                long long min, max;
                const char *def;
        } options[] = {
#define TEXT(x) #x
#define DEFAULT_STRING(d) d
#define DEFAULT_NUMBER(d) TEXT(d)
#define DEFAULT_LEVEL(d) "info"
#define X(name, kind, min, max, def, reloadable, text) { #name, #kind, text, min, max, DEFAULT_##kind(def) },
                OPTIONS(X)
#undef X
        };

        for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
                char with[LINE_BYTES];

                if (strcmp(options[i].kind, "NUMBER") != 0)
                        (void) snprintf(with, sizeof(with), "default %s", options[i].def);
                else if (options[i].max == 1)
                        (void) snprintf(with, sizeof(with), "yes or no, default %s", options[i].def[0] == '0' ? "no" : "yes");
                else
                        (void) snprintf(with, sizeof(with), "%lld to %lld, default %s", options[i].min, options[i].max, options[i].def);
                roff_entry(options[i].name, with, options[i].text);
        }
}

static void put_tunables(void) {
        for (int i = 0; i < TUNABLE_MAX_; i++) {
                const struct tunable_info *t = &tunable_table[i];
                const enum tunable_id id = (enum tunable_id) i;
                char range[TUNABLE_TEXT_BYTES], def[TUNABLE_TEXT_BYTES], with[LINE_BYTES];

                (void) snprintf(with, sizeof(with), "%s, default %s%s%s", tunable_format_range(id, range),
                                tunable_format_value(id, t->def, def), t->unit[0] ? " " : "", t->unit);
                roff_entry(t->name, with, t->text);
        }
}

static void put_counters(void) {
#define UNIT_WORD_COUNT ""
#define UNIT_WORD_PAGES "pages"
#define UNIT_WORD_BYTES "bytes"
#define UNIT_WORD_USEC "microseconds"
#define X(name, unit, text) roff_entry(#name, UNIT_WORD_##unit, text);
        COUNTERS(X)
#undef X
}

/* Tunables have their text in userksmd(8). */
static void put_files(void) {
        static const char *const counter_texts[] = {
#define X(name, unit, text) [COUNTER_##name] = text,
                COUNTERS(X)
#undef X
        };
        char range[TUNABLE_TEXT_BYTES];

#define T(name, format) roff_entry(#name, tunable_format_range(TUNABLE_##name, range), "read and written");
#define C(name, counter) roff_entry(#name, "", counter_texts[COUNTER_##counter]);
        ATTRIBUTES(T, C)
#undef T
#undef C
}

static void put_domain_files(void) {
        static const char *const names[] = {
#define X(name, value) #name,
                DOMAIN_FILES(X)
#undef X
        };

        for (size_t i = 0; i < ARRAY_SIZE(names); i++)
                printf("%s%s", i ? ", " : "", names[i]);
        printf("; and key, which says what its processes have in common.\n");
}

static void put_template_line(char *line, const char *version) {
        static const struct {
                const char *name;
                void (*put)(void);
        } tables[] = { { "@options@\n", put_options },   { "@tunables@\n", put_tunables }, { "@counters@\n", put_counters },
                       { "@verbs@\n", roff_verbs },      { "@files@\n", put_files },       { "@domain_files@\n", put_domain_files } };
        char *at = strstr(line, "@version@");

        for (size_t i = 0; i < ARRAY_SIZE(tables); i++)
                if (strcmp(line, tables[i].name) == 0) {
                        tables[i].put();
                        return;
                }
        if (at)
                printf("%.*s%s%s", (int) (at - line), line, version, at + strlen("@version@"));
        else
                fputs(line, stdout);
}

int main(int argc, char **argv) {
        char line[LINE_BYTES];
        FILE *f = argc == 3 ? fopen(argv[1], "re") : NULL;

        if (!f) {
                fprintf(stderr, "usage: %s TEMPLATE VERSION\n", argv[0]);
                return EXIT_FAILURE;
        }
        while (fgets(line, sizeof(line), f))
                put_template_line(line, argv[2]);
        (void) fclose(f);
        return fflush(stdout) == 0 && !ferror(stdout) ? EXIT_SUCCESS : EXIT_FAILURE;
}
