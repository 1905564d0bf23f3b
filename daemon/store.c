#include "daemon/store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/fault.h"
#include "common/log.h"
#include "daemon/notify.h"
#include "daemon/sys/peer.h"
#include "proto/messages.h"

/* NOLINTNEXTLINE(misc-redundant-expression): two names, kept equal */
_Static_assert(SEGMENT_LIMIT_SLOTS == SEGMENT_SLOTS_MAX, "daemon/sys may not include proto");

void store_init(struct store *s) {
        *s = (struct store){ .filler = -1 };
}

struct store_domain *store_domain_ref(struct store_domain *d) {
        d->n_refs++;
        return d;
}

int store_domain_open(struct store *s, uint32_t id, const char *key, size_t key_size, struct store_domain **ret) {
        struct store_domain *d = idmap_get(&s->domains, id);
        if (!d) {
                if (!peer_key_lasts(key, key_size))
                        key_size = 0;
                d = malloc(sizeof(*d) + key_size);
                if (!d)
                        return -ENOMEM;
                *d = (struct store_domain){ .store = s, .id = id, .key_size = key_size };
                memcpy(d->key, key, key_size);
                int r = digest_secret_draw(&d->secret);
                if (r == 0)
                        r = idmap_put(&s->domains, id, d);
                if (r < 0) {
                        free(d);
                        return r;
                }
        }
        *ret = store_domain_ref(d);
        return 0;
}

struct store_domain *store_domain_unref(struct store_domain *d) {
        if (d && --d->n_refs == 0) {
                (void) idmap_remove(&d->store->domains, d->id);
                explicit_bzero(&d->secret, sizeof(d->secret));
                free(d);
        }
        return NULL;
}

static struct store_segment *segment_entry_free(struct store_segment *s) {
        if (s) {
                segment_file_free(s->segment);
                store_domain_unref(s->domain);
                free(s);
        }
        return NULL;
}

struct store_segment *store_segment_find(struct store *s, uint32_t id) {
        return idmap_get(&s->segments, id);
}

struct store_segment *store_segment_by_inode(struct store *s, uint64_t inode) {
        struct store_segment *e = idmap_get(&s->by_inode, (uint32_t) inode);
        return e && e->segment && e->segment->inode == inode ? e : NULL;
}

static int add_segment(struct store *s, uint32_t id, struct store_domain *domain, struct segment_file *file, bool is_kept) {
        struct store_segment *e = calloc(1, sizeof(*e));
        if (!e)
                return -ENOMEM;
        int r = idmap_put(&s->segments, id, e);
        if (r < 0) {
                free(e);
                return r;
        }
        *e = (struct store_segment){ .store = s, .id = id, .domain = store_domain_ref(domain), .segment = file, .is_kept = is_kept };
        (void) idmap_put(&s->by_inode, (uint32_t) file->inode, e);
        return 0;
}

int store_segment_adopt(struct store *s, uint32_t id, struct store_domain *domain, struct segment_file *file) {
        return add_segment(s, id, domain, file, true);
}

int store_segment_open(struct store *s, uint32_t id, struct store_domain *domain, uint32_t n_slots, int node, struct store_segment **ret) {
        _cleanup_(segment_file_freep) struct segment_file *file = NULL;
        *ret = store_segment_find(s, id);
        if (*ret)
                return 0;
        int r = segment_file_new(s->filler, n_slots, node, domain->key, domain->key_size, &file);
        if (r < 0)
                return r;
        bool is_kept = file->has_label && notify_keep_fd(file->client_fd, file->inode);
        if (is_kept)
                fault_point(FAULT_segment_kept);
        r = add_segment(s, id, domain, file, is_kept);
        if (r < 0) {
                if (is_kept)
                        notify_forget_fd(file->inode);
                return r;
        }
        TAKE_PTR(file);
        *ret = store_segment_find(s, id);
        return 0;
}

static void run_seal(struct worker_job *job, void *scratch) {
        struct store_segment *s = (struct store_segment *) job;
        s->error = segment_file_seal(s->segment);
}

/* Frees up to 16 MiB of page cache when nobody maps them any more. */
static void run_free(struct worker_job *job, void *scratch) {
        struct store_segment *s = (struct store_segment *) job;
        s->segment = segment_file_free(s->segment);
        fault_point(FAULT_segment_freed);
}

/* Starts what is wanted once nobody uses the segment. */
static void advance(struct store_segment *s) {
        if (s->n_pins > 0 || !(s->free_wanted || s->seal_wanted))
                return;
        s->n_pins++;
        s->error = 0;
        s->job.run = s->free_wanted ? run_free : run_seal;
        s->seal_wanted = false;
        workers_submit(s->store->workers, &s->job);
}

void store_segment_pin(struct store_segment *s) {
        s->n_pins++;
}

void store_segment_unpin(struct store_segment *s) {
        s->n_pins--;
        advance(s);
}

void store_segment_event(struct store *s, const struct core_segment_event *e) {
        struct store_segment *segment = store_segment_find(s, e->segment);
        if (!segment) /* it could not be created */
                return;
        if (e->kind == CORE_SEGMENT_DROP) {
                /* The id is free at once: nobody will ask for this one again. */
                (void) idmap_remove(&s->segments, e->segment);
                if (idmap_get(&s->by_inode, (uint32_t) segment->segment->inode) == segment)
                        (void) idmap_remove(&s->by_inode, (uint32_t) segment->segment->inode);
                if (segment->is_kept)
                        notify_forget_fd(segment->segment->inode);
                segment->free_wanted = true;
                fault_point(FAULT_segment_dropped);
        } else
                segment->seal_wanted = true;
        advance(segment);
}

bool store_is_job(const struct worker_job *job) {
        return job->run == run_seal || job->run == run_free;
}

void store_job_done(struct store *s, struct worker_job *job) {
        struct store_segment *segment = (struct store_segment *) job;
        segment->n_pins--;
        if (segment->error < 0)
                log_warning_errno(segment->error, "segment %u: cannot seal, it stays unwritable by its other seals",
                                  segment->id);
        if (!segment->segment)
                segment_entry_free(segment);
        else
                advance(segment);
}

void store_done(struct store *s) {
        IDMAP_FOREACH(&s->segments, e)
                segment_entry_free(e->value);
        idmap_clear(&s->segments);
        idmap_clear(&s->by_inode);
        IDMAP_FOREACH(&s->domains, e)
                free(e->value);
        idmap_clear(&s->domains);
}
