#include "common/tunables.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"

const struct tunable_info tunable_table[TUNABLE_MAX_] = {
#define X(name, min, max, def, unit, text) [TUNABLE_##name] = { #name, min, max, def, unit, NULL, text },
#define N(name, last, def, names, text) [TUNABLE_##name] = { #name, 0, last, def, "", names, text },
        TUNABLES(X, N)
#undef X
#undef N
};

void tunables_init(struct tunables *t) {
        for (int i = 0; i < TUNABLE_MAX_; i++)
                ((int64_t *) t)[i] = tunable_table[i].def;
}

int tunable_find(const char *name) {
        for (int i = 0; i < TUNABLE_MAX_; i++)
                if (strcmp(tunable_table[i].name, name) == 0)
                        return i;
        return -ENOENT;
}

int64_t tunable_get(const struct tunables *t, enum tunable_id id) {
        return ((const int64_t *) t)[id];
}

int tunable_set(struct tunables *t, enum tunable_id id, int64_t value) {
        if (value < tunable_table[id].min || value > tunable_table[id].max)
                return -EINVAL;
        ((int64_t *) t)[id] = value;
        return 0;
}

/* -- as text --------------------------------------------------------------------------------------------------------------- */

int tunable_parse_number(const char *text, int64_t min, int64_t max, int64_t *ret) {
        static const char *const words[][2] = { { "no", "yes" }, { "off", "on" }, { "false", "true" } };
        char *end;

        if (min == 0 && max == 1)
                for (size_t i = 0; i < ARRAY_SIZE(words); i++)
                        for (int v = 0; v < 2; v++)
                                if (strcmp(text, words[i][v]) == 0) {
                                        *ret = v;
                                        return 0;
                                }
        errno = 0;
        long long v = strtoll(text, &end, 10);
        if (errno || end == text || *end || *text == ' ' || v < min || v > max)
                return -EINVAL;
        *ret = v;
        return 0;
}

/* The next of the words from *p on, or NULL. */
static const char *next_word(const char **p, size_t *ret_length) {
        const char *word = *p + strspn(*p, " ");

        *ret_length = strcspn(word, " ");
        *p = word + *ret_length;
        return *ret_length > 0 ? word : NULL;
}

static int find_name(const char *names, const char *name, size_t length, int64_t *ret) {
        const char *word;
        size_t n;

        for (int64_t v = 0; (word = next_word(&names, &n)); v++)
                if (n == length && memcmp(word, name, n) == 0) {
                        *ret = v;
                        return 0;
                }
        return -EINVAL;
}

int tunable_parse(enum tunable_id id, const char *text, int64_t *ret) {
        const struct tunable_info *t = &tunable_table[id];
        const char *open = strchr(text, '['), *close = open ? strchr(open, ']') : NULL;
        char shown[TUNABLE_TEXT_BYTES];
        int64_t v;

        if (!t->names)
                return tunable_parse_number(text, t->min, t->max, ret);
        if (!close)
                return find_name(t->names, text, strlen(text), ret);
        if (find_name(t->names, open + 1, (size_t) (close - open) - 1, &v) < 0 || strcmp(tunable_format(id, v, shown), text) != 0)
                return -EINVAL;
        *ret = v;
        return 0;
}

/* All names, that of the value in brackets; or only that one. */
static void format_names(const char *names, int64_t value, bool is_all, char text[TUNABLE_TEXT_BYTES]) {
        const char *word;
        size_t n, at = 0;

        text[0] = '\0';
        for (int64_t v = 0; (word = next_word(&names, &n)) && at < TUNABLE_TEXT_BYTES; v++)
                if (is_all || v == value)
                        at += (size_t) snprintf(text + at, TUNABLE_TEXT_BYTES - at, "%s%s%.*s%s", at > 0 ? " " : "",
                                                is_all && v == value ? "[" : "", (int) n, word, is_all && v == value ? "]" : "");
}

const char *tunable_format(enum tunable_id id, int64_t value, char text[TUNABLE_TEXT_BYTES]) {
        if (tunable_table[id].names)
                format_names(tunable_table[id].names, value, true, text);
        else
                (void) snprintf(text, TUNABLE_TEXT_BYTES, "%" PRId64, value);
        return text;
}

const char *tunable_format_value(enum tunable_id id, int64_t value, char text[TUNABLE_TEXT_BYTES]) {
        if (tunable_table[id].names)
                format_names(tunable_table[id].names, value, false, text);
        else
                (void) snprintf(text, TUNABLE_TEXT_BYTES, "%" PRId64, value);
        return text;
}

const char *tunable_format_range(enum tunable_id id, char text[TUNABLE_TEXT_BYTES]) {
        const struct tunable_info *t = &tunable_table[id];
        const char *names = t->names, *word;
        size_t n, at = 0;

        if (!names) {
                (void) snprintf(text, TUNABLE_TEXT_BYTES, "%" PRId64 " to %" PRId64, t->min, t->max);
                return text;
        }
        text[0] = '\0';
        for (int64_t v = 0; (word = next_word(&names, &n)) && at < TUNABLE_TEXT_BYTES; v++)
                at += (size_t) snprintf(text + at, TUNABLE_TEXT_BYTES - at, "%s%.*s", v == 0 ? "" : v < t->max ? ", " : " or ", (int) n, word);
        return text;
}

void tunables_print_help(FILE *f) {
        for (int i = 0; i < TUNABLE_MAX_; i++) {
                const struct tunable_info *t = &tunable_table[i];
                char range[TUNABLE_TEXT_BYTES], def[TUNABLE_TEXT_BYTES];

                fprintf(f, "  %-34s [%s, default %s%s%s]\n      %s\n", t->name, tunable_format_range((enum tunable_id) i, range),
                        tunable_format_value((enum tunable_id) i, t->def, def), t->unit[0] ? " " : "", t->unit, t->text);
        }
}
