/* Processes, threads, signals. */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "tests/shadow/shadow.h"

#define STACK_PAGES 8U

static struct record waited(pid_t pid, uint64_t digest) {
        int status = -1;
        while (waitpid(pid, &status, 0) < 0)
                check(errno == EINTR, "waitpid");
        return (struct record) { .result = status, .digest = digest };
}

/* -- actors that are processes ------------------------------------------------------------------------------------ */

struct record op_fork(struct actor *a, const struct op *o) {
        uint32_t index = fork_slot(o);
        if (atomic_load(&run.control->pid[index]))
                return (struct record) { .result = SKIPPED };
        atomic_store(&run.control->pid[index], 1); /* the child waits for its turn, so it may see this */
        pid_t pid = fork();
        if (pid == 0)
                actor_forked(index);
        check(pid > 0, "fork");
        return (struct record) { 0 };
}

/* Its record, and its turn, first. */
struct record op_exit(struct actor *a, const struct op *o) {
        uint32_t i = (uint32_t) (o - run.program.ops);
        if (a->index < THREADS)
                return (struct record) { .result = SKIPPED };
        run.log[i] = (struct record) { 0 };
        atomic_store(&run.control->pid[a->index], 0);
        turn_pass(i + 1);
        if (o->arg & 1)
                exit(0);
        _exit(0);
}

static uint64_t digest_arenas(const struct actor *a, uint32_t arg) {
        uint64_t h = 0;
        for (unsigned i = 0; i < ARENAS; i++) {
                const struct arena *arena = &run.arenas[i];
                if (arena->kind == ARENA_NONE || (run.program.family == FAMILY_PARALLEL && i % THREADS != a->index % THREADS))
                        continue;
                if (arena->pages <= 128 || arg % 8 == 0)
                        h = h * 31 + digest_memory(arena->base, arena->pages * PAGE);
        }
        return h;
}

/* A child looks at everything, writes to its own copy and looks again. */
struct record op_fork_check(struct actor *a, const struct op *o) {
        uint64_t *said = (uint64_t *) a->bounce;
        struct span s = op_span(o);
        pid_t pid = fork();
        check(pid >= 0, "fork");
        if (pid == 0) {
                uffd_forget();
                said[0] = digest_arenas(a, o->arg);
                (void) guarded_copy(s.at, content(o->value), MIN(s.bytes, PAGE));
                if (o->arg & 64)
                        (void) madvise(s.at, s.bytes, MADV_DONTNEED);
                said[1] = digest_memory(s.at, s.bytes);
                _exit(0);
        }
        struct record r = waited(pid, 0);
        r.digest = said[0] * 31 + said[1];
        return r;
}

/* The child is in the parent's memory: a system call fills pages of it. */
struct record op_vfork(struct actor *a, const struct op *o) {
        struct span s = op_span_bytes(o);
        volatile ssize_t n = 0;
        pid_t pid = vfork(); /* NOLINT(clang-analyzer-security.insecureAPI.vfork): the call under test */
        if (pid == 0) {
                n = pread(run.pattern, s.at, s.bytes, 0); /* NOLINT(clang-analyzer-unix.Vfork): as above */
                _exit(9);
        }
        check(pid > 0, "vfork");
        struct record r = waited(pid, digest_memory(s.at, s.bytes));
        r.error = (int32_t) n;
        return r;
}

/* cat, its input written from the range, and an argument that lies in it. */
struct record op_spawn(struct actor *a, const struct op *o) {
        struct span s = op_span(o);
        int in[2], out[2];
        posix_spawn_file_actions_t actions;
        check(pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC) == 0, "pipe2");
        check(posix_spawn_file_actions_init(&actions) == 0 && posix_spawn_file_actions_adddup2(&actions, in[0], 0) == 0 &&
              posix_spawn_file_actions_adddup2(&actions, out[1], 1) == 0, "file actions");
        char *argument = (char *) s.at;
        if (!s.bytes || guarded_store(s.at, (const uint8_t *) "-u", 3) != 0)
                argument = (char *) (uintptr_t) "-u";
        char *argv[] = { (char *) (uintptr_t) "cat", argument, NULL };
        pid_t pid;
        int error = posix_spawn(&pid, "/bin/cat", &actions, NULL, argv, environ);
        check(error == 0, "posix_spawn: %s", strerror(error));
        close(in[0]), close(out[1]);
        ssize_t n = write(in[1], s.at, MIN(s.bytes, 4 * PAGE));
        struct record r = outcome(n);
        close(in[1]);
        size_t done = 0;
        for (ssize_t got; (got = read(out[0], a->bounce + done, BOUNCE_PAGES * PAGE - done)) > 0;)
                done += (size_t) got;
        close(out[0]);
        (void) posix_spawn_file_actions_destroy(&actions);
        int status = waited(pid, 0).result;
        r.result = r.result * 3 + status;
        r.digest = digest_bytes(done, a->bounce, done);
        return r;
}

/* -- threads and signals ------------------------------------------------------------------------------------------- */

struct visit {
        const struct op *o;
        uint64_t digest;
};

static void *visitor(void *p) {
        struct visit *v = p;
        struct span s = op_span(v->o);
        (void) guarded_copy(s.at, content(v->o->value), MIN(s.bytes, PAGE));
        v->digest = digest_memory(s.at, s.bytes);
        return NULL;
}

struct record op_thread(struct actor *a, const struct op *o) {
        struct visit v = { o, 0 };
        pthread_t id;
        struct record r = { 0 };
        r.result = pthread_create(&id, NULL, visitor, &v);
        if (r.result == 0)
                r.result = pthread_join(id, NULL);
        r.digest = v.digest;
        return r;
}

static __thread struct visit signal_visit;

static void on_signal(int number) {
        (void) visitor(&signal_visit);
}

static void on_alarm(int number) {
}

static void handle(int number, void (*handler)(int), int flags) {
        struct sigaction sa = { .sa_handler = handler, .sa_flags = flags };
        check(sigaction(number, &sa, NULL) == 0, "sigaction");
}

struct record op_signal(struct actor *a, const struct op *o) {
        signal_visit = (struct visit) { o, 0 };
        handle(SIGUSR1, on_signal, SA_RESTART);
        check(raise(SIGUSR1) == 0, "raise");
        return (struct record) { .digest = signal_visit.digest };
}

/* The handler's stack is in the arena; afterwards it holds addresses, so it is filled again. */
struct record op_signal_stack(struct actor *a, const struct op *o) {
        struct op where = *o;
        where.pages = STACK_PAGES;
        struct span s = op_span(&where);
        if (s.bytes < STACK_PAGES * PAGE || o->to == o->arena || uffd_is_open())
                return (struct record) { .result = SKIPPED };
        for (size_t i = 0; i < s.bytes; i += PAGE)
                if (guarded_copy(s.at + i, content((uint32_t) (o->value + i / PAGE)), PAGE) != 0)
                        return (struct record) { .result = -2 };
        stack_t stack = { .ss_sp = s.at, .ss_size = s.bytes }, off = { .ss_flags = SS_DISABLE };
        check(sigaltstack(&stack, NULL) == 0, "sigaltstack");
        struct op elsewhere = *o;
        elsewhere.arena = o->to;
        elsewhere.page = o->to_page;
        elsewhere.pages = 1;
        signal_visit = (struct visit) { &elsewhere, 0 };
        handle(SIGUSR2, on_signal, SA_ONSTACK | SA_RESTART);
        struct record r = { .result = raise(SIGUSR2) };
        check(sigaltstack(&off, NULL) == 0, "sigaltstack");
        for (size_t i = 0; i < s.bytes; i += PAGE)
                r.result += guarded_copy(s.at + i, content((uint32_t) (o->value + i / PAGE)), PAGE);
        return r;
}

/* An alarm every few milliseconds interrupts whatever is going on. */
void alarms(bool on) {
        struct itimerval every = { { 0, on ? 3000 : 0 }, { 0, on ? 3000 : 0 } };
        handle(SIGALRM, on_alarm, SA_RESTART);
        check(setitimer(ITIMER_REAL, &every, NULL) == 0, "setitimer");
}

/* -- exec ------------------------------------------------------------------------------------------------------------ */

#define ARENA_SLOT (2048 * PAGE)

/* The bytes of the arenas live on in a file, what cannot be read as zeros; the mappings begin anew. Threads end here and are
 * made again; processes stay. */
struct record op_exec(struct actor *a, const struct op *o) {
        uint32_t i = (uint32_t) (o - run.program.ops);
        if (a->index != 0 || getpid() != atomic_load(&run.control->pid[0]))
                return (struct record) { .result = SKIPPED };
        int fd = memfd_create("state", 0);
        check(fd >= 0, "memfd_create");
        for (unsigned k = 0; k < ARENAS; k++) {
                const struct arena *arena = &run.arenas[k];
                off_t at = (off_t) (k * ARENA_SLOT);
                uint64_t pages = arena->pages;
                check(pwrite(fd, &pages, sizeof(pages), at) == sizeof(pages), "pwrite");
                for (uint32_t p = 0; p < arena->pages; p++)
                        (void) pwrite(fd, arena->base + p * PAGE, PAGE, at + (off_t) ((p + 1) * PAGE));
        }
        run.log[i] = (struct record) { 0 };
        run_again(fd, i + 1);
}

void exec_resume(int fd) {
        for (unsigned k = 0; k < ARENAS; k++) {
                struct arena *arena = &run.arenas[k];
                off_t at = (off_t) (k * ARENA_SLOT);
                uint64_t pages = 0;
                check(pread(fd, &pages, sizeof(pages), at) == sizeof(pages), "pread");
                if (arena->kind == ARENA_ROAMING && pages != arena->pages) {
                        (void) munmap(arena->base, arena->pages * PAGE);
                        arena->base = NULL;
                }
                if (arena->kind == ARENA_BRK)
                        check(sbrk((intptr_t) (pages * PAGE)) == arena->base, "sbrk");
                bool anew = !arena->base;
                arena->pages = (uint32_t) pages;
                if (anew)
                        arena_reset(arena, false);
                bool file = arena->kind == ARENA_FILE_PRIVATE || arena->kind == ARENA_FILE_SHARED;
                for (uint32_t p = 0; p < (file ? MIN(pages, FILE_PAGES) : pages); p++) {
                        uint8_t page[PAGE] = { 0 };
                        (void) pread(fd, page, PAGE, at + (off_t) ((p + 1) * PAGE));
                        memcpy(arena->base + p * PAGE, page, PAGE);
                }
        }
        close(fd);
}
