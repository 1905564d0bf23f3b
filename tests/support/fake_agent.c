#include "tests/support/fake_agent.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/uapi.h"

#define TRACK (UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_HUGETLBFS_SHMEM)

static int context_new(int device, uint64_t features) {
        struct uffdio_api api = { .api = UFFD_API, .features = features };
        int fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
        assert_true(fd >= 0);
        assert_int_equal(ioctl(fd, UFFDIO_API, &api), 0);
        return fd;
}

static void context_register(int fd, void *at, size_t n_pages, uint64_t mode) {
        struct uffdio_register r = { .range = { (uintptr_t) at, n_pages * KSM_PAGE_SIZE }, .mode = mode };
        assert_int_equal(ioctl(fd, UFFDIO_REGISTER, &r), 0);
}

void fake_agent_start(struct fake_agent *a, const struct daemon_process *d) {
        int device;
        *a = (struct fake_agent){ 0 };
        a->fd = agent_connect(d, &a->client, &device);
        a->track = context_new(device, TRACK);
        a->shared = context_new(device, TRACK | UFFD_FEATURE_MINOR_SHMEM);
        close_fd(device);
}

void fake_agent_map(struct fake_agent *a, size_t n_pages) {
        size_t size = n_pages * KSM_PAGE_SIZE, align = BLOCK_PAGES * KSM_PAGE_SIZE;
        uint8_t *p = mmap(NULL, size + align, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        assert_true(p != MAP_FAILED);
        a->memory = (uint8_t *) (((uintptr_t) p + align - 1) & ~(align - 1));
        a->n_pages = n_pages;
        assert_int_equal(madvise(a->memory, size, MADV_NOHUGEPAGE), 0);
        context_register(a->track, a->memory, n_pages, UFFDIO_REGISTER_MODE_WP);
}

void fake_agent_announce(struct fake_agent *a) {
        const struct msg_range_add body = { .n_vmas = 60 };
        const struct range_element range = { (uintptr_t) a->memory, a->n_pages * KSM_PAGE_SIZE };
        assert_int_equal(channel_send(a->fd, MSG_RANGE_ADD, &body, &range, 1, NULL, 0), 0);
}

static struct fake_segment *find_segment(struct fake_agent *a, uint32_t id) {
        for (unsigned i = 0; i < a->n_segments; i++)
                if (a->segments[i].id == id)
                        return &a->segments[i];
        return NULL;
}

/* Announced before it is used or dropped. */
static struct fake_segment *known_segment(struct fake_agent *a, uint32_t id) {
        struct fake_segment *s = find_segment(a, id);
        if (!s) {
                fail_msg("segment %u was never announced", id);
                abort(); /* not reached, which the compiler cannot know */
        }
        return s;
}

static void on_segment(struct fake_agent *a, struct channel_message *m) {
        const struct msg_segment *body = m->frame.body;
        assert_null(find_segment(a, body->segment)); /* sent once */
        assert_true(a->n_segments < FAKE_SEGMENTS_MAX);
        int fd = channel_take_fd(m, 0);
        assert_int_equal(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
        void *p = mmap(NULL, body->n_slots * KSM_PAGE_SIZE, PROT_READ, MAP_PRIVATE, fd, 0);
        assert_true(p != MAP_FAILED);
        a->segments[a->n_segments++] = (struct fake_segment){ body->segment, body->n_slots, fd, p };
}

static void forget_segment(struct fake_agent *a, struct fake_segment *s) {
        (void) munmap((void *) s->slots, s->n_slots * KSM_PAGE_SIZE);
        close_fd(s->fd);
        *s = a->segments[--a->n_segments];
}

static void do_merge(struct fake_agent *a, uint8_t *at, const struct extent_element *e) {
        const struct fake_segment *s = known_segment(a, e->segment);
        size_t size = e->n_pages * KSM_PAGE_SIZE;
        assert_true(e->slot + e->n_pages <= s->n_slots);
        assert_memory_equal(at, s->slots + e->slot * KSM_PAGE_SIZE, size); /* good advice */
        void *p = mmap(at, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, s->fd,
                       (off_t) (e->slot * KSM_PAGE_SIZE));
        assert_ptr_equal(p, at);
        context_register(a->shared, at, e->n_pages, UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MINOR);
        struct uffdio_continue c = { .range = { (uintptr_t) at, size }, .mode = UFFDIO_CONTINUE_MODE_WP };
        assert_int_equal(ioctl(a->shared, UFFDIO_CONTINUE, &c), 0);
        a->merged += e->n_pages;
}

static void do_zero(struct fake_agent *a, uint8_t *at, const struct extent_element *e) {
        for (size_t i = 0; i < e->n_pages * KSM_PAGE_SIZE; i++)
                if (at[i])
                        fail_msg("asked to zero a page that is not");
        assert_int_equal(madvise(at, e->n_pages * KSM_PAGE_SIZE, MADV_DONTNEED), 0);
        a->zeroed += e->n_pages;
}

static void do_restore(struct fake_agent *a, uint8_t *at, const struct extent_element *e) {
        size_t size = e->n_pages * KSM_PAGE_SIZE;
        void *copy = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        assert_true(copy != MAP_FAILED);
        memcpy(copy, at, size);
        assert_ptr_equal(mremap(copy, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, at), at);
        context_register(a->track, at, e->n_pages, UFFDIO_REGISTER_MODE_WP);
        a->restored += e->n_pages;
}

static void on_apply(struct fake_agent *a, const struct frame *f) {
        const struct msg_apply *body = f->body;
        const struct extent_element *e = f->elements;
        struct msg_applied answer = { .op = body->op, .duration_usec = 1 };
        a->applies++;
        for (uint32_t i = 0; i < f->count; i++) {
                uint8_t *at = (uint8_t *) (uintptr_t) (e[i].page << KSM_PAGE_SHIFT);
                assert_true(at >= a->memory && at + e[i].n_pages * KSM_PAGE_SIZE <= a->memory + a->n_pages * KSM_PAGE_SIZE);
                if (!a->refuse && body->kind == APPLY_MERGE)
                        do_merge(a, at, &e[i]);
                else if (!a->refuse && body->kind == APPLY_ZERO)
                        do_zero(a, at, &e[i]);
                else if (!a->refuse)
                        do_restore(a, at, &e[i]);
                memset(answer.status + (e[i].page & 63), a->refuse ? a->refuse : APPLY_OK, e[i].n_pages);
        }
        if (a->mute) {
                a->held = answer;
                a->has_held = true;
        } else
                assert_int_equal(channel_send(a->fd, MSG_APPLIED, &answer, NULL, 0, NULL, 0), 0);
}

bool fake_agent_step(struct fake_agent *a, int timeout_msec) {
        static struct channel_message m;
        struct pollfd wait = { .fd = a->fd, .events = POLLIN };
        if (poll(&wait, 1, timeout_msec) <= 0)
                return false;
        receive_frame(a->fd, (enum message_type) 0, &m);
        switch (m.frame.type) {
        case MSG_SEGMENT:
                on_segment(a, &m);
                break;
        case MSG_SEGMENT_DROP: {
                forget_segment(a, known_segment(a, ((const struct msg_segment_drop *) m.frame.body)->segment));
                a->dropped++;
                break;
        }
        case MSG_APPLY:
                on_apply(a, &m.frame);
                break;
        case MSG_PING:
                a->pings++;
                if (!a->mute)
                        assert_int_equal(channel_send(a->fd, MSG_PONG, m.frame.body, NULL, 0, NULL, 0), 0);
                break;
        case MSG_MERGE_DONE:
                a->merge_done = true;
                a->last_merge_done = *(const struct msg_merge_done *) m.frame.body;
                break;
        default:
                fail_msg("unexpected %s", message_name(m.frame.type));
        }
        channel_message_done(&m);
        return true;
}

bool fake_agent_step_unless_closed(struct fake_agent *a, int timeout_msec) {
        char byte;
        struct pollfd wait = { .fd = a->fd, .events = POLLIN };
        if (poll(&wait, 1, timeout_msec) <= 0 || recv(a->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) <= 0)
                return false;
        return fake_agent_step(a, 0);
}

void fake_agent_stop(struct fake_agent *a) {
        a->fd = close_fd(a->fd);
        a->track = close_fd(a->track);
        a->shared = close_fd(a->shared);
        while (a->n_segments)
                forget_segment(a, &a->segments[0]);
        if (a->memory)
                (void) munmap(a->memory, a->n_pages * KSM_PAGE_SIZE);
        a->memory = NULL;
}
