#include <errno.h>
#include <string.h>

#include "daemon/core/internal.h"

struct domain *domain_get(const struct core *c, uint32_t id) {
        struct domain *d = pool_has(&c->domains, id_index(id)) ? domain_at(c, id_index(id)) : NULL;

        return d && d->id == id ? d : NULL;
}

static int domain_new(struct core *c, const void *key, size_t key_size, uint32_t *ret_index) {
        struct domain *d;
        uint32_t i;
        int r;

        r = pool_alloc(&c->domains, &i);
        if (r < 0)
                return r;
        d = domain_at(c, i);
        d->key = memory_realloc(&c->memory, NULL, 0, key_size + 1);
        if (!d->key) {
                pool_free(&c->domains, i);
                return -ENOMEM;
        }
        d->key_size = key_size + 1; /* as allocated */
        memcpy(d->key, key, key_size);
        d->key[key_size] = 0;
        d->core = c;
        d->id = core_new_id(c, i);
        index_init(&d->index, &c->memory, content_fetch, d);
        for (int k = 0; k < TURN_KINDS; k++)
                d->turns[k] = (struct turn_list){ NIL, NIL };
        *ret_index = i;
        return 0;
}

int core_domain(struct core *c, const void *key, size_t key_size, uint32_t *ret_domain) {
        uint32_t i;
        int r;

        for (i = pool_next(&c->domains, 0); i != NIL; i = pool_next(&c->domains, i + 1)) {
                struct domain *d = domain_at(c, i);

                if (d->key_size == key_size + 1 && memcmp(d->key, key, key_size) == 0)
                        break;
        }
        if (i == NIL) {
                r = domain_new(c, key, key_size, &i);
                if (r < 0)
                        return r;
        }
        *ret_domain = domain_at(c, i)->id;
        return 0;
}

/* A publish in flight keeps its segment, and so the domain. */
void domain_free_if_unused(struct core *c, uint32_t index) {
        struct domain *d = domain_at(c, index);

        if (d->n_clients > 0 || d->n_segments > 0)
                return;
        index_done(&d->index);
        memory_release(&c->memory, d->units, d->units_capacity * sizeof(*d->units));
        memory_release(&c->memory, d->open, d->open_capacity * sizeof(struct segment *));
        memory_release(&c->memory, d->key, d->key_size);
        pool_free(&c->domains, index);
}
