/* A process for tests to look at: registers memory of known content through the client library and obeys commands on
 * standard input, one a line, answering each with one line.
 *
 *   map NAME PAGES            private anonymous memory, registered; "ok" or "error E"
 *   fill NAME FROM N SEED     page i gets content (SEED + i - FROM); SEED 0: zeros; remembered for `check`
 *   repeat NAME FROM N SEED   all pages the same content SEED
 *   poke NAME FROM N          changes one byte of each page
 *   check NAME                "ok", or "differs PAGE"
 *   discard NAME FROM N       MADV_DONTNEED; remembered as zeros
 *   merge NAME                synchronous merge: "ok BYTES" or "error E"
 *   unregister NAME           "ok" or "error E"
 *   unmap NAME
 *   address NAME              "ok ADDRESS"
 *   sparse COUNT BYTES SEED   COUNT mappings of BYTES, each registered, with one page of content SEED + i in its middle
 *   unsparse                  unregisters them, checks the pages, unmaps
 *   fork                      a child that checks everything and exits: "ok" or "differs"
 *   bad                       registers what must be refused; "what=errno ..."
 *   hoard                     mappings, as many as the kernel gives: "ok N"
 *   release                   and gives them back
 *   stats                     registered merged connected transitions raw
 *   quit
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/userksm.h"

#define PAGE 4096UL
#define AREAS 16

struct area {
        char name[16];
        uint8_t *memory;
        uint64_t n_pages;
        uint64_t *content; /* seed of each page */
        uint8_t *pokes;    /* and how often it was poked since */
};
static struct area areas[AREAS];

static struct area *find(const char *name) {
        for (unsigned i = 0; i < AREAS; i++)
                if (areas[i].memory && strcmp(areas[i].name, name) == 0)
                        return &areas[i];
        return NULL;
}

static void content(uint8_t *page, uint64_t seed) {
        uint64_t *w = (uint64_t *) page, x = seed * 0x9e3779b97f4a7c15ULL;
        for (unsigned i = 0; i < PAGE / 8; i++) {
                x ^= x << 13, x ^= x >> 7, x ^= x << 17;
                w[i] = seed ? x : 0;
        }
}

static int64_t differs(const struct area *a) {
        uint8_t want[PAGE];
        for (uint64_t i = 0; i < a->n_pages; i++) {
                content(want, a->content[i]);
                want[100] = (uint8_t) (want[100] + a->pokes[i]);
                if (memcmp(a->memory + i * PAGE, want, PAGE) != 0)
                        return (int64_t) i;
        }
        return -1;
}

static int map_area(const char *name, uint64_t n_pages) {
        for (unsigned i = 0; i < AREAS; i++) {
                struct area *a = &areas[i];
                if (a->memory)
                        continue;
                a->memory = mmap(NULL, n_pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
                if (a->memory == MAP_FAILED)
                        exit(1);
                a->n_pages = n_pages;
                a->content = calloc(n_pages, sizeof(*a->content));
                a->pokes = calloc(n_pages, 1);
                snprintf(a->name, sizeof(a->name), "%s", name);
                return userksm_register(a->memory, n_pages * PAGE);
        }
        return -ENOMEM;
}

static void answer(int r) {
        if (r < 0)
                printf("error %d\n", -r);
        else
                printf("ok\n");
}

static void fork_and_check(void) {
        fflush(stdout);
        pid_t pid = fork();
        if (pid == 0) {
                int bad = 0;
                for (unsigned i = 0; i < AREAS; i++)
                        if (areas[i].memory)
                                bad |= differs(&areas[i]) >= 0;
                _exit(bad);
        }
        int status = 1;
        waitpid(pid, &status, 0);
        printf("%s\n", status == 0 ? "ok" : "differs");
}

static int try_register(void *p, size_t length, int flags, int prot, int fd) {
        uint8_t *m = p ? p : mmap(NULL, length, prot, flags, fd, 0);
        if (m == MAP_FAILED)
                return -errno;
        int r = userksm_register(m, length);
        if (!p)
                munmap(m, length);
        return r;
}

/* Mappings with next to nothing in them. Inaccessible memory between them keeps them from becoming one. */
static struct sparse {
        uint8_t *memory;
        uint64_t bytes, seed;
} sparse[1024];
static unsigned n_sparse;

static int sparse_one(uint64_t bytes, uint64_t seed) {
        uint8_t *m;
        int r;
        if (n_sparse == sizeof(sparse) / sizeof(*sparse))
                return -ENOSPC;
        m = mmap(NULL, bytes + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (m == MAP_FAILED)
                return -errno;
        m += PAGE;
        if (mprotect(m, bytes, PROT_READ | PROT_WRITE) < 0 || madvise(m, bytes, MADV_NOHUGEPAGE) < 0)
                return -errno;
        content(m + bytes / 2, seed);
        r = userksm_register(m, bytes);
        sparse[n_sparse++] = (struct sparse){ m, bytes, seed };
        return r;
}

static int sparse_none(void) {
        int r = 0;
        for (; n_sparse > 0 && r == 0; n_sparse--) {
                struct sparse *s = &sparse[n_sparse - 1];
                uint8_t want[PAGE];
                r = userksm_unregister(s->memory, s->bytes);
                content(want, s->seed);
                if (memcmp(s->memory + s->bytes / 2, want, PAGE) != 0)
                        r = -EIO;
                (void) userksm_munmap(s->memory - PAGE, s->bytes + 2 * PAGE);
        }
        return r;
}

/* Each must fail with its documented errno and change nothing. */
static void register_bad(void) {
        const int anonymous = MAP_PRIVATE | MAP_ANONYMOUS, rw = PROT_READ | PROT_WRITE;
        const size_t length = 16 * PAGE;
        uint8_t *m = mmap(NULL, 3 * length, rw, anonymous, -1, 0);
        int fd = open("/proc/self/exe", O_RDONLY);
        struct uffdio_api api = { .api = UFFD_API };
        struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
        int uffd = (int) syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);

        munmap(m + length, length);
        printf("unaligned=%d ", -userksm_register(m + 1, PAGE));
        printf("ragged=%d ", -userksm_register(m, PAGE + 1));
        printf("empty=%d ", -userksm_register(m, 0));
        printf("wraps=%d ", -userksm_register((void *) (UINTPTR_MAX & ~(PAGE - 1)), 2 * PAGE));
        printf("gap=%d ", -userksm_register(m, 3 * length));
        printf("unmapped=%d ", -userksm_register(m + length, PAGE));
        printf("shared=%d ", -try_register(NULL, length, MAP_SHARED | MAP_ANONYMOUS, rw, -1));
        printf("file=%d ", -try_register(NULL, length, MAP_PRIVATE, rw, fd));
        printf("readonly=%d ", -try_register(NULL, length, anonymous, PROT_READ, -1));
        printf("none=%d ", -try_register(NULL, length, anonymous, PROT_NONE, -1));
        userksm_register(m, length);
        printf("again=%d ", -userksm_register(m, length));
        printf("inside=%d ", -userksm_register(m + PAGE, PAGE));
        userksm_unregister(m, length);
        userksm_register(m + PAGE, PAGE);
        printf("overlap=%d ", -userksm_register(m, length));
        userksm_unregister(m + PAGE, PAGE);
        printf("gone=%d ", -userksm_unregister(m, length));
        userksm_mlock(m, PAGE);
        printf("locked=%d ", -userksm_register(m, length));
        munmap(m, length);
        if (uffd >= 0 && ioctl(uffd, UFFDIO_API, &api) == 0) {
                m += 2 * length;
                reg.range.start = (uint64_t) m;
                reg.range.len = length;
                ioctl(uffd, UFFDIO_REGISTER, &reg);
                printf("foreign=%d ", -userksm_register(m, length));
        }
        printf("\n");
        close(uffd);
        close(fd);
}

/* Every other page of a large area is readable, which makes a mapping of each, up to vm.max_map_count. */
static void *hoarded;
#define HOARD_PAGES (UINT64_C(1) << 22)
static void hoard(void) {
        uint64_t n = 0;
        hoarded = mmap(NULL, HOARD_PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (hoarded == MAP_FAILED) {
                answer(-errno);
                return;
        }
        while (2 * n + 1 < HOARD_PAGES && mprotect((uint8_t *) hoarded + (2 * n + 1) * PAGE, PAGE, PROT_READ) == 0)
                n++;
        printf("ok %" PRIu64 "\n", n);
}

static void on_area(const char *verb, struct area *a, uint64_t from, uint64_t n, uint64_t seed) {
        if (strcmp(verb, "fill") == 0 || strcmp(verb, "repeat") == 0) {
                for (uint64_t i = from; i < from + n; i++) {
                        a->content[i] = seed && verb[0] == 'f' ? seed + i - from : seed;
                        a->pokes[i] = 0;
                        content(a->memory + i * PAGE, a->content[i]);
                }
                answer(0);
        } else if (strcmp(verb, "poke") == 0) {
                for (uint64_t i = from; i < from + n; i++) {
                        a->pokes[i]++;
                        a->memory[i * PAGE + 100]++;
                }
                answer(0);
        } else if (strcmp(verb, "discard") == 0) {
                for (uint64_t i = from; i < from + n; i++)
                        a->content[i] = a->pokes[i] = 0;
                answer(userksm_madvise(a->memory + from * PAGE, n * PAGE, MADV_DONTNEED));
        } else if (strcmp(verb, "check") == 0) {
                int64_t page = differs(a);
                if (page < 0)
                        printf("ok\n");
                else
                        printf("differs %" PRId64 "\n", page);
        } else if (strcmp(verb, "merge") == 0) {
                uint64_t saved;
                int r = userksm_merge(a->memory, a->n_pages * PAGE, &saved);
                if (r < 0)
                        answer(r);
                else
                        printf("ok %" PRIu64 "\n", saved);
        } else if (strcmp(verb, "unregister") == 0) {
                answer(userksm_unregister(a->memory, a->n_pages * PAGE));
        } else if (strcmp(verb, "address") == 0) {
                printf("ok %" PRIuPTR "\n", (uintptr_t) a->memory);
        } else if (strcmp(verb, "unmap") == 0) {
                answer(userksm_munmap(a->memory, a->n_pages * PAGE));
                free(a->content);
                free(a->pokes);
                memset(a, 0, sizeof(*a));
        } else
                printf("error %d\n", EINVAL);
}

int main(void) {
        char line[256], verb[16], name[16];
        answer(userksm_init(NULL));
        fflush(stdout);
        while (fgets(line, sizeof(line), stdin)) {
                uint64_t from = 0, n = 0, seed = 0;
                name[0] = 0;
                if (sscanf(line, "%15s %15s %" SCNu64 " %" SCNu64 " %" SCNu64, verb, name, &from, &n, &seed) < 1)
                        continue;
                struct area *a = find(name);
                if (strcmp(verb, "quit") == 0)
                        return 0;
                if (strcmp(verb, "map") == 0)
                        answer(map_area(name, from));
                else if (strcmp(verb, "sparse") == 0) {
                        uint64_t count = strtoull(name, NULL, 10);
                        int r = 0;
                        for (uint64_t i = 0; i < count && r == 0; i++)
                                r = sparse_one(from, n + i);
                        answer(r);
                } else if (strcmp(verb, "unsparse") == 0)
                        answer(sparse_none());
                else if (strcmp(verb, "fork") == 0)
                        fork_and_check();
                else if (strcmp(verb, "hoard") == 0)
                        hoard();
                else if (strcmp(verb, "release") == 0)
                        answer(munmap(hoarded, HOARD_PAGES * PAGE) < 0 ? -errno : 0);
                else if (strcmp(verb, "bad") == 0)
                        register_bad();
                else if (strcmp(verb, "stats") == 0) {
                        struct userksm_stats s = { .size = sizeof(s) };
                        (void) userksm_stats(&s);
                        printf("%" PRIu64 " %" PRIu64 " %u %" PRIu64 " %u\n", s.registered_bytes, s.merged_bytes,
                               s.connected, s.transitions, s.raw_syscalls);
                } else if (a)
                        on_area(verb, a, from, n, seed);
                else
                        printf("error %d\n", ENOENT);
                fflush(stdout);
        }
        return 0;
}
