#include "daemon/sys/reader.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/uio.h>

int reader_read_exact(const struct process *p, uint64_t page, void *to) {
        ssize_t n = pread(p->mem_fd, to, KSM_PAGE_SIZE, (off_t) (page << KSM_PAGE_SHIFT));
        if (n < 0)
                return -errno;
        return n == (ssize_t) KSM_PAGE_SIZE ? 0 : -EIO;
}

static unsigned run_length(const uint64_t *pages, unsigned n_pages) {
        unsigned n = 1;
        while (n < n_pages && pages[n] == pages[0] + n)
                n++;
        return n;
}

/* A run a call; the kernel stops at the first page that it cannot read, so go on behind that one. */
static void read_mem(const struct process *p, const uint64_t *pages, unsigned n_pages, uint8_t *buffer, bool *ok) {
        for (unsigned i = 0; i < n_pages;) {
                if (atomic_load_explicit(&p->closing, memory_order_relaxed))
                        return;
                unsigned run = run_length(pages + i, n_pages - i);
                ssize_t n = pread(p->mem_fd, buffer + i * KSM_PAGE_SIZE, run * KSM_PAGE_SIZE,
                                  (off_t) (pages[i] << KSM_PAGE_SHIFT));
                unsigned done = n > 0 ? (unsigned) ((size_t) n / KSM_PAGE_SIZE) : 0;
                for (unsigned k = 0; k < done; k++)
                        ok[i + k] = true;
                i += done < run ? done + 1 : done;
        }
}

/* Pages read in full from the front; 0 when the process may not be read this way. */
static unsigned read_fast(struct process *p, const uint64_t *pages, unsigned n_pages, uint8_t *buffer) {
        struct iovec remote[READER_PAGES_MAX], local = { buffer, n_pages * KSM_PAGE_SIZE };
        unsigned n_remote = 0;
        for (unsigned i = 0; i < n_pages;) {
                unsigned run = run_length(pages + i, n_pages - i);
                remote[n_remote++] = (struct iovec){ (void *) (uintptr_t) (pages[i] << KSM_PAGE_SHIFT),
                                                     run * KSM_PAGE_SIZE };
                i += run;
        }
        if (process_has_exited(p))
                return 0;
        ssize_t n = process_vm_readv(p->pid, &local, 1, remote, n_remote, 0);
        if (n < 0 && (errno == EPERM || errno == ENOSYS))
                atomic_store_explicit(&p->fast_denied, true, memory_order_relaxed);
        if (n <= 0)
                return 0;
        bool is_its_users = process_is_its_users(p);
        /* Alive now means alive all the time: the pid named this process while we read, and looked. */
        if (process_has_exited(p))
                return 0;
        if (!is_its_users) {
                atomic_store_explicit(&p->fast_denied, true, memory_order_relaxed);
                return 0;
        }
        return (unsigned) ((size_t) n / KSM_PAGE_SIZE);
}

void reader_read(struct process *p, bool fast, const uint64_t *pages, unsigned n_pages, uint8_t *buffer,
                 bool *ok) {
        assert(n_pages <= READER_PAGES_MAX);
        memset(ok, 0, n_pages * sizeof(*ok));
        unsigned done = 0;
        if (fast && !atomic_load_explicit(&p->fast_denied, memory_order_relaxed)) {
                done = read_fast(p, pages, n_pages, buffer);
                for (unsigned i = 0; i < done; i++)
                        ok[i] = true;
        }
        if (done < n_pages)
                read_mem(p, pages + done, n_pages - done, buffer + done * KSM_PAGE_SIZE, ok + done);
}
