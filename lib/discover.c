/* merge-any: finds every eligible mapping in what the kernel lists, at start and again as the program grows.
 *
 * Eligible: private, anonymous, readable and writable, not executable, without a name of its own, none of the attributes that
 * forbid merging, not a thread stack, not memory of this library (DONTDUMP). The data segments of the objects loaded at
 * start are noted as excluded by the program thread that starts the agent: libc's belong to the agent too. */
#include <errno.h>

#include "lib/agent_loop.h"
#include "lib/maplock.h"
#include "lib/sys.h"
#include "lib/vma.h"

#define DISCOVER_PERIOD_USEC 1000000U
/* A walk asks the kernel for each mapping, 0.4 us each, and merging makes many. So walks take at most 1 % of the time when the size of the
 * process changes, and 0.05 % when it stands still but calls were made, which may have exchanged mappings (a large block freed, one of the
 * same size allocated). After ten seconds there is one in any case, for what is done without libc. */
#define DISCOVER_COST_FACTOR 100U
#define DISCOVER_SAME_SIZE_COST_FACTOR 2000U
#define DISCOVER_WALK_USEC 10000000U
/* A walk that finds something new may read smaps: it takes at most this share of the time. */
#define DISCOVER_NEW_COST_FACTOR 20U

/* A stack of a thread that libc made for itself (the others are noted by the shim): a guard of one page right below. Others guard
 * memory so too (QEMU the guest's): who asks for it by MADV_MERGEABLE gets it merged. */
static bool looks_like_stack(const struct vma *before, const struct vma *v) {
        const uint64_t access =
                PROCMAP_QUERY_VMA_READABLE | PROCMAP_QUERY_VMA_WRITABLE | PROCMAP_QUERY_VMA_EXECUTABLE;
        return before->anonymous && before->end == v->start && before->end - before->start == KSM_PAGE_SIZE &&
               !(before->flags & access);
}

static bool covered(struct agent *a, uint64_t start, uint64_t end) {
        for (uint64_t at = start; at < end;) {
                const struct rangeset *sets[] = { &a->ranges, &a->excluded, &a->stacks };
                const struct interval *x = NULL;
                for (unsigned i = 0; i < ARRAY_SIZE(sets) && !(x && x->start <= at); i++)
                        x = rangeset_from(sets[i], at);
                if (!x || x->start > at)
                        return false;
                at = x->end;
        }
        return true;
}

uint32_t count_vmas(struct agent *a) {
        struct vma v;
        uint32_t n = 0;
        for (uint64_t at = 0; vma_query(a->maps_fd, at, true, &v) == 0; at = v.end)
                n++;
        return n;
}

/* Calls f for every candidate not yet covered. Returns the number of VMAs seen. */
static uint32_t walk(struct agent *a, void (*f)(struct agent *, const struct vma *, void *), void *userdata) {
        struct vma before = { 0 }, v;
        uint32_t n = 0;
        for (uint64_t at = 0; vma_query(a->maps_fd, at, true, &v) == 0; at = v.end, before = v, n++) {
                if (!vma_is_candidate(&v) || own_holds(v.start))
                        continue;
                registry_track_again(a, &v);
                if (covered(a, v.start, v.end))
                        continue;
                if (looks_like_stack(&before, &v)) {
                        (void) rangeset_add(&a->stacks, v.start, v.end);
                        continue;
                }
                f(a, &v, userdata);
        }
        return n;
}

static void count_new(struct agent *a, const struct vma *v, void *userdata) {
        (*(uint32_t *) userdata)++;
}

static void add_new(struct agent *a, const struct vma *v, void *userdata) {
        (void) registry_add_vma(a, v, v->start, v->end);
        (void) rangeset_add(&a->found, v->start, v->end);
}

static uint64_t vm_pages(struct agent *a) {
        char text[32] = "";
        uint64_t n = 0;
        if (sys_pread(a->statm_fd, text, sizeof(text) - 1, 0) <= 0)
                return 0;
        for (const char *p = text; *p >= '0' && *p <= '9'; p++)
                n = n * 10 + (uint64_t) (*p - '0');
        return n;
}

/* `pages`, `calls`: the process's size, and how many calls it has made, now. */
static uint64_t walk_due(const struct agent *a, uint64_t pages, uint64_t calls) {
        const struct discovery *d = &a->discovery;
        unsigned factor = pages != d->vm_pages ? DISCOVER_COST_FACTOR : DISCOVER_SAME_SIZE_COST_FACTOR;
        if (pages == d->vm_pages && calls == d->calls)
                return d->walked_usec + DISCOVER_WALK_USEC;
        return d->walked_usec + MIN(d->cost_usec * factor, (uint64_t) DISCOVER_WALK_USEC);
}

void discover_step(struct agent *a, uint64_t now) {
        struct discovery *d = &a->discovery;
        if (!a->merge_any || now < d->at_usec)
                return;
        d->at_usec = now + DISCOVER_PERIOD_USEC;
        uint64_t pages = vm_pages(a), calls = map_lock_exits();
        if (d->walked_usec && now < walk_due(a, pages, calls))
                return;
        uint32_t n_new = 0;
        uint64_t begin = now_usec();
        a->figures.n_vmas = walk(a, count_new, &n_new);
        d->vm_pages = pages;
        d->calls = calls;
        d->walked_usec = now_usec();
        d->cost_usec = d->walked_usec - begin;
        if (!n_new)
                return;
        if (registry_read_special(a) == 0)
                (void) walk(a, add_new, NULL);
        d->at_usec = MAX(d->at_usec, now + (now_usec() - begin) * DISCOVER_NEW_COST_FACTOR);
}

void discover_anew(struct agent *a) {
        a->discovery = (struct discovery) { 0 };
}

void discover_stop(struct agent *a) {
        a->merge_any = false;
        while (a->found.n) {
                struct interval x = a->found.v[0];
                (void) registry_unregister(a, x.start, x.end, false);
                if (rangeset_remove(&a->found, x.start, x.end) < 0)
                        return;
        }
}
