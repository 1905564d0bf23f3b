#include "docs/man/roff.h"

#include <stdio.h>
#include <string.h>

void roff_line(const char *text, size_t length) {
        if (length > 0 && (text[0] == '.' || text[0] == '\''))
                fputs("\\&", stdout);
        for (size_t i = 0; i < length; i++)
                switch (text[i]) {
                case '\\':
                        fputs("\\e", stdout);
                        break;
                case '-': /* a hyphen would not be found, nor be pasted */
                        fputs("\\-", stdout);
                        break;
                case '`':
                        fputs("\\(ga", stdout);
                        break;
                case '\'':
                        fputs("\\(aq", stdout);
                        break;
                case '~':
                        fputs("\\(ti", stdout);
                        break;
                case '^':
                        fputs("\\(ha", stdout);
                        break;
                default:
                        putchar(text[i]);
                }
}

void roff_text(const char *text) {
        roff_line(text, strlen(text));
}

void roff_entry(const char *name, const char *with, const char *text) {
        printf(".TP\n\\fB");
        roff_text(name);
        printf("\\fP%s", *with ? " (" : "");
        roff_text(with);
        printf("%s\n", *with ? ")" : "");
        roff_text(text);
        putchar('\n');
}
