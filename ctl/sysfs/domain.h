/* The subdirectories: one for each merge domain, with its sums, for root alone (as in ksmctl status, processes of one user are no
 * business of another's). Names are the kernel's where it has the number. */
#pragma once

#include <stddef.h>

#include "proto/messages.h"

/* X(name, value) of struct domain_element *d */
#define DOMAIN_FILES(X)                                            \
        X(processes, d->n_clients)                                 \
        X(registered_pages, d->registered_pages)                   \
        X(tracked_pages, d->tracked_pages)                         \
        X(pages_shared, d->shared_pages)                           \
        X(pages_sharing, d->merged_pages - d->shared_pages)        \
        X(pages_unshared, d->unshared_pages)                       \
        X(pages_volatile, d->volatile_pages)                       \
        X(ksm_zero_pages, d->zero_pages)                           \
        X(segments, d->n_segments)                                 \
        X(segment_pages, d->segment_pages)                         \
        X(dead_pages, d->dead_pages)

enum domain_file {
#define X(name, value) DOMAIN_FILE_##name,
        DOMAIN_FILES(X)
#undef X
                DOMAIN_FILE_key, /* what its processes have in common */
        DOMAIN_FILE_MAX_
};
extern const char *const domain_file_names[DOMAIN_FILE_MAX_];
int domain_file_find(const char *name); /* or -ENOENT */

/* "domain" and the id, which is unique in the daemon's life. */
#define DOMAIN_NAME_BYTES 24
void domain_name(uint32_t domain, char name[DOMAIN_NAME_BYTES]);
int domain_parse(const char *name, uint32_t *ret_domain); /* 0 or -ENOENT */

/* Room for a key and a newline. */
#define DOMAIN_TEXT_BYTES 128
size_t domain_show(enum domain_file file, const struct domain_element *d, char text[DOMAIN_TEXT_BYTES]);
