/* What one user holds here: connections, the loop's time, log lines, threads that hang on its memory. Connections cost a client
 * nothing, so what must be bounded is bounded for all of a user's together.
 *
 * An account lives while a session or a job refers to it, and a while longer, so that its log lines stay limited. Loop's thread only. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "daemon/bounds.h"

struct manager;
struct session;

/* What was said in one window of time: each reason once. */
struct log_limit {
        uint64_t began_usec;
        unsigned n, n_suppressed; /* lines; the latter of no reason below */
        struct log_reason {
                char text[LOG_REASON_BYTES];
                unsigned n_suppressed;
        } reasons[LOG_REASONS];
};

struct uid_account {
        uint32_t uid;
        unsigned n_sessions;
        unsigned n_jobs; /* workers are at, or hang on, what is this user's */
        unsigned n_slow; /* of those, on its memory for so long that they may hang */
        unsigned n_lost; /* threads that hang on memory or descriptors of this user's processes */
        bool door_busy;  /* door.h */
        TAILQ_HEAD(door_queue, session) door;
        struct log_limit log;
        uint64_t turn, used_usec; /* number of the turn in which that much was used */
};

/* Finds or creates; NULL = no memory. */
struct uid_account *account_get(struct manager *m, uint32_t uid);
/* Frees those that nothing refers to, and says what was suppressed. False: none is left. */
bool account_tick(struct manager *m, uint64_t now);
void accounts_free(struct manager *m);

/* Whether this user may go on in this turn; asked before each piece of work. */
bool account_may_go_on(struct manager *m, struct uid_account *a, uint64_t now);
void account_used(struct manager *m, struct uid_account *a, uint64_t usec);

/* A line that something a client does can bring about as often as it likes: each reason is said once about a user in a window of time,
 * at most so many lines about all (bounds.h); the rest is counted, and the counts are said when the window is over. Not limited at log
 * level debug. a may be NULL. */
__attribute__((format(printf, 5, 6))) void account_log(struct manager *m, struct uid_account *a, int level, const char *reason,
                                                       const char *format, ...);
