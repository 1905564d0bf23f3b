/* ideal: what an ideal page merger would save among the given processes.
 *
 *   ideal [--json] [--ranges all|anonymous|mergeable] PID...
 *
 * The oracle against which savings are judged: reads the private memory of the processes, now, from outside (target.h),
 * and counts (model.h). Zero pages count as saved whole. Run it before anything merges: a zero page that was already
 * given back leaves no trace and is not counted. */
#include <errno.h>
#include <getopt.h>
#include <json-c/json.h>
#include <stdio.h>
#include <string.h>
#include <sysexits.h>

#include "bench/model.h"
#include "bench/target.h"
#include "common/cleanup.h"

#define PROCESSES_MAX 4096
#define PAGES_PER_MIB (1048576.0 / KSM_PAGE_SIZE)

struct process {
        int pid;
        struct target_result target;
};

struct context {
        struct model *model;
        struct model_process *process;
};

static int add_page(uint64_t page, uint32_t vma, const void *bytes, void *userdata) {
        struct context *c = userdata;

        return model_add(c->model, c->process, page, vma, bytes);
}

static double percent(double part, double whole) {
        return whole > 0 ? 100.0 * part / whole : 0;
}

/* Pages in runs of at least 2^bucket pages. */
static uint64_t pages_from(const struct run_histogram *h, unsigned bucket) {
        uint64_t pages = 0;

        for (unsigned i = bucket; i < RUN_BUCKETS; i++)
                pages += h->pages[i];
        return pages;
}

static void print_row(const char *pid, const char *comm, const struct ideal_totals *t) {
        (void) printf("%8s %-16s %9.1f %8.1f %9.1f %8.1f %8.1f %5.1f%% %8llu %8llu\n", pid, comm,
                      (double) t->pages / PAGES_PER_MIB, (double) t->zero / PAGES_PER_MIB,
                      (double) t->duplicate / PAGES_PER_MIB, (double) t->unique / PAGES_PER_MIB,
                      t->saved_pages / PAGES_PER_MIB, percent(t->saved_pages, (double) t->pages),
                      (unsigned long long) t->runs, (unsigned long long) t->vmas_added);
}

static void print_text(const struct model *m, const struct process *p, const struct model_process *mp, size_t n) {
        const struct ideal_totals *t = &m->totals;
        uint64_t unreadable = 0, swapped = 0;

        (void) printf("%8s %-16s %9s %8s %9s %8s %8s %6s %8s %8s\n", "PID", "COMMAND", "MEM MiB", "ZERO", "DUPLICATE",
                      "UNIQUE", "SAVES", "", "RUNS", "+VMAS");
        for (size_t i = 0; i < n; i++) {
                char pid[16];

                (void) snprintf(pid, sizeof(pid), "%d", p[i].pid);
                print_row(pid, p[i].target.comm, &mp[i].totals);
                unreadable += p[i].target.unreadable;
                swapped += p[i].target.swapped;
        }
        print_row("", "total", t);
        (void) printf("\nruns of pages   runs        pages   %% of duplicate pages\n");
        for (unsigned i = 0; i < RUN_BUCKETS; i++) {
                if (t->histogram.runs[i] == 0)
                        continue;
                (void) printf("%6u%-7s %8llu %12llu %7.1f\n", 1U << i,
                              i == RUN_BUCKETS - 1 ? " and up" : i ? " ..." : "",
                              (unsigned long long) t->histogram.runs[i], (unsigned long long) t->histogram.pages[i],
                              percent((double) t->histogram.pages[i], (double) t->duplicate));
        }
        (void) printf("in runs of 2 or more: %.1f %%, of 8 or more: %.1f %%\n",
                      percent((double) pages_from(&t->histogram, 1), (double) t->duplicate),
                      percent((double) pages_from(&t->histogram, 3), (double) t->duplicate));
        if (unreadable || swapped)
                (void) printf("not counted: %llu pages that could not be read, %llu swapped\n",
                              (unsigned long long) unreadable, (unsigned long long) swapped);
}

static struct json_object *totals_to_json(const struct ideal_totals *t) {
        struct json_object *o = json_object_new_object(), *runs = json_object_new_array();

        json_object_object_add(o, "pages", json_object_new_uint64(t->pages));
        json_object_object_add(o, "zero_pages", json_object_new_uint64(t->zero));
        json_object_object_add(o, "duplicate_pages", json_object_new_uint64(t->duplicate));
        json_object_object_add(o, "unique_pages", json_object_new_uint64(t->unique));
        json_object_object_add(o, "saved_bytes",
                               json_object_new_uint64((uint64_t) (t->saved_pages * KSM_PAGE_SIZE + 0.5)));
        json_object_object_add(o, "runs", json_object_new_uint64(t->runs));
        json_object_object_add(o, "vmas", json_object_new_uint64(t->vmas));
        json_object_object_add(o, "vmas_added", json_object_new_uint64(t->vmas_added));
        for (unsigned i = 0; i < RUN_BUCKETS; i++) {
                struct json_object *bucket = json_object_new_object();

                json_object_object_add(bucket, "pages_from", json_object_new_uint64(1U << i));
                json_object_object_add(bucket, "runs", json_object_new_uint64(t->histogram.runs[i]));
                json_object_object_add(bucket, "pages", json_object_new_uint64(t->histogram.pages[i]));
                json_object_array_add(runs, bucket);
        }
        json_object_object_add(o, "run_lengths", runs);
        return o;
}

static void print_json(const struct model *m, const struct process *p, const struct model_process *mp, size_t n) {
        struct json_object *root = json_object_new_object(), *list = json_object_new_array();

        for (size_t i = 0; i < n; i++) {
                struct json_object *o = totals_to_json(&mp[i].totals);

                json_object_object_add(o, "pid", json_object_new_int(p[i].pid));
                json_object_object_add(o, "comm", json_object_new_string(p[i].target.comm));
                json_object_object_add(o, "vmas_now", json_object_new_uint64(p[i].target.n_vmas));
                json_object_object_add(o, "unreadable_pages", json_object_new_uint64(p[i].target.unreadable));
                json_object_object_add(o, "swapped_pages", json_object_new_uint64(p[i].target.swapped));
                json_object_array_add(list, o);
        }
        json_object_object_add(root, "total", totals_to_json(&m->totals));
        json_object_object_add(root, "processes", list);
        (void) printf("%s\n", json_object_to_json_string_ext(root, JSON_C_TO_STRING_PRETTY));
        (void) json_object_put(root);
}

static int usage(FILE *out, int status) {
        (void) fprintf(out, "usage: ideal [--json] [--ranges all|anonymous|mergeable] PID...\n"
                            "What an ideal page merger would save among these processes.\n"
                            "  --ranges anonymous  only writable anonymous memory, without copies of file pages\n"
                            "  --ranges mergeable  only memory offered for merging (madvise, prctl, or userksm)\n");
        return status;
}

static int parse_pid(const char *text) {
        char *end;
        long pid = strtol(text, &end, 10);

        return *text && !*end && pid > 0 && pid <= INT32_MAX ? (int) pid : -EINVAL;
}

static int analyse(struct process *processes, struct model_process *model_processes, size_t n,
                   enum target_ranges ranges, bool json) {
        struct model model;
        int r = model_init(&model);

        for (size_t i = 0; r >= 0 && i < n; i++) {
                struct context context = { .model = &model, .process = &model_processes[i] };

                r = target_read(processes[i].pid, ranges, add_page, &context, &processes[i].target);
                if (r < 0)
                        (void) fprintf(stderr, "ideal: process %d: %s\n", processes[i].pid, strerror(-r));
        }
        if (r >= 0) {
                model_finish(&model, model_processes, n);
                if (json)
                        print_json(&model, processes, model_processes, n);
                else
                        print_text(&model, processes, model_processes, n);
        }
        for (size_t i = 0; i < n; i++)
                model_process_done(&model_processes[i]);
        model_done(&model);
        return r;
}

int main(int argc, char **argv) {
        static const struct option options[] = {
                { "json", no_argument, NULL, 'j' },
                { "ranges", required_argument, NULL, 'r' },
                { "help", no_argument, NULL, 'h' },
                {},
        };
        _cleanup_free_ struct process *processes = NULL;
        _cleanup_free_ struct model_process *model_processes = NULL;
        enum target_ranges ranges = TARGET_ALL;
        bool json = false;
        size_t n;
        int c;

        while ((c = getopt_long(argc, argv, "jr:h", options, NULL)) >= 0) {
                if (c == 'j')
                        json = true;
                else if (c == 'r' && strcmp(optarg, "all") == 0)
                        ranges = TARGET_ALL;
                else if (c == 'r' && strcmp(optarg, "anonymous") == 0)
                        ranges = TARGET_ANONYMOUS;
                else if (c == 'r' && strcmp(optarg, "mergeable") == 0)
                        ranges = TARGET_MERGEABLE;
                else
                        return c == 'h' ? usage(stdout, 0) : usage(stderr, EX_USAGE);
        }
        n = (size_t) (argc - optind);
        if (n == 0 || n > PROCESSES_MAX)
                return usage(stderr, EX_USAGE);
        processes = calloc(n, sizeof(*processes));
        model_processes = calloc(n, sizeof(*model_processes));
        if (!processes || !model_processes)
                return EX_OSERR;
        for (size_t i = 0; i < n; i++) {
                processes[i].pid = parse_pid(argv[optind + (int) i]);
                if (processes[i].pid < 0)
                        return usage(stderr, EX_USAGE);
        }
        return analyse(processes, model_processes, n, ranges, json) < 0 ? 1 : 0;
}
