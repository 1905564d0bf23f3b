/* The connection to the daemon: made when there is one, again when it comes back; nothing ever waits for it.
 *
 * A send that would block closes the connection: the daemon does not read, its books of us are lost anyway, and the next
 * HELLO starts them afresh. What is merged stays merged. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "common/fault.h"
#include "lib/agent_loop.h"
#include "lib/agent_start.h"
#include "lib/sys.h"
#include "lib/transition.h"

#define CONNECT_PAUSE_MIN_USEC 100000U  /* a daemon that restarts is met again at once */
#define CONNECT_PAUSE_MAX_USEC 2000000U /* one that is not there costs nothing */
#define STATS_PERIOD_USEC 1000000U
/* Frames handled before events and requests get their turn: each may be a transition of 100 us. */
#define FRAMES_A_TURN 16U
/* Room for the answers to all transitions in flight. */
#define SEND_BUFFER_BYTES (1 << 20)

void link_close(struct agent *a) {
        if (a->link_fd >= 0)
                sys_close(a->link_fd);
        a->link_fd = -1;
        a->welcomed = a->reporting = false;
        segments_drop_all(&a->segments);
        a->connect_at_usec = now_usec() + a->connect_pause_usec;
        a->connect_pause_usec = MIN(a->connect_pause_usec * 2, (uint64_t) CONNECT_PAUSE_MAX_USEC);
        /* Nobody will answer these any more. */
        for (struct request *r; (r = mailbox_unpark_any());)
                mailbox_finish(r, -ENOTCONN);
        fault_point(FAULT_link_closed);
}

static bool send_frame(struct agent *a, enum message_type type, const void *body, const void *elements, uint32_t count,
                       const int *fds, unsigned n_fds) {
        if (a->link_fd < 0)
                return false;
        if (channel_send(a->link_fd, type, body, elements, count, fds, n_fds) == 0)
                return true;
        link_close(a);
        return false;
}

bool link_send(struct agent *a, enum message_type type, const void *body, const void *elements, uint32_t count) {
        return send_frame(a, type, body, elements, count, NULL, 0);
}

void link_send_ranges(struct agent *a, enum message_type type, const struct interval *v, uint32_t n) {
        if (!a->welcomed)
                return;
        while (n) {
                struct range_element x[64];
                uint32_t k = MIN(n, (uint32_t) ARRAY_SIZE(x));
                for (uint32_t i = 0; i < k; i++)
                        x[i] = (struct range_element) { v[i].start, v[i].end - v[i].start };
                struct msg_range_add add = { .n_vmas = a->figures.n_vmas };
                struct msg_range_del other = { 0 };
                const void *body = type == MSG_RANGE_ADD ? (const void *) &add : (const void *) &other;
                if (!send_frame(a, type, body, x, k, NULL, 0))
                        return;
                v += k;
                n -= k;
        }
}

static void say_hello(struct agent *a) {
        struct msg_hello hello = { .flags = a->flags | HELLO_REPORTS | (nodes_can_be_told(a) ? HELLO_NODES : 0U), .page_size = KSM_PAGE_SIZE };
        char text[32] = "";
        long fd = sys_open("/proc/sys/vm/max_map_count", O_RDONLY | O_CLOEXEC);
        if (fd >= 0) {
                if (sys_pread((int) fd, text, sizeof(text) - 1, 0) > 0)
                        for (const char *p = text; *p >= '0' && *p <= '9'; p++)
                                hello.max_map_count = hello.max_map_count * 10 + (uint32_t) (*p - '0');
                sys_close((int) fd);
        }
        fd = sys_open("/proc/self/comm", O_RDONLY | O_CLOEXEC);
        if (fd >= 0) {
                long n = sys_pread((int) fd, text, sizeof(hello.comm), 0);
                if (n > 0)
                        memcpy(hello.comm, text, (size_t) n - 1); /* without the newline */
                sys_close((int) fd);
        }
        hello.n_vmas = a->figures.n_vmas = count_vmas(a);
        const int fds[] = { a->pagemap_fd, a->mem_fd };
        if (send_frame(a, MSG_HELLO, &hello, NULL, 0, fds, ARRAY_SIZE(fds)))
                fault_point(FAULT_link_hello);
}

static void try_connect(struct agent *a) {
        int fd = channel_connect(agent_control()->path, 1);
        if (fd < 0) {
                a->connect_at_usec = now_usec() + a->connect_pause_usec;
                a->connect_pause_usec = MIN(a->connect_pause_usec * 2, (uint64_t) CONNECT_PAUSE_MAX_USEC);
                return;
        }
        int size = SEND_BUFFER_BYTES;
        (void) setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
        a->link_fd = fd;
        fault_point(FAULT_link_connected);
        say_hello(a);
}

/* -- frames of the daemon ------------------------------------------------------------------------------------------ */

static bool on_welcome(struct agent *a, struct channel_message *m) {
        if (a->welcomed)
                return false;
        fault_point(FAULT_link_welcome);
        if (agent_open_contexts(a, m->fds[0]) < 0)
                return false; /* tried again with the next connection */
        a->welcomed = true;
        a->connect_pause_usec = CONNECT_PAUSE_MIN_USEC;
        (void) registry_retrack(a);
        link_send_ranges(a, MSG_RANGE_ADD, a->ranges.v, a->ranges.n);
        fault_point(FAULT_link_ranges);
        if (((const struct msg_welcome *) m->frame.body)->flags & WELCOME_REPORT)
                report_begin(a);
        a->discovery.at_usec = 0;
        a->stats_at_usec = 0;
        return true;
}

static bool on_apply(struct agent *a, const struct frame *f) {
        const struct msg_apply *apply = f->body;
        struct msg_applied applied = { .op = apply->op };
        if (!a->welcomed || !f->count)
                return false;
        fault_point(FAULT_link_apply);
        applied.duration_usec = transition_apply(a, apply->kind, f->elements, f->count, applied.status);
        fault_point(FAULT_link_applied);
        bool sent = send_frame(a, MSG_APPLIED, &applied, NULL, 0, NULL, 0);
        fault_point(FAULT_link_answered);
        return sent;
}

static void on_merge_done(const struct msg_merge_done *done) {
        struct request *r = mailbox_unpark((uint32_t) done->cookie);
        if (!r)
                return;
        r->saved_bytes = done->saved_bytes;
        mailbox_finish(r, -done->error);
        fault_point(FAULT_link_told);
}

/* False: the connection ends. */
static bool handle(struct agent *a, struct channel_message *m) {
        const struct frame *f = &m->frame;
        switch (f->type) {
        case MSG_WELCOME:
                return on_welcome(a, m);
        case MSG_SEGMENT: {
                const struct msg_segment *s = f->body;
                bool taken = a->welcomed && segments_add(&a->segments, s->segment, s->n_slots, channel_take_fd(m, 0)) == 0;
                fault_point(FAULT_link_segment);
                return taken;
        }
        case MSG_SEGMENT_DROP:
                segments_drop(&a->segments, ((const struct msg_segment_drop *) f->body)->segment);
                fault_point(FAULT_link_dropped);
                return true;
        case MSG_APPLY:
                return on_apply(a, f);
        case MSG_NODES_REQUEST:
                return nodes_answer(a, f);
        case MSG_PING:
                return send_frame(a, MSG_PONG, f->body, NULL, 0, NULL, 0);
        case MSG_MERGE_DONE:
                on_merge_done(f->body);
                return true;
        default: /* REFUSED, and what only admin tools are sent */
                return false;
        }
}

void link_readable(struct agent *a) {
        for (unsigned i = 0; i < FRAMES_A_TURN && a->link_fd >= 0; i++) {
                enum codec_error error;
                int r = channel_receive(a->link_fd, ROLE_DAEMON, a->message, &error);
                if (r == -EAGAIN)
                        return;
                bool keep = r == 1 && handle(a, a->message);
                if (r == 1)
                        channel_message_done(a->message);
                if (!keep) {
                        link_close(a);
                        return;
                }
                agent_drain(a);
        }
}

/* -- our side ------------------------------------------------------------------------------------------------------ */

int link_request_merge(struct agent *a, uint32_t cookie, uint64_t start, uint64_t length) {
        const struct msg_merge_request m = { .cookie = cookie, .start = start, .length = length };
        if (!a->welcomed || !send_frame(a, MSG_MERGE_REQUEST, &m, NULL, 0, NULL, 0))
                return -ENOTCONN;
        fault_point(FAULT_link_asked);
        return 0;
}

static void send_stats(struct agent *a, uint64_t now) {
        a->stats_at_usec = now + STATS_PERIOD_USEC;
        a->figures.flags = (a->raw ? AGENT_RAW : 0) | (a->merge_any ? AGENT_MERGE_ANY : 0);
        if (memcmp(&a->figures, &a->figures_sent, sizeof(a->figures)) == 0)
                return;
        struct msg_agent_stats m = {
                .cpu_usec = thread_cpu_usec(),
                .transitions = a->figures.transitions,
                .busy = a->figures.busy,
                .n_vmas = a->figures.n_vmas,
                .flags = a->figures.flags,
        };
        for (unsigned i = 0; i < WAIT_BUCKETS; i++)
                m.waits[i] = a->figures.waits[i];
        a->figures_sent = a->figures;
        (void) send_frame(a, MSG_AGENT_STATS, &m, NULL, 0, NULL, 0);
        fault_point(FAULT_link_stats);
}

void link_step(struct agent *a, uint64_t now) {
        if (!a->connect_pause_usec)
                a->connect_pause_usec = CONNECT_PAUSE_MIN_USEC;
        if (a->link_fd < 0 && now >= a->connect_at_usec)
                try_connect(a);
        if (a->welcomed && now >= a->stats_at_usec)
                send_stats(a, now);
        report_step(a, now);
}

uint64_t link_next_usec(const struct agent *a) {
        if (a->link_fd < 0)
                return a->connect_at_usec;
        if (a->reporting)
                return a->report_at_usec;
        return a->welcomed ? a->stats_at_usec : UINT64_MAX;
}
