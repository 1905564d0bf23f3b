/* What interposed calls return, one line a call: run without and with the shim, the output must be the same
 * (test_shim_calls.py). No addresses, no pids in the output. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
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
#include <threads.h>
#include <unistd.h>

#include "common/uapi.h"

#define PAGE 4096UL
/* Bigger than what an agent maps for itself: that may land in a hole of the program, as any library's memory may. */
#define GAP 2048UL
#define KEPT 4242 /* errno that a successful call must leave alone */

#define SHOW(call)                                                                  \
        do {                                                                        \
                errno = KEPT;                                                       \
                long _r = (long) (call);                                            \
                int _e = errno;                                                     \
                printf("%s -> %ld, errno %d\n", #call, _r, _e == KEPT ? 0 : _e);    \
        } while (0)
/* Only whether it failed: the value is an address or a pid. */
#define SHOW_OK(call)                                                                                       \
        do {                                                                                                \
                errno = KEPT;                                                                               \
                long _r = (long) (call);                                                                    \
                int _e = errno;                                                                             \
                printf("%s -> %s, errno %d\n", #call, _r == -1 || _r == 0 ? "failed" : "ok", _e == KEPT ? 0 : _e); \
        } while (0)

static char *map(size_t pages, int prot, int flags) {
        return mmap(NULL, pages * PAGE, prot, MAP_ANONYMOUS | flags, -1, 0);
}

static void merge_advice(void) {
        char *p = map(8, PROT_READ | PROT_WRITE, MAP_PRIVATE), *shared = map(4, PROT_READ | PROT_WRITE, MAP_SHARED);
        char *none = map(4, PROT_NONE, MAP_PRIVATE), *gap = map(GAP + 8, PROT_READ | PROT_WRITE, MAP_PRIVATE);
        int fd = open("/proc/self/exe", O_RDONLY);
        char *file = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
        munmap(gap + 2 * PAGE, GAP * PAGE);
        memset(p, 7, 8 * PAGE);
        SHOW(madvise(p, 8 * PAGE, MADV_MERGEABLE));
        SHOW(madvise(p, 8 * PAGE, MADV_MERGEABLE));
        SHOW(madvise(p, 1, MADV_MERGEABLE));
        SHOW(madvise(p, 0, MADV_MERGEABLE));
        SHOW(madvise(p + 1, PAGE, MADV_MERGEABLE));
        SHOW(madvise(p + 1, 0, MADV_UNMERGEABLE));
        SHOW(madvise(p, SIZE_MAX, MADV_MERGEABLE));
        SHOW(madvise(p, SIZE_MAX - 2 * PAGE, MADV_MERGEABLE));
        SHOW(madvise(p, SIZE_MAX / 2 - (size_t) p, MADV_MERGEABLE));
        SHOW(madvise(NULL, PAGE, MADV_MERGEABLE));
        SHOW(madvise(shared, 4 * PAGE, MADV_MERGEABLE));
        SHOW(madvise(none, 4 * PAGE, MADV_MERGEABLE));
        SHOW(madvise(file, PAGE, MADV_MERGEABLE));
        SHOW(madvise(gap, (GAP + 8) * PAGE, MADV_MERGEABLE));
        SHOW(madvise(gap, (GAP + 8) * PAGE, MADV_UNMERGEABLE));
        SHOW(madvise(p, 2 * PAGE, MADV_UNMERGEABLE));
        SHOW(madvise(p, 8 * PAGE, MADV_UNMERGEABLE));
        SHOW(madvise(shared, PAGE, MADV_UNMERGEABLE));
        SHOW(syscall(SYS_madvise, p, 8 * PAGE, MADV_MERGEABLE));
        SHOW(syscall(SYS_madvise, p + 1, 8 * PAGE, MADV_MERGEABLE));
        SHOW(prctl(PR_GET_MEMORY_MERGE, 1, 0, 0, 0));
        SHOW(prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 1));
        SHOW(prctl(PR_SET_MEMORY_MERGE, 1, 1, 0, 0));
        SHOW(prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 1));
        SHOW(prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0));
        SHOW(prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0));
        SHOW(syscall(SYS_prctl, PR_GET_MEMORY_MERGE, 0, 0, 0, 0));
        SHOW(prctl(PR_SET_MEMORY_MERGE, 0, 0, 0, 0));
        SHOW(prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0));
        close(fd);
}

static void other_advice(void) {
        char *p = map(16, PROT_READ | PROT_WRITE, MAP_PRIVATE);
        int fd = open("/proc/self/exe", O_RDONLY);
        char *file = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
        memset(p, 9, 16 * PAGE);
        madvise(p, 16 * PAGE, MADV_MERGEABLE);
        SHOW(madvise(p, 2 * PAGE, MADV_DONTNEED));
        SHOW(p[0] + p[2 * PAGE - 1] + p[2 * PAGE]);
        SHOW(madvise(p + 1, PAGE, MADV_DONTNEED));
        SHOW(madvise(p + 2 * PAGE, PAGE, MADV_FREE));
        SHOW(madvise(file, PAGE, MADV_FREE));
        SHOW(madvise(p, PAGE, MADV_REMOVE));
        SHOW(madvise(p + 4 * PAGE, PAGE, MADV_WIPEONFORK));
        SHOW(madvise(p + 4 * PAGE, PAGE, MADV_KEEPONFORK));
        SHOW(madvise(p + 5 * PAGE, PAGE, MADV_DONTFORK));
        SHOW(madvise(p + 5 * PAGE, PAGE, MADV_DOFORK));
        SHOW(madvise(p + 6 * PAGE, PAGE, MADV_DONTDUMP));
        SHOW(madvise(p + 6 * PAGE, PAGE, MADV_DODUMP));
        SHOW(madvise(p, PAGE, 12345));
        SHOW(madvise(NULL, PAGE, MADV_DONTNEED));
        SHOW(posix_madvise(p, PAGE, POSIX_MADV_WILLNEED));
        SHOW(posix_madvise(p + 1, PAGE, POSIX_MADV_WILLNEED));
        struct iovec v[2] = { { p, PAGE }, { p + PAGE, PAGE } };
        SHOW(process_madvise(-1, v, 2, MADV_COLD, 0));
        SHOW(process_madvise(-1, v, 2, MADV_FREE, 0));
        close(fd);
}

static void mappings(void) {
        char *p = map(16, PROT_READ | PROT_WRITE, MAP_PRIVATE);
        SHOW(munmap(p + 1, PAGE));
        SHOW(munmap(p, 0));
        SHOW(munmap(p + 15 * PAGE, PAGE));
        SHOW(munmap(p + 15 * PAGE, PAGE));
        SHOW(mmap(p, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p);
        SHOW(mmap(p, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
        SHOW(mmap(NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        SHOW(mmap64(NULL, PAGE, PROT_READ, MAP_PRIVATE, -1, 0));
        SHOW(syscall(SYS_mmap, NULL, PAGE, PROT_READ, MAP_PRIVATE, 99, 0));
        SHOW_OK(syscall(SYS_mmap, NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        SHOW(mprotect(p, PAGE, PROT_READ | PROT_WRITE));
        SHOW(mprotect(p + 1, PAGE, PROT_READ));
        SHOW(mprotect(NULL, PAGE, PROT_READ));
        SHOW(pkey_mprotect(p, PAGE, PROT_READ | PROT_WRITE, -1));
        SHOW(mlock(p, PAGE));
        SHOW(munlock(p, PAGE));
        SHOW(mlock(NULL, PAGE));
        SHOW(mlock2(p, PAGE, 99));
        SHOW(mlockall(1 << 20));
        SHOW(mlockall(MCL_CURRENT)); /* with an agent it fills the agent's memory, too */
        SHOW(munlockall());
        SHOW(munlockall());
        SHOW(mremap(p + 1, PAGE, PAGE, 0));
        SHOW(mremap(p, PAGE, 0, 0));
        SHOW(mremap(p, PAGE, 2 * PAGE, 0));
        SHOW(mremap(p, 16 * PAGE, 32 * PAGE, MREMAP_MAYMOVE));
        SHOW(mremap(p, 2 * PAGE, 2 * PAGE, MREMAP_FIXED, p + 8 * PAGE));
        SHOW(mremap(NULL, PAGE, 2 * PAGE, MREMAP_MAYMOVE));
        SHOW(mremap(p, 4 * PAGE, 2 * PAGE, 0) == p);
        char *q = map(4, PROT_READ | PROT_WRITE, MAP_PRIVATE), *to = map(8, PROT_NONE, MAP_PRIVATE);
        strcpy(q, "moved");
        SHOW(mremap(q, 4 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
        SHOW(strcmp(to, "moved"));
        SHOW(to[8 * PAGE - 1]);
        SHOW(syscall(SYS_munmap, to, 8 * PAGE));
        SHOW(brk((void *) 1));
        SHOW_OK(sbrk(0));
        void *end = sbrk(0);
        SHOW(brk((char *) end + 4 * PAGE));
        SHOW((char *) sbrk(0) - (char *) end);
        SHOW((char *) sbrk(-(intptr_t) (4 * PAGE)) - (char *) end);
        SHOW((char *) sbrk(0) - (char *) end);
        SHOW(syscall(SYS_brk, 0) == (long) sbrk(0));
        SHOW(shmat(-1, NULL, 0));
        SHOW(ioctl(-1, UFFDIO_REGISTER, NULL));
        int fds[2];
        SHOW(pipe(fds));
        SHOW(ioctl(fds[0], UFFDIO_REGISTER, (void *) 8));
        SHOW(ioctl(fds[0], FIONREAD, &(int){ 0 }));
}

static void heap(void) {
        void *volatile p = NULL;
        volatile size_t huge = SIZE_MAX / 2 + 1;
        SHOW((long) malloc(huge));
        SHOW((long) calloc(huge, 4));
        SHOW((long) reallocarray(NULL, huge, 4));
        SHOW_OK(p = malloc(0)); /* NOLINT(clang-analyzer-optin.portability.UnixAPI): what glibc does is what is asked */
        SHOW_OK(p = realloc(p, 1 << 20));
        memset(p, 5, 1 << 20);
        SHOW_OK(p = realloc(p, 8 << 20));
        SHOW(((char *) p)[(1 << 20) - 1]);
        SHOW_OK(p = realloc(p, 100));
        SHOW(((char *) p)[99]);
        SHOW((errno = KEPT, free(p), 0));
        SHOW((errno = KEPT, free(NULL), 0));
        void *q = NULL;
        SHOW(posix_memalign(&q, 3, 100));
        SHOW(posix_memalign(&q, 64, 100));
        SHOW((uintptr_t) q % 64);
        free(q);
        SHOW((uintptr_t) (q = aligned_alloc(4096, 8192)) % 4096);
        free(q);
        SHOW((uintptr_t) (q = memalign(256, 10)) % 256);
        free(q);
        SHOW((uintptr_t) (q = valloc(10)) % PAGE);
        free(q);
        if (getenv("TEST_PVALLOC")) { /* jemalloc has none, and cannot free libc's */
                SHOW((uintptr_t) (q = pvalloc(10)) % PAGE);
                free(q);
        }
}

static void *thread(void *arg) {
        return (char *) arg + 1;
}
static int c11_thread(void *arg) {
        return *(int *) arg + 1;
}
static int clone_child(void *arg) {
        return *(int *) arg + 2;
}
static int status_of(long pid) {
        int status = -1;
        waitpid((pid_t) pid, &status, 0);
        return status;
}

static void processes(void) {
        pthread_t id;
        thrd_t c11;
        void *result = NULL;
        int value = 41, c11_result = 0;
        SHOW(pthread_create(&id, NULL, thread, (void *) 6));
        SHOW(pthread_join(id, &result));
        SHOW((long) result);
        SHOW(thrd_create(&c11, c11_thread, &value));
        SHOW(thrd_join(c11, &c11_result));
        SHOW(c11_result);
        fflush(stdout);
        pid_t pid = fork();
        if (pid == 0)
                _exit((free(malloc(100000)), 3));
        SHOW(status_of(pid));
        fflush(stdout);
        pid = _Fork();
        if (pid == 0)
                _exit(4);
        SHOW(status_of(pid));
        fflush(stdout);
        pid = (pid_t) syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
        if (pid == 0)
                _exit(5);
        SHOW(status_of(pid));
        struct clone_args args = { .exit_signal = SIGCHLD };
        fflush(stdout);
        pid = (pid_t) syscall(SYS_clone3, &args, sizeof(args));
        if (pid == 0)
                _exit(madvise(map(4, PROT_READ | PROT_WRITE, MAP_PRIVATE), 4 * PAGE, MADV_MERGEABLE) + 6);
        SHOW(status_of(pid));
        SHOW(syscall(SYS_clone3, NULL, 0));
        SHOW(syscall(SYS_clone3, NULL, sizeof(args)));
        SHOW(syscall(9999));
        SHOW(syscall(-1));
        SHOW(syscall(SYS_getpid) == getpid());
        static char stack[65536] __attribute__((aligned(16)));
        SHOW(status_of(clone(clone_child, stack + sizeof(stack), SIGCHLD, &value)));
        SHOW(status_of(clone(clone_child, stack + sizeof(stack), CLONE_VM | CLONE_VFORK | SIGCHLD, &value)));
        SHOW(clone(NULL, NULL, 0, NULL));
        fflush(stdout);
        pid = vfork(); /* NOLINT(clang-analyzer-security.insecureAPI.vfork): the call under test */
        if (pid == 0) {
                execl("/bin/true", "true", NULL);
                _exit(127);
        }
        SHOW(status_of(pid));
        char *argv[] = { "false", NULL };
        SHOW(posix_spawnp(&pid, "false", NULL, NULL, argv, NULL));
        SHOW(status_of(pid));
        SHOW(posix_spawn(&pid, "/nonexistent", NULL, NULL, argv, NULL));
        SHOW(system("exit 7"));
        void *handle;
        SHOW_OK(handle = dlopen("libm.so.6", RTLD_NOW));
        SHOW_OK(dlsym(handle, "no_such_function"));
        SHOW(dlerror() != NULL);
        SHOW(dlclose(handle));
}

int main(void) {
        setvbuf(stdout, NULL, _IOFBF, 1 << 16);
        merge_advice();
        other_advice();
        mappings();
        heap();
        processes();
        fflush(stdout);
        return 0;
}
