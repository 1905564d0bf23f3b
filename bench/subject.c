/* subject: the process that a benchmark merges. Says what its own operations cost.
 *
 *   subject INSTANCE AREA...        AREA: KIND:PAGES[:STRIDE]
 *
 *   common      the same pages in the same order in every instance
 *   unique      pages of this instance alone
 *   scattered   every STRIDE-th page is common, in an order of this instance's own; the others are unique
 *   sparse      address space of which only the first page is touched
 *
 * Every area is a private anonymous mapping. Commands come on stdin, a line each, answers go to stdout, a line of JSON each
 * (struct cost); the first answer says that everything is filled. A page is rewritten with bytes that no other page has.
 *
 *   offer, unmerge              madvise(MADV_MERGEABLE, MADV_UNMERGEABLE) of all areas
 *   write AREA STEP MSEC        rewrites every STEP-th page, whole, again and again for MSEC; 0: once
 *   poke AREA STEP              stores a word (the one that is there) to every STEP-th page
 *   read AREA STEP              loads a word of every STEP-th page
 *   visit MSEC                  loads words at random places of all areas for MSEC
 *   check                       compares every byte with what it must be; ends the program with a message if one differs
 *
 * CPU time is the calling thread's: an agent in this process, and a daemon, are for others to count. write works in a thread of its own:
 * the kernel splits a thread's CPU time in the ratio of all the timer ticks of its life, so that of a thread with a past, which took page
 * faults to fill its memory, some of each second is system time that is none. */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sysexits.h>
#include <time.h>

#include "common/cleanup.h"
#include "common/uapi.h"

#define AREAS_MAX 8
#define PAGE_WORDS (KSM_PAGE_SIZE / sizeof(uint64_t))
#define LINE_BYTES 128
#define NSEC UINT64_C(1000000000)
/* visit: an access is timed when so many untimed ones have passed, so that the clock does not dominate. A stall lasts longer than these. */
#define VISIT_UNTIMED 7
#define SAMPLES_MAX (UINT64_C(1) << 22)
/* Content numbers: below it the pages of an instance, from it on those that all have. */
#define COMMON_BASE (UINT64_C(1) << 60)
#define INSTANCE_SHIFT 40
#define AREA_SHIFT 34

enum kind { COMMON, UNIQUE, SCATTERED, SPARSE, KIND_MAX_ };
static const char *const kind_names[KIND_MAX_] = { "common", "unique", "scattered", "sparse" };

struct area {
        enum kind kind;
        uint64_t n_pages, stride;
        uint64_t *memory;
        /* Every write_step-th page has been rewritten so often. */
        uint64_t write_step, generation;
};

struct subject {
        uint64_t instance;
        struct area areas[AREAS_MAX];
        unsigned n_areas;
        uint64_t random;
        uint32_t *samples_ns; /* of one command */
};

struct cost {
        uint64_t cpu_ns, wall_ns;
        uint64_t minor_faults, system_usec;
        uint64_t n_pages, n_samples;
};

static uint64_t mix(uint64_t x) {
        x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
        return x ^ (x >> 31);
}

/* -- contents -------------------------------------------------------------------------------------------------------------- */

/* A number coprime to n, so that i * it mod n visits all of n in an order that depends on the instance. */
static uint64_t coprime(uint64_t instance, uint64_t n) {
        uint64_t candidate = (mix(instance + 1) % n) | 1;

        for (;; candidate += 2) {
                uint64_t a = candidate, b = n;

                while (b) {
                        uint64_t t = a % b;
                        a = b;
                        b = t;
                }
                if (a == 1)
                        return candidate;
        }
}

static uint64_t content_of(const struct subject *s, const struct area *a, uint64_t page) {
        uint64_t own = (s->instance << INSTANCE_SHIFT) + ((uint64_t) (a - s->areas) << AREA_SHIFT) + page;

        if (a->generation > 0 && page % a->write_step == 0)
                return mix(own) ^ (a->generation << 1); /* of no other page, but by a chance of 2^-64 */
        if (a->kind == COMMON)
                return COMMON_BASE + page;
        if (a->kind == SCATTERED && page % a->stride == 0) {
                uint64_t n = a->n_pages / a->stride;

                return COMMON_BASE + page / a->stride * coprime(s->instance, n) % n;
        }
        return own;
}

static uint64_t word(uint64_t content, uint64_t i) {
        return (mix(content) | 1) * (i + 1); /* never 0, one content's words differ */
}

static void page_fill(uint64_t *page, uint64_t content) {
        for (uint64_t i = 0; i < PAGE_WORDS; i++)
                page[i] = word(content, i);
}

static uint64_t *page_at(const struct area *a, uint64_t page) {
        return a->memory + page * PAGE_WORDS;
}

/* A sparse area has only its first page. */
static uint64_t pages_used(const struct area *a) {
        return a->kind == SPARSE ? 1 : a->n_pages;
}

static int area_parse(struct area *a, const char *text) {
        char kind[16];
        int n = sscanf(text, "%15[a-z]:%" SCNu64 ":%" SCNu64, kind, &a->n_pages, &a->stride);

        if (n < 2 || a->n_pages == 0 || a->n_pages >> AREA_SHIFT)
                return -EINVAL;
        for (unsigned i = 0; i < KIND_MAX_; i++) {
                if (strcmp(kind, kind_names[i]) != 0)
                        continue;
                a->kind = (enum kind) i;
                if ((a->kind == SCATTERED) != (n == 3) || (n == 3 && (a->stride == 0 || a->n_pages < 2 * a->stride)))
                        return -EINVAL;
                return 0;
        }
        return -EINVAL;
}

static int area_make(const struct subject *s, struct area *a) {
        a->memory = mmap(NULL, a->n_pages * KSM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (a->memory == MAP_FAILED)
                return -errno;
        for (uint64_t page = 0; page < pages_used(a); page++)
                page_fill(page_at(a, page), content_of(s, a, page));
        return 0;
}

/* -- what a command costs -------------------------------------------------------------------------------------------------- */

static uint64_t now_ns(clockid_t clock) {
        struct timespec t;

        (void) clock_gettime(clock, &t);
        return (uint64_t) t.tv_sec * NSEC + (uint64_t) t.tv_nsec;
}

static struct cost cost_now(void) {
        struct rusage r;

        (void) getrusage(RUSAGE_THREAD, &r);
        return (struct cost){
                .cpu_ns = now_ns(CLOCK_THREAD_CPUTIME_ID),
                .wall_ns = now_ns(CLOCK_MONOTONIC),
                .minor_faults = (uint64_t) r.ru_minflt,
                .system_usec = (uint64_t) r.ru_stime.tv_sec * 1000000 + (uint64_t) r.ru_stime.tv_usec,
        };
}

static int by_size(const void *a, const void *b) {
        uint32_t x = *(const uint32_t *) a, y = *(const uint32_t *) b;

        return (x > y) - (x < y);
}

static uint32_t permille(const struct subject *s, uint64_t n, unsigned p) {
        return n > 0 ? s->samples_ns[MIN(n * p / 1000, n - 1)] : 0;
}

static void answer(struct subject *s, const struct cost *begin, struct cost end) {
        uint64_t n = end.n_samples;

        qsort(s->samples_ns, n, sizeof(*s->samples_ns), by_size);
        (void) printf("{\"cpu_ns\": %" PRIu64 ", \"wall_ns\": %" PRIu64 ", \"minor_faults\": %" PRIu64 ", \"system_usec\": %" PRIu64
                      ", \"pages\": %" PRIu64 ", \"samples\": %" PRIu64 ", \"p50_ns\": %u, \"p99_ns\": %u, \"p999_ns\": %u, \"max_ns\": %u}\n",
                      end.cpu_ns - begin->cpu_ns, end.wall_ns - begin->wall_ns, end.minor_faults - begin->minor_faults,
                      end.system_usec - begin->system_usec, end.n_pages, n, permille(s, n, 500), permille(s, n, 990), permille(s, n, 999),
                      n > 0 ? s->samples_ns[n - 1] : 0);
        (void) fflush(stdout);
}

static void sample(struct subject *s, uint64_t *n, uint64_t ns) {
        if (*n < SAMPLES_MAX)
                s->samples_ns[(*n)++] = (uint32_t) MIN(ns, (uint64_t) UINT32_MAX);
}

/* -- commands -------------------------------------------------------------------------------------------------------------- */

static int advise(struct subject *s, int advice) {
        for (unsigned i = 0; i < s->n_areas; i++)
                if (madvise(s->areas[i].memory, s->areas[i].n_pages * KSM_PAGE_SIZE, advice) < 0)
                        return -errno;
        return 0;
}

struct rewriting {
        struct subject *s;
        struct area *a;
        uint64_t step, msec;
        struct cost begin, end;
};

static void *rewrite(void *userdata) {
        struct rewriting *w = userdata;
        struct area *a = w->a;
        uint64_t n = 0, end = now_ns(CLOCK_MONOTONIC) + w->msec * (NSEC / 1000);

        w->begin = cost_now();
        a->write_step = w->step;
        do {
                a->generation++;
                for (uint64_t page = 0; page < a->n_pages; page += w->step, n++)
                        page_fill(page_at(a, page), content_of(w->s, a, page));
        } while (now_ns(CLOCK_MONOTONIC) < end);
        w->end = cost_now();
        w->end.n_pages = n;
        return NULL;
}

static int rewrite_apart(struct rewriting *w) {
        pthread_t thread;
        int r = pthread_create(&thread, NULL, rewrite, w);

        return r ? -r : -pthread_join(thread, NULL);
}

static uint64_t poke(struct subject *s, struct area *a, uint64_t step) {
        uint64_t n = 0;

        for (uint64_t page = 0; page < a->n_pages; page += step) {
                volatile uint64_t *p = page_at(a, page);
                uint64_t value = word(content_of(s, a, page), 0), begin = now_ns(CLOCK_MONOTONIC);

                *p = value;
                sample(s, &n, now_ns(CLOCK_MONOTONIC) - begin);
        }
        return n;
}

static uint64_t load(struct subject *s, struct area *a, uint64_t step) {
        uint64_t n = 0;

        for (uint64_t page = 0; page < a->n_pages; page += step) {
                volatile uint64_t *p = page_at(a, page);
                uint64_t begin = now_ns(CLOCK_MONOTONIC);

                (void) *p;
                sample(s, &n, now_ns(CLOCK_MONOTONIC) - begin);
        }
        return n;
}

static volatile uint64_t *random_word(struct subject *s) {
        const struct area *a;

        s->random = s->random * UINT64_C(6364136223846793005) + 1442695040888963407;
        a = &s->areas[(s->random >> 33) % s->n_areas];
        return page_at(a, mix(s->random) % pages_used(a)) + s->random % PAGE_WORDS;
}

static uint64_t visit(struct subject *s, uint64_t msec) {
        uint64_t n = 0, now = now_ns(CLOCK_MONOTONIC), end = now + msec * (NSEC / 1000);

        while (now < end) {
                volatile uint64_t *p = random_word(s);
                uint64_t begin;

                for (unsigned i = 0; i < VISIT_UNTIMED; i++)
                        (void) *random_word(s);
                begin = now_ns(CLOCK_MONOTONIC);
                (void) *p;
                now = now_ns(CLOCK_MONOTONIC);
                sample(s, &n, now - begin);
        }
        return n;
}

static int check(const struct subject *s) {
        for (unsigned i = 0; i < s->n_areas; i++) {
                const struct area *a = &s->areas[i];

                for (uint64_t page = 0; page < pages_used(a); page++) {
                        uint64_t content = content_of(s, a, page), *found = page_at(a, page);

                        for (uint64_t w = 0; w < PAGE_WORDS; w++) {
                                if (found[w] == word(content, w))
                                        continue;
                                (void) fprintf(stderr, "subject %" PRIu64 ": area %u page %" PRIu64 " word %" PRIu64 " at %p: %" PRIx64
                                               " instead of %" PRIx64 "\n", s->instance, i, page, w, (void *) &found[w], found[w],
                                               word(content, w));
                                return -EIO;
                        }
                }
        }
        return 0;
}

/* "write AREA STEP [MSEC]", "poke AREA STEP" or "read AREA STEP". */
static bool has_area(const struct subject *s, const char *line, unsigned *area, uint64_t *step, uint64_t *msec) {
        static const char *const verbs[] = { "write ", "poke ", "read " };

        for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
                if (strncmp(line, verbs[i], strlen(verbs[i])) == 0)
                        return sscanf(line, "%*s %u %" SCNu64 " %" SCNu64, area, step, msec) >= 2 && *area < s->n_areas && *step > 0;
        return false;
}

/* 0 or a negative errno; -EINVAL also for what is no command. */
static int command(struct subject *s, const char *line) {
        struct cost begin = cost_now(), end = {};
        unsigned area = 0;
        uint64_t step = 0, msec = 0, n_pages = 0, n_samples = 0;
        int r = 0;

        if (strcmp(line, "offer\n") == 0)
                r = advise(s, MADV_MERGEABLE);
        else if (strcmp(line, "unmerge\n") == 0)
                r = advise(s, MADV_UNMERGEABLE);
        else if (strcmp(line, "check\n") == 0)
                r = check(s);
        else if (sscanf(line, "visit %" SCNu64, &msec) == 1)
                n_samples = visit(s, msec);
        else if (!has_area(s, line, &area, &step, &msec))
                r = -EINVAL;
        else if (strncmp(line, "write ", 6) == 0) {
                struct rewriting w = { .s = s, .a = &s->areas[area], .step = step, .msec = msec };

                r = rewrite_apart(&w);
                if (r >= 0)
                        answer(s, &w.begin, w.end);
                return r;
        } else if (strncmp(line, "poke ", 5) == 0)
                n_pages = n_samples = poke(s, &s->areas[area], step);
        else
                n_pages = n_samples = load(s, &s->areas[area], step);
        if (r < 0)
                return r;
        end = cost_now();
        end.n_pages = n_pages;
        end.n_samples = n_samples;
        answer(s, &begin, end);
        return 0;
}

int main(int argc, char **argv) {
        static struct subject s;
        struct cost begin = cost_now();
        char line[LINE_BYTES];
        int r = 0;

        if (argc < 3 || argc - 2 > AREAS_MAX) {
                (void) fprintf(stderr, "usage: subject INSTANCE AREA...\n");
                return EX_USAGE;
        }
        s.instance = s.random = strtoull(argv[1], NULL, 10);
        s.n_areas = (unsigned) argc - 2;
        s.samples_ns = mmap(NULL, SAMPLES_MAX * sizeof(*s.samples_ns), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        if (s.samples_ns == MAP_FAILED)
                return EX_OSERR;
        for (unsigned i = 0; r >= 0 && i < s.n_areas; i++) {
                r = area_parse(&s.areas[i], argv[i + 2]);
                if (r >= 0)
                        r = area_make(&s, &s.areas[i]);
                if (r < 0)
                        (void) fprintf(stderr, "subject: %s: %s\n", argv[i + 2], strerror(-r));
        }
        if (r >= 0)
                answer(&s, &begin, cost_now());
        while (r >= 0 && fgets(line, sizeof(line), stdin)) {
                r = command(&s, line);
                if (r < 0)
                        (void) fprintf(stderr, "subject: %.*s: %s\n", (int) strcspn(line, "\n"), line, strerror(-r));
        }
        return r < 0 ? 1 : 0;
}
