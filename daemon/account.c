#include "daemon/account.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

static void end_window(struct log_limit *l, const struct uid_account *a) {
        for (struct log_reason *r = l->reasons; a && r < l->reasons + MIN(l->n, (unsigned) LOG_REASONS); r++)
                if (r->n_suppressed > 0)
                        log_warning("uid %u: %u more of: %s", a->uid, r->n_suppressed, r->text);
        if (l->n_suppressed > 0 && a)
                log_warning("uid %u: %u more lines suppressed", a->uid, l->n_suppressed);
        else if (l->n_suppressed > 0)
                log_warning("%u more lines about clients of several users suppressed", l->n_suppressed);
        l->n = l->n_suppressed = 0;
}

/* False: this reason was said in this window. */
static bool is_news(struct uid_account *a, const char *reason, uint64_t now) {
        struct log_limit *l = &a->log;
        if (is_over(l, now)) {
                end_window(l, a);
                l->began_usec = now;
        }
        for (unsigned i = 0; i < l->n; i++)
                if (strncmp(l->reasons[i].text, reason, LOG_REASON_BYTES - 1) == 0) {
                        l->reasons[i].n_suppressed++;
                        return false;
                }
        if (l->n == LOG_REASONS) {
                l->n_suppressed++;
                return false;
        }
        struct log_reason *r = &l->reasons[l->n++];
        (void) snprintf(r->text, sizeof(r->text), "%s", reason);
        r->n_suppressed = 0;
        return true;
}

static bool has_room(struct log_limit *l, uint64_t now) {
        if (is_over(l, now)) {
                end_window(l, NULL);
                l->began_usec = now;
        }
        if (l->n < LOG_LINES) {
                l->n++;
                return true;
        }
        l->n_suppressed++;
        return false;
}

void account_log(struct manager *m, struct uid_account *a, int level, const char *reason, const char *format, ...) {
        char text[512];
        uint64_t now = now_usec();
        if (level > log_get_max_level())
                return;
        if (log_get_max_level() < LOG_DEBUG && ((a && !is_news(a, reason, now)) || !has_room(&m->log, now))) {
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
                        end_window(&a->log, a);
                if (a->n_sessions == 0 && a->n_jobs == 0 && is_over(&a->log, now))
                        return a;
        }
        return NULL;
}

bool account_tick(struct manager *m, uint64_t now) {
        struct uid_account *a;
        if (is_over(&m->log, now))
                end_window(&m->log, NULL);
        while ((a = find_unused(m, now)) && !turn_is_over(&m->turn, now_usec())) {
                (void) idmap_remove(&m->accounts, a->uid);
                free(a);
        }
        return m->accounts.n > 0 || m->log.n_suppressed > 0;
}
