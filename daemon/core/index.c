#include "daemon/core/index.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "common/cleanup.h"

#define LINE_ENTRIES 8
/* Ids stored plus one, so that zeroed memory is empty. */
#define EMPTY 0
#define TOMBSTONE UINT32_MAX
/* 4096 lines are 256 KiB: a rebuild stays in the second-level cache. */
#define SHARD_MAX_LINES 4096
#define SHARD_MIN_LINES 1
/* A probe may run past the last home line into these. */
#define SPARE_LINES 8
/* Above this many used entries of 8 a line in the mean the shard grows; after growing by 1.25 it is at 5.8. */
#define MAX_LOAD_PERMILLE 910
#define FETCH_BATCH 16

struct line {
        struct index_entry e[LINE_ENTRIES];
};
struct index_shard {
        uint32_t depth;
        uint32_t n_lines; /* home lines; SPARE_LINES more follow */
        uint32_t n_used, n_tombstones;
        struct line lines[];
};

static size_t shard_bytes(uint32_t n_lines) {
        return sizeof(struct index_shard) + (size_t) (n_lines + SPARE_LINES) * sizeof(struct line);
}

static struct index_shard *shard_new(struct memory *m, uint32_t depth, uint32_t n_lines) {
        struct index_shard *s = memory_realloc(m, NULL, 0, shard_bytes(n_lines));

        if (!s)
                return NULL;
        memset(s, 0, shard_bytes(n_lines));
        s->depth = depth;
        s->n_lines = n_lines;
        return s;
}

static uint32_t home(const struct index_shard *s, uint32_t key) {
        uint32_t rest = s->depth < 32 ? key << s->depth : 0;

        return (uint32_t) (((uint64_t) rest * s->n_lines) >> 32);
}

static uint32_t directory(const struct index *x, uint32_t key) {
        return x->depth ? key >> (32 - x->depth) : 0;
}

void index_init(struct index *x, struct memory *m, void (*fetch)(void *owner, uint32_t id), void *owner) {
        *x = (struct index){ .memory = m, .fetch = fetch, .owner = owner };
}

/* Number of directory cells that point to the same shard as cell i. */
static uint32_t span(const struct index *x, uint32_t i) {
        return 1U << (x->depth - x->shards[i]->depth);
}

void index_done(struct index *x) {
        if (!x->shards)
                return;
        for (uint32_t i = 0, n; i < 1U << x->depth; i += n) {
                n = span(x, i);
                memory_release(x->memory, x->shards[i], shard_bytes(x->shards[i]->n_lines));
        }
        memory_release(x->memory, x->shards, sizeof(*x->shards) << x->depth);
        index_init(x, x->memory, x->fetch, x->owner);
}

/* False when neither home line nor its followers have room. */
static bool shard_put(struct index_shard *s, struct index_entry e) {
        for (uint32_t l = home(s, e.key); l < s->n_lines + SPARE_LINES; l++)
                for (unsigned i = 0; i < LINE_ENTRIES; i++) {
                        struct index_entry *p = &s->lines[l].e[i];

                        if (p->id != EMPTY && p->id != TOMBSTONE)
                                continue;
                        s->n_tombstones -= p->id == TOMBSTONE;
                        s->n_used++;
                        *p = e;
                        return true;
                }
        return false;
}

static bool is_used(struct index_entry e) {
        return e.id != EMPTY && e.id != TOMBSTONE;
}

/* Streams s into one or two new shards. Lines are walked in the order of keys, so both sides are walked once. */
static bool shard_stream(const struct index_shard *s, struct index_shard *to[2]) {
        for (uint32_t l = 0; l < s->n_lines + SPARE_LINES; l++)
                for (unsigned i = 0; i < LINE_ENTRIES; i++) {
                        struct index_entry e = s->lines[l].e[i];

                        if (is_used(e) && !shard_put(to[to[1] ? e.key >> (31 - s->depth) & 1 : 0], e))
                                return false;
                }
        return true;
}

static int directory_double(struct index *x) {
        struct index_shard **d;
        uint32_t n = 1U << x->depth;

        d = memory_realloc(x->memory, x->shards, sizeof(*d) * n, sizeof(*d) * n * 2);
        if (!d)
                return -ENOMEM;
        for (uint32_t i = n; i-- > 0;)
                d[2 * (size_t) i + 1] = d[2 * (size_t) i] = d[i];
        x->shards = d;
        x->depth++;
        return 0;
}

/* Rebuilds the key's shard with room for more: same size when tombstones are to blame, larger, or as two halves. */
static int shard_grow(struct index *x, uint32_t key) {
        struct index_shard *s = x->shards[directory(x, key)], *to[2] = {};
        uint32_t n_lines = s->n_tombstones > s->n_used / 8 ? s->n_lines : s->n_lines + s->n_lines / 4 + 1;
        /* Two levels below 32 bits a key no longer tells lines apart; 2^30 shards will not be reached. */
        bool split = n_lines > SHARD_MAX_LINES && s->depth < 24;
        uint32_t first, n;
        int r;

        if (split && s->depth == x->depth) {
                r = directory_double(x);
                if (r < 0)
                        return r;
        }
        for (unsigned attempt = 0;; attempt++) {
                uint32_t lines = split ? n_lines / 2 + 1 : n_lines;

                to[0] = shard_new(x->memory, s->depth + split, lines);
                to[1] = split && to[0] ? shard_new(x->memory, s->depth + 1, lines) : NULL;
                if (to[0] && (!split || to[1]) && shard_stream(s, to))
                        break;
                r = !to[0] || (split && !to[1]) || attempt == 8;
                for (unsigned i = 0; i < 2; i++)
                        memory_release(x->memory, to[i], shard_bytes(lines));
                if (r)
                        return -ENOMEM;
                n_lines += n_lines / 4 + 1; /* an unlucky cluster ran past the spare lines */
        }
        first = directory(x, key) & ~((1U << (x->depth - s->depth)) - 1);
        n = 1U << (x->depth - s->depth);
        for (uint32_t i = 0; i < n; i++)
                x->shards[first + i] = to[split ? i >= n / 2 : 0];
        memory_release(x->memory, s, shard_bytes(s->n_lines));
        return 0;
}

int index_insert(struct index *x, uint64_t hash, uint32_t id) {
        uint32_t key = index_key(hash);
        struct index_entry e = { .key = key, .id = id + 1 };

        assert(id < INDEX_ID_MAX);
        if (!x->shards) {
                x->shards = memory_realloc(x->memory, NULL, 0, sizeof(*x->shards));
                if (!x->shards)
                        return -ENOMEM;
                x->shards[0] = shard_new(x->memory, 0, SHARD_MIN_LINES);
                if (!x->shards[0]) {
                        memory_release(x->memory, x->shards, sizeof(*x->shards));
                        x->shards = NULL;
                        return -ENOMEM;
                }
                x->depth = 0;
        }
        for (;;) {
                struct index_shard *s = x->shards[directory(x, key)];
                uint64_t limit = (uint64_t) s->n_lines * LINE_ENTRIES * MAX_LOAD_PERMILLE / 1000;
                int r;

                if (s->n_used + s->n_tombstones < limit && shard_put(s, e)) {
                        x->n_entries++;
                        return 0;
                }
                r = shard_grow(x, key);
                if (r < 0)
                        return r;
        }
}

static const struct line *home_line(const struct index *x, uint64_t hash) {
        const struct index_shard *s = x->shards[directory(x, index_key(hash))];

        return &s->lines[home(s, index_key(hash))];
}

void index_fetch(const struct index *x, const uint64_t *hashes, size_t n) {
        for (size_t from = 0; x->shards && from < n; from += FETCH_BATCH) {
                size_t end = MIN(n, from + FETCH_BATCH);

                for (size_t k = from; k < end; k++)
                        __builtin_prefetch(home_line(x, hashes[k]));
                for (size_t k = from; k < end; k++) {
                        const struct line *line = home_line(x, hashes[k]);

                        for (unsigned i = 0; i < LINE_ENTRIES; i++)
                                if (is_used(line->e[i]) && line->e[i].key == index_key(hashes[k]))
                                        x->fetch(x->owner, line->e[i].id - 1);
                }
        }
}

static struct index_entry *entry_of(const struct index *x, uint64_t hash, uint32_t id, struct line **ret_line) {
        uint32_t key = index_key(hash);
        struct index_shard *s = x->shards ? x->shards[directory(x, key)] : NULL;

        for (uint32_t l = s ? home(s, key) : 0; s && l < s->n_lines + SPARE_LINES; l++) {
                bool last = false;

                for (unsigned i = 0; i < LINE_ENTRIES; i++) {
                        if (s->lines[l].e[i].id == id + 1) {
                                *ret_line = &s->lines[l];
                                return &s->lines[l].e[i];
                        }
                        last |= s->lines[l].e[i].id == EMPTY;
                }
                if (last)
                        break;
        }
        return NULL;
}

bool index_remove(struct index *x, uint64_t hash, uint32_t id) {
        struct line *line;
        struct index_entry *e = entry_of(x, hash, id, &line);
        struct index_shard *s;
        bool has_empty = false;

        if (!e)
                return false;
        s = x->shards[directory(x, index_key(hash))];
        for (unsigned i = 0; i < LINE_ENTRIES; i++)
                has_empty |= line->e[i].id == EMPTY;
        *e = (struct index_entry){ .id = has_empty ? EMPTY : TOMBSTONE };
        s->n_tombstones += !has_empty;
        s->n_used--;
        x->n_entries--;
        return true;
}

bool index_replace(struct index *x, uint64_t hash, uint32_t id, uint32_t new_id) {
        struct line *line;
        struct index_entry *e = entry_of(x, hash, id, &line);

        if (e)
                e->id = new_id + 1;
        return e;
}

uint32_t index_find(const struct index *x, uint64_t hash, bool (*match)(void *userdata, uint32_t id), void *userdata) {
        uint32_t key = index_key(hash);
        const struct index_shard *s = x->shards ? x->shards[directory(x, key)] : NULL;

        for (uint32_t l = s ? home(s, key) : 0; s && l < s->n_lines + SPARE_LINES; l++) {
                bool last = false;

                for (unsigned i = 0; i < LINE_ENTRIES; i++) {
                        struct index_entry e = s->lines[l].e[i];

                        last |= e.id == EMPTY;
                        if (e.key == key && is_used(e) && match(userdata, e.id - 1))
                                return e.id - 1;
                }
                if (last)
                        break;
        }
        return NIL;
}

void index_each(const struct index *x, void (*visit)(void *userdata, struct index_entry e), void *userdata) {
        for (uint32_t i = 0, n; x->shards && i < 1U << x->depth; i += n) {
                const struct index_shard *s = x->shards[i];

                n = span(x, i);
                for (uint32_t l = 0; l < s->n_lines + SPARE_LINES; l++)
                        for (unsigned j = 0; j < LINE_ENTRIES; j++) {
                                struct index_entry e = s->lines[l].e[j];

                                if (!is_used(e))
                                        continue;
                                e.id--;
                                visit(userdata, e);
                        }
        }
}

uint64_t index_bytes(const struct index *x) {
        uint64_t bytes = x->shards ? sizeof(*x->shards) << x->depth : 0;

        for (uint32_t i = 0, n; x->shards && i < 1U << x->depth; i += n) {
                n = span(x, i);
                bytes += shard_bytes(x->shards[i]->n_lines);
        }
        return bytes;
}
