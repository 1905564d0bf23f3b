#include "ctl/render.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"

const char *format_bytes(char text[TEXT_BYTES], int64_t bytes) {
        static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
        double value = (double) bytes, size = value < 0 ? -value : value;
        unsigned unit = 0;

        if (bytes == 0)
                return strcpy(text, "0");
        /* 1023.5 would be printed as 1024. */
        for (; size >= 1023.5 && unit < ARRAY_SIZE(units) - 1; unit++) {
                size /= 1024;
                value /= 1024;
        }
        snprintf(text, TEXT_BYTES, "%.*f %s", unit == 0 || size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2, value,
                 units[unit]);
        return text;
}

const char *format_pages(char text[TEXT_BYTES], int64_t pages) {
        return format_bytes(text, pages_to_bytes(pages));
}

const char *format_usec(char text[TEXT_BYTES], uint64_t usec) {
        uint64_t seconds = usec / 1000000;

        if (usec < 1000)
                snprintf(text, TEXT_BYTES, "%u us", (unsigned) usec);
        else if (usec < 1000000)
                snprintf(text, TEXT_BYTES, "%.1f ms", (double) usec / 1e3);
        else if (seconds < 60)
                snprintf(text, TEXT_BYTES, "%.2f s", (double) usec / 1e6);
        else if (seconds < 3600)
                snprintf(text, TEXT_BYTES, "%u min %u s", (unsigned) (seconds / 60), (unsigned) (seconds % 60));
        else if (seconds < 86400)
                snprintf(text, TEXT_BYTES, "%u h %u min", (unsigned) (seconds / 3600),
                         (unsigned) (seconds % 3600 / 60));
        else
                snprintf(text, TEXT_BYTES, "%llu d %u h", (unsigned long long) (seconds / 86400),
                         (unsigned) (seconds % 86400 / 3600));
        return text;
}

const char *make_printable(char *text, size_t capacity, const char *name, size_t size) {
        size_t n = strnlen(name, MIN(size, capacity - 1));

        for (size_t i = 0; i < n; i++)
                text[i] = (char) (name[i] >= ' ' && name[i] <= '~' ? name[i] : '?');
        text[n] = 0;
        return text;
}

const char *format_name(char text[TEXT_BYTES], const char *name, size_t size) {
        make_printable(text, TEXT_BYTES, name, size);
        return *text ? text : strcpy(text, "?");
}

void table_init(struct table *t, const char *const *titles, unsigned n_columns, uint32_t left_mask) {
        *t = (struct table) { .n_columns = n_columns, .titles = titles, .left_mask = left_mask };
}

void table_cell(struct table *t, const char *text) {
        if (t->n_cells == t->allocated) {
                unsigned allocated = MAX(64u, 2 * t->allocated);
                void *p = realloc(t->cells, (size_t) allocated * sizeof(*t->cells));

                if (!p) {
                        t->error = -ENOMEM;
                        return;
                }
                t->cells = p;
                t->allocated = allocated;
        }
        snprintf(t->cells[t->n_cells++], sizeof(*t->cells), "%s", text);
}

/* Printed as dashes over the whole column. No name can be mistaken for it: format_name leaves no control characters. */
#define RULE_CELL "\001"

void table_rule(struct table *t) {
        for (unsigned i = 0; i < t->n_columns; i++)
                table_cell(t, RULE_CELL);
}

static void print_cell(const struct table *t, FILE *f, unsigned column, unsigned width, const char *text) {
        bool left = t->left_mask & 1u << column, last = column + 1 == t->n_columns;

        if (strcmp(text, RULE_CELL) == 0)
                for (unsigned i = 0; i < width; i++)
                        fputc('-', f);
        else if (left)
                fprintf(f, "%-*s", last ? 0 : (int) width, text);
        else
                fprintf(f, "%*s", (int) width, text);
        fputs(last ? "\n" : "  ", f);
}

int table_print(const struct table *t, FILE *f) {
        unsigned width[TABLE_COLUMNS_MAX];

        assert(t->n_columns > 0);
        if (t->error < 0)
                return t->error;
        for (unsigned i = 0; i < t->n_columns; i++)
                width[i] = (unsigned) strlen(t->titles[i]);
        for (unsigned i = 0; i < t->n_cells; i++)
                width[i % t->n_columns] = MAX(width[i % t->n_columns], (unsigned) strlen(t->cells[i]));
        for (unsigned i = 0; i < t->n_columns; i++)
                print_cell(t, f, i, width[i], t->titles[i]);
        for (unsigned i = 0; i < t->n_cells; i++)
                print_cell(t, f, i % t->n_columns, width[i % t->n_columns], t->cells[i]);
        return 0;
}

void table_free(struct table *t) {
        free(t->cells);
        t->cells = NULL;
}

int64_t add_clamped(int64_t a, int64_t b) {
        int64_t sum;

        return !__builtin_add_overflow(a, b, &sum) ? sum : b < 0 ? INT64_MIN : INT64_MAX;
}

int64_t subtract_clamped(int64_t a, int64_t b) {
        int64_t difference;

        return !__builtin_sub_overflow(a, b, &difference) ? difference : b < 0 ? INT64_MAX : INT64_MIN;
}

int64_t pages_to_bytes(int64_t pages) {
        int64_t bytes;

        return !__builtin_mul_overflow(pages, (int64_t) KSM_PAGE_SIZE, &bytes) ? bytes : pages < 0 ? INT64_MIN : INT64_MAX;
}

int64_t saved_bytes(const struct counters *c) {
        return pages_to_bytes(add_clamped(c->pages_sharing, c->ksm_zero_pages));
}

int64_t client_saved_bytes(const struct counters *c, const struct client_element *client) {
        double mappings = (double) c->pages_sharing + (double) c->pages_shared;
        double saved = (double) client->zero_pages;

        if (mappings > 0)
                saved += (double) client->merged_pages * (double) c->pages_sharing / mappings;
        saved *= (double) KSM_PAGE_SIZE;
        return saved >= -0x1p63 && saved < 0x1p63 ? (int64_t) saved : saved < 0 ? INT64_MIN : INT64_MAX;
}

const char *client_state_name(uint32_t state) {
        switch ((enum client_state) state) {
        case CLIENT_ACTIVE:
                return "active";
        case CLIENT_RAW:
                return "raw";
        case CLIENT_PARKED:
                return "parked";
        case CLIENT_STATE_MAX_:
                break;
        }
        return "?";
}

int64_t turn_quantile_usec(const struct counters *c, int permille, int cpu) {
        const int64_t *n = (const int64_t *) c + (cpu ? COUNTER_turn_cpu_le_256_usec : COUNTER_turn_le_256_usec);
        int64_t longest = cpu ? c->turn_cpu_longest_usec : c->turn_longest_usec, all = 0, above = 0;

        for (unsigned i = 0; i < TURN_BUCKETS; i++)
                all = add_clamped(all, n[i]);
        for (unsigned i = TURN_BUCKETS; i-- > 0;) {
                above = add_clamped(above, n[i]);
                if (above > all / 1000 * (1000 - permille) + all % 1000 * (1000 - permille) / 1000) /* this bucket holds it */
                        return i == TURN_BUCKETS - 1 ? longest : MIN(longest, (int64_t) turn_bucket_usec[i]);
        }
        return 0;
}
