/* Programs: drawn from a seed, read from a file, printed. The printed form is the replay file. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "tests/shadow/shadow.h"

#define SETTLE_EVERY 1500U    /* operations: pages have to lie still for a while to be merged at all */
#define SAME_ACTOR_PERMILLE 970U
#define RACE_ROUND_OPS 24U

const char *const op_names[OP_KINDS] = {
#define X(name, weight, where) #name,
        OPS(X)
#undef X
};

static const struct {
        uint16_t weight, where;
} op_table[OP_KINDS] = {
#define X(name, weight, where) { weight, where },
        OPS(X)
#undef X
};

static const char *const family_names[FAMILIES] = { "sequence", "parallel", "race", "raw" };

const char *family_name(enum family family) {
        return family_names[family];
}

enum family family_of(const char *name) {
        for (enum family f = 0; f < FAMILIES; f++)
                if (strcmp(name, family_names[f]) == 0)
                        return f;
        fail("no family %s", name);
}

static uint64_t state;

static uint32_t draw(uint32_t below) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return (uint32_t) ((state * 0x2545f4914f6cdd1dULL) >> 33) % below;
}

/* -- drawing -------------------------------------------------------------------------------------------------- */

static unsigned where_of(enum family family) {
        return family == FAMILY_PARALLEL ? IN_PARALLEL : family == FAMILY_RACE ? IN_RACE : IN_SEQUENCE;
}

/* Advice and calls on whole tables of pages are drawn by weight; a program has a taste of its own, so that some mix many
 * remaps with forks and others with io_uring: each weight is multiplied by 0, 1 or 4. */
static void draw_weights(enum family family, uint32_t *weights, uint32_t *total) {
        *total = 0;
        for (unsigned k = 0; k < OP_KINDS; k++) {
                static const uint8_t tastes[8] = { 0, 1, 1, 1, 1, 1, 4, 4 };
                uint32_t w = op_table[k].where & where_of(family) ? op_table[k].weight : 0;
                if (k != OP_load && k != OP_store && k != OP_fill && family != FAMILY_RACE)
                        w *= tastes[draw(8)];
                if (family == FAMILY_RACE) /* all are in earnest here */
                        w = w ? (k == OP_load || k == OP_store ? 12 : k == OP_fork_check || k == OP_pageout ? 1 : 4) : 0;
                weights[k] = w;
                *total += w;
        }
}

static enum op_kind draw_kind(const uint32_t *weights, uint32_t total) {
        uint32_t dice = draw(total);
        unsigned k = 0;
        while (dice >= weights[k])
                dice -= weights[k++];
        return (enum op_kind) k;
}

static uint16_t draw_pages(void) {
        switch (draw(16)) {
        case 0: return WINDOW_PAGES;
        case 1: return (uint16_t) (1 + draw(WINDOW_PAGES));
        case 2:
        case 3:
        case 4: return (uint16_t) (1 + draw(16));
        default: return (uint16_t) (1 + draw(4));
        }
}

static uint8_t draw_arena(enum family family, uint32_t actor, enum op_kind kind) {
        if (kind == OP_brk_by || kind == OP_brk_to)
                return 11;
        if (family == FAMILY_PARALLEL)
                return (uint8_t) (actor + THREADS * draw(3)); /* arenas.c gives each thread three */
        return (uint8_t) draw(draw(4) ? 4 : ARENAS);          /* mostly those that can be merged */
}

static void draw_op(struct op *o, enum family family, enum op_kind kind, uint32_t actor, const char *raw, bool raw_now) {
        *o = (struct op) {
                .kind = (uint16_t) kind, .actor = (uint8_t) actor, .arena = draw_arena(family, actor, kind),
                .to = draw_arena(family, actor, kind), .pages = draw_pages(), .page = (uint16_t) draw(1024),
                .to_page = (uint16_t) draw(1024), .value = draw(1U << 30), .arg = draw(1U << 30),
        };
        if (op_table[kind].where & BY_MAIN)
                o->actor = 0;
        if (raw_now && (op_table[kind].where & CAN_BE_RAW) && (!*raw || strcmp(raw, op_names[kind]) == 0))
                o->raw = 1;
}

/* Exception "mremap of pages that may be pinned": a program has descriptors that pin pages, or calls that need all pages back. */
static void draw_pins(uint64_t seed, uint32_t *weights) {
        static const uint8_t pinning[] = { OP_direct_in, OP_direct_out, OP_uring_register, OP_uring_in, OP_uring_out };
        static const uint8_t moving[] = { OP_remap_shrink, OP_remap_grow, OP_remap_away, OP_remap_fixed, OP_remap_dontunmap,
                                          OP_remap_roam, OP_wipeonfork };
        bool pins = seed % 3 == 0;
        for (unsigned i = 0; i < ARRAY_SIZE(pinning) && !pins; i++)
                weights[pinning[i]] = 0;
        for (unsigned i = 0; i < ARRAY_SIZE(moving) && pins; i++)
                weights[moving[i]] = 0;
}

uint32_t fork_slot(const struct op *o) {
        return THREADS + o->arg % (ACTORS - THREADS);
}

static uint32_t draw_actor(unsigned lives) {
        uint32_t actor;
        do
                actor = draw(ACTORS);
        while (!(lives >> actor & 1));
        return actor;
}

void program_generate(struct program *p, enum family family, uint64_t seed, uint32_t n, const char *raw) {
        state = (seed + 1) * 0x9e3779b97f4a7c15ULL | 1;
        for (unsigned i = 0; i < 8; i++)
                (void) draw(2);
        uint32_t weights[OP_KINDS], total, actor = 0;
        draw_weights(family, weights, &total);
        if (family == FAMILY_RAW)
                weights[OP_fork] = weights[OP_exec] = 0;
        if (seed & 1) /* malloc may not trim its heap where the program moves the break itself: half of them each */
                weights[OP_brk_by] = weights[OP_brk_to] = 0;
        draw_pins(seed, weights);
        if (family == FAMILY_RAW && *raw) /* the one that goes around libc is to happen */
                for (unsigned k = 0; k < OP_KINDS; k++)
                        if (strcmp(raw, op_names[k]) == 0)
                                weights[k] = 60;
        for (total = 0, actor = 0; actor < OP_KINDS; actor++)
                total += weights[actor];
        actor = 0;
        unsigned lives = (1U << THREADS) - 1;
        p->family = family;
        p->seed = seed;
        p->n = n;
        p->ops = calloc(n, sizeof(*p->ops));
        check(p->ops, "memory");
        for (uint32_t i = 0; i < n; i++) {
                if (family == FAMILY_PARALLEL || family == FAMILY_RACE)
                        actor = draw(THREADS);
                else if (family == FAMILY_SEQUENCE && (!(lives >> actor & 1) || draw(1000) >= SAME_ACTOR_PERMILLE))
                        actor = draw_actor(lives);
                enum op_kind kind = i % SETTLE_EVERY == SETTLE_EVERY / 4 && family != FAMILY_RACE ? OP_settle : draw_kind(weights, total);
                draw_op(&p->ops[i], family, kind, actor, raw, family == FAMILY_RAW && i > n / 3);
                p->ops[i].round = i / RACE_ROUND_OPS;
                if (kind == OP_fork)
                        lives |= 1U << fork_slot(&p->ops[i]);
                else if (kind == OP_exit && actor >= THREADS)
                        lives &= ~(1U << actor);
        }
}

/* -- text ----------------------------------------------------------------------------------------------------- */

#define OP_FORMAT "%-14s actor %u arena %u page %u pages %u to %u page %u value %u arg %u round %u raw %u"

void program_print(const struct program *p) {
        printf("program %s seed %llu\n", family_name(p->family), (unsigned long long) p->seed);
        for (uint32_t i = 0; i < p->n; i++) {
                const struct op *o = &p->ops[i];
                printf(OP_FORMAT "\n", op_names[o->kind], o->actor, o->arena, o->page, o->pages, o->to, o->to_page,
                       o->value, o->arg, o->round, o->raw);
        }
}

static enum op_kind kind_of(const char *name) {
        for (unsigned k = 0; k < OP_KINDS; k++)
                if (strcmp(name, op_names[k]) == 0)
                        return (enum op_kind) k;
        fail("no operation %s", name);
}

static bool read_op(const char *line, struct op *o) {
        char name[32];
        unsigned v[10];
        if (sscanf(line, "%31s actor %u arena %u page %u pages %u to %u page %u value %u arg %u round %u raw %u", name, &v[0],
                   &v[1], &v[2], &v[3], &v[4], &v[5], &v[6], &v[7], &v[8], &v[9]) != 11)
                return false;
        *o = (struct op) {
                .kind = (uint16_t) kind_of(name), .actor = (uint8_t) v[0], .arena = (uint8_t) v[1], .page = (uint16_t) v[2],
                .pages = (uint16_t) v[3], .to = (uint8_t) v[4], .to_page = (uint16_t) v[5], .value = v[6], .arg = v[7],
                .round = v[8], .raw = (uint8_t) v[9],
        };
        return o->actor < ACTORS && o->arena < ARENAS && o->to < ARENAS;
}

void program_read(struct program *p, const char *path) {
        FILE *f = fopen(path, "re");
        check(f, "%s", path);
        char line[256], family[32];
        unsigned long long seed;
        uint32_t room = 0;
        p->n = 0;
        p->ops = NULL;
        while (fgets(line, sizeof(line), f)) {
                if (line[0] == '#' || line[0] == '\n')
                        continue;
                if (sscanf(line, "program %31s seed %llu", family, &seed) == 2) {
                        p->family = family_of(family);
                        p->seed = seed;
                        continue;
                }
                if (p->n == room) {
                        room = room ? room * 2 : 64;
                        p->ops = realloc(p->ops, room * sizeof(*p->ops));
                        check(p->ops, "memory");
                }
                check(read_op(line, &p->ops[p->n]), "%s: not an operation: %s", path, line);
                p->n++;
        }
        fclose(f);
}
