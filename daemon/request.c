#include "daemon/request.h"

#include <errno.h>
#include <stdlib.h>

#include "common/cleanup.h"
#include "daemon/client.h"
#include "daemon/control.h"
#include "daemon/session.h"

int request_new(struct requests *r, struct session *session, struct request **ret) {
        struct request *q = calloc(1, sizeof(*q));
        if (!q)
                return -ENOMEM;
        int k;
        do {
                if (++r->last_cookie == 0)
                        r->last_cookie = 1;
                q->cookie = r->last_cookie;
                k = idmap_put(&r->by_cookie, q->cookie, q);
        } while (k == -EEXIST);
        if (k < 0) {
                free(q);
                return k;
        }
        q->session = session;
        q->session_next = session->requests;
        session->requests = q;
        q->n_waiting = 1;
        *ret = q;
        return 0;
}

/* A session has CLIENT_MERGES_MAX at most. */
static void unlink_session(struct request *q) {
        struct request **p = &q->session->requests;
        while (*p != q)
                p = &(*p)->session_next;
        *p = q->session_next;
}

static void release(struct requests *r, struct request *q) {
        if (--q->n_waiting > 0)
                return;
        (void) idmap_remove(&r->by_cookie, q->cookie);
        if (q->session)
                unlink_session(q);
        /* One of several clients that left meanwhile is no failure of the whole. */
        int error = q->n_succeeded > 0 ? 0 : -q->error;
        if (q->session && q->from_agent)
                client_merge_done(q->session, q->agent_cookie, q->pages << KSM_PAGE_SHIFT, error);
        else if (q->session)
                control_request_done(q->session, error, q->pages, q->left);
        free(q);
}

void request_event(struct requests *r, const struct core_event *e) {
        struct request *q = e->cookie <= UINT32_MAX ? idmap_get(&r->by_cookie, (uint32_t) e->cookie) : NULL;
        if (!q)
                return;
        q->pages += e->pages;
        q->left += e->left;
        if (e->error < 0)
                q->error = e->error;
        else
                q->n_succeeded++;
        release(r, q);
}

void request_armed(struct requests *r, struct request *q) {
        release(r, q);
}

void requests_forget_session(struct session *s) {
        for (; s->requests; s->requests = s->requests->session_next)
                s->requests->session = NULL;
}

void requests_done(struct requests *r) {
        IDMAP_FOREACH(&r->by_cookie, e)
                free(e->value);
        idmap_clear(&r->by_cookie);
}
