/* userksm.h: the public calls. */
#include "lib/userksm.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>

#include "common/cleanup.h"
#include "lib/agent.h"
#include "lib/book.h"
#include "lib/maplock.h"

#define PUBLIC __attribute__((visibility("default")))

/* A page may be merged again between the restore and the call; not for at least the time it takes to settle. */
#define RESTORE_ROUNDS 16U

PUBLIC int userksm_init(const char *socket_path) {
        int saved = errno;
        int r = agent_start(socket_path, 0);
        errno = saved;
        return r;
}

PUBLIC int userksm_register(void *addr, size_t length) {
        if (!range_is_valid((uint64_t) addr, length))
                return -EINVAL;
        int r = userksm_init(NULL);
        return r < 0 ? r : agent_register((uint64_t) addr, length);
}

PUBLIC int userksm_unregister(void *addr, size_t length) {
        if (!range_is_valid((uint64_t) addr, length))
                return -EINVAL;
        int r = agent_unregister((uint64_t) addr, length);
        return r == -ENOTCONN ? -ENOENT : r;
}

PUBLIC int userksm_merge(void *addr, size_t length, uint64_t *saved_bytes) {
        if (!range_is_valid((uint64_t) addr, length))
                return -EINVAL;
        return agent_merge((uint64_t) addr, length, saved_bytes);
}

PUBLIC int userksm_stats(struct userksm_stats *stats) {
        return stats->size < sizeof(stats->size) ? -EINVAL : agent_stats(stats);
}

PUBLIC void userksm_map_lock(void) {
        agent_ensure_after_fork();
        map_enter();
}

PUBLIC void userksm_map_unlock(void) {
        map_leave();
}

/* -- wrappers: the contract of a program without the shim ------------------------------------------------------- */

/* Enters the mapping lock with nothing merged in the range: 0; 1: inside, but some of it stayed merged. Or a negative errno,
 * outside the lock. */
static int enter_restored(uint64_t start, size_t length) {
        agent_ensure_after_fork();
        for (unsigned i = 0; i < RESTORE_ROUNDS; i++) {
                map_enter();
                if (!book_any_merged(start, start + length))
                        return 0;
                map_leave();
                int r = agent_restore(start, length);
                if (r < 0)
                        return r;
                if (r > 0)
                        break; /* pages copied on write stay: the caller's call meets a file mapping there */
        }
        map_enter();
        return book_any_merged(start, start + length);
}

PUBLIC int userksm_munmap(void *addr, size_t length) {
        userksm_map_lock();
        int r = munmap(addr, length);
        if (r == 0)
                agent_note_unmapped((uint64_t) addr, length);
        map_leave();
        return r;
}

PUBLIC void *userksm_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset) {
        userksm_map_lock();
        void *p = mmap(addr, length, prot, flags, fd, offset);
        if (p != MAP_FAILED && flags & MAP_FIXED)
                agent_note_unmapped((uint64_t) p, length);
        map_leave();
        return p;
}

PUBLIC void *userksm_mremap(void *addr, size_t old_length, size_t new_length, int flags, void *new_addr) {
        int e = enter_restored((uint64_t) addr, old_length);
        if (e > 0) { /* growing it would show what follows in its segment */
                map_leave();
                e = -ENOMEM;
        }
        if (e < 0) {
                errno = -e;
                return MAP_FAILED;
        }
        void *p = mremap(addr, old_length, new_length, flags, new_addr);
        if (p != MAP_FAILED) {
                if (p != addr) {
                        agent_note_unmapped((uint64_t) p, new_length); /* what MREMAP_FIXED replaced */
                        agent_note_unmapped((uint64_t) addr, old_length);
                } else if (new_length < old_length) {
                        agent_note_unmapped((uint64_t) addr + new_length, old_length - new_length);
                }
        }
        map_leave();
        return p;
}

static bool advice_needs_anonymous(int advice) {
        return advice == MADV_FREE || advice == MADV_REMOVE || advice == MADV_WIPEONFORK || advice == MADV_DONTDUMP;
}

PUBLIC int userksm_madvise(void *addr, size_t length, int advice) {
        uint64_t start = (uint64_t) addr;
        if (advice == MADV_WIPEONFORK || advice == MADV_DONTDUMP)
                (void) agent_exclude(start, length);
        if (advice_needs_anonymous(advice)) {
                int e = enter_restored(start, length);
                if (e < 0) {
                        errno = -e;
                        return -1;
                }
        } else
                userksm_map_lock();
        if (advice == MADV_DONTNEED)
                (void) agent_discard_local(start, length);
        int r = madvise(addr, length, advice);
        if ((r == 0 || errno == ENOMEM) &&
            (advice == MADV_DONTFORK || advice == MADV_DOFORK || advice == MADV_HUGEPAGE || advice == MADV_NOHUGEPAGE))
                agent_note_advice(start, length, advice);
        map_leave();
        return r;
}

PUBLIC int userksm_mprotect(void *addr, size_t length, int prot) {
        userksm_map_lock();
        int r = mprotect(addr, length, prot);
        map_leave();
        return r;
}

PUBLIC int userksm_mlock(const void *addr, size_t length) {
        (void) agent_exclude((uint64_t) addr, length);
        userksm_map_lock();
        int r = mlock(addr, length);
        map_leave();
        return r;
}
