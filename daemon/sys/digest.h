/* The keyed hash of a page, and whether it is all zero. The hash (XXH3, 64 bits) is a hint: equality decides, in the
 * agent. The secret makes it useless to someone who wants to build collisions or compare hashes across domains (I4). */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* XXH3's own secret size: long inputs are mixed with all of it. */
#define DIGEST_SECRET_BYTES 192

struct digest_secret {
        uint8_t bytes[DIGEST_SECRET_BYTES];
};

/* Draws a secret from the kernel. 0 or -errno. */
int digest_secret_draw(struct digest_secret *s);
/* Both read KSM_PAGE_SIZE bytes. Any thread. */
uint64_t digest_page(const struct digest_secret *s, const void *page);
bool digest_page_is_zero(const void *page);
