/* The program's own userfaultfd: a thread of the process answers missing pages with the content that their address names. The
 * range lies registered while other operations go on. One at a time in a process. */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tests/shadow/shadow.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#define UFFD_PAGES_MAX 16U

static struct {
        bool open;
        int fd, stop;
        pthread_t thread;
} uffd;

bool uffd_is_open(void) {
        return uffd.open;
}

void uffd_forget(void) {
        if (!uffd.open)
                return;
        close(uffd.fd);
        close(uffd.stop);
        uffd.open = false;
}

static void answer(uint64_t address) {
        uint64_t page = address & ~(PAGE - 1);
        struct uffdio_copy copy = { .dst = page, .src = (uint64_t) content((uint32_t) (page / PAGE)), .len = PAGE };
        struct uffdio_range range = { page, PAGE };
        if (ioctl(uffd.fd, UFFDIO_COPY, &copy) < 0)
                (void) ioctl(uffd.fd, UFFDIO_WAKE, &range);
}

static void *answer_all(void *unused) {
        struct pollfd p[2] = { { uffd.fd, POLLIN, 0 }, { uffd.stop, POLLIN, 0 } };
        struct uffd_msg m;
        for (;;) {
                if (poll(p, 2, -1) < 0)
                        continue;
                if (p[0].revents && read(uffd.fd, &m, sizeof(m)) == sizeof(m) && m.event == UFFD_EVENT_PAGEFAULT)
                        answer(m.arg.pagefault.address);
                else if (p[1].revents)
                        return NULL;
        }
}

static int uffd_new(void) {
        struct uffdio_api api = { .api = UFFD_API };
        int fd = (int) syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
        check(fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0, "userfaultfd");
        return fd;
}

struct record op_uffd_register(struct actor *a, const struct op *o) {
        struct span s = op_span(o);
        enum arena_kind kind = run.arenas[o->arena].kind;
        if (uffd.open || kind == ARENA_ROAMING || kind == ARENA_BRK || kind == ARENA_NONE)
                return (struct record) { .result = SKIPPED };
        if (s.bytes > UFFD_PAGES_MAX * PAGE)
                s.bytes = UFFD_PAGES_MAX * PAGE;
        /* A page of zeros may be absent once it was merged (exception "missing zeros"): all pages are there, or none. */
        if (!(o->arg & 1)) {
                (void) madvise(s.at, s.bytes, MADV_UNMERGEABLE);
                for (size_t at = 0; at < s.bytes; at += PAGE)
                        if (madvise(s.at + at, PAGE, MADV_POPULATE_WRITE) < 0)
                                (void) madvise(s.at + at, PAGE, MADV_POPULATE_READ); /* a mapping that forbids writing */
        }
        uffd.fd = uffd_new();
        struct uffdio_register reg = { .range = { (uint64_t) s.at, s.bytes }, .mode = UFFDIO_REGISTER_MODE_MISSING };
        struct record r = outcome(ioctl(uffd.fd, UFFDIO_REGISTER, &reg));
        if (r.result != 0) {
                close(uffd.fd);
                return r;
        }
        uffd.stop = eventfd(0, EFD_CLOEXEC);
        check(uffd.stop >= 0 && pthread_create(&uffd.thread, NULL, answer_all, NULL) == 0, "uffd thread");
        uffd.open = true;
        if (o->arg & 1)
                r.result = madvise(s.at, s.bytes, MADV_DONTNEED) * 10;
        if (o->arg & 2)
                r.digest = digest_memory(s.at, s.bytes);
        return r;
}

/* By closing it, which unregisters what there still is. */
struct record op_uffd_unregister(struct actor *a, const struct op *o) {
        uint64_t one = 1;
        if (!uffd.open)
                return (struct record) { .result = SKIPPED };
        check(write(uffd.stop, &one, sizeof(one)) == sizeof(one), "eventfd");
        check(pthread_join(uffd.thread, NULL) == 0, "pthread_join");
        uffd_forget();
        return (struct record) { 0 };
}
