#include "daemon/account.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/log.h"
#include "daemon/bounds.h"
#include "daemon/manager.h"

struct uid_account *account_get(struct manager *m, uint32_t uid) {
        struct uid_account *a = idmap_get(&m->accounts, uid);
        if (a)
                return a;
        a = calloc(1, sizeof(*a));
        if (!a)
                return NULL;
        a->uid = uid;
        TAILQ_INIT(&a->door);
        if (idmap_put(&m->accounts, uid, a) < 0) {
                free(a);
                return NULL;
        }
        return a;
}

void accounts_free(struct manager *m) {
        IDMAP_FOREACH(&m->accounts, e)
                free(e->value);
        idmap_clear(&m->accounts);
}

/* -- time ------------------------------------------------------------------------------------------------------------ */

bool account_may_go_on(struct manager *m, struct uid_account *a, uint64_t now) {
        if (a->turn != m->turn.number) {
                a->turn = m->turn.number;
                a->used_usec = 0;
        }
        return a->used_usec < TURN_USER_USEC && !turn_is_over(&m->turn, now);
}

void account_used(struct manager *m, struct uid_account *a, uint64_t usec) {
        if (a->turn == m->turn.number)
                a->used_usec += usec;
}

/* -- log lines ------------------------------------------------------------------------------------------------------- */

static bool is_over(const struct log_limit *l, uint64_t now) {
        return now > l->began_usec + LOG_WINDOW_USEC;
}

static void say_suppressed(struct log_limit *l, const struct uid_account *a) {
        if (l->n_suppressed > 0 && a)
                log_warning("%u more lines about processes of uid %u suppressed", l->n_suppressed, a->uid);
        else if (l->n_suppressed > 0)
                log_warning("%u more lines about processes of several users suppressed", l->n_suppressed);
        l->n_suppressed = 0;
}

static bool admit(struct log_limit *l, const struct uid_account *a, unsigned limit, uint64_t now) {
        if (is_over(l, now)) {
                say_suppressed(l, a);
                *l = (struct log_limit){ .began_usec = now };
        }
        if (l->n < limit) {
                l->n++;
                return true;
        }
        l->n_suppressed++;
        return false;
}

void account_log(struct manager *m, struct uid_account *a, int level, const char *format, ...) {
        char text[512];
        uint64_t now = now_usec();
        if (level > log_get_max_level())
                return;
        if (log_get_max_level() < LOG_DEBUG && !((!a || admit(&a->log, a, LOG_LINES_PER_USER, now)) &&
                                                  admit(&m->log, NULL, LOG_LINES, now))) {
                m->n_log_suppressed++;
                return;
        }
        va_list ap;
        va_start(ap, format);
        (void) vsnprintf(text, sizeof(text), format, ap);
        va_end(ap);
        log_line(level, "%s", text);
}

/* -- end ------------------------------------------------------------------------------------------------------------- */

static struct uid_account *find_unused(struct manager *m, uint64_t now) {
        IDMAP_FOREACH(&m->accounts, e) {
                struct uid_account *a = e->value;
                if (is_over(&a->log, now))
                        say_suppressed(&a->log, a);
                if (a->n_sessions == 0 && a->n_jobs == 0 && is_over(&a->log, now))
                        return a;
        }
        return NULL;
}

bool account_tick(struct manager *m, uint64_t now) {
        struct uid_account *a;
        if (is_over(&m->log, now))
                say_suppressed(&m->log, NULL);
        while ((a = find_unused(m, now)) && !turn_is_over(&m->turn, now_usec())) {
                (void) idmap_remove(&m->accounts, a->uid);
                free(a);
        }
        return m->accounts.n > 0 || m->log.n_suppressed > 0;
}
