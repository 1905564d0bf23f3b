/* Another process's hands on the memory: process_vm_readv and writev, ptrace, and /proc/self/mem. The other process is a helper
 * that is forked before anything else; it takes one request at a time from a mailbox in shared memory. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/uapi.h"
#include "tests/shadow/futex.h"
#include "tests/shadow/shadow.h"

#define REFUSED_READABLE_USEC 5000000U /* an access that cannot wait is tried again while one that can wait succeeds */
#define REFUSED_USEC 20000U            /* and otherwise, a little */
#define REFUSED_UNMAPPED_USEC 2000U
#define AGAIN_FIRST_USEC 50U           /* each time twice as long, so that an answer that stays costs few tries */
#define AGAIN_LAST_USEC 3200U

enum command { REMOTE_READ, REMOTE_WRITE, REMOTE_PEEK, REMOTE_POKE };
enum state { IDLE, REQUEST, DONE };

struct mailbox {
        _Atomic uint32_t owner, state;
        enum command command;
        pid_t pid, tid;
        uint8_t *at;
        size_t bytes;
        bool retry;
        long result;
        int error;
        _Alignas(4096) uint8_t data[WINDOW_PAGES * PAGE];
};
static struct mailbox *box;

/* -- the helper ------------------------------------------------------------------------------------------------ */

static long traced(struct mailbox *b, bool poke) {
        int status;
        if (ptrace(PTRACE_SEIZE, b->tid, 0, 0) < 0)
                return -1;
        check(ptrace(PTRACE_INTERRUPT, b->tid, 0, 0) == 0, "PTRACE_INTERRUPT");
        check(waitpid(b->tid, &status, __WALL) == b->tid && WIFSTOPPED(status), "waitpid");
        errno = 0;
        long word = 0;
        memcpy(&word, b->data, sizeof(word));
        long r = poke ? ptrace(PTRACE_POKEDATA, b->tid, b->at, word) : ptrace(PTRACE_PEEKDATA, b->tid, b->at, 0);
        int error = errno;
        if (!poke && !error) {
                memcpy(b->data, &r, sizeof(r));
                r = 0;
        }
        int number = WSTOPSIG(status) == SIGTRAP ? 0 : WSTOPSIG(status);
        (void) ptrace(PTRACE_DETACH, b->tid, 0, number);
        errno = error;
        return error ? -1 : r;
}

/* How long EIO is tried again where merging cannot be the reason for long: in a shared mapping without PROT_WRITE, which cannot
 * be forced, and where nothing is mapped (mremap, which puts a copy there, unmaps first). 0: anywhere else. */
static uint64_t refusal_usec(pid_t pid, uint8_t *at, bool write) {
        char path[64];
        snprintf(path, sizeof(path), "/proc/%d/maps", (int) pid);
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        struct procmap_query q = { .size = sizeof(q), .query_addr = (uint64_t) at };
        if (fd < 0)
                return 0;
        if (ioctl(fd, PROCMAP_QUERY, &q) < 0)
                return errno == ENOENT ? REFUSED_UNMAPPED_USEC : 0;
        return write && (q.vma_flags & PROCMAP_QUERY_VMA_SHARED) && !(q.vma_flags & PROCMAP_QUERY_VMA_WRITABLE);
}

/* How long an access that got EIO is tried again. */
static uint64_t patience_usec(pid_t pid, uint8_t *at, bool write) {
        uint8_t byte;
        struct iovec local = { &byte, 1 }, remote = { at, 1 };
        uint64_t refusal = refusal_usec(pid, at, write);
        if (refusal)
                return refusal;
        return process_vm_readv(pid, &local, 1, &remote, 1, 0) == 1 ? REFUSED_READABLE_USEC : REFUSED_USEC;
}

/* Counts a refused access and waits before the next try. */
static void wait_again(useconds_t *step) {
        atomic_fetch_add(&run.control->refused, 1);
        (void) usleep(*step);
        *step = MIN(*step * 2, AGAIN_LAST_USEC);
}

static void serve(struct mailbox *b) {
        struct iovec local = { b->data, b->bytes }, remote = { b->at, b->bytes };
        uint64_t start = now_usec();
        useconds_t step = AGAIN_FIRST_USEC;
        for (;;) {
                errno = 0;
                switch (b->command) {
                case REMOTE_READ: b->result = process_vm_readv(b->pid, &local, 1, &remote, 1, 0); break;
                case REMOTE_WRITE: b->result = process_vm_writev(b->pid, &local, 1, &remote, 1, 0); break;
                case REMOTE_PEEK: b->result = traced(b, false); break;
                case REMOTE_POKE: b->result = traced(b, true); break;
                }
                b->error = errno;
                if (b->result != -1 || b->error != EIO || !b->retry)
                        return;
                if (now_usec() - start >= patience_usec(b->pid, b->at, b->command == REMOTE_POKE))
                        return;
                wait_again(&step);
        }
}

__attribute__((noreturn)) static void helper(pid_t parent) {
        (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
                _exit(0);
        for (;;) {
                futex_wait_while(&box->state, IDLE);
                if (atomic_load(&box->state) != REQUEST) {
                        futex_wait_while(&box->state, DONE);
                        continue;
                }
                serve(box);
                atomic_store(&box->state, DONE);
                futex_wake(&box->state);
        }
}

size_t remote_bytes(void) {
        return sizeof(struct mailbox);
}

void remote_attach(void *shared) {
        box = shared;
}

void remote_start(void) {
        pid_t parent = getpid(), pid = fork();
        check(pid >= 0, "fork");
        if (pid == 0)
                helper(parent);
}

/* -- requests -------------------------------------------------------------------------------------------------- */

static void take(void) {
        uint32_t nobody = 0;
        while (!atomic_compare_exchange_strong(&box->owner, &nobody, 1)) {
                futex_wait_while(&box->owner, 1);
                nobody = 0;
        }
}

static struct record request(enum command command, uint8_t *at, size_t bytes) {
        box->command = command;
        box->pid = getpid();
        box->tid = gettid();
        box->at = at;
        box->bytes = bytes;
        box->retry = run.settle_usec != 0;
        atomic_store(&box->state, REQUEST);
        futex_wake(&box->state);
        futex_wait_while(&box->state, REQUEST);
        struct record r = { .result = (int32_t) box->result, .error = box->result == -1 ? box->error : 0 };
        if (box->result >= 0 && (command == REMOTE_READ || command == REMOTE_PEEK))
                r.digest = digest_bytes(0, box->data, command == REMOTE_PEEK ? sizeof(long) : (size_t) box->result);
        atomic_store(&box->state, IDLE);
        return r;
}

static void give(void) {
        atomic_store(&box->owner, 0);
        futex_wake(&box->owner);
}

struct record op_remote_read(struct actor *a, const struct op *o) {
        struct span s = op_span_bytes(o);
        take();
        struct record r = request(REMOTE_READ, s.at, s.bytes);
        give();
        return r;
}

struct record op_remote_write(struct actor *a, const struct op *o) {
        struct span s = op_span_bytes(o);
        take();
        for (size_t i = 0; i < s.bytes; i += PAGE)
                memcpy(box->data + i, content((uint32_t) (o->value + i / PAGE)), MIN(PAGE, s.bytes - i));
        struct record r = request(REMOTE_WRITE, s.at, s.bytes);
        give();
        r.digest = digest_memory(s.at, s.bytes);
        return r;
}

static struct record trace(const struct op *o, enum command command) {
        struct span s = op_span(o);
        if (!s.bytes || uffd_is_open()) /* with one, EIO is the right answer as well */
                return (struct record) { .result = SKIPPED };
        take();
        memcpy(box->data, content(o->value) + 64, sizeof(long));
        struct record r = request(command, s.at + o->arg % (s.bytes - sizeof(long)), sizeof(long));
        give();
        return r;
}

struct record op_peek(struct actor *a, const struct op *o) {
        return trace(o, REMOTE_PEEK);
}

struct record op_poke(struct actor *a, const struct op *o) {
        return trace(o, REMOTE_POKE);
}

/* -- /proc/self/mem --------------------------------------------------------------------------------------------- */

/* Access with FOLL_FORCE, page by page. It cannot wait, neither for a transition nor for anything else (exception "refused"):
 * tried again as above. */
static ssize_t transfer_page(int fd, bool out, uint8_t *bytes, uint8_t *at, size_t n) {
        uint64_t start = now_usec();
        useconds_t step = AGAIN_FIRST_USEC;
        for (;;) {
                ssize_t r = out ? pread(fd, bytes, n, (off_t) (uintptr_t) at) : pwrite(fd, bytes, n, (off_t) (uintptr_t) at);
                if (r != -1 || errno != EIO || !run.settle_usec || uffd_is_open())
                        return r;
                if (now_usec() - start >= patience_usec(getpid(), at, !out)) {
                        errno = EIO;
                        return -1;
                }
                wait_again(&step);
        }
}

static struct record proc_mem(struct actor *a, const struct op *o, bool out) {
        struct span s = op_span(o);
        struct record r = { 0 };
        _cleanup_close_ int fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
        check(fd >= 0, "/proc/self/mem");
        if (uffd_is_open())
                return (struct record) { .result = SKIPPED };
        for (size_t i = 0; i < MIN(s.bytes, 8 * PAGE); i += PAGE) {
                if (!out)
                        memcpy(a->bounce, content((uint32_t) (o->value + i / PAGE)), PAGE);
                ssize_t n = transfer_page(fd, out, a->bounce, s.at + i, PAGE);
                r.result = (int32_t) (r.result * 3 + (n < 0 ? -errno : n));
                if (out && n > 0)
                        r.digest = digest_bytes(r.digest, a->bounce, (size_t) n);
        }
        if (!out)
                r.digest = digest_memory(s.at, s.bytes);
        return r;
}

struct record op_proc_mem_read(struct actor *a, const struct op *o) {
        return proc_mem(a, o, true);
}

struct record op_proc_mem_write(struct actor *a, const struct op *o) {
        return proc_mem(a, o, false);
}
