/* Main, threads, locking, comparing, and the proof that merging happened. See torture.h.
 *
 *  torture [--seconds N] [--seed S] [--threads N] [--regions N] [--directory D] [--expect-merges 0|1]
 *
 * Prints "torture: seed S, N operations, M pages merged at most, C merges seen, D differences" and exits 0, or says what
 * differs and aborts. */
#include "tests/e2e/torture.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/uapi.h"

struct torture torture;

uint64_t now_usec(void) {
        struct timespec ts;
        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t) ts.tv_sec * 1000000 + (uint64_t) ts.tv_nsec / 1000;
}

uint64_t random_next(struct thread *t) {
        t->random ^= t->random << 13;
        t->random ^= t->random >> 7;
        t->random ^= t->random << 17;
        return t->random * 0x2545f4914f6cdd1dULL;
}

void *shared_alloc(size_t size) {
        void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
                fail("shared memory of %zu bytes: %s", size, strerror(errno));
        return p;
}

void fail(const char *format, ...) {
        char text[512];
        va_list ap;
        va_start(ap, format);
        vsnprintf(text, sizeof(text), format, ap);
        va_end(ap);
        fprintf(stderr, "torture: pid %d: FAILED: %s\n", (int) getpid(), text);
        abort();
}

/* -- locking and comparing -- */

bool run_lock(struct thread *t, struct run *ret, struct region *r, uint32_t first, uint32_t n) {
        for (uint32_t i = 0; i < n; i++) {
                uint32_t expected = 0;
                if (atomic_compare_exchange_strong(&r->meta[first + i].locked, &expected, t->index + 1))
                        continue;
                while (i-- > 0)
                        atomic_store(&r->meta[first + i].locked, 0);
                return false;
        }
        *ret = (struct run) { r, first, n, r->memory + first * PAGE, r->shadow + first * PAGE, false };
        return true;
}

void run_unlock(struct run *run) {
        for (uint32_t i = 0; i < run->n; i++)
                atomic_store(&run->region->meta[run->first + i].locked, 0);
}

void run_note(struct thread *t, struct run *run, const char *op) {
        uint32_t msec = (uint32_t) ((now_usec() - torture.start_usec) / 1000);
        for (uint32_t i = 0; i < run->n; i++) {
                struct page_meta *m = &run->region->meta[run->first + i];
                uint32_t at = m->n_history++ % HISTORY;
                m->history[at].op = op;
                m->history[at].thread = t->index;
                m->history[at].msec = msec;
        }
}

/* The line of /proc/self/maps that covers addr: says whether the page is merged. */
static void print_mapping(const void *addr) {
        FILE *f = fopen("/proc/self/maps", "re");
        char line[512];
        unsigned long start, end;
        while (f && fgets(line, sizeof(line), f))
                if (sscanf(line, "%lx-%lx", &start, &end) == 2 && start <= (unsigned long) addr && (unsigned long) addr < end)
                        fprintf(stderr, "  mapping: %s", line);
        if (f)
                fclose(f);
}

static void print_difference(const uint8_t *memory, const uint8_t *shadow, size_t size) {
        size_t first = size, last = 0, n = 0;
        for (size_t i = 0; i < size; i++)
                if (memory[i] != shadow[i]) {
                        first = first < i ? first : i;
                        last = i;
                        n++;
                }
        bool zero = true;
        for (size_t i = 0; i < size; i++)
                zero = zero && !memory[i];
        fprintf(stderr, "  at %p: %zu bytes differ, offsets %zu to %zu%s; now it %s\n", (const void *) memory, n, first, last,
                zero ? ", all read zero" : "", memcmp(memory, shadow, size) ? "still differs" : "is right");
        if (n) {
                fprintf(stderr, "  expected %02x %02x %02x %02x, found %02x %02x %02x %02x\n", shadow[first],
                        shadow[(first + 1) % size], shadow[(first + 2) % size], shadow[(first + 3) % size], memory[first],
                        memory[(first + 1) % size], memory[(first + 2) % size], memory[(first + 3) % size]);
                for (uint32_t i = 0; i < SERIES; i++) {
                        if (memcmp(memory, torture.series[i], size) == 0)
                                fprintf(stderr, "  found is content %u of the series\n", i);
                        if (memcmp(shadow, torture.series[i], size) == 0)
                                fprintf(stderr, "  expected is content %u of the series\n", i);
                }
        }
        print_mapping(memory);
}

void compare(const uint8_t *memory, const uint8_t *shadow, size_t size, const char *when) {
        if (__builtin_expect(memcmp(memory, shadow, size) == 0, 1))
                return;
        for (size_t at = 0; at < size; at += PAGE) {
                size_t n = size - at < PAGE ? size - at : PAGE;
                if (memcmp(memory + at, shadow + at, n) != 0)
                        print_difference(memory + at, shadow + at, n);
        }
        fail("bytes differ %s", when);
}

void run_verify(struct run *run, const uint8_t *memory, const char *when) {
        if (!memory)
                memory = run->memory;
        if (__builtin_expect(memcmp(memory, run->shadow, run->n * PAGE) == 0, 1))
                return;
        for (uint32_t i = 0; i < run->n; i++) {
                if (memcmp(memory + i * PAGE, run->shadow + i * PAGE, PAGE) == 0)
                        continue;
                struct page_meta *m = &run->region->meta[run->first + i];
                fprintf(stderr, "torture: page %u of region %td (kind %d), run %u+%u; last operations:\n", run->first + i,
                        run->region - torture.regions, run->region->kind, run->first, run->n);
                for (uint32_t k = 0; k < HISTORY && k < m->n_history; k++) {
                        uint32_t at = (m->n_history - 1 - k) % HISTORY;
                        fprintf(stderr, "  %6u ms thread %u %s\n", m->history[at].msec, m->history[at].thread,
                                m->history[at].op);
                }
        }
        compare(memory, run->shadow, run->n * PAGE, when);
}

void fill_pattern(struct thread *t, uint8_t *to, uint32_t first, uint32_t n) {
        uint32_t kind = random_below(t, 8), one = random_below(t, SERIES);
        for (uint32_t i = 0; i < n; i++) {
                uint32_t id = kind < 5 ? (first + i) % SERIES : kind == 5 ? one : kind == 6 ? random_below(t, SERIES) : 0;
                memcpy(to + i * PAGE, torture.series[id], PAGE);
        }
}

/* -- set-up -- */

/* Content 0 is zeros; the others differ from their neighbour in some byte only, so that a comparison must look at all. The
 * same in every process. */
static void make_series(void) {
        uint8_t(*series)[PAGE] = shared_alloc(SERIES * PAGE);
        struct thread t = { .random = 0x1234567 };
        for (uint32_t i = 1; i < SERIES; i++) {
                for (size_t at = 0; at < PAGE; at += 8) {
                        uint64_t v = i % 2 ? random_next(&t) : 0;
                        memcpy(&series[i][at], &v, 8);
                }
                if (i % 2 == 0)
                        memcpy(series[i], series[i - 1], PAGE);
                series[i][random_below(&t, PAGE)] ^= (uint8_t) (1 + random_below(&t, 255));
        }
        torture.series = (const uint8_t(*)[PAGE]) series;
}

static void make_region(struct region *r, enum region_kind kind, struct thread *t) {
        size_t size = REGION_PAGES * PAGE;
        r->kind = kind;
        uint8_t *area = mmap(NULL, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        check(area != MAP_FAILED, "mmap: %s", strerror(errno));
        area = (uint8_t *) (((uintptr_t) area + size - 1) & ~(size - 1));
        r->memory = mmap(area, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        check(r->memory == area, "mmap: %s", strerror(errno));
        r->shadow = shared_alloc(size);
        r->meta = shared_alloc(REGION_PAGES * sizeof(struct page_meta));
        if (kind == REGION_HUGE)
                check(madvise(r->memory, size, MADV_HUGEPAGE) == 0, "MADV_HUGEPAGE: %s", strerror(errno));
        fill_pattern(t, r->shadow, 0, REGION_PAGES);
        memcpy(r->memory, r->shadow, size);
        check(madvise(r->memory, size, MADV_MERGEABLE) == 0, "MADV_MERGEABLE: %s", strerror(errno));
}

/* -- the proof -- */

/* Pages of the regions that map page cache: merged now, by what the kernel says. */
static uint64_t merged_now(int pagemap) {
        uint64_t pages = 0;
        for (unsigned i = 0; i < torture.n_regions; i++) {
                struct page_region found[64];
                struct pm_scan_arg arg = {
                        .size = sizeof(arg),
                        .start = (uint64_t) torture.regions[i].memory,
                        .end = (uint64_t) torture.regions[i].memory + REGION_PAGES * PAGE,
                        .vec = (uint64_t) found,
                        .vec_len = 64,
                        .category_mask = PAGE_IS_FILE | PAGE_IS_PRESENT,
                        .return_mask = PAGE_IS_FILE,
                };
                while (arg.start < arg.end) {
                        int n = ioctl(pagemap, PAGEMAP_SCAN, &arg);
                        check(n >= 0, "PAGEMAP_SCAN: %s", strerror(errno));
                        for (int k = 0; k < n; k++)
                                pages += (found[k].end - found[k].start) / PAGE;
                        arg.start = arg.walk_end;
                }
        }
        return pages;
}

/* How soon pages are touched again: a thread pauses so that most pages stay unwritten for some passes of the daemon. */
static void pause_a_little(struct thread *t) {
        uint32_t usec = random_below(t, 8) ? random_below(t, 600) : random_below(t, 4000);
        struct timespec ts = { 0, (long) usec * 1000 };
        nanosleep(&ts, NULL);
}

static void *thread_main(void *arg) {
        struct thread *t = arg;
        if (t->index == 0) { /* holds pages for long, and is not there when the agent waits for it */
                struct sched_param param = { 0 };
                (void) sched_setscheduler(0, SCHED_IDLE, &param);
        }
        while (!atomic_load(&torture.stop)) {
                uint32_t dice = random_below(t, 100);
                if (dice < 3 && t->index == 1)
                        fork_once(t);
                else if (dice < 15)
                        heap_once(t);
                else if (dice < 22)
                        uring_once(t);
                else
                        ops_once(t);
                t->operations++;
                pause_a_little(t);
        }
        return NULL;
}

static struct thread *thread_new(uint32_t index, uint64_t seed, const char *directory) {
        struct thread *t = shared_alloc(sizeof(*t));
        t->index = index;
        t->random = (seed + index + 1) * 0x9e3779b97f4a7c15ULL | 1;
        t->bounce = shared_alloc(RUN_MAX * PAGE);
        t->heap = heap_new();
        check(pipe2(t->pipe, O_CLOEXEC) == 0, "pipe: %s", strerror(errno));
        io_open(t, directory);
        return t;
}

static void verify_all(struct thread *t) {
        for (unsigned i = 0; i < torture.n_regions; i++)
                for (uint32_t page = 0; page < REGION_PAGES; page++) {
                        struct run run;
                        if (run_lock(t, &run, &torture.regions[i], page, 1)) /* else lost */
                                run_verify(&run, NULL, "at the end");
                }
}

int main(int argc, char **argv) {
        static const struct option options[] = {
                { "seconds", 1, NULL, 's' },   { "seed", 1, NULL, 'r' },          { "threads", 1, NULL, 't' },
                { "regions", 1, NULL, 'g' },   { "directory", 1, NULL, 'd' },     { "expect-merges", 1, NULL, 'm' },
                { NULL, 0, NULL, 0 },
        };
        unsigned seconds = 10, n_threads = 5;
        uint64_t seed = now_usec() ^ (uint64_t) getpid() << 32;
        const char *directory = "/tmp";
        bool expect_merges = false;
        torture.n_regions = 6;
        for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;)
                switch (c) {
                case 's': seconds = (unsigned) strtoul(optarg, NULL, 0); break;
                case 'r': seed = strtoull(optarg, NULL, 0); break;
                case 't': n_threads = (unsigned) strtoul(optarg, NULL, 0); break;
                case 'g': torture.n_regions = (unsigned) strtoul(optarg, NULL, 0); break;
                case 'd': directory = optarg; break;
                case 'm': expect_merges = strtoul(optarg, NULL, 0) != 0; break;
                default: return 64;
                }
        check(n_threads >= 2 && n_threads <= THREADS_MAX, "2 to %u threads", THREADS_MAX);
        printf("torture: pid %d, seed %llu\n", (int) getpid(), (unsigned long long) seed);
        fflush(stdout);

        torture.start_usec = now_usec();
        torture.regions = shared_alloc(torture.n_regions * sizeof(struct region));
        make_series();
        struct thread *threads[THREADS_MAX + 1];
        pthread_t ids[THREADS_MAX];
        for (unsigned i = 0; i <= n_threads; i++) /* one more: the main thread's own */
                threads[i] = thread_new(i, seed, directory);
        for (unsigned i = 0; i < torture.n_regions; i++)
                make_region(&torture.regions[i], i % REGION_KINDS_, threads[n_threads]);
        for (unsigned i = 0; i < n_threads; i++)
                check(pthread_create(&ids[i], NULL, thread_main, threads[i]) == 0, "pthread_create");

        int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
        check(pagemap >= 0, "pagemap: %s", strerror(errno));
        uint64_t merged = 0, peak = 0, merges = 0;
        while (now_usec() - torture.start_usec < seconds * 1000000ULL) {
                usleep(5000);
                uint64_t now = merged_now(pagemap);
                merges += now > merged ? now - merged : 0;
                peak = now > peak ? now : peak;
                merged = now;
        }
        atomic_store(&torture.stop, true);
        uint64_t operations = 0;
        for (unsigned i = 0; i < n_threads; i++) {
                check(pthread_join(ids[i], NULL) == 0, "pthread_join");
                operations += threads[i]->operations;
        }
        verify_all(threads[n_threads]);
        printf("torture: seed %llu, %llu operations, %llu pages merged at most, %llu merges seen, 0 differences%s%s\n",
               (unsigned long long) seed, (unsigned long long) operations, (unsigned long long) peak,
               (unsigned long long) merges, torture.skipped_direct ? " (no O_DIRECT here)" : "",
               torture.skipped_uring ? " (no io_uring here)" : "");
        check(!expect_merges || merges >= 100, "only %llu merges: nothing was tested", (unsigned long long) merges);
        return 0;
}
