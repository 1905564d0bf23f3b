#include "daemon/sys/workers.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include "daemon/sys/clock.h"

struct worker {
        struct workers *owner;
        pthread_t thread;
        struct worker_job *job;   /* running; under the lock */
        struct worker *next;
        void *scratch;
        bool lost;              /* its job was given up */
        bool replaced;          /* another has its place: ends when its job does */
        bool ended;             /* has let go of the lock for the last time */
};

struct workers {
        pthread_mutex_t lock;
        pthread_cond_t work;
        struct worker_job *queue_head, **queue_tail;
        struct worker_job *done_head, **done_tail;
        struct worker *workers;
        void (*wake)(void *);
        void *userdata;
        size_t scratch_bytes;
        unsigned n_workers, n_lost, n_replaced;
        uint64_t cpu_usec;
        bool stopping;
};

static void append(struct worker_job ***tail, struct worker_job *job) {
        job->next = NULL;
        **tail = job;
        *tail = &job->next;
}

static struct worker_job *pop(struct worker_job **head, struct worker_job ***tail) {
        struct worker_job *job = *head;
        if (job) {
                *head = job->next;
                if (!*head)
                        *tail = head;
                job->next = NULL;
        }
        return job;
}

static void *worker_main(void *userdata) {
        struct worker *w = userdata;
        struct workers *p = w->owner;
        uint64_t cpu_before = 0;
        pthread_mutex_lock(&p->lock);
        for (;;) {
                while (!p->queue_head && !p->stopping)
                        pthread_cond_wait(&p->work, &p->lock);
                if (p->stopping)
                        break;
                struct worker_job *job = pop(&p->queue_head, &p->queue_tail);
                w->job = job;
                job->started_usec = now_usec();
                pthread_mutex_unlock(&p->lock);

                job->run(job, w->scratch);

                uint64_t cpu = clock_usec(CLOCK_THREAD_CPUTIME_ID);
                pthread_mutex_lock(&p->lock);
                p->cpu_usec += cpu - cpu_before;
                cpu_before = cpu;
                w->job = NULL;
                append(&p->done_tail, job);
                p->wake(p->userdata);
                if (w->lost) { /* back after all */
                        w->lost = false;
                        p->n_lost--;
                        p->n_workers += !w->replaced;
                }
                if (w->replaced) {
                        p->n_replaced--;
                        break;
                }
        }
        w->ended = true;
        pthread_mutex_unlock(&p->lock);
        return NULL;
}

static int add_worker(struct workers *p) {
        struct worker *w = calloc(1, sizeof(*w));
        if (!w)
                return -ENOMEM;
        w->owner = p;
        w->scratch = malloc(p->scratch_bytes);
        if (!w->scratch) {
                free(w);
                return -ENOMEM;
        }
        sigset_t all, old;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &old);
        int r = pthread_create(&w->thread, NULL, worker_main, w);
        pthread_sigmask(SIG_SETMASK, &old, NULL);
        if (r) {
                free(w->scratch);
                free(w);
                return -r;
        }
        pthread_mutex_lock(&p->lock);
        w->next = p->workers;
        p->workers = w;
        p->n_workers++;
        pthread_mutex_unlock(&p->lock);
        return 0;
}

int workers_new(unsigned n_workers, size_t scratch_bytes, void (*wake)(void *userdata), void *userdata,
             struct workers **ret) {
        struct workers *p = calloc(1, sizeof(*p));
        if (!p)
                return -ENOMEM;
        pthread_mutex_init(&p->lock, NULL);
        pthread_cond_init(&p->work, NULL);
        p->queue_tail = &p->queue_head;
        p->done_tail = &p->done_head;
        p->scratch_bytes = scratch_bytes;
        p->wake = wake;
        p->userdata = userdata;
        for (unsigned i = 0; i < n_workers; i++) {
                int r = add_worker(p);
                if (r < 0) {
                        workers_free(p);
                        return r;
                }
        }
        *ret = p;
        return 0;
}

int workers_stop(struct workers *p) {
        struct worker_job *job;
        pthread_mutex_lock(&p->lock);
        p->stopping = true;
        bool lost = p->n_lost > 0;
        pthread_cond_broadcast(&p->work);
        pthread_mutex_unlock(&p->lock);
        if (lost)
                return -EBUSY;
        while (p->workers) {
                struct worker *w = p->workers;
                p->workers = w->next;
                pthread_join(w->thread, NULL);
                free(w->scratch);
                free(w);
        }
        p->n_workers = 0;
        while ((job = pop(&p->queue_head, &p->queue_tail))) {
                job->cancelled = true;
                append(&p->done_tail, job);
        }
        return 0;
}

struct workers *workers_free(struct workers *p) {
        if (!p || workers_stop(p) < 0)
                return NULL;
        pthread_cond_destroy(&p->work);
        pthread_mutex_destroy(&p->lock);
        free(p);
        return NULL;
}

void workers_submit(struct workers *p, struct worker_job *job) {
        job->started_usec = 0;
        job->slow = job->given_up = job->cancelled = false;
        if (p->stopping) {
                job->run(job, NULL);
                append(&p->done_tail, job);
                return;
        }
        pthread_mutex_lock(&p->lock);
        append(&p->queue_tail, job);
        pthread_cond_signal(&p->work);
        pthread_mutex_unlock(&p->lock);
}

struct worker_job *workers_reap(struct workers *p) {
        pthread_mutex_lock(&p->lock);
        struct worker_job *job = pop(&p->done_head, &p->done_tail);
        pthread_mutex_unlock(&p->lock);
        return job;
}

/* p->workers is only ever changed by the owner. */
static void end_threads(struct workers *p) {
        struct worker **at = &p->workers, *ended = NULL;
        pthread_mutex_lock(&p->lock);
        while (*at) {
                struct worker *w = *at;
                if (w->ended) {
                        *at = w->next;
                        w->next = ended;
                        ended = w;
                } else
                        at = &w->next;
        }
        pthread_mutex_unlock(&p->lock);
        while (ended) {
                struct worker *w = ended;
                ended = w->next;
                pthread_join(w->thread, NULL);
                free(w->scratch);
                free(w);
        }
}

/* Under the lock. */
static void set_replaced(struct workers *p, struct worker *w, bool replaced) {
        w->replaced = replaced;
        p->n_replaced += replaced ? 1U : -1U;
        if (!w->lost)
                p->n_workers -= replaced ? 1U : -1U;
}

/* Takes the first that works for longer out of the count of those that take jobs. */
static struct worker *take_place(struct workers *p, uint64_t now, uint64_t slow_usec) {
        struct worker *w = NULL;
        pthread_mutex_lock(&p->lock);
        if (p->n_replaced < WORKERS_LOST_MAX)
                for (w = p->workers; w && !(w->job && !w->replaced && now > w->job->started_usec + slow_usec); w = w->next)
                        ;
        if (w)
                set_replaced(p, w, true);
        pthread_mutex_unlock(&p->lock);
        return w;
}

void workers_relieve(struct workers *p, uint64_t now, uint64_t slow_usec) {
        struct worker *w;
        end_threads(p);
        while ((w = take_place(p, now, slow_usec)))
                if (add_worker(p) < 0) { /* no thread: tried again next time, if it has not come back */
                        pthread_mutex_lock(&p->lock);
                        if (!w->ended)
                                set_replaced(p, w, false);
                        pthread_mutex_unlock(&p->lock);
                        break;
                }
}

struct worker_job *workers_find_slow(struct workers *p, uint64_t now, uint64_t slow_usec) {
        struct worker_job *found = NULL;
        pthread_mutex_lock(&p->lock);
        for (struct worker *w = p->workers; w && !found; w = w->next)
                if (w->job && !w->job->slow && now > w->job->started_usec + slow_usec) {
                        found = w->job;
                        found->slow = true;
                }
        pthread_mutex_unlock(&p->lock);
        return found;
}

struct worker_job *workers_give_up(struct workers *p, uint64_t now, uint64_t limit_usec) {
        struct worker_job *found = NULL;
        pthread_mutex_lock(&p->lock);
        for (struct worker *w = p->workers; w && !found; w = w->next)
                if (w->job && !w->lost && now > w->job->started_usec + limit_usec) {
                        found = w->job;
                        found->given_up = true;
                        w->lost = true;
                        p->n_lost++;
                        p->n_workers -= !w->replaced;
                }
        pthread_mutex_unlock(&p->lock);
        return found;
}

unsigned workers_n_lost(const struct workers *p) {
        return __atomic_load_n(&p->n_lost, __ATOMIC_RELAXED);
}

unsigned workers_n_replaced(const struct workers *p) {
        return __atomic_load_n(&p->n_replaced, __ATOMIC_RELAXED);
}

unsigned workers_n_running(const struct workers *p) {
        return __atomic_load_n(&p->n_workers, __ATOMIC_RELAXED);
}

uint64_t workers_cpu_usec(struct workers *p) {
        pthread_mutex_lock(&p->lock);
        uint64_t usec = p->cpu_usec;
        pthread_mutex_unlock(&p->lock);
        return usec;
}
