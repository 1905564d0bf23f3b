#include "common/fault.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define NAME_BYTES_MAX 64U

const struct fault_info fault_table[FAULT_MAX_] = {
#define FAULT_ROW(side, name, text) [FAULT_##name] = { FAULT_##side, #name, text },
        FAULT_TABLE(FAULT_ROW)
#undef FAULT_ROW
};

static const char *const actions[FAULT_ACTION_MAX_] = {
        [FAULT_COUNT] = "count",   [FAULT_KILL] = "kill", [FAULT_STOP] = "stop",       [FAULT_DELAY] = "delay",
        [FAULT_RANDOM] = "random", [FAULT_FAIL] = "fail", [FAULT_FAIL_ON] = "fail-on",
};

struct fault_page *_Atomic fault_page;
static struct fault_page own_page; /* for an order in the environment */

/* -- acting ------------------------------------------------------------------------------------------------------- */

static void sleep_usec(uint32_t usec) {
        const struct timespec ts = { .tv_sec = usec / 1000000, .tv_nsec = (long) (usec % 1000000) * 1000 };
        (void) nanosleep(&ts, NULL);
}

/* Mostly not at all, so that steps are also met back to back. */
static void sleep_at_random(uint32_t most_usec) {
        static _Atomic uint32_t shared_state = 2463534242U;
        uint32_t state = atomic_load_explicit(&shared_state, memory_order_relaxed);
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        atomic_store_explicit(&shared_state, state, memory_order_relaxed);
        if ((state & 3) == 0)
                sleep_usec(state % (most_usec + 1));
}

/* True when it is this passage's turn, for an action that happens once or for one that goes on. */
static bool is_due(struct fault_page *page, bool goes_on) {
        uint32_t pid = atomic_load(&page->pid), left = atomic_load(&page->left);
        if (pid && pid != (uint32_t) getpid())
                return false;
        while (left > (goes_on ? 1U : 0U))
                if (atomic_compare_exchange_weak(&page->left, &left, left - 1))
                        return !goes_on && left == 1;
        return goes_on && left == 1;
}

static void note_fired(struct fault_page *page, enum fault_id id) {
        atomic_store(&page->fired_pid, (uint32_t) getpid());
        atomic_store(&page->fired_id, (uint32_t) id + 1);
        atomic_fetch_add(&page->fired, 1);
}

void fault_pass(struct fault_page *page, enum fault_id id) {
        uint32_t order = atomic_load(&page->order);
        atomic_fetch_add_explicit(&page->reached[id], 1, memory_order_relaxed);
        if (order != (uint32_t) id + 1 && order != FAULT_ANY_POINT)
                return;
        int saved = errno;
        enum fault_action action = atomic_load(&page->action);
        uint32_t value = atomic_load(&page->value);
        if (action == FAULT_RANDOM)
                sleep_at_random(value);
        else if ((action == FAULT_KILL || action == FAULT_STOP || action == FAULT_DELAY) && is_due(page, false)) {
                note_fired(page, id);
                /* tgkill, which the daemon's system call filter allows; both signals are for the whole process. */
                if (action == FAULT_DELAY)
                        sleep_usec(value);
                else
                        (void) tgkill(getpid(), gettid(), action == FAULT_KILL ? SIGKILL : SIGSTOP);
        }
        errno = saved;
}

int fault_fail(struct fault_page *page, enum fault_id id) {
        uint32_t order = atomic_load(&page->order);
        atomic_fetch_add_explicit(&page->reached[id], 1, memory_order_relaxed);
        if (order != (uint32_t) id + 1 && order != FAULT_ANY_CALL)
                return 0;
        enum fault_action action = atomic_load(&page->action);
        if (action == FAULT_DELAY && is_due(page, false)) {
                int saved = errno;
                note_fired(page, id);
                sleep_usec(atomic_load(&page->value));
                errno = saved;
                return 0;
        }
        if ((action != FAULT_FAIL && action != FAULT_FAIL_ON) || !is_due(page, action == FAULT_FAIL_ON))
                return 0;
        note_fired(page, id);
        return -(int) atomic_load(&page->value);
}

/* -- arming ------------------------------------------------------------------------------------------------------- */

/* Takes the text up to the next ':' off *at. False: nothing there, or too long. */
static bool take(const char **at, char word[NAME_BYTES_MAX]) {
        size_t n = strcspn(*at, ":");
        if (n == 0 || n >= NAME_BYTES_MAX)
                return false;
        memcpy(word, *at, n);
        word[n] = '\0';
        *at += n + ((*at)[n] == ':');
        return true;
}

static int find_order(const char *name, uint32_t *ret) {
        if (strcmp(name, "any") == 0) {
                *ret = FAULT_ANY_POINT;
                return 0;
        }
        if (strcmp(name, "call") == 0) {
                *ret = FAULT_ANY_CALL;
                return 0;
        }
        for (uint32_t i = 0; i < FAULT_MAX_; i++)
                if (strcmp(fault_table[i].name, name) == 0) {
                        *ret = i + 1;
                        return 0;
                }
        return -EINVAL;
}

static int parse(const char *text, struct fault_page *page) {
        char word[NAME_BYTES_MAX];
        uint32_t order, action = 0, nth = 1, value = 0;
        if (!take(&text, word) || find_order(word, &order) < 0 || !take(&text, word))
                return -EINVAL;
        while (action < FAULT_ACTION_MAX_ && strcmp(actions[action], word) != 0)
                action++;
        if (action == FAULT_ACTION_MAX_)
                return -EINVAL;
        if (take(&text, word))
                nth = (uint32_t) strtoul(word, NULL, 10);
        if (take(&text, word))
                value = (uint32_t) strtoul(word, NULL, 10);
        /* A thread that met the last order may still be here: it finds no order, or all of the new one. */
        atomic_store(&page->order, 0);
        atomic_store(&page->pid, 0);
        atomic_store(&page->fired, 0);
        atomic_store(&page->fired_pid, 0);
        atomic_store(&page->fired_id, 0);
        for (unsigned i = 0; i < FAULT_MAX_; i++)
                atomic_store_explicit(&page->reached[i], 0, memory_order_relaxed);
        atomic_store(&page->action, action);
        atomic_store(&page->left, nth);
        atomic_store(&page->value, value);
        atomic_store(&page->order, order);
        return 0;
}

int fault_arm(const char *specification, void *(*map)(const char *path, size_t length)) {
        struct fault_page *page = NULL;
        int r = 0;
        atomic_store(&fault_page, NULL);
        if (!specification || !*specification)
                return 0;
        if (*specification == '/') {
                page = map ? map(specification, sizeof(*page)) : NULL;
                r = page ? 0 : -ENOENT;
        } else {
                r = parse(specification, &own_page);
                page = r == 0 ? &own_page : NULL;
        }
        atomic_store(&fault_page, page);
        return r;
}
