/* limit: what the least work of a page merger costs on this machine, in nanoseconds of CPU time a page.
 *
 *   limit [MIB]        one line of JSON; MIB: of memory that each operation goes through (64), more than the caches hold
 *
 *   read_ns      one read of a page of another process and one hash of it: process_vm_readv of 64 neighbouring pages, XXH3 with 64 bits
 *   compare_ns   one comparison of two equal pages that no cache holds
 *   write_ns     one write of a page-table entry, as cheap as the kernel does it: mprotect of all of the memory, by pages
 *
 * Each is the least of several passes: what the machine does beside it can only add. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "common/cleanup.h"
#include "common/uapi.h"

#define MIB_DEFAULT 64
#define MIB_MAX 4096
#define PASSES 7
/* As many as one block of the daemon's: they stay in the second-level cache between the read and the hash. */
#define BATCH_PAGES 64
#define BATCH_BYTES (BATCH_PAGES * KSM_PAGE_SIZE)

struct memory {
        unsigned char *one, *other; /* equal */
        size_t size;
        pid_t owner;  /* a process that has `one`, too, at the same place, with pages of its own */
        uint64_t sum; /* of what was computed, so that it has to be */
};

static uint64_t cpu_ns(void) {
        struct timespec t;

        (void) clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
        return (uint64_t) t.tv_sec * 1000000000 + (uint64_t) t.tv_nsec;
}

static unsigned char *map(size_t size) {
        unsigned char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        if (p == MAP_FAILED)
                return NULL;
        /* A huge page has one entry for 512 pages. EINVAL: a kernel without them. */
        (void) madvise(p, size, MADV_NOHUGEPAGE);
        return p;
}

static void fill(unsigned char *p, size_t size) {
        for (size_t i = 0; i < size / sizeof(uint64_t); i++)
                ((uint64_t *) p)[i] = (i + 1) * UINT64_C(0x9e3779b97f4a7c15);
}

static int read_all(struct memory *m) {
        static unsigned char buffer[BATCH_BYTES];

        for (size_t at = 0; at < m->size; at += BATCH_BYTES) {
                struct iovec local = { buffer, BATCH_BYTES }, remote = { m->one + at, BATCH_BYTES };
                ssize_t n = process_vm_readv(m->owner, &local, 1, &remote, 1, 0);

                if (n != (ssize_t) BATCH_BYTES)
                        return n < 0 ? -errno : -EIO;
                for (size_t page = 0; page < BATCH_BYTES; page += KSM_PAGE_SIZE)
                        m->sum += XXH3_64bits(buffer + page, KSM_PAGE_SIZE);
        }
        return 0;
}

static int compare_all(struct memory *m) {
        for (size_t at = 0; at < m->size; at += KSM_PAGE_SIZE)
                if (memcmp(m->one + at, m->other + at, KSM_PAGE_SIZE) != 0)
                        return -EIO;
        return 0;
}

/* There and back: two writes an entry. */
static int write_all(struct memory *m) {
        if (mprotect(m->other, m->size, PROT_READ) < 0 || mprotect(m->other, m->size, PROT_READ | PROT_WRITE) < 0)
                return -errno;
        return 0;
}

/* Nanoseconds a page of the fastest pass. */
static int least(struct memory *m, int (*pass)(struct memory *), double *ret) {
        *ret = 0;
        for (unsigned i = 0; i < PASSES; i++) {
                uint64_t begin = cpu_ns();
                int r = pass(m);
                double ns = (double) (cpu_ns() - begin) / ((double) m->size / KSM_PAGE_SIZE);

                if (r < 0)
                        return r;
                if (i == 0 || ns < *ret)
                        *ret = ns;
        }
        return 0;
}

/* Returns when the memory of the owner is there. */
static int start_owner(struct memory *m) {
        pid_t parent = getpid();
        int ready[2];
        char byte = 0;
        ssize_t n;

        if (pipe2(ready, O_CLOEXEC) < 0)
                return -errno;
        m->owner = fork();
        if (m->owner == 0) {
                (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
                fill(m->one, m->size);
                (void) !write(ready[1], &byte, 1);
                while (getppid() == parent)
                        (void) pause();
                _exit(0);
        }
        (void) close(ready[1]);
        n = m->owner < 0 ? -1 : read(ready[0], &byte, 1);
        (void) close(ready[0]);
        return n == 1 ? 0 : -EIO; /* end of file: it has ended */
}

static int measure(struct memory *m) {
        double read_ns, compare_ns, write_ns;
        int r = start_owner(m);

        if (r < 0)
                return r;
        r = least(m, read_all, &read_ns);
        (void) kill(m->owner, SIGKILL);
        (void) waitpid(m->owner, NULL, 0);
        fill(m->one, m->size);
        fill(m->other, m->size);
        if (r >= 0)
                r = least(m, compare_all, &compare_ns);
        if (r >= 0)
                r = least(m, write_all, &write_ns);
        if (r < 0)
                return r;
        (void) printf("{\"read_ns\": %.1f, \"compare_ns\": %.1f, \"write_ns\": %.1f}\n", read_ns, compare_ns, write_ns / 2);
        return 0;
}

int main(int argc, char **argv) {
        unsigned long mib = argc > 1 ? strtoul(argv[1], NULL, 10) : MIB_DEFAULT;
        struct memory m = { .size = mib << 20 };
        int r;

        if (argc > 2 || mib == 0 || mib > MIB_MAX) {
                (void) fprintf(stderr, "usage: limit [MIB]\n");
                return EX_USAGE;
        }
        m.one = map(m.size);
        m.other = map(m.size);
        if (!m.one || !m.other) {
                (void) fprintf(stderr, "limit: no memory\n");
                return EX_OSERR;
        }
        r = measure(&m);
        if (r < 0)
                (void) fprintf(stderr, "limit: %s\n", strerror(-r));
        return r < 0 ? EX_OSERR : 0;
}
