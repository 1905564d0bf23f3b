/* A pre-forking server: the parent builds a table, forks workers, each answers requests from the table over a pipe, changes
 * its own copy, and is asked again; the parent's table stays. No userksm in here but madvise(MADV_MERGEABLE).
 *
 * usage: test_shim_fork WORKERS. Says "ready" when the workers run; on a line of input each worker rewrites a quarter of its
 * table; at the end of input all is compared and it says "right". */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define TABLE_PAGES 1024U
#define WORKERS_MAX 16U
#define HEAP_BLOCKS 64U

struct worker {
        pid_t pid;
        int to, from;
};

static uint8_t *table;
static uint32_t *blocks[HEAP_BLOCKS]; /* in the heap */

static void fail(const char *what) {
        fprintf(stderr, "server: pid %d: %s: %s\n", (int) getpid(), what, strerror(errno));
        abort();
}

/* What page i holds in generation g. */
static uint64_t word_of(unsigned i, unsigned g) {
        return (i % 128 + 1) * 0x9e3779b97f4a7c15ULL + g;
}

static void write_page(unsigned i, unsigned g) {
        uint64_t *p = (uint64_t *) (table + i * PAGE);
        for (unsigned k = 0; k < PAGE / 8; k++)
                p[k] = word_of(i, g) * (k + 1);
}

static void check_page(unsigned i, unsigned g) {
        const uint64_t *p = (const uint64_t *) (table + i * PAGE);
        for (unsigned k = 0; k < PAGE / 8; k++)
                if (p[k] != word_of(i, g) * (k + 1)) {
                        fprintf(stderr, "server: pid %d: page %u word %u: %llx\n", (int) getpid(), i, k,
                                (unsigned long long) p[k]);
                        abort();
                }
}

static void check_heap(void) {
        for (unsigned b = 0; b < HEAP_BLOCKS; b++)
                for (unsigned k = 0; k < 4 * PAGE / 4; k++)
                        if (blocks[b][k] != b * k)
                                fail("the heap differs");
}

/* Answers one byte a request; 'w' rewrites, 'c' compares. */
static void worker_main(int from, int to) {
        unsigned generation = 0;
        char request;
        while (read(from, &request, 1) == 1) {
                if (request == 'w') {
                        generation++;
                        for (unsigned i = 0; i < TABLE_PAGES; i += 4)
                                write_page(i, generation);
                        for (unsigned b = 0; b < HEAP_BLOCKS; b += 2) { /* libc trims and grows meanwhile */
                                free(blocks[b]);
                                blocks[b] = malloc(4 * PAGE);
                                for (unsigned k = 0; k < 4 * PAGE / 4; k++)
                                        blocks[b][k] = b * k;
                        }
                } else {
                        for (unsigned i = 0; i < TABLE_PAGES; i++)
                                check_page(i, i % 4 ? 0 : generation);
                        check_heap();
                }
                if (write(to, &request, 1) != 1)
                        fail("write");
        }
        _exit(0);
}

static void start(struct worker *w, const struct worker *others, unsigned n) {
        int down[2], up[2];
        if (pipe(down) < 0 || pipe(up) < 0)
                fail("pipe");
        w->pid = fork();
        if (w->pid < 0)
                fail("fork");
        if (w->pid == 0) {
                for (unsigned i = 0; i < n; i++)
                        close(others[i].to);
                close(down[1]);
                worker_main(down[0], up[1]);
        }
        close(down[0]);
        close(up[1]);
        w->to = down[1];
        w->from = up[0];
}

static void ask(struct worker *workers, unsigned n, char request) {
        for (unsigned i = 0; i < n; i++)
                if (write(workers[i].to, &request, 1) != 1)
                        fail("a worker is gone");
        for (unsigned i = 0; i < n; i++)
                if (read(workers[i].from, &request, 1) != 1)
                        fail("a worker does not answer");
}

int main(int argc, char **argv) {
        unsigned n = argc > 1 ? (unsigned) atoi(argv[1]) : 3;
        struct worker workers[WORKERS_MAX];
        char line[64];
        table = mmap(NULL, TABLE_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (table == MAP_FAILED || n > WORKERS_MAX)
                fail("set-up");
        for (unsigned i = 0; i < TABLE_PAGES; i++)
                write_page(i, 0);
        for (unsigned b = 0; b < HEAP_BLOCKS; b++) {
                blocks[b] = malloc(4 * PAGE);
                for (unsigned k = 0; k < 4 * PAGE / 4; k++)
                        blocks[b][k] = b * k;
        }
        if (madvise(table, TABLE_PAGES * PAGE, MADV_MERGEABLE) < 0)
                fail("madvise");
        printf("parent %d\n", (int) getpid());
        fflush(stdout);
        if (!fgets(line, sizeof(line), stdin))
                return 1;
        for (unsigned i = 0; i < n; i++)
                start(&workers[i], workers, i);
        printf("ready");
        for (unsigned i = 0; i < n; i++)
                printf(" %d", (int) workers[i].pid);
        printf("\n");
        fflush(stdout);
        while (fgets(line, sizeof(line), stdin)) {
                ask(workers, n, line[0]);
                for (unsigned i = 0; i < TABLE_PAGES; i++)
                        check_page(i, 0);
                check_heap();
                printf("done\n");
                fflush(stdout);
        }
        ask(workers, n, 'c');
        for (unsigned i = 0; i < n; i++) {
                int status;
                close(workers[i].to);
                if (waitpid(workers[i].pid, &status, 0) != workers[i].pid || status != 0)
                        fail("a worker failed");
        }
        printf("right\n");
        return 0;
}
