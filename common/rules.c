/* Lines, patterns and verdicts. Nothing is kept: a rule is parsed, asked, and forgotten, so there is no limit to how many there are. */
#include "common/rules.h"

#include <string.h>

#include "common/cleanup.h"

static bool is_blank(char c) {
        return c == ' ' || c == '\t';
}

static bool equals(struct rule_text t, const char *word) {
        return t.length == strlen(word) && memcmp(t.text, word, t.length) == 0;
}

/* The next word of the line from *at on; length 0: none is left. */
static struct rule_text next_word(const char *line, size_t length, size_t *at) {
        struct rule_text word;

        while (*at < length && is_blank(line[*at]))
                ++*at;
        word.text = line + *at;
        while (*at < length && !is_blank(line[*at]))
                ++*at;
        word.length = (size_t) (line + *at - word.text);
        return word;
}

static enum rule_action parse_action(struct rule_text word) {
        static const struct {
                const char *name;
                enum rule_action action;
        } actions[] = { { "merge-any", RULE_MERGE_ANY }, { "madvise", RULE_MADVISE }, { "off", RULE_OFF } };

        for (size_t i = 0; i < ARRAY_SIZE(actions); i++)
                if (equals(word, actions[i].name))
                        return actions[i].action;
        return RULE_NONE;
}

/* Decimal, nothing else, below 2^32 - 1, which is no user. Returns the digits read, 0: wrong. */
static size_t parse_number(const char *p, size_t length, uint32_t *ret) {
        uint64_t value = 0;
        size_t n = 0;

        for (; n < length && p[n] >= '0' && p[n] <= '9'; n++) {
                value = value * 10 + (uint64_t) (p[n] - '0');
                if (value >= UINT32_MAX)
                        return 0;
        }
        *ret = (uint32_t) value;
        return n;
}

static enum rule_error parse_uid(struct rule_text value, struct rule *r) {
        size_t n = parse_number(value.text, value.length, &r->uid_first), more;

        if (r->has_uid)
                return RULE_TWICE;
        if (n == 0)
                return RULE_BAD_UID;
        r->has_uid = true;
        r->uid_last = r->uid_first;
        if (n == value.length)
                return RULE_OK;
        if (value.text[n] != '-')
                return RULE_BAD_UID;
        n++;
        more = parse_number(value.text + n, value.length - n, &r->uid_last);
        return more > 0 && n + more == value.length && r->uid_first <= r->uid_last ? RULE_OK : RULE_BAD_UID;
}

static enum rule_error parse_pattern(struct rule_text value, bool is_path, struct rule_text *ret) {
        if (ret->text)
                return RULE_TWICE;
        if (is_path && value.text[0] != '/' && value.text[0] != '*')
                return RULE_BAD_PATH;
        *ret = value;
        return RULE_OK;
}

static enum rule_error parse_condition(struct rule_text word, struct rule *r) {
        const char *sign = memchr(word.text, '=', word.length);
        struct rule_text key, value;

        if (!sign)
                return RULE_BAD_CONDITION;
        key = (struct rule_text){ word.text, (size_t) (sign - word.text) };
        value = (struct rule_text){ sign + 1, word.length - key.length - 1 };
        if (value.length == 0)
                return RULE_BAD_CONDITION;
        if (equals(key, "uid"))
                return parse_uid(value, r);
        if (equals(key, "unit"))
                return parse_pattern(value, false, &r->unit);
        if (equals(key, "cgroup"))
                return parse_pattern(value, true, &r->cgroup);
        if (equals(key, "exe"))
                return parse_pattern(value, true, &r->exe);
        return RULE_BAD_CONDITION;
}

enum rule_error rule_parse(const char *line, size_t length, struct rule *ret) {
        struct rule r = { .action = RULE_NONE };
        unsigned n_conditions = 0;
        size_t at = 0;

        if (length > RULE_LINE_MAX)
                return RULE_TOO_LONG;
        for (size_t i = 0; i < length; i++)
                if ((unsigned char) line[i] < ' ' ? line[i] != '\t' : line[i] == 0x7f)
                        return RULE_BAD_CHARACTER;
        for (struct rule_text word; (word = next_word(line, length, &at)).length > 0;) {
                enum rule_error e;

                if (word.text[0] == '#')
                        break;
                if (r.action == RULE_NONE) {
                        r.action = parse_action(word);
                        if (r.action == RULE_NONE)
                                return RULE_BAD_ACTION;
                        continue;
                }
                e = parse_condition(word, &r);
                if (e != RULE_OK)
                        return e;
                n_conditions++;
        }
        if (r.action == RULE_NONE)
                return RULE_EMPTY;
        if (n_conditions == 0)
                return RULE_NO_CONDITION;
        *ret = r;
        return RULE_OK;
}

/* On a mismatch the last * takes one character more: earlier ones need not, for what they can take the last one can as well. */
bool rule_pattern_matches(struct rule_text pattern, struct rule_text text) {
        size_t p = 0, t = 0, star = SIZE_MAX, star_text = 0;

        while (t < text.length) {
                if (p < pattern.length && pattern.text[p] == '*') {
                        star = p++;
                        star_text = t;
                } else if (p < pattern.length && (pattern.text[p] == '?' || pattern.text[p] == text.text[t])) {
                        p++;
                        t++;
                } else if (star != SIZE_MAX) {
                        p = star + 1;
                        t = ++star_text;
                } else
                        return false;
        }
        while (p < pattern.length && pattern.text[p] == '*')
                p++;
        return p == pattern.length;
}

/* An unknown fact counts only when nothing that is known says no. */
static void ask(struct rule_text pattern, struct rule_text text, enum rule_verdict *v) {
        if (!pattern.text || *v == RULE_HOLDS_NOT)
                return;
        if (!text.text)
                *v = RULE_UNKNOWN;
        else if (!rule_pattern_matches(pattern, text))
                *v = RULE_HOLDS_NOT;
}

enum rule_verdict rule_holds(const struct rule *r, struct rule_facts *f) {
        enum rule_verdict v = RULE_HOLDS;

        /* The cheapest first: most programs are told apart without a look at the others. */
        if (r->has_uid && (f->uid < r->uid_first || f->uid > r->uid_last))
                return RULE_HOLDS_NOT;
        if (r->exe.text && !f->has_exe) {
                f->has_exe = true;
                f->find_exe(f);
        }
        ask(r->exe, f->exe, &v);
        if (v != RULE_HOLDS_NOT && (r->unit.text || r->cgroup.text) && !f->has_cgroup) {
                f->has_cgroup = true;
                f->find_cgroup(f);
        }
        ask(r->cgroup, f->cgroup, &v);
        ask(r->unit, f->unit, &v);
        return v;
}

/* -- control groups ------------------------------------------------------------------------------------------------- */

/* The rest of a line of /proc/PID/cgroup, if it is that of the hierarchy. */
static bool path_of_line(struct rule_text line, const char *hierarchy, struct rule_text *ret) {
        size_t n = strlen(hierarchy);
        const char *colon = memchr(line.text, ':', line.length);
        size_t at = colon ? (size_t) (colon - line.text) + 1 : line.length;

        if (line.length - at <= n || memcmp(line.text + at, hierarchy, n) != 0 || line.text[at + n] != '/')
                return false;
        *ret = (struct rule_text){ line.text + at + n, line.length - at - n };
        return true;
}

struct rule_text rule_cgroup_path(const char *text, size_t length) {
        struct rule_text unified = { 0 }, named = { 0 };

        for (size_t i = 0; i < length;) {
                const char *end = memchr(text + i, '\n', length - i);
                struct rule_text line = { text + i, end ? (size_t) (end - text) - i : length - i };

                if (line.text[0] == '0')
                        (void) path_of_line(line, ":", &unified);
                (void) path_of_line(line, "name=systemd:", &named);
                i += line.length + 1;
        }
        return named.length > 1 && unified.length <= 1 ? named : unified.text ? unified : named;
}

static bool ends_with(struct rule_text t, const char *suffix) {
        size_t n = strlen(suffix);

        return t.length > n && memcmp(t.text + t.length - n, suffix, n) == 0;
}

struct rule_text rule_cgroup_unit(struct rule_text path) {
        struct rule_text unit = { path.text, 0 };

        for (size_t i = 0; i < path.length;) {
                const char *end = memchr(path.text + i, '/', path.length - i);
                struct rule_text name = { path.text + i, end ? (size_t) (end - path.text) - i : path.length - i };

                if (ends_with(name, ".service") || ends_with(name, ".scope"))
                        unit = name;
                i += name.length + 1;
        }
        return unit;
}

const char *rule_error_text(enum rule_error e) {
        static const char *const texts[RULE_ERROR_MAX_] = {
                [RULE_OK] = "no error",
                [RULE_EMPTY] = "no rule",
                [RULE_BAD_ACTION] = "the action is not merge-any, madvise or off",
                [RULE_NO_CONDITION] = "no condition (exe=* holds for every program)",
                [RULE_BAD_CONDITION] = "not a condition: unit=PATTERN, cgroup=PATTERN, exe=PATTERN, uid=N or uid=N-M",
                [RULE_TWICE] = "the same condition twice",
                [RULE_BAD_PATH] = "a path must begin with / or *",
                [RULE_BAD_UID] = "not a user id, or two with the smaller first: uid=N, uid=N-M",
                [RULE_BAD_CHARACTER] = "a control character",
                [RULE_TOO_LONG] = "the line is longer than 1024 bytes",
                [RULE_BAD_OWNER] = "not read: others than root may write it (owner root, mode 0644 or less; the directory 0755)",
                [RULE_BAD_KIND] = "not read: not a regular file",
                [RULE_TOO_MANY_FILES] = "nothing is read: more than 64 files",
                [RULE_NAME_TOO_LONG] = "not read: its name is longer than 63 bytes",
                [RULE_FILE_TOO_LARGE] = "not read further than 1 MiB",
                [RULE_UNREADABLE] = "cannot be read",
        };

        return (unsigned) e < RULE_ERROR_MAX_ ? texts[e] : "?";
}
