/* Contexts: who owns a VMA, what events say and when, what fork and mremap do to them. */
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "tests/support/kernel.h"

#define NOBODY 65534

static void read_first_word(void *page) {
        (void) *(volatile uint64_t *) page;
}

static void write_first_word(void *page) {
        *(volatile uint64_t *) page = 7;
}

static void dontneed_page(void *page) {
        CHECK(madvise(page, KSM_PAGE_SIZE, MADV_DONTNEED) == 0);
}

static void free_page(void *page) {
        (void) madvise(page, KSM_PAGE_SIZE, MADV_FREE); /* EINVAL on a file mapping */
}

static bool readable(int fd, int timeout_ms) {
        struct pollfd p = { .fd = fd, .events = POLLIN };

        return poll(&p, 1, timeout_ms) == 1;
}

/* -- registering ------------------------------------------------------------------------------------------------- */

static void register_wp_over_wp_missing_leaves_missing_armed(void) {
        int fd = uffd_open(GUARD_FEATURES);
        void *p = map_anon(1);
        struct toucher t;
        struct uffd_msg msg;

        CHECK_EQ(uffd_register(fd, p, 1, UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MISSING), 0);
        CHECK_EQ(uffd_register(fd, p, 1, UFFDIO_REGISTER_MODE_WP), 0); /* says yes, changes nothing */
        toucher_start(&t, read_first_word, p);
        CHECK(uffd_next(fd, &msg, 5000));
        CHECK_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
        CHECK_EQ(uffd_zeropage(fd, p, 1), 0);
        toucher_join(&t);
}

static void vma_goes_to_another_context_only_after_unregister_and_fuses_again(void) {
        int track = uffd_open(TRACK_FEATURES), guard = uffd_open(GUARD_FEATURES);
        void *p = map_filled(16, 1), *run = page_at(p, 4);

        CHECK_EQ(uffd_register(track, p, 16, UFFDIO_REGISTER_MODE_WP), 0);
        CHECK_EQ(count_vmas(p, 16), 1);
        CHECK_EQ(uffd_register(guard, run, 2, UFFDIO_REGISTER_MODE_MISSING), -EBUSY);
        CHECK_EQ(uffd_unregister(track, run, 2), 0);
        CHECK_EQ(uffd_register(guard, run, 2, UFFDIO_REGISTER_MODE_MISSING), 0);
        CHECK_EQ(count_vmas(p, 16), 3);
        CHECK_EQ(uffd_unregister(guard, run, 2), 0);
        CHECK_EQ(uffd_register(track, run, 2, UFFDIO_REGISTER_MODE_WP), 0);
        CHECK_EQ(count_vmas(p, 16), 1);
}

static void unregister_clears_protection_so_pages_read_as_written(void) {
        int track = uffd_open(TRACK_FEATURES);
        void *p = map_filled(4, 1);

        CHECK_EQ(uffd_register(track, p, 4, UFFDIO_REGISTER_MODE_WP), 0);
        CHECK_EQ(scan_written(p, 4), 4);
        CHECK_EQ(scan_written(p, 4), 0);
        CHECK_EQ(uffd_unregister(track, p, 4), 0);
        CHECK_EQ(uffd_register(track, p, 4, UFFDIO_REGISTER_MODE_WP), 0);
        CHECK_EQ(scan_written(p, 4), 4);
}

static void tracked_write_sends_no_message(void) {
        int track = uffd_open(TRACK_FEATURES);
        void *p = map_filled(1, 1);

        CHECK_EQ(uffd_register(track, p, 1, UFFDIO_REGISTER_MODE_WP), 0);
        CHECK_EQ(scan_written(p, 1), 1);
        write_first_word(p); /* would wait for ever if it were synchronous */
        CHECK(!readable(track, 0));
        CHECK_EQ(scan_written(p, 1), 1);
}

/* The freeze guard of the replace transition. */
static void synchronous_protection_blocks_writers_and_lets_readers_pass(void) {
        int guard = uffd_open(GUARD_FEATURES);
        void *p = map_filled(1, 1);
        struct toucher t;
        struct uffd_msg msg;

        CHECK_EQ(uffd_register(guard, p, 1, UFFDIO_REGISTER_MODE_WP), 0);
        CHECK_EQ(uffd_writeprotect(guard, p, 1, true), 0);
        CHECK(page_holds(p, 1));
        toucher_start(&t, write_first_word, p);
        CHECK(uffd_next(guard, &msg, 5000));
        CHECK(msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP);
        CHECK(page_holds(p, 1) && !toucher_done(&t));
        CHECK_EQ(uffd_writeprotect(guard, p, 1, false), 0);
        toucher_join(&t);
        CHECK_EQ(*(uint64_t *) p, 7);
}

static void unregister_wakes_who_waits_on_a_hole(void) {
        int guard = uffd_open(GUARD_FEATURES);
        void *p = map_anon(1);
        struct toucher t;
        struct uffd_msg msg;

        CHECK_EQ(uffd_register(guard, p, 1, UFFDIO_REGISTER_MODE_MISSING), 0);
        toucher_start(&t, read_first_word, p);
        CHECK(uffd_next(guard, &msg, 5000));
        CHECK_EQ(uffd_unregister(guard, p, 1), 0);
        toucher_join(&t);
        CHECK(page_is_zero(p));
}

/* mmap(MAP_FIXED) over a hole wakes nobody: the merge transition must send UFFDIO_WAKE. */
static void mapping_over_a_hole_needs_a_wake(void) {
        int guard = uffd_open(GUARD_FEATURES), segment = segment_open(1, 9);
        void *p = map_anon(1);
        struct toucher t;
        struct uffd_msg msg;

        CHECK_EQ(uffd_register(guard, p, 1, UFFDIO_REGISTER_MODE_MISSING), 0);
        toucher_start(&t, read_first_word, p);
        CHECK(uffd_next(guard, &msg, 5000));
        map_segment(p, 1, segment, 0);
        CHECK(!toucher_done(&t));
        CHECK_EQ(uffd_wake(guard, p, 1), 0); /* the range is not the context's any more: still valid */
        toucher_join(&t);
        CHECK(page_holds(p, 9));
}

/* -- events ------------------------------------------------------------------------------------------------------ */

static void remove_event_comes_before_the_zap_and_holds_the_caller(void) {
        int fd = uffd_open(SHARED_FEATURES);
        void *p = map_filled(1, 3);
        struct toucher t;
        struct uffd_msg msg;

        CHECK_EQ(uffd_register(fd, p, 1, UFFDIO_REGISTER_MODE_WP), 0);
        toucher_start(&t, dontneed_page, p);
        CHECK(readable(fd, 5000));
        CHECK(!toucher_done(&t));
        CHECK(page_holds(p, 3)); /* not zapped yet */
        CHECK(uffd_next(fd, &msg, 0));
        CHECK_EQ(msg.event, UFFD_EVENT_REMOVE);
        CHECK_EQ(msg.arg.remove.start, (uintptr_t) p);
        CHECK_EQ(msg.arg.remove.end, (uintptr_t) p + KSM_PAGE_SIZE);
        toucher_join(&t);
        CHECK_EQ(count_pages(p, 1, PAGE_IS_PRESENT), 0);
}

static void remove_event_fires_for_madv_free_too(void) {
        int fd = uffd_open(SHARED_FEATURES), segment = segment_open(1, 4);
        void *p = map_segment(NULL, 1, segment, 0);
        struct toucher t;
        struct uffd_msg msg;

        CHECK_EQ(uffd_register(fd, p, 1, UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MINOR), 0);
        CHECK_EQ(uffd_continue(fd, p, 1, UFFDIO_CONTINUE_MODE_WP), 0);
        toucher_start(&t, free_page, p);
        CHECK(uffd_next(fd, &msg, 5000));
        CHECK_EQ(msg.event, UFFD_EVENT_REMOVE);
        toucher_join(&t);
        CHECK_EQ(count_pages(p, 1, PAGE_IS_PRESENT), 1); /* and it failed: nothing was removed */
}

static void unread_event_fails_every_call_of_the_context_with_eagain(void) {
        int fd = uffd_open(GUARD_FEATURES);
        void *p = map_anon(4), *other = page_at(p, 2);
        struct toucher t;
        struct uffd_msg msg;

        CHECK_EQ(uffd_register(fd, p, 4, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP), 0);
        CHECK_EQ(uffd_zeropage(fd, page_at(p, 3), 1), 0);
        toucher_start(&t, dontneed_page, p);
        CHECK(readable(fd, 5000));
        CHECK_EQ(uffd_zeropage(fd, other, 1), -EAGAIN);
        CHECK_EQ(uffd_writeprotect(fd, page_at(p, 3), 1, true), -EAGAIN);
        CHECK_EQ(uffd_move(fd, other, map_filled(1, 1), 1, 0, NULL), -EAGAIN);
        CHECK(uffd_next(fd, &msg, 0));
        toucher_join(&t); /* reading is not enough: the caller must have gone through the zap */
        CHECK_EQ(uffd_zeropage(fd, other, 1), 0);
}

/* -- fork, mremap, other processes ------------------------------------------------------------------------------- */

static void fork_drops_the_context_in_the_child_but_its_fd_acts_on_the_parent(void) {
        int fd = uffd_open(UFFD_FEATURE_WP_UNPOPULATED), status;
        void *p = map_anon(2);
        pid_t child;

        CHECK_EQ(uffd_register(fd, p, 2, UFFDIO_REGISTER_MODE_MISSING), 0);
        child = fork();
        CHECK(child >= 0);
        if (child == 0) {
                CHECK_EQ(uffd_zeropage(fd, p, 1), 0);
                CHECK_EQ(count_pages(p, 1, PAGE_IS_PRESENT), 0); /* not here */
                read_first_word(page_at(p, 1));                   /* and nothing blocks */
                _exit(0);
        }
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        CHECK_EQ(count_pages(p, 1, PAGE_IS_PRESENT), 1);
        CHECK_EQ(count_pages(page_at(p, 1), 1, PAGE_IS_PRESENT), 0);
}

/* Why fork waits for the transition in progress: the hole is a hole for the child, and nobody guards it there. */
static void fork_over_a_hole_gives_the_child_zeros(void) {
        int guard = uffd_open(GUARD_FEATURES), scratch_context = uffd_open(SCRATCH_FEATURES), status;
        void *p = map_filled(1, 1), *scratch = map_anon(1);
        pid_t child;

        CHECK_EQ(uffd_register(guard, p, 1, UFFDIO_REGISTER_MODE_MISSING), 0);
        CHECK_EQ(uffd_register(scratch_context, scratch, 1, UFFDIO_REGISTER_MODE_MISSING), 0);
        CHECK_EQ(uffd_move(scratch_context, scratch, p, 1, 0, NULL), 0);
        child = fork();
        CHECK(child >= 0);
        if (child == 0)
                _exit(page_is_zero(p) ? 0 : 1);
        CHECK(waitpid(child, &status, 0) == child);
        CHECK_EQ(status, 0);
        /* and what waits in scratch is not exclusive any more: it comes back only after a write to it */
        CHECK_EQ(uffd_move(guard, p, scratch, 1, 0, NULL), -EBUSY);
        CHECK(madvise(scratch, KSM_PAGE_SIZE, MADV_POPULATE_WRITE) == 0);
        CHECK_EQ(uffd_move(guard, p, scratch, 1, 0, NULL), 0);
        CHECK(page_holds(p, 1));
}

static void scratch_without_events_can_be_dropped_by_its_owner(void) {
        int context = uffd_open(SCRATCH_FEATURES);
        void *p = map_filled(1, 1);

        CHECK_EQ(uffd_register(context, p, 1, UFFDIO_REGISTER_MODE_MISSING), 0);
        CHECK(madvise(p, KSM_PAGE_SIZE, MADV_DONTNEED) == 0); /* nobody reads the context: would wait for ever */
        CHECK_EQ(count_pages(p, 1, PAGE_IS_PRESENT), 0);
}

/* Why the fast read path is only for clients that answer. */
static void process_vm_readv_of_a_hole_waits_for_its_owner(void) {
        int guard = uffd_open(GUARD_FEATURES), status;
        void *p = map_anon(1);
        pid_t owner = getpid(), child;
        struct uffd_msg msg;

        CHECK_EQ(uffd_register(guard, p, 1, UFFDIO_REGISTER_MODE_MISSING), 0);
        child = fork();
        CHECK(child >= 0);
        if (child == 0) {
                uint64_t word = 1;
                struct iovec local = { &word, sizeof(word) }, remote = { p, sizeof(word) };

                alarm(FACT_WATCHDOG_SEC);
                if (process_vm_readv(owner, &local, 1, &remote, 1, 0) < 0)
                        _exit(errno == EPERM ? FACT_SKIP_STATUS : 1);
                _exit(word == 0 ? 0 : 1);
        }
        if (!uffd_next(guard, &msg, 5000)) {
                CHECK(waitpid(child, &status, 0) == child);
                if (WIFEXITED(status) && WEXITSTATUS(status) == FACT_SKIP_STATUS)
                        fact_skip("process_vm_readv is not permitted");
                fact_fail(__FILE__, __LINE__, "no fault arrived, reader's status %#x", status);
        }
        CHECK_EQ(waitpid(child, &status, WNOHANG), 0);
        CHECK_EQ(uffd_zeropage(guard, p, 1), 0);
        CHECK(waitpid(child, &status, 0) == child);
        CHECK_EQ(status, 0);
}

static void mremap_drops_tracking(void) {
        int track = uffd_open(TRACK_FEATURES);
        void *p = map_filled(2, 1), *to = map_anon(2);

        CHECK_EQ(uffd_register(track, p, 2, UFFDIO_REGISTER_MODE_WP), 0);
        CHECK_EQ(count_pages(p, 2, PAGE_IS_WPALLOWED), 2);
        CHECK(mremap(p, 2 * KSM_PAGE_SIZE, 2 * KSM_PAGE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
        CHECK_EQ(count_pages(to, 2, PAGE_IS_WPALLOWED), 0);
        CHECK(page_holds(to, 1));
        CHECK_EQ(uffd_register(track, to, 2, UFFDIO_REGISTER_MODE_WP), 0);
}

static void send_fd(int socket, int fd) {
        union {
                struct cmsghdr header;
                char space[CMSG_SPACE(sizeof(int))];
        } control = { .header = { CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS } };
        struct iovec iov = { (char[]){ 0 }, 1 };
        struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };

        memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
        CHECK_EQ(sendmsg(socket, &m, 0), 1);
}

static int receive_fd(int socket) {
        union {
                struct cmsghdr header;
                char space[CMSG_SPACE(sizeof(int))];
        } control;
        char byte;
        struct iovec iov = { &byte, 1 };
        struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
        int fd;

        CHECK_EQ(recvmsg(socket, &m, MSG_CMSG_CLOEXEC), 1);
        memcpy(&fd, CMSG_DATA(&control.header), sizeof(fd));
        return fd;
}

struct pipe_write {
        void *page;
        int fd;
};

static void write_to_pipe(void *argument) {
        struct pipe_write *w = argument;

        CHECK_EQ(write(w->fd, w->page, KSM_PAGE_SIZE), KSM_PAGE_SIZE);
}

static void unprivileged_client(int socket) {
        void *p = map_anon(1);
        struct pipe_write w = { .page = p };
        struct toucher t;
        struct uffd_msg msg;
        int device, fd, fds[2];

        CHECK(setresgid(NOBODY, NOBODY, NOBODY) == 0 && setresuid(NOBODY, NOBODY, NOBODY) == 0);
        CHECK(open("/dev/userfaultfd", O_RDWR) < 0);
        device = receive_fd(socket);
        fd = uffd_new(device, SHARED_FEATURES | UFFD_FEATURE_MOVE);
        CHECK(fd >= 0);
        CHECK_EQ(uffd_register(fd, p, 1, UFFDIO_REGISTER_MODE_MISSING), 0);
        CHECK(pipe2(fds, O_CLOEXEC) == 0);
        w.fd = fds[1];
        toucher_start(&t, write_to_pipe, &w); /* a kernel-mode fault: waits, does not fail */
        CHECK(uffd_next(fd, &msg, 5000));
        CHECK_EQ(uffd_zeropage(fd, p, 1), 0);
        toucher_join(&t);
        _exit(0);
}

static void device_fd_gives_an_unprivileged_process_a_full_context(void) {
        int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC), pair[2], status;
        pid_t child;

        if (device < 0)
                fact_skip("/dev/userfaultfd: %s", strerror(errno));
        if (geteuid() != 0)
                fact_skip("needs root to become nobody");
        CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
        child = fork();
        CHECK(child >= 0);
        if (child == 0) {
                close_fd(device);
                alarm(FACT_WATCHDOG_SEC);
                unprivileged_client(pair[1]);
        }
        send_fd(pair[0], device);
        CHECK(waitpid(child, &status, 0) == child);
        CHECK_EQ(status, 0);
}

FACTS(FACT(register_wp_over_wp_missing_leaves_missing_armed),
      FACT(vma_goes_to_another_context_only_after_unregister_and_fuses_again),
      FACT(unregister_clears_protection_so_pages_read_as_written),
      FACT(tracked_write_sends_no_message),
      FACT(synchronous_protection_blocks_writers_and_lets_readers_pass),
      FACT(unregister_wakes_who_waits_on_a_hole),
      FACT(mapping_over_a_hole_needs_a_wake),
      FACT(remove_event_comes_before_the_zap_and_holds_the_caller),
      FACT(remove_event_fires_for_madv_free_too),
      FACT(unread_event_fails_every_call_of_the_context_with_eagain),
      FACT(fork_drops_the_context_in_the_child_but_its_fd_acts_on_the_parent),
      FACT(fork_over_a_hole_gives_the_child_zeros),
      FACT(scratch_without_events_can_be_dropped_by_its_owner),
      FACT(process_vm_readv_of_a_hole_waits_for_its_owner),
      FACT(mremap_drops_tracking),
      FACT(device_fd_gives_an_unprivileged_process_a_full_context))
