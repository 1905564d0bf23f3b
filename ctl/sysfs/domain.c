#include "ctl/sysfs/domain.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_PREFIX "domain"

const char *const domain_file_names[DOMAIN_FILE_MAX_] = {
#define X(name, value) [DOMAIN_FILE_##name] = #name,
        DOMAIN_FILES(X)
#undef X
        [DOMAIN_FILE_key] = "key",
};

int domain_file_find(const char *name) {
        for (int i = 0; i < DOMAIN_FILE_MAX_; i++)
                if (strcmp(domain_file_names[i], name) == 0)
                        return i;
        return -ENOENT;
}

void domain_name(uint32_t domain, char name[DOMAIN_NAME_BYTES]) {
        snprintf(name, DOMAIN_NAME_BYTES, NAME_PREFIX "%" PRIu32, domain);
}

/* Only the name that domain_name gives: one directory has one name. */
int domain_parse(const char *name, uint32_t *ret_domain) {
        char again[DOMAIN_NAME_BYTES];
        size_t n = strlen(NAME_PREFIX);

        if (strncmp(name, NAME_PREFIX, n) != 0)
                return -ENOENT;
        *ret_domain = (uint32_t) strtoul(name + n, NULL, 10);
        domain_name(*ret_domain, again);
        return strcmp(name, again) == 0 ? 0 : -ENOENT;
}

static uint64_t number(enum domain_file file, const struct domain_element *d) {
        switch (file) {
#define X(name, value)             \
        case DOMAIN_FILE_##name:   \
                return (uint64_t) (value);
                DOMAIN_FILES(X)
#undef X
        case DOMAIN_FILE_key:
        case DOMAIN_FILE_MAX_:
                break;
        }
        return 0;
}

size_t domain_show(enum domain_file file, const struct domain_element *d, char text[DOMAIN_TEXT_BYTES]) {
        int n;

        if (file == DOMAIN_FILE_key)
                n = snprintf(text, DOMAIN_TEXT_BYTES, "%.*s\n", (int) sizeof(d->key), d->key);
        else
                n = snprintf(text, DOMAIN_TEXT_BYTES, "%" PRIu64 "\n", number(file, d));
        return (size_t) n;
}
