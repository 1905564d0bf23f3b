/* fork while pages are merged: the child must see what the parent saw, and its writes are its own. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/e2e/torture.h"

#define FORK_PAGES 128U
/* Children that live long enough to be merged themselves. */
#define LONG_LIFE_USEC 150000U

/* In the child: other threads are gone, their locks mean nothing; only the run that the caller locked is known. */
static void child(struct thread *t, struct run *run) {
        run_verify(run, NULL, "in a forked child");
        size_t size = run->n * PAGE;
        uint8_t *own = shared_alloc(size);
        memcpy(own, run->shadow, size);
        struct run mine = *run;
        mine.shadow = own;
        uint64_t until = now_usec() + (random_below(t, 3) ? 0 : LONG_LIFE_USEC);
        do {
                uint32_t n = 1 + random_below(t, 16), first = random_below(t, run->n - n + 1);
                uint8_t *memory = run->memory + first * PAGE, *shadow = own + first * PAGE;
                switch (random_below(t, 4)) {
                case 0:
                        fill_pattern(t, shadow, first, n);
                        memcpy(memory, shadow, n * PAGE);
                        break;
                case 1:
                        check(run->region->kind == REGION_PINNED || madvise(memory, n * PAGE, MADV_DONTNEED) == 0,
                              "MADV_DONTNEED: %s", strerror(errno));
                        if (run->region->kind != REGION_PINNED)
                                memset(shadow, 0, n * PAGE);
                        break;
                case 2:
                        free(malloc(1 + random_below(t, 300000)));
                        break;
                default: {
                        struct timespec ts = { 0, 1000000 };
                        nanosleep(&ts, NULL);
                }
                }
                run_verify(&mine, NULL, "in a forked child that goes on");
        } while (now_usec() < until);
        _exit(0);
}

void fork_once(struct thread *t) {
        struct region *r = &torture.regions[random_below(t, torture.n_regions)];
        uint32_t first = random_below(t, REGION_PAGES - FORK_PAGES + 1);
        struct run run;
        if (!run_lock(t, &run, r, first, FORK_PAGES))
                return;
        pid_t pid = fork();
        check(pid >= 0, "fork: %s", strerror(errno));
        if (pid == 0)
                child(t, &run);
        int status;
        pid_t got;
        do
                got = waitpid(pid, &status, 0);
        while (got < 0 && errno == EINTR);
        check(got == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child failed: status %x", status);
        run_verify(&run, NULL, "in the parent after fork");
        run_note(t, &run, "fork");
        run_unlock(&run);
}
