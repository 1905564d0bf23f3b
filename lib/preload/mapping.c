/* Calls that make, unmap or change mappings: one bracket each, and a note of what is gone. */
#include <errno.h>
#include <sys/shm.h>

#include "lib/book.h"
#include "lib/preload/preload.h"

/* Restores that may be needed before the lock is entered with nothing merged: a page must stay unwritten for a pass before
 * it is merged again, so a second is already unusual. */
#define RESTORE_TRIES 8U

int enter_restored(uint64_t start, uint64_t end) {
        int r = 0;
        for (unsigned i = 0;; i++) {
                enter();
                if (__builtin_expect(!book_any_merged(start, end), 1))
                        return 0;
                if (r != 0 || i == RESTORE_TRIES)
                        return r ? r : -EAGAIN;
                leave();
                r = REQUEST(agent_restore(start, end - start));
        }
}

SHIM_EXPORT int munmap(void *addr, size_t length) {
        enter();
        int r = REAL(munmap)(addr, length);
        if (r == 0) {
                struct span span = span_touched(addr, length);
                note_unmapped(span.start, span.end);
        }
        leave();
        return r;
}

static void *mmap_common(void *addr, size_t length, int prot, int flags, int fd, off_t offset) {
        enter();
        void *p = REAL(mmap)(addr, length, prot, flags, fd, offset);
        if (p != MAP_FAILED) {
                struct span span = span_touched(p, length);
                /* A mapping where the kernel chose the place can only be over books that are stale (libc unmapped there). */
                if ((flags & MAP_FIXED) || book_any_merged(span.start, span.end))
                        note_unmapped(span.start, span.end);
        }
        leave();
        return p;
}

SHIM_EXPORT void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset) {
        return mmap_common(addr, length, prot, flags, fd, offset);
}

#ifdef __LP64__
SHIM_EXPORT void *mmap64(void *addr, size_t length, int prot, int flags, int fd, off64_t offset) {
        return mmap_common(addr, length, prot, flags, fd, offset);
}
#else
#error "userksm: off_t and off64_t differ here"
#endif

SHIM_EXPORT int mprotect(void *addr, size_t length, int prot) {
        enter();
        int r = REAL(mprotect)(addr, length, prot);
        leave();
        return r;
}

/* Never to be merged again from here on: attributes that a replaced mapping would lose. */
static void exclude(struct span span) {
        if (span.end > span.start && agent_running())
                (void) REQUEST(agent_exclude(span.start, span.end - span.start));
}

SHIM_EXPORT int pkey_mprotect(void *addr, size_t length, int prot, int pkey) {
        real_pkey_mprotect_fn f = REAL(pkey_mprotect);
        if (!f) {
                errno = ENOSYS;
                return -1;
        }
        if (pkey > 0) /* -1 and 0 are mprotect */
                exclude(span_touched(addr, length));
        enter();
        int r = f(addr, length, prot, pkey);
        leave();
        return r;
}

SHIM_EXPORT int mlock(const void *addr, size_t length) {
        exclude(span_touched(addr, length));
        enter();
        int r = REAL(mlock)(addr, length);
        leave();
        return r;
}

SHIM_EXPORT int mlock2(const void *addr, size_t length, unsigned flags) {
        real_mlock2_fn f = REAL(mlock2);
        if (!f) {
                errno = ENOSYS;
                return -1;
        }
        exclude(span_touched(addr, length));
        enter();
        int r = f(addr, length, flags);
        leave();
        return r;
}

SHIM_EXPORT int munlock(const void *addr, size_t length) {
        enter();
        int r = REAL(munlock)(addr, length);
        leave();
        return r;
}

SHIM_EXPORT int mlockall(int flags) {
        bool running = agent_running();
        if (running) {
                unsigned depth = request_begin();
                agent_suspend(true);
                /* Locking reads in and write-faults everything: give the pages back first, whole runs at a time. */
                (void) agent_restore(0, UINT64_MAX & ~(KSM_PAGE_SIZE - 1));
                request_end(depth);
        }
        enter();
        int r = REAL(mlockall)(flags);
        leave();
        if (r != 0 && running) {
                unsigned depth = request_begin();
                agent_suspend(false);
                request_end(depth);
        }
        return r;
}

SHIM_EXPORT int munlockall(void) {
        enter();
        int r = REAL(munlockall)();
        leave();
        if (r == 0 && agent_running()) {
                unsigned depth = request_begin();
                agent_suspend(false);
                request_end(depth);
        }
        return r;
}

SHIM_EXPORT int brk(void *addr) {
        enter();
        void *old = REAL(sbrk)(0);
        int r = REAL(brk)(addr);
        if (r == 0 && addr < old)
                note_unmapped(page_ceil((uint64_t) addr), page_ceil((uint64_t) old));
        leave();
        return r;
}

SHIM_EXPORT void *sbrk(intptr_t increment) {
        enter();
        void *old = REAL(sbrk)(increment);
        if (old != (void *) -1 && increment < 0)
                note_unmapped(page_ceil((uint64_t) old + (uint64_t) increment), page_ceil((uint64_t) old));
        leave();
        return old;
}

SHIM_EXPORT void *shmat(int id, const void *addr, int flags) {
        enter();
        void *p = REAL(shmat)(id, addr, flags);
        struct shmid_ds ds;
        if (p != (void *) -1 && (flags & SHM_REMAP) && shmctl(id, IPC_STAT, &ds) == 0) {
                struct span span = span_touched(p, ds.shm_segsz);
                note_unmapped(span.start, span.end);
        }
        leave();
        return p;
}
