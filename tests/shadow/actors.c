/* Who executes what, and when. */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

#include "tests/shadow/futex.h"
#include "tests/shadow/shadow.h"

#define STACK_BYTES (512 << 10) /* the usual 8 MiB would be most of what mlockall has to fill */

static struct record (*const functions[OP_KINDS])(struct actor *, const struct op *) = {
#define X(name, weight, where) op_##name,
        OPS(X)
#undef X
};

struct record execute(struct actor *a, const struct op *o) {
        errno = 0;
        return functions[o->kind](a, o);
}

void actor_open(struct actor *a, uint32_t index) {
        char path[256];
        snprintf(path, sizeof(path), "%s/scratch%u", run.directory, index);
        *a = (struct actor) { .index = index };
        a->scratch = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        snprintf(path, sizeof(path), "%s/direct%u", run.directory, index);
        a->direct = run.pins ? open(path, O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600) : -1;
        snprintf(path, sizeof(path), "%s/pattern", run.directory);
        a->pattern = open(path, O_RDONLY | O_CLOEXEC);
        a->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
        check(a->scratch >= 0 && a->pattern >= 0 && a->pagemap >= 0 && pipe2(a->pipe, O_CLOEXEC) == 0, "%s", path);
        a->bounce = shared_alloc(BOUNCE_PAGES * PAGE);
}

/* Whose turn it is; main answers for actors that do not live. */
static uint32_t owner(uint32_t i) {
        uint32_t actor = i < run.program.n ? run.program.ops[i].actor : 0;
        return actor < THREADS || atomic_load(&run.control->pid[actor]) ? actor : 0;
}

static void ring(uint32_t actor) {
        atomic_fetch_add(&run.control->bell[actor], 1);
        futex_wake(&run.control->bell[actor]);
}

void turn_pass(uint32_t next) {
        atomic_store(&run.control->turn, next);
        if (next < run.program.n)
                ring(owner(next));
        else
                for (unsigned i = 0; i < ACTORS; i++)
                        ring(i);
}

/* One operation at a time. */
static void in_sequence(struct actor *a) {
        struct control *c = run.control;
        for (;;) {
                uint32_t rung = atomic_load(&c->bell[a->index]), i = atomic_load(&c->turn);
                if (i >= run.program.n)
                        return;
                if (owner(i) != a->index) {
                        futex_wait_while(&c->bell[a->index], rung);
                        continue;
                }
                const struct op *o = &run.program.ops[i];
                struct record r = { .result = SKIPPED };
                run.log[i] = o->actor == a->index ? execute(a, o) : r;
                if (i + 1 < run.program.n && owner(i + 1) == a->index)
                        atomic_store(&c->turn, i + 1);
                else
                        turn_pass(i + 1);
        }
}

static void in_parallel(struct actor *a) {
        for (uint32_t i = 0; i < run.program.n; i++)
                if (run.program.ops[i].actor == a->index)
                        run.log[i] = execute(a, &run.program.ops[i]);
}

static void actor_run(struct actor *a) {
        if (run.program.family == FAMILY_RACE)
                race_thread(a);
        else if (run.program.family == FAMILY_PARALLEL)
                in_parallel(a);
        else
                in_sequence(a);
        uring_close(a);
}

void actor_forked(uint32_t index) {
        struct actor a;
        uffd_forget();
        actor_open(&a, index);
        in_sequence(&a);
        atomic_store(&run.control->pid[index], 0);
        _exit(0);
}

static void *thread_main(void *index) {
        struct actor a;
        actor_open(&a, (uint32_t) (uintptr_t) index);
        actor_run(&a);
        return NULL;
}

void run_threads(void) {
        pthread_t threads[THREADS];
        struct actor a;
        pthread_attr_t attributes;
        check(pthread_attr_init(&attributes) == 0 && pthread_attr_setstacksize(&attributes, STACK_BYTES) == 0, "stacks");
        for (uintptr_t i = 1; i < THREADS; i++)
                check(pthread_create(&threads[i], &attributes, thread_main, (void *) i) == 0, "pthread_create");
        (void) pthread_attr_destroy(&attributes);
        actor_open(&a, 0);
        actor_run(&a);
        for (unsigned i = 1; i < THREADS; i++)
                check(pthread_join(threads[i], NULL) == 0, "pthread_join");
        for (unsigned i = THREADS; i < ACTORS; i++)
                while (atomic_load(&run.control->pid[i]) && !atomic_load(&run.control->failed))
                        (void) usleep(500);
        check(!atomic_load(&run.control->failed), "a process of the program failed");
}
