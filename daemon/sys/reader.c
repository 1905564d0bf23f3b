#include "daemon/sys/reader.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/uio.h>

int reader_read_exact(const struct process *p, uint64_t page, unsigned n_pages, void *to) {
        ssize_t n = pread(p->mem_fd, to, n_pages * KSM_PAGE_SIZE, (off_t) (page << KSM_PAGE_SHIFT));
        if (n < 0)
                return -errno;
        return n < (ssize_t) KSM_PAGE_SIZE ? -EIO : (int) ((size_t) n / KSM_PAGE_SIZE);
}

static unsigned run_length(const uint64_t *pages, unsigned n_pages) {
        unsigned n = 1;
        while (n < n_pages && pages[n] == pages[0] + n)
                n++;
        return n;
}

#define PAGEMAP_PRESENT (1ULL << 63)
#define PAGEMAP_EXCLUSIVE (1ULL << 56) /* mapped once */

/* Which of the pages others map too, a bit each. One that a fork shares a moment later is copied: a page of memory. */
static uint64_t find_shared(const struct process *p, const uint64_t *pages, unsigned n_pages) {
        uint64_t entries[READER_PAGES_MAX], found = 0;
        for (unsigned i = 0; i < n_pages;) {
                unsigned run = run_length(pages + i, n_pages - i);
                size_t bytes = run * sizeof(entries[0]);
                ssize_t n = pread(p->pagemap_fd, entries, bytes, (off_t) (pages[i] * sizeof(entries[0])));
                for (unsigned k = 0; k < run && n == (ssize_t) bytes; k++)
                        found |= (uint64_t) ((entries[k] & (PAGEMAP_PRESENT | PAGEMAP_EXCLUSIVE)) == PAGEMAP_PRESENT) << (i + k);
                i += run;
        }
        return found;
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
        fast = fast && !atomic_load_explicit(&p->fast_denied, memory_order_relaxed);
        uint64_t slow = fast ? find_shared(p, pages, n_pages) : ~0ULL;
        for (unsigned i = 0, run; i < n_pages; i += run) {
                bool is_slow = slow >> i & 1;
                run = 1;
                while (i + run < n_pages && (slow >> (i + run) & 1) == is_slow)
                        run++;
                unsigned done = is_slow ? 0 : read_fast(p, pages + i, run, buffer + i * KSM_PAGE_SIZE);
                for (unsigned k = 0; k < done; k++)
                        ok[i + k] = true;
                if (done < run)
                        read_mem(p, pages + i + done, run - done, buffer + (i + done) * KSM_PAGE_SIZE, ok + i + done);
        }
}
