#include <stdio.h>
#include <string.h>

#include "ctl/ctl.h"
#include "docs/man/roff.h"

/* Help is written for a terminal: what is indented in it, or in a list, stays as it is; the rest is paragraphs. */
static void put_help(const char *help) {
        int is_literal = 0;

        printf(".PP\n");
        for (const char *line = help; *line;) {
                size_t n = strcspn(line, "\n");
                int literal = n > 0 && line[0] == ' ';

                if (n == 0)
                        printf("%s.PP\n", is_literal ? ".fi\n" : "");
                else if (literal != is_literal)
                        printf("%s\n", literal ? ".nf" : ".fi");
                is_literal = n > 0 && literal;
                roff_line(line, n);
                if (n > 0)
                        putchar('\n');
                line += n + (line[n] == '\n');
        }
        if (is_literal)
                printf(".fi\n");
}

void roff_verbs(void) {
        for (const struct verb *const *v = verbs; *v; v++) {
                printf(".SS ");
                roff_text((*v)->name);
                printf("\n\\fBksmctl ");
                roff_text((*v)->name);
                printf("\\fP ");
                roff_text((*v)->arguments);
                printf("\n");
                put_help((*v)->help);
        }
}
