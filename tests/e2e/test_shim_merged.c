/* Calls on merged memory, one line each: run without and with the shim, what they return and leave must be the same
 * (test_shim_merged.py). No addresses, no pids in the output.
 *
 * usage: test_shim_merged plain|merged [PARTS]. Parts: letters, see main. Blocks come in pairs of equal contents; before any call a pair is waited for until the
 * kernel says that all of it is mapped from a file (plain: not at all). */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/uapi.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

#define PAGE 4096UL
#define PAGES 16UL
#define BYTES (PAGES * PAGE)
#define MERGED_SECONDS 60
#define FILE_PAGE (1ULL << 61) /* of a pagemap entry */
#define KEPT 4242              /* errno that a successful call must leave alone */

#define SHOW(call)                                                               \
        do {                                                                     \
                errno = KEPT;                                                    \
                long _r = (long) (call);                                         \
                int _e = errno;                                                  \
                printf("%s -> %ld, errno %d\n", #call, _r, _e == KEPT ? 0 : _e); \
        } while (0)

static bool is_plain;
static int pagemap;

struct pair {
        uint8_t *p, *twin;
        unsigned content;
};

static void fill(uint8_t *p, size_t bytes, unsigned content) {
        for (size_t i = 0; i < bytes; i++)
                p[i] = (uint8_t) (content * 31 + i / PAGE * 7 + i % 251 + 1);
}

static size_t wrong(const uint8_t *p, size_t bytes, unsigned content) {
        size_t n = 0;
        for (size_t i = 0; i < bytes; i++)
                n += p[i] != (uint8_t) (content * 31 + i / PAGE * 7 + i % 251 + 1);
        return n;
}

static size_t not_zero(const uint8_t *p, size_t bytes) {
        size_t n = 0;
        for (size_t i = 0; i < bytes; i++)
                n += p[i] != 0;
        return n;
}

/* Pages that are mapped from a file: segments are. */
static size_t merged(const void *p, size_t bytes) {
        size_t n = 0;
        uint64_t entry;
        for (size_t i = (size_t) p / PAGE; i <= ((size_t) p + bytes - 1) / PAGE; i++)
                n += pread(pagemap, &entry, 8, (off_t) (i * 8)) == 8 && entry & FILE_PAGE;
        return n;
}

/* Pages that lie in the mapping of a file, copied on write or not. */
static size_t in_file(const void *p, size_t bytes) {
        char line[256];
        size_t n = 0, from, to;
        unsigned long inode;
        FILE *f = fopen("/proc/self/maps", "re");
        while (f && fgets(line, sizeof(line), f))
                if (sscanf(line, "%zx-%zx %*s %*s %*s %lu", &from, &to, &inode) == 3 && inode)
                        for (size_t at = from; at < to; at += PAGE)
                                n += at >= (size_t) p && at < (size_t) p + bytes;
        if (f)
                fclose(f);
        return n;
}

static void wait_merged(const void *p, size_t bytes) {
        size_t want = ((size_t) p + bytes - 1) / PAGE - (size_t) p / PAGE + 1;
        const struct timespec moment = { .tv_nsec = 2000000 };
        for (time_t end = time(NULL) + MERGED_SECONDS; !is_plain && merged(p, bytes) < want;) {
                if (time(NULL) > end) {
                        fprintf(stderr, "%zu of %zu pages are merged\n", merged(p, bytes), want);
                        abort();
                }
                (void) clock_nanosleep(CLOCK_MONOTONIC, 0, &moment, NULL);
        }
}

/* Apart from its neighbours, so that no mapping fuses with it. */
static uint8_t *block_between(size_t gap) {
        uint8_t *p = mmap(NULL, BYTES + 2 * gap, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED || mprotect(p + gap, BYTES, PROT_READ | PROT_WRITE) < 0)
                abort();
        return p + gap;
}

/* A page below it looks like the guard of a stack, which discovery passes over: asked for, it is merged all the same. */
static uint8_t *block(void) {
        return block_between(PAGE);
}

static unsigned contents;

static struct pair pair(void) {
        struct pair r = { block(), block(), ++contents };
        fill(r.p, BYTES, r.content);
        fill(r.twin, BYTES, r.content);
        if (madvise(r.p, BYTES, MADV_MERGEABLE) < 0 || madvise(r.twin, BYTES, MADV_MERGEABLE) < 0)
                abort();
        return r;
}

static struct pair merged_pair(void) {
        struct pair r = pair();
        wait_merged(r.p, BYTES);
        wait_merged(r.twin, BYTES);
        return r;
}

/* Is it never merged again? Something else that was written later is, by then. */
static size_t merged_later(const struct pair *x) {
        fill(x->p, BYTES, x->content + 100);
        fill(x->twin, BYTES, x->content + 100);
        for (unsigned i = 0; i < 2; i++)
                (void) merged_pair();
        return merged(x->p, BYTES);
}

/* A page that cannot be restored, until the ring goes. */
static bool pin(struct io_uring *ring, uint8_t *p) {
        const struct iovec v = { p, PAGE };
        if (io_uring_queue_init(4, ring, 0) < 0)
                return false;
        if (io_uring_register_buffers(ring, &v, 1) == 0)
                return true;
        io_uring_queue_exit(ring);
        return false;
}

/* What was said is done when a line on stdin comes. */
static void say(const char *what) {
        printf("%s\n", what);
        fflush(stdout);
        (void) getchar();
}

/* -- advice ----------------------------------------------------------------------------------------------------------- */

#define ADVISE(advice)                                       \
        do {                                                 \
                struct pair x = merged_pair();               \
                SHOW(madvise(x.p, BYTES, advice));           \
                SHOW(wrong(x.twin, BYTES, x.content));       \
        } while (0)

static void advice(void) {
        ADVISE(MADV_FREE);
        ADVISE(MADV_REMOVE);
        ADVISE(MADV_COLLAPSE);
        ADVISE(MADV_COLD);
        ADVISE(MADV_WILLNEED);
        ADVISE(MADV_POPULATE_WRITE);
        struct pair x = merged_pair();
        SHOW(madvise(x.p, BYTES, MADV_DONTNEED));
        SHOW(not_zero(x.p, BYTES));
        SHOW(wrong(x.twin, BYTES, x.content));
        x = merged_pair();
        SHOW(madvise(x.p, BYTES, MADV_DONTDUMP));
        SHOW(merged(x.p, BYTES));
        SHOW(merged_later(&x));
        x = merged_pair();
        int self = (int) syscall(SYS_pidfd_open, getpid(), 0);
        const struct iovec v = { x.p, BYTES };
        SHOW(process_madvise(self, &v, 1, MADV_FREE, 0));
        close(self);
        int fd[2] = { -1, -1 };
        x = merged_pair();
        SHOW(pipe(fd));
        SHOW(madvise(x.p, BYTES, MADV_GUARD_INSTALL));
        SHOW(write(fd[1], x.p, 1)); /* nobody may look */
        SHOW(madvise(x.p, BYTES, MADV_GUARD_REMOVE));
        SHOW(not_zero(x.p, BYTES));
        struct io_uring ring;
        x = merged_pair();
        bool pinned = pin(&ring, x.p + 3 * PAGE);
        SHOW(madvise(x.p + 3 * PAGE, PAGE, MADV_REMOVE));
        SHOW(wrong(x.p, BYTES, x.content));
        SHOW(madvise(x.p, BYTES, MADV_GUARD_INSTALL));
        SHOW(write(fd[1], x.p + 3 * PAGE, 1));
        SHOW(madvise(x.p, BYTES, MADV_GUARD_REMOVE));
        SHOW(not_zero(x.p, BYTES));
        if (pinned)
                io_uring_queue_exit(&ring);
        close(fd[0]);
        close(fd[1]);
        SHOW(syscall(SYS_prctl, PR_SET_VMA, PR_SET_VMA_ANON_NAME, x.twin, BYTES, "a name"));
}

static int child_says(int (*f)(const struct pair *), const struct pair *x) {
        int status;
        pid_t pid = fork();
        if (pid == 0)
                _exit(f(x));
        return waitpid(pid, &status, 0) == pid && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int is_zero(const struct pair *x) {
        return not_zero(x->p, BYTES) == 0;
}
static int is_missing(const struct pair *x) {
        unsigned char here[PAGES];
        return mincore(x->p, BYTES, here) < 0 && errno == ENOMEM;
}

static void forks(void) {
        struct pair x = merged_pair();
        SHOW(madvise(x.p, BYTES, MADV_WIPEONFORK));
        SHOW(child_says(is_zero, &x));
        SHOW(wrong(x.p, BYTES, x.content));
        x = pair();
        SHOW(madvise(x.p, BYTES, MADV_DONTFORK));
        wait_merged(x.twin, BYTES);
        SHOW(child_says(is_missing, &x));
        x = merged_pair();
        SHOW(madvise(x.p, BYTES, MADV_DONTFORK));
        SHOW(child_says(is_missing, &x));
        fill(x.p, BYTES, 200);
        fill(x.twin, BYTES, 200);
        wait_merged(x.twin, BYTES);
        SHOW(child_says(is_missing, &x));
        SHOW(madvise(x.p, BYTES, MADV_DOFORK));
        SHOW(child_says(is_missing, &x));
}

/* -- what a mapping has that a file mapping would lose --------------------------------------------------------------------- */

static void attributes(void) {
        struct pair x = merged_pair();
        SHOW(mlock(x.p, BYTES));
        SHOW(merged(x.p, BYTES));
        SHOW(merged_later(&x));
        x = merged_pair();
        SHOW(mlock2(x.p, BYTES, MLOCK_ONFAULT));
        SHOW(merged(x.p, BYTES));
        SHOW(merged_later(&x));
        x = merged_pair();
        const unsigned long nodes = 1;
        SHOW(syscall(SYS_mbind, x.p, BYTES, 2 /* MPOL_BIND */, &nodes, 8, 0));
        SHOW(merged(x.p, BYTES));
        SHOW(merged_later(&x));
        int key = pkey_alloc(0, 0);
        if (key > 0) {
                x = merged_pair();
                SHOW(pkey_mprotect(x.p, BYTES, PROT_READ | PROT_WRITE, key));
                SHOW(merged(x.p, BYTES));
                SHOW(merged_later(&x));
        }
        x = merged_pair();
        SHOW(prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, x.p, BYTES, "a name"));
        SHOW(wrong(x.p, BYTES, x.content));
        x = merged_pair();
        SHOW(mprotect(x.p, BYTES, PROT_READ));
        SHOW(wrong(x.p, BYTES, x.content));
}

/* Calls that are for plain memory find it, whatever they say. The daemon is stopped: nothing is merged again behind them. */
static void plain_memory(void) {
        enum { CALLS = 11 };
        struct pair x[CALLS];
        const unsigned long nodes = 1;
        const int self = (int) syscall(SYS_pidfd_open, getpid(), 0);
        unsigned n = 0;
        for (unsigned i = 0; i < CALLS; i++)
                x[i] = merged_pair();
        say("hold");
        for (unsigned i = 0; i < 4; i++) /* what was on its way has arrived */
                (void) madvise((void *) ((uintptr_t) &x & ~(PAGE - 1)), PAGE, MADV_UNMERGEABLE);
#define FINDS_PLAIN(call)                                \
        do {                                             \
                uint8_t *p = x[n].p;                     \
                SHOW(call);                              \
                SHOW(in_file(p, BYTES));                 \
                SHOW(wrong(x[n].twin, BYTES, x[n].content)); \
                n++;                                     \
        } while (0)
        FINDS_PLAIN(madvise(p, BYTES, MADV_FREE));
        FINDS_PLAIN(madvise(p, BYTES, MADV_REMOVE));
        FINDS_PLAIN(madvise(p, BYTES, MADV_COLLAPSE));
        FINDS_PLAIN(madvise(p, BYTES, MADV_WIPEONFORK));
        FINDS_PLAIN(madvise(p, BYTES, MADV_DONTDUMP));
        FINDS_PLAIN(process_madvise(self, &(struct iovec) { p, BYTES }, 1, MADV_DONTDUMP, 0));
        FINDS_PLAIN(mlock(p, BYTES));
        FINDS_PLAIN(mlock2(p, BYTES, MLOCK_ONFAULT));
        FINDS_PLAIN(syscall(SYS_mbind, p, BYTES, 2 /* MPOL_BIND */, &nodes, 8, 0));
        FINDS_PLAIN(pkey_mprotect(p, BYTES, PROT_READ | PROT_WRITE, 15) < 0); /* a key that nobody has */
        FINDS_PLAIN(prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, p, BYTES, "a name"));
        say("go");
        close(self);
}

/* -- what comes next to the same place --------------------------------------------------------------------------------------- */

static uint8_t *locked(uint8_t *p) {
        if (madvise(p, BYTES, MADV_MERGEABLE) < 0 || mlock(p, BYTES) < 0)
                abort();
        return p;
}

static void map_at(uint8_t *p, int flag) {
        SHOW(mmap(p, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flag, -1, 0) == p);
}

static void merges(uint8_t *p) {
        struct pair x = { p, block(), ++contents };
        fill(x.p, BYTES, x.content);
        fill(x.twin, BYTES, x.content);
        SHOW(madvise(x.p, BYTES, MADV_MERGEABLE));
        SHOW(madvise(x.twin, BYTES, MADV_MERGEABLE));
        wait_merged(x.p, BYTES);
        SHOW(wrong(x.p, BYTES, x.content));
}

/* What was locked is never merged, and goes; what is mapped there next is another thing. */
static void anew(void) {
        uint8_t *p = locked(block());
        SHOW(munmap(p, BYTES));
        map_at(p, MAP_FIXED_NOREPLACE);
        merges(p);
        p = locked(block());
        map_at(p, MAP_FIXED);
        merges(p);
        p = locked(block());
        int id = shmget(IPC_PRIVATE, BYTES, 0600);
        SHOW(shmat(id, p, SHM_REMAP) == p);
        SHOW(shmctl(id, IPC_RMID, NULL));
        SHOW(shmdt(p));
        map_at(p, MAP_FIXED_NOREPLACE);
        merges(p);
        p = locked(block());
        struct pair x = pair();
        SHOW(mremap(x.p, BYTES, BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, p) == p);
        wait_merged(p, BYTES); /* asked for where it was */
        SHOW(wrong(p, BYTES, x.content));
        p = (uint8_t *) (((uintptr_t) sbrk(0) + PAGE - 1) & ~(PAGE - 1));
        SHOW(brk(p + BYTES));
        (void) locked(p);
        SHOW(brk(p));
        SHOW(brk(p + BYTES));
        merges(p);
        (void) locked(p);
        SHOW(sbrk(-(intptr_t) BYTES) == p + BYTES);
        SHOW(sbrk((intptr_t) BYTES) == p);
        merges(p);
}

static void own_userfaultfd(void) {
        struct pair x = merged_pair();
        struct uffdio_api api = { .api = UFFD_API };
        struct uffdio_register r = { .range = { (uint64_t) x.p, BYTES }, .mode = UFFDIO_REGISTER_MODE_MISSING };
        int fd = (int) syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
        if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0)
                return;
        SHOW(ioctl(fd, UFFDIO_REGISTER, &r));
        SHOW(wrong(x.p, BYTES, x.content));
        SHOW(ioctl(fd, UFFDIO_UNREGISTER, &r.range));
        close(fd);
}

/* -- moves ---------------------------------------------------------------------------------------------------------------- */

static void moves(void) {
        struct pair x = merged_pair();
        uint8_t *q = mremap(x.p, BYTES, 2 * BYTES, MREMAP_MAYMOVE);
        SHOW(q != MAP_FAILED && q != x.p);
        SHOW(wrong(q, BYTES, x.content));
        SHOW(not_zero(q + BYTES, BYTES));
        x = merged_pair();
        q = block();
        SHOW(mremap(x.p, BYTES, BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, q) == q);
        SHOW(wrong(q, BYTES, x.content));
        x = merged_pair();
        q = mremap(x.p, BYTES, BYTES, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
        SHOW(q != MAP_FAILED && q != x.p);
        SHOW(wrong(q, BYTES, x.content));
        SHOW(not_zero(x.p, BYTES));
        x = merged_pair();
        SHOW(mremap(x.p, BYTES, BYTES / 2, 0) == x.p);
        SHOW(wrong(x.p, BYTES / 2, x.content));
}

/* Blocks of libc's own mappings, which they fill, header and all: two times the same four next to each other, so that behind the slots of
 * one lie those of the next. What realloc adds comes from the kernel as zeros, not from there; also when a page of the block is pinned,
 * and cannot be restored. */
static void heap(void) {
        enum { BLOCKS = 8, HEADER = 16, USABLE = BYTES - HEADER - 8, CONTENT = 250 };
        static uint8_t *p[BLOCKS];
        (void) mallopt(M_MMAP_THRESHOLD, (int) BYTES / 2);
        (void) mallopt(M_TOP_PAD, 0);
        (void) malloc_trim(0); /* nothing left to take them from */
        for (unsigned i = 0; i < BLOCKS; i++) {
                p[i] = malloc(USABLE);
                fill(p[i], USABLE, CONTENT + i % 4);
                SHOW((uintptr_t) p[i] % PAGE);
                (void) madvise(p[i] - HEADER, BYTES, MADV_MERGEABLE);
        }
        for (unsigned i = 0; i < BLOCKS; i++)
                wait_merged(p[i] - HEADER, BYTES);
        struct io_uring ring;
        bool pinned = pin(&ring, p[0] - HEADER + 3 * PAGE);
        for (unsigned i = 0; i < BLOCKS; i++) {
                uint8_t *q = realloc(p[i], 3 * BYTES + USABLE);
                SHOW(wrong(q, USABLE, CONTENT + i % 4));
                SHOW(not_zero(q + USABLE, 3 * BYTES));
                free(q);
        }
        if (pinned)
                io_uring_queue_exit(&ring);
}

/* -- the whole process ------------------------------------------------------------------------------------------------------ */

static void *on_stack(void *userdata) {
        uint8_t bytes[2 * BYTES];
        uint8_t *p = (uint8_t *) (((uintptr_t) bytes + PAGE) & ~(PAGE - 1)), *other = userdata;
        fill(p, BYTES, 240);
        fill(other, BYTES, 240);
        wait_merged(other + BYTES, BYTES); /* of two equal ones beside it */
        if (getenv("USERKSM_MERGE_ANY")) { /* the stack would be found with it */
                uint8_t *found = block_between(2 * PAGE);
                fill(found, BYTES, 240);
                wait_merged(found, BYTES);
        }
        say("passes");
        SHOW(merged(p, BYTES));
        SHOW(wrong(p, BYTES, 240));
        return NULL;
}

/* libc unmaps a thread's stack itself. One with a guard of the usual size is known by that, too. */
static void stacks(void) {
        uint8_t *other = mmap(NULL, 3 * BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        pthread_t t;
        pthread_attr_t attr;
        (void) pthread_attr_init(&attr);
        (void) pthread_attr_setguardsize(&attr, 4 * PAGE);
        fill(other + BYTES, BYTES, 240);
        fill(other + 2 * BYTES, BYTES, 240);
        (void) madvise(other, 3 * BYTES, MADV_MERGEABLE);
        if (pthread_create(&t, &attr, on_stack, other) == 0)
                pthread_join(t, NULL);
}

static void all_locked(void) {
        struct pair x = merged_pair();
        SHOW(mlockall(MCL_CURRENT));
        SHOW(in_file(x.p, BYTES));
        SHOW(wrong(x.p, BYTES, x.content));
        struct pair y = pair();
        say("passes");
        SHOW(merged(x.p, BYTES));
        SHOW(merged(y.p, BYTES));
        SHOW(munlockall());
        wait_merged(y.p, BYTES);
        SHOW(wrong(y.p, BYTES, y.content));
}

/* A filter for all threads that knows of no membarrier: what the agent calls. It is gone by then. */
static void filtered(void) {
        struct sock_filter code[] = {
                BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
                BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_membarrier, 0, 1),
                BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
                BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        };
        const struct sock_fprog program = { sizeof(code) / sizeof(*code), code };
        struct pair x = merged_pair(), y = pair();
        SHOW(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
        SHOW(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program));
        say("passes");
        SHOW(wrong(x.p, BYTES, x.content));
        SHOW(wrong(y.p, BYTES, y.content));
}

int main(int argc, char **argv) {
        setvbuf(stdout, NULL, _IOLBF, 0);
        is_plain = argc > 1 && strcmp(argv[1], "plain") == 0;
        pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
        if (pagemap < 0)
                return 77;
        static void (*const parts[])(void) = { advice, forks,        attributes, own_userfaultfd, moves, heap, plain_memory,
                                              anew,   stacks, all_locked, filtered };
        for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++)
                if (argc <= 2 || strchr(argv[2], 'a' + (int) i))
                        parts[i]();
        return 0;
}
