#include "daemon/sys/digest.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <xxhash.h>

#include "common/cleanup.h"

int digest_secret_draw(struct digest_secret *s) {
        /* Up to 256 bytes come whole or not at all, once the kernel's pool is ready. */
        ssize_t n;
        do
                n = getrandom(s->bytes, sizeof(s->bytes), 0);
        while (n < 0 && errno == EINTR);
        if (n < 0)
                return -errno;
        return n == (ssize_t) sizeof(s->bytes) ? 0 : -EIO;
}

uint64_t digest_page(const struct digest_secret *s, const void *page) {
        return XXH3_64bits_withSecret(page, KSM_PAGE_SIZE, s->bytes, sizeof(s->bytes));
}

bool digest_page_is_zero(const void *page) {
        /* Equal to itself shifted by 8 bytes, and those 8 are zero. Most pages end at the first comparison. */
        uint64_t first;
        memcpy(&first, page, sizeof(first));
        return first == 0 && memcmp(page, (const uint8_t *) page + sizeof(first), KSM_PAGE_SIZE - sizeof(first)) == 0;
}
