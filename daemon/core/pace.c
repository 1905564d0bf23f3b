/* How fast, and whether scanning is worth it.
 *
 * News (a range, a client that is back, a request, another tunable) is covered by the full scan under way, of which nobody knows how much
 * it still sees, the next one, which finds the pages, and, when they have had the time to settle, the first that begins then: it ends
 * when all that had settled has been read, however long that takes. After that scans prove themselves: one that finds equals for a
 * hundredth of what it reads is worth another. So what appears in ranges that are there already is found at the idle pace first, and
 * makes it the full one as soon as it shows. */
#include "daemon/core/internal.h"

/* A scan is worth another when one page in so many that it read has an equal ... */
#define PROMISING_1_IN 100
/* ... which is known before it ends when it has been so for at least so many pages. */
#define PROMISING_SURE BLOCK_PAGES
#define NEWS_SCANS 2
#define NEWS_SETTLE_MAX_USEC (64 * UINT64_C(1000000)) /* with a longer settle_millisecs they are read at the idle pace */
#define FAST_DIVISOR 4
/* The first store to a page after a pass has write-protected it again costs its process a fault of 0.7 us. All of these together may
 * take 1 % of the processors' time: for each such store a pass comes so much later, as long as every process has a processor. */
#define REWRITE_USEC 70
#define REWRITES_MAX_USEC (64 * UINT64_C(1000000)) /* what has become quiet is found within a minute, as hot blocks are by default */
#define WHOLE_SHARE 1000

uint64_t pace_usec(const struct core *c, int64_t ms) {
        return c->pace == CORE_PACE_FAST ? usec_of_ms(ms) / FAST_DIVISOR : usec_of_ms(ms);
}

void pace_news(struct core *c) {
        c->scans_to_do = MAX(c->scans_to_do, (uint32_t) NEWS_SCANS);
        c->has_news = true;
}

void pace_rewrites(struct core *c, struct client *cl, uint64_t n_rewritten) {
        cl->spare_usec = (uint32_t) MIN(n_rewritten * REWRITE_USEC, REWRITES_MAX_USEC);
        c->rewrite_shares -= cl->rewrite_share;
        cl->rewrite_share = (uint32_t) MIN(cl->spare_usec / (uint64_t) c->tunables.pass_millisecs, (uint64_t) WHOLE_SHARE);
        c->rewrite_shares += cl->rewrite_share;
}

/* With more processes that write than processors each of them gets a part of one, and of its time the faults would be as much more. A
 * process that would delay its passes beyond the period counts as one, others as the part of the period (in thousandths: microseconds by
 * milliseconds). What others do is asked when the pass is due: they may have begun to write since. */
uint64_t pace_spare_usec(const struct core *c, const struct client *cl) {
        uint64_t share = c->n_processors ? c->rewrite_shares / c->n_processors : 0;

        return share > WHOLE_SHARE ? MIN(cl->spare_usec * share / WHOLE_SHARE, REWRITES_MAX_USEC) : cl->spare_usec;
}

void core_set_processors(struct core *c, unsigned n) {
        c->n_processors = n;
}

static bool is_promising(const struct core *c) {
        return c->n_promising > 0 && (uint64_t) c->n_promising * PROMISING_1_IN >= c->n_read;
}

void pace_page_read(struct core *c, bool has_equal) {
        c->n_read += c->n_read < UINT32_MAX;
        c->n_promising += has_equal && c->n_promising < UINT32_MAX;
        if (c->scans_to_do == 0 && c->n_promising >= PROMISING_SURE && is_promising(c))
                c->scans_to_do = 1;
}

void pace_scan_ends(struct core *c, uint64_t now_usec) {
        if (c->news_settle_usec > 0 && c->scan_begin_usec >= c->news_settle_usec)
                c->news_settle_usec = 0;
        c->scans_to_do -= c->scans_to_do > 0;
        if (c->scans_to_do == 0 && c->has_news) {
                c->has_news = false;
                c->news_settle_usec = now_usec + MIN(usec_of_ms(c->tunables.settle_millisecs), NEWS_SETTLE_MAX_USEC);
        }
        if (c->scans_to_do == 0 && is_promising(c))
                c->scans_to_do = 1;
        c->n_read = c->n_promising = 0;
        c->scan_begin_usec = now_usec;
}

bool core_has_work(const struct core *c) {
        return c->scans_to_do > 0 || c->news_settle_usec > 0;
}

void core_cpu_used(struct core *c, uint64_t usec) {
        c->cpu_usec = usec;
}

void core_set_pace(struct core *c, enum core_pace pace, uint64_t now_usec) {
        enum core_pace before = c->pace;

        c->pace = pace;
        if (pace == before || pace == CORE_PACE_REST)
                return;
        if (before == CORE_PACE_REST)
                advisor_scan_begins(c, now_usec); /* rest is not scan time */
        for (uint32_t i = pool_next(&c->clients, 0); i != NIL; i = pool_next(&c->clients, i + 1)) {
                struct client *cl = client_at(c, i);

                if (before == CORE_PACE_REST)
                        turn_add(c, cl, TURN_READ);
                if (cl->n_ranges > 0 && !cl->in_pass)
                        scan_hurry(c, cl);
        }
}
