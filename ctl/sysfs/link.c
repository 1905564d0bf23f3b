#include "ctl/sysfs/link.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "common/cleanup.h"
#include "common/log.h"

/* Unmerging is looked at this often: first soon, for a few pages are restored in a millisecond, then at leisure. */
#define WAIT_FIRST_USEC 500
#define WAIT_MAX_USEC 20000

void link_init(struct link *l, const char *socket_path) {
        *l = (struct link) { .socket_path = socket_path, .admin = ADMIN_INIT };
        pthread_mutex_init(&l->lock, NULL);
}

void link_done(struct link *l) {
        admin_close(&l->admin);
        pthread_mutex_destroy(&l->lock);
}

static void say_down(struct link *l, int error) {
        if (l->is_down)
                return;
        l->is_down = true;
        if (error == -EKEYREJECTED)
                log_warning("the daemon at %s refuses us: %.*s; files fail with EIO until it does not", l->socket_path,
                            (int) sizeof(l->admin.refused.reason), l->admin.refused.reason);
        else
                log_warning_errno(error, "no daemon at %s; files fail with EIO until it is back", l->socket_path);
}

static int connect_if_needed(struct link *l) {
        int r = l->admin.fd >= 0 ? 0 : admin_connect(&l->admin, l->socket_path);

        if (r == 0 && l->is_down) {
                l->is_down = false;
                log_info("the daemon at %s is back (pid %u)", l->socket_path, l->admin.welcome.daemon_pid);
        }
        return r;
}

/* An error leaves the connection in an unknown state: a late answer would be taken for the next one. Of a daemon that was started
 * anew the old connection tells only when it is used, hence the second try. Setting a tunable twice does no harm. */
static int call(struct link *l, int (*ask)(struct admin *a, void *userdata), void *userdata) {
        int r = 0;

        pthread_mutex_lock(&l->lock);
        for (int tries = 0; tries < 2; tries++) {
                bool is_old = l->admin.fd >= 0;

                r = connect_if_needed(l);
                if (r == 0)
                        r = ask(&l->admin, userdata);
                if (r == 0)
                        break;
                admin_close(&l->admin);
                if (!is_old || r == -ETIMEDOUT)
                        break;
        }
        if (r < 0)
                say_down(l, r);
        pthread_mutex_unlock(&l->lock);
        return r < 0 ? -EIO : 0;
}

static int ask_counters(struct admin *a, void *userdata) {
        return admin_counters(a, userdata, NULL);
}

static int ask_tunables(struct admin *a, void *userdata) {
        return admin_tunables(a, userdata);
}

static int ask_clients(struct admin *a, void *userdata) {
        return admin_clients(a, userdata);
}

static int ask_domains(struct admin *a, void *userdata) {
        return admin_domains(a, userdata);
}

int link_counters(struct link *l, struct counters *ret) {
        return call(l, ask_counters, ret);
}

int link_tunables(struct link *l, struct tunable_values *ret) {
        return call(l, ask_tunables, ret);
}

int link_clients(struct link *l, struct client_list *ret) {
        return call(l, ask_clients, ret);
}

int link_domains(struct link *l, struct domain_list *ret) {
        return call(l, ask_domains, ret);
}

struct setting {
        struct msg_tunable_set set;
        int answer; /* -errno of the daemon */
};

static int ask_set(struct admin *a, void *userdata) {
        struct setting *s = userdata;
        int r = admin_call(a, MSG_TUNABLE_SET, &s->set, MSG_ADMIN_DONE, ADMIN_TIMEOUT_MSEC);

        if (r == 0)
                s->answer = -((const struct msg_admin_done *) a->message.frame.body)->error;
        return r;
}

int link_set(struct link *l, enum tunable_id id, int64_t value) {
        struct setting s = { .set = { .id = (uint32_t) id, .value = value } };
        int r = call(l, ask_set, &s);

        return r < 0 ? r : s.answer;
}

/* -- run=2 --------------------------------------------------------------------------------------------------------- */

static uint64_t now_usec(void) {
        struct timespec t;

        clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t) t.tv_sec * 1000000 + (uint64_t) t.tv_nsec / 1000;
}

int link_wait_unmerged(struct link *l, bool (*is_interrupted)(void *userdata), void *userdata) {
        uint64_t changed_usec = now_usec(), wait_usec = WAIT_FIRST_USEC;
        int64_t before = INT64_MAX;

        for (;;) {
                struct timespec t = { .tv_nsec = (long) wait_usec * 1000 };
                struct tunable_values tunables = { .values.run = 2 };
                struct counters c = { 0 };
                int64_t left;
                int r = link_counters(l, &c);

                if (r < 0)
                        return r;
                left = c.pages_shared + c.pages_sharing + c.ksm_zero_pages;
                if (left == 0)
                        return 0;
                if (left < before)
                        changed_usec = now_usec();
                before = MIN(before, left);
                r = link_tunables(l, &tunables);
                if (r < 0 || tunables.values.run != 2)
                        return r;
                if (is_interrupted(userdata))
                        return -EINTR;
                if (now_usec() - changed_usec > LINK_STUCK_USEC)
                        return -EBUSY;
                nanosleep(&t, NULL);
                wait_usec = MIN(2 * wait_usec, (uint64_t) WAIT_MAX_USEC);
        }
}
