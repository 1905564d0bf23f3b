#include "lib/context.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "common/cleanup.h"
#include "lib/sys.h"

int context_open(struct context *c, int device_fd, uint64_t features) {
        long fd = sys_call(SYS_ioctl, device_fd, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK, 0, 0, 0);
        if (fd < 0)
                return (int) fd;
        struct uffdio_api api = { .api = UFFD_API, .features = features };
        long r = sys_ioctl_as(FAULT_uffd_open, (int) fd, UFFDIO_API, &api);
        if (r < 0) {
                sys_close((int) fd);
                return (int) r;
        }
        c->fd = (int) fd;
        return 0;
}

void context_close(struct context *c) {
        if (c->fd >= 0)
                sys_close(c->fd);
        c->fd = -1;
}

int context_register(const struct context *c, uint64_t start, uint64_t end, uint64_t mode) {
        struct uffdio_register r = { .range = { start, end - start }, .mode = mode };
        return (int) sys_ioctl_as(FAULT_uffd_register, c->fd, UFFDIO_REGISTER, &r);
}

int context_unregister(const struct context *c, uint64_t start, uint64_t end) {
        struct uffdio_range r = { start, end - start };
        return (int) sys_ioctl_as(FAULT_uffd_unregister, c->fd, UFFDIO_UNREGISTER, &r);
}

/* Each try gives the processor away, for whoever frees memory. */
#define SURELY_TRIES 1000U

static bool again(int r, unsigned *tries) {
        if (r != -ENOMEM || ++*tries > SURELY_TRIES)
                return false;
        sys_yield();
        return true;
}

int context_register_surely(const struct context *c, uint64_t start, uint64_t end, uint64_t mode) {
        unsigned tries = 0;
        int r;
        do
                r = context_register(c, start, end, mode);
        while (r < 0 && again(r, &tries));
        return r;
}

int context_unregister_surely(const struct context *c, uint64_t start, uint64_t end) {
        unsigned tries = 0;
        int r;
        do
                r = context_unregister(c, start, end);
        while (r < 0 && again(r, &tries));
        return r;
}

void context_wake(const struct context *c, uint64_t start, uint64_t end) {
        struct uffdio_range r = { start, end - start };
        /* Fails for wrong arguments only, so tests cannot make it fail. */
        (void) sys_call(SYS_ioctl, c->fd, UFFDIO_WAKE, (long) &r, 0, 0, 0);
}

static void tell(const struct uffd_msg *m, const struct context_events *events) {
        if (m->event == UFFD_EVENT_PAGEFAULT && events->fault)
                events->fault(events->userdata, m->arg.pagefault.address & ~(KSM_PAGE_SIZE - 1), m->arg.pagefault.flags);
        else if (m->event == UFFD_EVENT_REMOVE && events->remove)
                events->remove(events->userdata, m->arg.remove.start, m->arg.remove.end);
        else if (m->event == UFFD_EVENT_REMAP && events->remap)
                events->remap(events->userdata, m->arg.remap.from, m->arg.remap.to, m->arg.remap.len);
}

/* Reading an event lets its caller go on at once, and zap or unmap; and the kernel hands out faults before events, whichever came
 * first. So of what was read together the events are told first: a fault answered without knowing of them would have the pages
 * put back that have just been discarded. */
unsigned context_drain(const struct context *c, const struct context_events *events) {
        struct uffd_msg messages[16];
        unsigned total = 0;
        for (;;) {
                long n = sys_read(c->fd, messages, sizeof(messages));
                if (n < (long) sizeof(messages[0]))
                        return total;
                const struct uffd_msg *end = messages + (size_t) n / sizeof(messages[0]);
                total += (unsigned) (end - messages);
                for (const struct uffd_msg *m = messages; m < end; m++)
                        if (m->event != UFFD_EVENT_PAGEFAULT)
                                tell(m, events);
                for (const struct uffd_msg *m = messages; m < end; m++)
                        if (m->event == UFFD_EVENT_PAGEFAULT)
                                tell(m, events);
        }
}

int context_move(const struct context *c, uint64_t dst, uint64_t src, uint64_t length) {
        struct uffdio_move m = { .dst = dst, .src = src, .len = length, .mode = UFFDIO_MOVE_MODE_DONTWAKE };
        return (int) sys_ioctl_as(FAULT_uffd_move, c->fd, UFFDIO_MOVE, &m);
}

int context_copy(const struct context *c, uint64_t dst, uint64_t src, uint64_t length, uint64_t *ret_copied) {
        struct uffdio_copy x = { .dst = dst, .src = src, .len = length, .mode = UFFDIO_COPY_MODE_DONTWAKE };
        long r = sys_ioctl_as(FAULT_uffd_fill, c->fd, UFFDIO_COPY, &x);
        *ret_copied = x.copy > 0 ? (uint64_t) x.copy : 0;
        return (int) r;
}

/* Not write-protected: a store to a merged page makes a private one in its place, which a scan tells from the segment's. */
int context_continue(const struct context *c, uint64_t start, uint64_t end, uint64_t *ret_end) {
        struct uffdio_continue x = { .range = { start, end - start }, .mode = UFFDIO_CONTINUE_MODE_DONTWAKE };
        long r = sys_ioctl_as(FAULT_uffd_fill, c->fd, UFFDIO_CONTINUE, &x);
        *ret_end = x.mapped > 0 ? start + (uint64_t) x.mapped : start;
        return (int) r;
}

int context_zeropage(const struct context *c, uint64_t start) {
        struct uffdio_zeropage z = { .range = { start, KSM_PAGE_SIZE }, .mode = UFFDIO_ZEROPAGE_MODE_DONTWAKE };
        return (int) sys_ioctl_as(FAULT_uffd_fill, c->fd, UFFDIO_ZEROPAGE, &z);
}

int context_writeprotect(const struct context *c, uint64_t start, uint64_t end, bool protect) {
        struct uffdio_writeprotect w = {
                .range = { start, end - start },
                /* DONTWAKE goes only with resolving; both at once is EINVAL. */
                .mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : UFFDIO_WRITEPROTECT_MODE_DONTWAKE,
        };
        return (int) sys_ioctl_as(FAULT_uffd_protect, c->fd, UFFDIO_WRITEPROTECT, &w);
}

static uint64_t run_mask(uint64_t start, const struct page_region *r) {
        uint64_t from = (r->start - start) >> KSM_PAGE_SHIFT, n = (r->end - r->start) >> KSM_PAGE_SHIFT;
        return (n >= 64 ? ~0ULL : (1ULL << n) - 1) << from;
}

static int look(int pagemap_fd, uint64_t start, uint32_t n_pages, uint64_t categories, struct look *ret) {
        struct page_region regions[BLOCK_PAGES];
        struct pm_scan_arg a = {
                .size = sizeof(a),
                .start = start,
                .end = start + ((uint64_t) n_pages << KSM_PAGE_SHIFT),
                .vec = (uint64_t) regions,
                .vec_len = ARRAY_SIZE(regions),
                .category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                .return_mask = categories,
        };
        memset(ret, 0, sizeof(*ret));
        long n = sys_ioctl_as(FAULT_sys_look, pagemap_fd, PAGEMAP_SCAN, &a);
        if (n < 0)
                return (int) n;
        for (long i = 0; i < n; i++) {
                uint64_t m = run_mask(start, &regions[i]), c = regions[i].categories;
                ret->present |= c & PAGE_IS_PRESENT ? m : 0;
                ret->file |= c & PAGE_IS_FILE ? m : 0;
                ret->zero |= c & PAGE_IS_PFNZERO ? m : 0;
                ret->huge |= c & PAGE_IS_HUGE ? m : 0;
                ret->swapped |= c & PAGE_IS_SWAPPED ? m : 0;
                ret->written |= c & PAGE_IS_WRITTEN ? m : 0;
        }
        return 0;
}

#define BY_ENTRY (PAGE_IS_PRESENT | PAGE_IS_PFNZERO | PAGE_IS_HUGE | PAGE_IS_SWAPPED | PAGE_IS_WRITTEN)

int look_at(int pagemap_fd, uint64_t start, uint32_t n_pages, struct look *ret) {
        return look(pagemap_fd, start, n_pages, BY_ENTRY | PAGE_IS_FILE, ret);
}

int look_at_entries(int pagemap_fd, uint64_t start, uint32_t n_pages, struct look *ret) {
        return look(pagemap_fd, start, n_pages, BY_ENTRY, ret);
}
