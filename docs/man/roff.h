/* Text as man(7) source, to standard output. */
#pragma once

#include <stddef.h>

/* One line of text, to be shown as it stands. */
void roff_line(const char *text, size_t length);
void roff_text(const char *text);
/* An entry: its name in bold, what goes with it in brackets, what it means. */
void roff_entry(const char *name, const char *with, const char *text);
/* ksmctl's verbs: a section each. */
void roff_verbs(void);
