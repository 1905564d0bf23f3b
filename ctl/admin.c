#include "ctl/admin.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"

/* Text that came from outside is safe for a terminal: whoever made the socket wrote it. */
static void make_printable(char *text, size_t size) {
        for (size_t i = 0; i < size && text[i]; i++)
                if (text[i] < ' ' || text[i] > '~')
                        text[i] = '?';
}

void admin_decode_welcome(const struct frame *f, struct msg_admin_welcome *ret) {
        memcpy(ret, f->body, sizeof(*ret));
        make_printable(ret->version, sizeof(ret->version));
}

int admin_connect(struct admin *a, const char *path) {
        struct msg_admin_hello hello = { 0 };
        int r;

        a->fd = channel_connect(path, 0);
        if (a->fd < 0)
                return a->fd;
        r = admin_call(a, MSG_ADMIN_HELLO, &hello, MSG_ADMIN_WELCOME, ADMIN_TIMEOUT_MSEC);
        if (r < 0) {
                a->fd = close_fd(a->fd);
                return r;
        }
        admin_decode_welcome(&a->message.frame, &a->welcome);
        return 0;
}

void admin_close(struct admin *a) {
        a->fd = close_fd(a->fd);
}

int admin_send(struct admin *a, enum message_type type, const void *body) {
        return channel_send(a->fd, type, body, NULL, 0, NULL, 0);
}

int admin_receive(struct admin *a, int timeout_msec) {
        struct pollfd p = { .fd = a->fd, .events = POLLIN };
        enum codec_error e;
        int r;

        do
                r = poll(&p, 1, timeout_msec);
        while (r < 0 && errno == EINTR);
        if (r <= 0)
                return r < 0 ? -errno : -ETIMEDOUT;
        r = channel_receive(a->fd, ROLE_DAEMON, &a->message, &e);
        if (r <= 0)
                return r < 0 ? r : -ECONNRESET;
        channel_message_done(&a->message); /* no admin frame carries fds */
        if (a->message.frame.type == MSG_REFUSED) {
                memcpy(&a->refused, a->message.frame.body, sizeof(a->refused));
                make_printable(a->refused.reason, sizeof(a->refused.reason));
                return -EKEYREJECTED;
        }
        return 0;
}

int admin_call(struct admin *a, enum message_type type, const void *body, enum message_type reply, int timeout_msec) {
        const struct msg_admin_done *done;
        int r = admin_send(a, type, body);

        /* A daemon that closed on us may have said why before. */
        if (r < 0 && r != -EPIPE)
                return r;
        r = admin_receive(a, timeout_msec);
        if (r < 0)
                return r;
        if (a->message.frame.type == reply)
                return 0;
        if (a->message.frame.type != MSG_ADMIN_DONE)
                return -EPROTO;
        done = a->message.frame.body;
        return done->error != 0 ? -done->error : -EPROTO;
}

void admin_decode_counters(const struct frame *f, struct counters *ret) {
        uint32_t n = MIN(f->count, (uint32_t) COUNTER_MAX_);

        *ret = (struct counters) { 0 };
        memcpy(ret, f->elements, n * sizeof(int64_t));
}

int admin_counters(struct admin *a, struct counters *ret, uint64_t *ret_uptime_usec) {
        struct msg_stats_request request = { 0 };
        int r = admin_call(a, MSG_STATS_REQUEST, &request, MSG_STATS_REPLY, ADMIN_TIMEOUT_MSEC);

        if (r < 0)
                return r;
        admin_decode_counters(&a->message.frame, ret);
        if (ret_uptime_usec)
                *ret_uptime_usec = ((const struct msg_stats_reply *) a->message.frame.body)->uptime_usec;
        return 0;
}

void admin_decode_tunables(const struct frame *f, struct tunable_values *ret) {
        const struct tunable_element *t = f->elements;

        *ret = (struct tunable_values) { 0 };
        for (uint32_t i = 0; i < f->count; i++) {
                if (t[i].id >= TUNABLE_MAX_)
                        continue;
                ((int64_t *) &ret->values)[t[i].id] = t[i].value;
                ret->known[t[i].id] = true;
        }
}

int admin_tunables(struct admin *a, struct tunable_values *ret) {
        struct msg_tunables_request request = { 0 };
        int r = admin_call(a, MSG_TUNABLES_REQUEST, &request, MSG_TUNABLES_REPLY, ADMIN_TIMEOUT_MSEC);

        if (r < 0)
                return r;
        admin_decode_tunables(&a->message.frame, ret);
        return 0;
}

int client_list_append(struct client_list *l, const struct frame *clients_reply) {
        size_t n = l->n + clients_reply->count;

        if (n > l->allocated) {
                size_t allocated = MAX(n, 2 * l->allocated);
                struct client_element *p = reallocarray(l->clients, allocated, sizeof(*p));

                if (!p)
                        return -ENOMEM;
                l->clients = p;
                l->allocated = allocated;
        }
        if (clients_reply->count > 0)
                memcpy(l->clients + l->n, clients_reply->elements, clients_reply->count * sizeof(*l->clients));
        l->n = n;
        return 0;
}

void client_list_free(struct client_list *l) {
        free(l->clients);
        *l = (struct client_list) { 0 };
}

/* Comes to an end: the codec checks that ids ascend inside a reply, this loop that they do from reply to reply. */
int admin_clients(struct admin *a, struct client_list *ret) {
        struct msg_clients_request request = { 0 };
        struct client_list list = { 0 };
        int r;

        for (;;) {
                const struct frame *f = &a->message.frame;
                const struct client_element *client;

                r = admin_call(a, MSG_CLIENTS_REQUEST, &request, MSG_CLIENTS_REPLY, ADMIN_TIMEOUT_MSEC);
                if (r < 0)
                        break;
                client = f->elements;
                if (f->count > 0 && client[0].client <= request.after) {
                        r = -EPROTO;
                        break;
                }
                r = client_list_append(&list, f);
                if (r < 0 || f->count < CLIENTS_MAX)
                        break;
                request.after = client[f->count - 1].client;
        }
        if (r < 0) {
                client_list_free(&list);
                return r;
        }
        *ret = list;
        return 0;
}

static int grow(void **items, size_t *allocated, size_t n, size_t item_bytes) {
        size_t more = MAX(n, 2 * *allocated);
        void *p;

        if (n <= *allocated)
                return 0;
        p = reallocarray(*items, more, item_bytes);
        if (!p)
                return -ENOMEM;
        *items = p;
        *allocated = more;
        return 0;
}

int domain_list_append(struct domain_list *l, const struct frame *domains_reply) {
        int r = grow((void **) &l->domains, &l->allocated, l->n + domains_reply->count, sizeof(*l->domains));

        if (r < 0)
                return r;
        if (domains_reply->count > 0)
                memcpy(l->domains + l->n, domains_reply->elements, domains_reply->count * sizeof(*l->domains));
        l->n += domains_reply->count;
        return 0;
}

void domain_list_free(struct domain_list *l) {
        free(l->domains);
        *l = (struct domain_list) { 0 };
}

/* Comes to an end: `next` ascends from reply to reply. */
int admin_domains(struct admin *a, struct domain_list *ret) {
        struct msg_domains_request request = { 0 };
        struct domain_list list = { 0 };
        int r;

        for (;;) {
                const struct frame *f = &a->message.frame;
                uint32_t next;

                r = admin_call(a, MSG_DOMAINS_REQUEST, &request, MSG_DOMAINS_REPLY, ADMIN_TIMEOUT_MSEC);
                if (r < 0)
                        break;
                next = ((const struct msg_domains_reply *) f->body)->next;
                r = domain_list_append(&list, f);
                if (r < 0 || next == 0)
                        break;
                if (next <= request.after) {
                        r = -EPROTO;
                        break;
                }
                request.after = next;
        }
        if (r < 0) {
                domain_list_free(&list);
                return r;
        }
        *ret = list;
        return 0;
}

static void range_join(struct client_range_element *to, const struct client_range_element *more) {
        to->n_pages += more->n_pages;
        to->tracked_pages += more->tracked_pages;
        to->merged_pages += more->merged_pages;
        to->zero_pages += more->zero_pages;
        to->unshared_pages += more->unshared_pages;
        to->flags = more->flags;
}

int range_list_append(struct range_list *l, const struct frame *ranges_reply) {
        const struct client_range_element *range = ranges_reply->elements;
        int r = grow((void **) &l->ranges, &l->allocated, l->n + ranges_reply->count, sizeof(*l->ranges));

        if (r < 0)
                return r;
        for (uint32_t i = 0; i < ranges_reply->count; i++) {
                struct client_range_element *last = l->n > 0 ? &l->ranges[l->n - 1] : NULL;

                if (last && last->flags & RANGE_CONTINUED && last->page + last->n_pages == range[i].page)
                        range_join(last, &range[i]);
                else
                        l->ranges[l->n++] = range[i];
        }
        return 0;
}

void range_list_free(struct range_list *l) {
        free(l->ranges);
        *l = (struct range_list) { 0 };
}

int admin_ranges(struct admin *a, uint32_t client, struct range_list *ret) {
        struct msg_ranges_request request = { .client = client };
        struct range_list list = { 0 };
        int r;

        for (;;) {
                const struct frame *f = &a->message.frame;
                uint64_t next;

                r = admin_call(a, MSG_RANGES_REQUEST, &request, MSG_RANGES_REPLY, ADMIN_TIMEOUT_MSEC);
                if (r < 0)
                        break;
                next = ((const struct msg_ranges_reply *) f->body)->next;
                r = range_list_append(&list, f);
                if (r < 0 || next == 0)
                        break;
                if (next <= request.page) {
                        r = -EPROTO;
                        break;
                }
                request.page = next;
        }
        if (r < 0) {
                range_list_free(&list);
                return r;
        }
        *ret = list;
        return 0;
}
