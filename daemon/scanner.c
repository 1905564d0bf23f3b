#include "daemon/scanner.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/fault.h"
#include "common/log.h"
#include "daemon/bounds.h"
#include "daemon/client.h"
#include "daemon/placing.h"
#include "daemon/session.h"
#include "daemon/sys/numa.h"
#include "daemon/sys/pagemap.h"
#include "daemon/sys/reader.h"

enum job_kind { JOB_SCAN, JOB_READ, JOB_PUBLISH };

struct job {
        struct worker_job base;
        struct job *next_free;
        struct scanner *scanner;
        enum job_kind kind;
        bool fast;
        uint64_t op;
        uint32_t client;
        /* Held while the worker may use them. */
        struct process *process;
        struct store_domain *domain;
        struct store_segment *segment;
        struct uid_account *account;
        bool is_placing;
        union {
                struct core_scan scan;
                struct core_read read;
                struct core_publish publish;
        };
        /* Results; final when the job is back. */
        int error;
        size_t n_runs;
        uint64_t end_page;
        union {
                struct core_run runs[SCAN_RUNS_MAX];
                struct core_read_result results[CORE_READ_PAGES];
        };
        struct placing placing; /* last: a job that wants no nodes never touches its memory */
};
_Static_assert(CORE_PUBLISH_PAGES <= CORE_READ_PAGES, "one result array serves both");
_Static_assert(CORE_PUBLISH_PAGES <= READER_PAGES_MAX, "the pages of a publish fit scratch");

struct scanner {
        struct manager *manager;
        struct job *free_jobs; /* never returned to malloc: there are few */
        unsigned n_running, n_slow, n_scans; /* jobs not done; of them, for too long; scans among all */
        uint64_t loop_cpu_usec; /* what choosing jobs and handling their results took of the loop's thread */
};

union scratch {
        struct page_region regions[SCAN_RUNS_MAX];
        struct {
                uint8_t pages[READER_PAGES_MAX * KSM_PAGE_SIZE];
                bool ok[READER_PAGES_MAX];
        };
};

size_t scanner_scratch_bytes(void) {
        return sizeof(union scratch);
}

/* -- on a worker ------------------------------------------------------------------------------------------------------ */

/* The window without its gaps, as far as there is room for results. */
static int walk_window(struct job *j, struct page_region *regions, size_t max) {
        const struct core_scan *scan = &j->scan;
        const enum pagemap_look look = !scan->rewrite_protect   ? PAGEMAP_PRESENT
                                       : scan->expects_few ? PAGEMAP_WRITTEN_FEW
                                                           : PAGEMAP_WRITTEN;
        uint64_t at = scan->page, end = scan->page + scan->n_pages;
        for (uint32_t g = 0; at < end && j->n_runs < max; g++) {
                const struct core_scan_gap gap = g < scan->n_gaps ? scan->gaps[g] : (struct core_scan_gap){ end, 0 };
                size_t n = 0;
                if (g > 0 && atomic_load_explicit(&j->process->closing, memory_order_relaxed))
                        return -ESRCH;
                int r = pagemap_scan(j->process->pagemap_fd, at, gap.page - at, look, regions + j->n_runs, max - j->n_runs, &n, &j->end_page);
                if (r < 0)
                        return r;
                j->n_runs += n;
                if (j->end_page < gap.page)
                        return 0;
                at = gap.page + gap.n_pages;
        }
        return 0;
}

static void run_scan(struct worker_job *base, void *userdata) {
        struct job *j = (struct job *) base;
        struct page_region *regions = ((union scratch *) userdata)->regions;
        const struct core_scan *scan = &j->scan;
        j->n_runs = 0;
        j->end_page = scan->page + scan->n_pages;
        /* The page tables of a process that is on its way out must not be walked (a kernel bug, docs). */
        if (atomic_load_explicit(&j->process->closing, memory_order_relaxed) || process_has_exited(j->process)) {
                j->error = -ESRCH;
                return;
        }
        size_t max = MIN((size_t) scan->max_runs, (size_t) SCAN_RUNS_MAX);
        j->error = walk_window(j, regions, max ? max : SCAN_RUNS_MAX);
        if (j->error < 0) {
                j->n_runs = 0;
                return;
        }
        fault_point(FAULT_scan_walked);
        for (size_t i = 0; i < j->n_runs; i++) {
                uint64_t c = regions[i].categories;
                j->runs[i] = (struct core_run){
                        .page = regions[i].start >> KSM_PAGE_SHIFT,
                        .n_pages = (regions[i].end - regions[i].start) >> KSM_PAGE_SHIFT,
                        .categories = (c & PAGE_IS_WRITTEN ? CORE_WRITTEN : 0U) | (c & PAGE_IS_FILE ? CORE_FILE : 0U) |
                                      (c & PAGE_IS_PFNZERO ? CORE_ZERO : 0U) | (c & PAGE_IS_HUGE ? CORE_HUGE : 0U),
                        .node = -1,
                };
        }
        if (!j->is_placing)
                return;
        placing_name_runs(&j->placing, j->runs, &j->n_runs, &j->end_page);
        placing_ask_kernel(&j->placing, j->process->pid);
}

static void run_read(struct worker_job *base, void *userdata) {
        struct job *j = (struct job *) base;
        union scratch *scratch = userdata;
        const struct core_read *read = &j->read;
        for (uint32_t i = 0; i < read->n_pages;) {
                unsigned n = MIN(read->n_pages - i, (uint32_t) READER_PAGES_MAX);
                reader_read(j->process, j->fast, read->pages + i, n, scratch->pages, scratch->ok);
                for (unsigned k = 0; k < n; k++) {
                        const uint8_t *page = scratch->pages + k * KSM_PAGE_SIZE;
                        struct core_read_result *r = &j->results[i + k];
                        *r = (struct core_read_result){ .status = CORE_READ_FAILED, .node = -1 };
                        if (!scratch->ok[k])
                                continue;
                        r->status = digest_page_is_zero(page) ? CORE_READ_ALL_ZERO : CORE_READ_OK;
                        r->hash = digest_page(&j->domain->secret, page);
                }
                i += n;
        }
        j->error = 0;
        if (j->is_placing) { /* what was swapped out is there now */
                placing_name_pages(&j->placing, read->pages, read->n_pages);
                placing_ask_kernel(&j->placing, j->process->pid);
        }
        fault_point(FAULT_read_hashed);
}

/* Are they where they should be? Our own memory: nobody can keep us from asking. */
static void look_at_slots(struct job *j) {
        uint64_t first = (uint64_t) j->segment->segment->slots >> KSM_PAGE_SHIFT, pages[CORE_PUBLISH_PAGES];
        int16_t nodes[CORE_PUBLISH_PAGES];
        for (uint32_t i = 0; i < j->publish.n_pages; i++)
                pages[i] = first + j->publish.slots[i];
        if (numa_nodes(0, pages, j->publish.n_pages, nodes) < 0)
                return;
        for (uint32_t i = 0; i < j->publish.n_pages; i++)
                j->results[i].node = nodes[i];
}

/* Pages from here on that are neighbours and go to neighbouring slots. */
static unsigned publish_run(const struct core_publish *publish, uint32_t at) {
        unsigned n = 1;
        while (at + n < publish->n_pages && publish->pages[at + n] == publish->pages[at] + n && publish->slots[at + n] == publish->slots[at] + n)
                n++;
        return n;
}

/* Returns how many of a run are in their slots. The next one could not be read, or there is no memory for its slot, which takes none then. */
static unsigned publish_pages(struct job *j, uint32_t at, unsigned n_pages, uint8_t *pages) {
        int n = reader_read_exact(j->process, j->publish.pages[at], n_pages, pages);
        int filled = n > 0 ? segment_file_fill(j->segment->segment, j->publish.slots[at], pages, (uint32_t) n) : 0;
        /* The hash is that of our copy: the page may change while it is read, the copy and the slot never again. */
        for (int i = 0; i < filled; i++)
                j->results[at + (uint32_t) i] = (struct core_read_result){
                        .status = CORE_READ_OK,
                        .hash = digest_page(&j->domain->secret, pages + (size_t) i * KSM_PAGE_SIZE),
                        .node = -1,
                };
        return (unsigned) MAX(filled, 0);
}

static void run_publish(struct worker_job *base, void *userdata) {
        struct job *j = (struct job *) base;
        const struct core_publish *publish = &j->publish;
        j->error = 0;
        for (uint32_t i = 0; i < publish->n_pages; i++)
                j->results[i] = (struct core_read_result){ .status = CORE_READ_FAILED, .node = -1 };
        for (uint32_t i = 0; i < publish->n_pages && !atomic_load_explicit(&j->process->closing, memory_order_relaxed);) {
                unsigned run = publish_run(publish, i), done = publish_pages(j, i, run, ((union scratch *) userdata)->pages);
                i += done < run ? done + 1 : done;
        }
        if (publish->node >= 0)
                look_at_slots(j);
        fault_point(FAULT_publish_written);
}

/* -- jobs ---------------------------------------------------------------------------------------------------------------- */

static struct job *job_get(struct scanner *s) {
        struct job *j = s->free_jobs;
        if (j)
                s->free_jobs = j->next_free;
        else
                j = calloc(1, sizeof(*j));
        if (j)
                j->scanner = s;
        return j;
}

static void job_put(struct scanner *s, struct job *j) {
        j->next_free = s->free_jobs;
        s->free_jobs = j;
}

/* Tells the core how the job ended. `failed`: nothing of it may be used, the worker may still be writing. */
static void answer(struct scanner *s, struct job *j, bool failed, uint64_t now) {
        struct core *core = s->manager->core;
        const struct core_read_result *results = j->results;
        struct core_read_result none[CORE_READ_PAGES];
        uint64_t cpu_before = clock_usec(CLOCK_THREAD_CPUTIME_ID);
        if (failed && j->kind != JOB_SCAN) {
                for (size_t i = 0; i < ARRAY_SIZE(none); i++)
                        none[i] = (struct core_read_result){ .status = j->kind == JOB_PUBLISH ? CORE_READ_SPOILED : CORE_READ_FAILED };
                results = none;
        }
        switch (j->kind) {
        case JOB_SCAN:
                s->n_scans--;
                if (failed)
                        core_scan_done(core, j->op, now, NULL, 0, j->scan.page + j->scan.n_pages, -ETIMEDOUT);
                else
                        core_scan_done(core, j->op, now, j->runs, j->n_runs, j->end_page, j->error);
                fault_point(FAULT_scan_known);
                break;
        case JOB_READ:
                core_read_done(core, j->op, now, results);
                fault_point(FAULT_read_known);
                break;
        case JOB_PUBLISH:
                core_publish_done(core, j->op, now, results, 0);
                fault_point(FAULT_publish_live);
                break;
        }
        s->loop_cpu_usec += clock_usec(CLOCK_THREAD_CPUTIME_ID) - cpu_before;
}

static bool wants_nodes(const struct job *j) {
        return (j->kind == JOB_SCAN && j->scan.wants_nodes) || (j->kind == JOB_READ && j->read.wants_nodes);
}

/* Takes hold of what the worker will use. -ESRCH: the client has left. */
static int job_hold(struct scanner *s, struct job *j) {
        struct client *c = client_find(s->manager, j->client);
        if (!c)
                return -ESRCH;
        j->segment = NULL;
        if (j->kind == JOB_PUBLISH) {
                if (j->publish.domain != c->domain->id) /* I4 */
                        return -EINVAL;
                struct store_segment *segment;
                int r = store_segment_open(&s->manager->store, j->publish.segment, c->domain, j->publish.segment_slots,
                                           j->publish.node, &segment);
                if (r < 0)
                        return r;
                j->segment = segment;
                if (segment->domain != c->domain || !segment->segment->slots) /* I2, I4 */
                        return -EINVAL;
                for (uint32_t i = 0; i < j->publish.n_pages; i++)
                        if (j->publish.slots[i] >= segment->segment->n_slots)
                                return -EINVAL;
                store_segment_pin(segment);
        }
        j->domain = store_domain_ref(c->domain);
        j->process = process_ref(c->process);
        j->is_placing = wants_nodes(j);
        j->account = c->session->account;
        j->account->n_jobs++;
        return 0;
}

static void job_release(struct scanner *s, struct job *j) {
        j->account->n_jobs--;
        process_unref(j->process);
        store_domain_unref(j->domain);
        if (j->segment)
                store_segment_unpin(j->segment);
        job_put(s, j);
}

static void start(struct scanner *s, struct job *j, uint64_t now) {
        static void (*const run[])(struct worker_job *, void *) = {
                [JOB_SCAN] = run_scan,
                [JOB_READ] = run_read,
                [JOB_PUBLISH] = run_publish,
        };
        s->n_scans += j->kind == JOB_SCAN;
        int r = job_hold(s, j);
        if (r < 0) {
                if (j->kind == JOB_PUBLISH && r != -ESRCH) {
                        log_warning_errno(r, "segment %u: cannot be opened", j->publish.segment);
                        core_publish_done(s->manager->core, j->op, now, NULL, r);
                } else
                        answer(s, j, true, now);
                job_put(s, j);
                return;
        }
        j->base.run = run[j->kind];
        s->n_running++;
        workers_submit(s->manager->workers, &j->base);
        fault_point(FAULT_job_started);
}

/* What the core wants most that there is room for. Scans find what to read, reads what to publish: the later stage first,
 * so that what is in flight drains; but one job is always left to scans, or a long backlog of reads would blind us. */
static bool pull(struct scanner *s, struct job *j, uint64_t now, unsigned room, uint64_t *next) {
        struct core *core = s->manager->core;
        uint64_t at;
        if (core_next_publish(core, now, &j->publish)) {
                j->kind = JOB_PUBLISH;
                j->op = j->publish.op;
                j->client = j->publish.client;
                return true;
        }
        if (room > 1 || s->n_scans > 0) {
                at = UINT64_MAX;
                if (core_next_read(core, now, &j->read, &at)) {
                        struct client *c = client_find(s->manager, j->read.client);
                        j->kind = JOB_READ;
                        j->op = j->read.op;
                        j->client = j->read.client;
                        j->fast = s->manager->config.fast_read && c && client_is_fresh(c, now);
                        return true;
                }
                *next = MIN(*next, at);
        }
        at = UINT64_MAX;
        if (core_next_scan(core, now, &j->scan, &at)) {
                j->kind = JOB_SCAN;
                j->op = j->scan.op;
                j->client = j->scan.client;
                return true;
        }
        *next = MIN(*next, at);
        return false;
}

bool scanner_dispatch(struct scanner *s, uint64_t now, uint64_t *ret_next_usec) {
        unsigned limit = JOBS_PER_WORKER * workers_n_running(s->manager->workers);
        *ret_next_usec = UINT64_MAX;
        unsigned n_busy = s->n_running - s->n_slow; /* those that may hang must not keep others from work */
        if (n_busy >= limit) /* the next finished job wakes us */
                return false;
        uint64_t wait = governor_wait(&s->manager->governor, s->manager->core, now,
                                      workers_cpu_usec(s->manager->workers) + s->loop_cpu_usec);
        if (wait > 0) {
                *ret_next_usec = now + wait;
                return false;
        }
        struct job *j = job_get(s);
        if (!j) {
                *ret_next_usec = now + USEC_PER_SEC;
                return false;
        }
        uint64_t cpu_before = clock_usec(CLOCK_THREAD_CPUTIME_ID);
        bool has_job = pull(s, j, now, limit - n_busy, ret_next_usec);
        s->loop_cpu_usec += clock_usec(CLOCK_THREAD_CPUTIME_ID) - cpu_before;
        if (!has_job) {
                job_put(s, j);
                return false;
        }
        start(s, j, now);
        return true;
}

/* -- nodes ----------------------------------------------------------------------------------------------------------------- */

/* What is known of nodes goes into the results. */
static void place_results(struct job *j) {
        if (j->kind == JOB_SCAN)
                placing_split_runs(&j->placing, j->runs, &j->n_runs, &j->end_page);
        for (uint32_t i = 0; j->kind == JOB_READ && i < j->read.n_pages; i++)
                j->results[i].node = j->placing.nodes[i];
}

static void on_nodes(struct nodes_question *q, int error) {
        struct job *j = ((struct placing *) q)->owner;
        struct scanner *s = j->scanner;
        place_results(j);
        answer(s, j, false, now_usec());
        job_release(s, j);
}

/* True: on_nodes will go on with the job, when the process has told what the kernel did not. */
static bool ask_process(struct scanner *s, struct job *j) {
        struct placing *p = &j->placing;
        struct client *c = client_find(s->manager, j->client);
        p->owner = j;
        p->question = (struct nodes_question){ .pages = p->pages, .n_pages = p->n_pages, .ret_nodes = p->nodes, .done = on_nodes };
        return c && p->n_pages > 0 && nodes_ask(c, &p->question) == 0;
}

/* True: it will be answered later. */
static bool is_placed_later(struct scanner *s, struct job *j) {
        if (!j->is_placing || j->error < 0)
                return false;
        if (j->placing.error < 0 && ask_process(s, j))
                return true;
        place_results(j);
        return false;
}

void scanner_job_done(struct scanner *s, struct worker_job *base) {
        struct job *j = (struct job *) base;
        if (base->slow && --j->account->n_slow == 0)
                manager_park(s->manager, j->account);
        if (base->slow && !base->given_up)
                s->n_slow--;
        if (base->given_up) {
                account_log(s->manager, j->account, LOG_NOTICE, "a reader came back", "a reader of uid %u's memory came back", j->account->uid);
                j->account->n_lost--;
        } else {
                s->n_running--;
                if (!base->cancelled && is_placed_later(s, j))
                        return;
                answer(s, j, base->cancelled, now_usec());
        }
        job_release(s, j);
}

/* What is in flight of this user may hang too; nothing more is put there. Without this each place that is taken again would go the
 * same way, until the job is given up. */
void scanner_job_slow(struct scanner *s, struct worker_job *base) {
        struct uid_account *a = ((struct job *) base)->account;
        s->n_slow++;
        if (a->n_slow++ == 0)
                manager_park(s->manager, a);
}

/* All of the user's clients go: each might take further threads with it. */
void scanner_job_lost(struct scanner *s, struct worker_job *base) {
        struct job *j = (struct job *) base;
        s->n_running--;
        s->n_slow--;
        j->account->n_lost++;
        answer(s, j, true, now_usec());
        manager_evict(s->manager, j->account, "a reader hangs on memory of this user's processes");
}

unsigned scanner_n_running(const struct scanner *s) {
        return s->n_running;
}

/* -- life ------------------------------------------------------------------------------------------------------------------ */

int scanner_new(struct manager *m, struct scanner **ret) {
        struct scanner *s = calloc(1, sizeof(*s));
        if (!s)
                return -ENOMEM;
        s->manager = m;
        *ret = s;
        return 0;
}

struct scanner *scanner_free(struct scanner *s) {
        if (!s)
                return NULL;
        while (s->free_jobs) {
                struct job *j = s->free_jobs;
                s->free_jobs = j->next_free;
                free(j);
        }
        free(s);
        return NULL;
}
