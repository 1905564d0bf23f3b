/* Numbers and tables for people. Pure: text in, text out to the given stream. */
#pragma once

#include <stdint.h>
#include <stdio.h>

#include "common/counters.h"
#include "proto/messages.h"

#define TEXT_BYTES 48 /* enough for every format_ below and the name of every tunable */

/* "0", "512 B", "4.0 KiB", "1.50 GiB", "-3.2 MiB": three digits, binary units. All return `text`. */
const char *format_bytes(char text[TEXT_BYTES], int64_t bytes);
const char *format_pages(char text[TEXT_BYTES], int64_t pages); /* as bytes */
const char *format_usec(char text[TEXT_BYTES], uint64_t usec);  /* "850 us", "12.3 ms", "4.21 s", "3 h 5 min" */
/* A name that came from outside, safe for a terminal: anything but printable ASCII becomes '?'. */
const char *format_name(char text[TEXT_BYTES], const char *name, size_t size);
/* The same for any length: `size` bytes at most of name, as far as they fit. */
const char *make_printable(char *text, size_t capacity, const char *name, size_t size);

/* Columns are as wide as their widest cell. Cells are copied. */
#define TABLE_COLUMNS_MAX 16
struct table {
        unsigned n_columns, n_cells, allocated;
        const char *const *titles;
        uint32_t left_mask; /* bit i: column i is text, aligned left */
        char (*cells)[TEXT_BYTES];
        int error; /* -ENOMEM: sticky; printing says so */
};
void table_init(struct table *t, const char *const *titles, unsigned n_columns, uint32_t left_mask);
void table_cell(struct table *t, const char *text);
void table_rule(struct table *t); /* a row of dashes */
int table_print(const struct table *t, FILE *f);
void table_free(struct table *t);

/* -- what the numbers mean --------------------------------------------------------------------------------- */

/* At the ends of the type instead of beyond: a client may have registered 16 EiB of holes. */
int64_t add_clamped(int64_t a, int64_t b);
int64_t subtract_clamped(int64_t a, int64_t b);
int64_t pages_to_bytes(int64_t pages);

/* All that is saved: further mappings of shared pages, and zero pages given back. */
int64_t saved_bytes(const struct counters *c);
/* A process's part of it. Nobody owns a shared page, so each mapping bears an equal part of its cost (as PSS does):
 * merged * sharing / (sharing + shared) + zero. The parts of all processes add up to saved_bytes. */
int64_t client_saved_bytes(const struct counters *c, const struct client_element *client);
const char *client_state_name(uint32_t state);

/* So many permille of the turns of the daemon's loop took at most so long: an upper bound, that of the bucket. 0: none yet. cpu: by the
 * loop's CPU time instead of the clock. */
int64_t turn_quantile_usec(const struct counters *c, int permille, int cpu);
