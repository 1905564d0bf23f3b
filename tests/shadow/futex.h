/* Waiting on a word that other processes change. */
#pragma once

#include <linux/futex.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "tests/shadow/shadow.h"

static inline void futex_wake(_Atomic uint32_t *word) {
        (void) syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

/* Returns when the word is another; ends the process when another one failed. */
static inline void futex_wait_while(_Atomic uint32_t *word, uint32_t value) {
        const struct timespec second = { 1, 0 };
        while (atomic_load(word) == value) {
                if (atomic_load(&run.control->failed))
                        _exit(3);
                (void) syscall(SYS_futex, word, FUTEX_WAIT, value, &second, NULL, 0);
        }
}
