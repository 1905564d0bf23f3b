/* Numbers are read as lib/kstrtox.c does: an optional sign, decimal digits, at most one newline, nothing else. */
#include "ctl/sysfs/attribute.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

const struct attribute attribute_table[ATTRIBUTE_MAX_] = {
#define T(name, format) [ATTRIBUTE_##name] = { #name, format, TUNABLE_##name },
#define C(name, counter) [ATTRIBUTE_##name] = { #name, ATTRIBUTE_COUNTER, COUNTER_##counter },
        ATTRIBUTES(T, C)
#undef T
#undef C
};

int attribute_find(const char *name) {
        for (int i = 0; i < ATTRIBUTE_MAX_; i++)
                if (strcmp(attribute_table[i].name, name) == 0)
                        return i;
        return -ENOENT;
}

size_t attribute_show(const struct attribute *a, int64_t value, char text[ATTRIBUTE_TEXT_BYTES]) {
        int n;

        if (a->format == ATTRIBUTE_ADVISOR)
                n = snprintf(text, ATTRIBUTE_TEXT_BYTES, "%s\n", value == ADVISOR_NONE ? "[none] scan-time" : "none [scan-time]");
        else
                n = snprintf(text, ATTRIBUTE_TEXT_BYTES, "%" PRId64 "\n", value);
        return (size_t) n;
}

/* -- lib/kstrtox.c ------------------------------------------------------------------------------------------------ */

/* An overflow is told even when what follows is no number's. */
static int parse_digits(const char *s, uint64_t *ret) {
        uint64_t value = 0;
        bool is_too_large = false;
        const char *p = s;

        for (; *p >= '0' && *p <= '9'; p++)
                is_too_large |= __builtin_mul_overflow(value, 10, &value) ||
                                __builtin_add_overflow(value, (uint64_t) (*p - '0'), &value);
        if (p == s)
                return -EINVAL;
        if (is_too_large)
                return -ERANGE;
        if (*p == '\n')
                p++;
        *ret = value;
        return *p ? -EINVAL : 0;
}

static int parse_unsigned(const char *s, uint64_t max, uint64_t *ret) {
        int r = parse_digits(s + (*s == '+'), ret);

        return r == 0 && *ret > max ? -ERANGE : r;
}

static int parse_int(const char *s, int64_t *ret) {
        bool is_negative = *s == '-';
        uint64_t value;
        int r = is_negative ? parse_digits(s + 1, &value) : parse_unsigned(s, UINT64_MAX, &value);

        if (r < 0)
                return r;
        if (value > (uint64_t) INT_MAX + is_negative)
                return -ERANGE;
        *ret = is_negative ? -(int64_t) value : (int64_t) value;
        return 0;
}

static int parse_bool(const char *s, int64_t *ret) {
        bool is_on_or_off = *s == 'o' || *s == 'O';
        const char *c = s + is_on_or_off;

        if (!*c || !strchr(is_on_or_off ? "nNfF" : "eEyYtT1dDnNfF0", *c))
                return -EINVAL;
        *ret = strchr(is_on_or_off ? "nN" : "eEyYtT1", *c) != NULL;
        return 0;
}

/* With or without a newline, as sysfs_streq. */
static bool is_word(const char *s, const char *word) {
        size_t n = strlen(word);

        return strncmp(s, word, n) == 0 && (!s[n] || strcmp(s + n, "\n") == 0);
}

/* -- mm/ksm.c ------------------------------------------------------------------------------------------------------ */

int attribute_parse(const struct attribute *a, const char *text, int64_t *ret_value) {
        uint64_t value = 0;
        int r;

        switch (a->format) {
        case ATTRIBUTE_UINT:
                r = parse_unsigned(text, UINT_MAX, &value) < 0 ? -EINVAL : 0;
                break;
        case ATTRIBUTE_ULONG:
                /* The upper half is beyond any tunable's range. */
                r = parse_unsigned(text, INT64_MAX, &value) < 0 ? -EINVAL : 0;
                break;
        case ATTRIBUTE_KNOB:
                r = parse_unsigned(text, UINT64_MAX, &value);
                if (r == 0 && value > 1)
                        r = -EINVAL;
                break;
        case ATTRIBUTE_INT:
                return parse_int(text, ret_value);
        case ATTRIBUTE_BOOL:
                return parse_bool(text, ret_value);
        case ATTRIBUTE_ADVISOR:
                *ret_value = is_word(text, "scan-time") ? ADVISOR_SCAN_TIME : ADVISOR_NONE;
                return *ret_value != ADVISOR_NONE || is_word(text, "none") ? 0 : -EINVAL;
        case ATTRIBUTE_COUNTER:
        default:
                return -EINVAL;
        }
        if (r == 0)
                *ret_value = (int64_t) value;
        return r;
}
