#include "daemon/config.h"

#include <errno.h>
#include <ini.h>
#include <stddef.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>

#include "common/cleanup.h"

enum option_kind { STRING, NUMBER, LEVEL };
enum option_id {
#define X(name, ...) OPTION_##name,
        OPTIONS(X)
#undef X
                OPTION_MAX_
};
static const struct option_info {
        const char *name;
        enum option_kind kind;
        size_t offset;
        int64_t min, max;
        bool reloadable;
        const char *text;
} option_table[OPTION_MAX_] = {
#define X(name, kind, min, max, def, reloadable, text) \
        [OPTION_##name] = { #name, kind, offsetof(struct config, name), min, max, reloadable, text },
        OPTIONS(X)
#undef X
};

/* Keys given in one file, to find the one given twice. */
#define KEYS_MAX (OPTION_MAX_ + TUNABLE_MAX_)

void config_init(struct config *c) {
        *c = (struct config){
#define DEFAULT_STRING(d) d
#define DEFAULT_NUMBER(d) d
#define DEFAULT_LEVEL(d) d
#define X(name, kind, min, max, def, ...) .name = DEFAULT_##kind(def),
                OPTIONS(X)
#undef X
        };
        tunables_init(&c->tunables);
}

static int parse_level(const char *text, int64_t *ret) {
        static const struct {
                const char *name;
                int level;
        } levels[] = { { "err", LOG_ERR },       { "warning", LOG_WARNING }, { "notice", LOG_NOTICE },
                       { "info", LOG_INFO },     { "debug", LOG_DEBUG } };
        for (size_t i = 0; i < ARRAY_SIZE(levels); i++)
                if (strcmp(text, levels[i].name) == 0) {
                        *ret = levels[i].level;
                        return 0;
                }
        return -EINVAL;
}

static int find_option(const char *key) {
        for (int i = 0; i < OPTION_MAX_; i++)
                if (strcmp(option_table[i].name, key) == 0)
                        return i;
        return -ENOENT;
}

int config_set_option(struct config *c, const char *key, const char *value) {
        int id = find_option(key);
        if (id < 0)
                return id;
        const struct option_info *o = &option_table[id];
        void *field = (char *) c + o->offset;
        size_t length = strlen(value);
        switch (o->kind) {
        case STRING:
                if (length < (size_t) o->min || length > (size_t) o->max)
                        return -EINVAL;
                memcpy(field, value, length + 1);
                return 0;
        case LEVEL:
                return parse_level(value, field);
        case NUMBER:
                return tunable_parse_number(value, o->min, o->max, field);
        }
        return -EINVAL;
}

int config_set_tunable(struct config *c, const char *key, const char *value) {
        int id = tunable_find(key);
        int64_t v;
        if (id < 0)
                return id;
        if (tunable_parse((enum tunable_id) id, value, &v) < 0)
                return -EINVAL;
        return tunable_set(&c->tunables, (enum tunable_id) id, v);
}

/* "100 to 200", or the words that are taken. */
static const char *describe_values(const char *key, bool tunable, char text[TUNABLE_TEXT_BYTES]) {
        if (tunable)
                return tunable_format_range((enum tunable_id) tunable_find(key), text);
        const struct option_info *o = &option_table[find_option(key)];
        if (o->kind == LEVEL)
                return o->text;
        (void) snprintf(text, TUNABLE_TEXT_BYTES, "%lld to %lld%s", (long long) o->min, (long long) o->max, o->kind == STRING ? " bytes" : "");
        return text;
}

/* -- file ----------------------------------------------------------------------------------------------------------- */

struct file_context {
        struct config *config;
        const char *path;
        FILE *file;
        unsigned line;
        const char *keys[KEYS_MAX]; /* names from the tables */
        unsigned n_keys;
        bool failed; /* the first error is what is reported */
        struct config_error *error;
};

__attribute__((format(printf, 2, 3))) static void file_error(struct file_context *f, const char *format, ...) {
        if (f->failed)
                return;
        f->failed = true;
        int n = snprintf(f->error->text, sizeof(f->error->text), "%s:%u: ", f->path, f->line);
        va_list ap;
        va_start(ap, format);
        if (n > 0 && (size_t) n < sizeof(f->error->text))
                (void) vsnprintf(f->error->text + n, sizeof(f->error->text) - (size_t) n, format, ap);
        va_end(ap);
}

/* inih's reader: counts the lines, so that the handler can name them, and notices a line that inih would split. */
static char *read_line(char *buffer, int capacity, void *userdata) {
        struct file_context *f = userdata;
        if (f->failed)
                return NULL;
        char *line = fgets(buffer, capacity, f->file);
        if (!line)
                return NULL;
        f->line++;
        if (!strchr(line, '\n') && !feof(f->file)) {
                file_error(f, "line is longer than %d characters", capacity - 2);
                return NULL;
        }
        return line;
}

static int handle_key(void *userdata, const char *section, const char *name, const char *value) {
        struct file_context *f = userdata;
        bool tunable = strcmp(section, "tunables") == 0;
        if (!tunable && strcmp(section, "daemon") != 0) {
                if (section[0])
                        file_error(f, "unknown section [%s]; there are [daemon] and [tunables]", section);
                else
                        file_error(f, "key \"%s\" stands before any section", name);
                return 0;
        }
        int r = tunable ? config_set_tunable(f->config, name, value) : config_set_option(f->config, name, value);
        if (r == -ENOENT) {
                file_error(f, "unknown key \"%s\" in [%s]", name, section);
                return 0;
        }
        if (r < 0) {
                char values[TUNABLE_TEXT_BYTES];
                file_error(f, "bad value \"%s\" for \"%s\": expected %s", value, name, describe_values(name, tunable, values));
                return 0;
        }
        const char *key = tunable ? tunable_table[tunable_find(name)].name : option_table[find_option(name)].name;
        for (unsigned i = 0; i < f->n_keys; i++)
                if (f->keys[i] == key) {
                        file_error(f, "key \"%s\" is given twice", name);
                        return 0;
                }
        f->keys[f->n_keys++] = key;
        return 1;
}

int config_read_file(struct config *c, const char *path, struct config_error *ret_error) {
        struct file_context f = { .config = c, .path = path, .error = ret_error };
        f.file = fopen(path, "re");
        if (!f.file) {
                int r = -errno;
                (void) snprintf(ret_error->text, sizeof(ret_error->text), "%s: %s", path, strerror(-r));
                return r;
        }
        int r = ini_parse_stream(read_line, &f, handle_key, &f);
        /* inih goes on after a line that is not INI and returns its number; our own errors end the reading. */
        if (r > 0 && (!f.failed || (unsigned) r < f.line)) {
                f.failed = false;
                f.line = (unsigned) r;
                file_error(&f, "not a section, a \"key = value\" or a comment");
        }
        bool broken = ferror(f.file);
        (void) fclose(f.file);
        if (broken && !f.failed) {
                (void) snprintf(ret_error->text, sizeof(ret_error->text), "%s: cannot be read", path);
                return -EIO;
        }
        return f.failed || r != 0 ? -EINVAL : 0;
}

/* -- command line ---------------------------------------------------------------------------------------------------- */

__attribute__((format(printf, 2, 3))) static int usage_error(struct config_error *e, const char *format, ...) {
        va_list ap;
        va_start(ap, format);
        (void) vsnprintf(e->text, sizeof(e->text), format, ap);
        va_end(ap);
        return -EINVAL;
}

/* Options without a value. True when key is one. */
static bool set_flag(struct config *c, const char *key) {
        if (strcmp(key, "private") == 0)
                c->private_mode = true;
        else if (strcmp(key, "no_sandbox") == 0)
                c->sandbox = 0;
        else if (strcmp(key, "help") == 0)
                c->show_help = true;
        else if (strcmp(key, "version") == 0)
                c->show_version = true;
        else if (strcmp(key, "foreground") != 0) /* the only mode there is */
                return false;
        return true;
}

int config_parse_args(struct config *c, int argc, char **argv, struct config_error *ret_error) {
        for (int i = 1; i < argc; i++) {
                char key[64];
                const char *arg = argv[i], *equal = strchr(arg, '='), *value = equal ? equal + 1 : NULL;
                if (strncmp(arg, "--", 2) != 0 || arg[2] == '\0')
                        return usage_error(ret_error, "unexpected argument \"%s\"; try --help", arg);
                size_t length = equal ? (size_t) (equal - arg) - 2 : strlen(arg + 2);
                if (length >= sizeof(key))
                        return usage_error(ret_error, "unknown option \"%s\"; try --help", arg);
                memcpy(key, arg + 2, length);
                key[length] = '\0';
                for (char *p = key; *p; p++)
                        if (*p == '-')
                                *p = '_';
                if (!value && set_flag(c, key))
                        continue;
                bool tunable = tunable_find(key) >= 0, path = strcmp(key, "config") == 0;
                if (!tunable && !path && find_option(key) < 0)
                        return usage_error(ret_error, "unknown option \"%s\"; try --help", arg);
                if (!value && ++i == argc)
                        return usage_error(ret_error, "option \"%s\" needs a value", arg);
                if (!value)
                        value = argv[i];
                if (path) {
                        c->path = value;
                        continue;
                }
                int r = tunable ? config_set_tunable(c, key, value) : config_set_option(c, key, value);
                if (r < 0) {
                        char values[TUNABLE_TEXT_BYTES];
                        return usage_error(ret_error, "bad value \"%s\" for \"--%s\": expected %s", value, key,
                                           describe_values(key, tunable, values));
                }
        }
        return 0;
}

int config_load(struct config *c, int argc, char **argv, struct config_error *ret_error) {
        config_init(c);
        /* Once for the name of the file and what needs none, once more over what the file says. */
        if (config_parse_args(c, argc, argv, ret_error) < 0)
                return EXIT_STATUS_USAGE;
        if (c->show_help || c->show_version)
                return 0;
        const char *path = c->path;
        config_init(c);
        int r = config_read_file(c, path ? path : CONFIG_DEFAULT_PATH, ret_error);
        if (r < 0 && (r != -ENOENT || path))
                return EXIT_STATUS_CONFIG;
        return config_parse_args(c, argc, argv, ret_error) < 0 ? EXIT_STATUS_USAGE : 0;
}

const char *config_fixed_difference(const struct config *a, const struct config *b) {
        for (int i = 0; i < OPTION_MAX_; i++) {
                const struct option_info *o = &option_table[i];
                const char *x = (const char *) a + o->offset, *y = (const char *) b + o->offset;
                if (!o->reloadable && (o->kind == STRING ? strcmp(x, y) : memcmp(x, y, sizeof(int64_t))) != 0)
                        return o->name;
        }
        return NULL;
}

void config_print_help(void) {
        printf("Usage: userksmd [OPTION]...\n"
               "Same-page merging as a service. Runs in the foreground until SIGTERM or SIGINT; SIGHUP reads the\n"
               "configuration again.\n\n"
               "  --config=FILE  instead of " CONFIG_DEFAULT_PATH " (which may be absent)\n"
               "  --private      exit when the last client has left\n"
               "  --no-sandbox   the same as --sandbox=no\n"
               "  --foreground   accepted, the only mode there is\n"
               "  --help, --version\n\n"
               "Section [daemon] of the file, or --key=value:\n");
        for (int i = 0; i < OPTION_MAX_; i++)
                printf("  %-34s %s\n", option_table[i].name, option_table[i].text);
        printf("\nSection [tunables] of the file, or --key=value:\n");
        tunables_print_help(stdout);
}
