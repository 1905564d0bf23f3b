#include "tests/lib/rig.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/uapi.h"
#include "lib/maplock.h"
#include "lib/watch.h"

struct agent A;

void fill(uint8_t *page, unsigned content) {
        memset(page, 0, KSM_PAGE_SIZE);
        if (content)
                for (unsigned i = 0; i < KSM_PAGE_SIZE; i += 8)
                        *(uint64_t *) (page + i) = (uint64_t) content << 32 | i;
}

/* Slot s holds content (s + shift) % CONTENTS, so consecutive pages find consecutive slots. */
static void make_segment(uint32_t id, unsigned shift, unsigned n_slots) {
        int fd = memfd_create("userksm", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        assert_int_equal(ftruncate(fd, SEGMENT_SLOTS * KSM_PAGE_SIZE), 0);
        uint8_t page[KSM_PAGE_SIZE];
        for (unsigned s = 0; s < SEGMENT_SLOTS; s++) {
                fill(page, (s + shift) % CONTENTS);
                assert_int_equal(pwrite(fd, page, sizeof(page), s * KSM_PAGE_SIZE), sizeof(page));
        }
        int r = -1; /* EBUSY: somebody has a reference to a page for a moment, reclaim for one */
        for (unsigned tries = 0; r < 0 && tries < BUSY_TRIES; tries++, sys_yield())
                r = fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW);
        assert_int_equal(r, 0);
        assert_int_equal(segments_add(&A.segments, id, n_slots, fd), 0);
}

int rig_setup(void **state) {
        int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
        if (device < 0) {
                printf("SKIP: /dev/userfaultfd: %s\n", strerror(errno));
                exit(77);
        }
        A.link_fd = -1;
        A.maps_fd = open("/proc/self/maps", O_RDONLY);
        A.smaps_fd = open("/proc/self/smaps", O_RDONLY);
        A.statm_fd = open("/proc/self/statm", O_RDONLY);
        A.pagemap_fd = open("/proc/self/pagemap", O_RDONLY);
        A.mem_fd = open("/proc/self/mem", O_RDONLY);
        A.expected = own_alloc(BLOCK_BYTES);
        A.text = own_alloc(TEXT_BUFFER_BYTES);
        assert_int_equal(watch_start(&A.watch), 0); /* or a move that the kernel repeats would never end */
        assert_int_equal(agent_open_contexts(&A, device), 0);
        close(device);

        make_segment(1, 0, SEGMENT_SLOTS);
        make_segment(2, SHIFT, SEGMENT_SLOTS - 1);
        return 0;
}

uint8_t *block_new(void) {
        uint8_t *p = mmap(NULL, 2 * BLOCK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        uint8_t *aligned = (uint8_t *) (((uintptr_t) p + BLOCK_BYTES - 1) & ~(BLOCK_BYTES - 1));
        assert_int_equal(registry_register(&A, (uint64_t) aligned, (uint64_t) aligned + BLOCK_BYTES, true), 0);
        return aligned;
}

uint8_t *page_at(uint8_t *block, unsigned i) {
        return block + (size_t) i * KSM_PAGE_SIZE;
}

uint8_t *block_merged(void) {
        uint8_t *b = block_new(), status[64];
        for (unsigned i = 0; i < PAGES; i++)
                fill(page_at(b, i), i % CONTENTS);
        (void) apply(APPLY_MERGE, b, 0, PAGES, 0, status);
        assert_int_equal(file_pages(b), ~0ULL);
        return b;
}

/* The pages of the block that wait to be asked again, as extents. */
static uint32_t busy_extents(const struct extent_element *asked, bool broken, const uint8_t *status, struct extent_element *busy) {
        uint32_t n = 0;
        for (uint32_t k = 0; k < asked->n_pages; k++) {
                uint8_t s = status[(asked->page + k) % BLOCK_PAGES];
                if (s != APPLY_BUSY && s != APPLY_LATER && !(broken && s == APPLY_PINNED_OR_FORKED))
                        continue;
                busy[n++] = (struct extent_element) { .page = asked->page + k, .n_pages = 1, .segment = asked->segment,
                                                      .slot = asked->segment ? asked->slot + k : 0 };
        }
        return n;
}

/* As the daemon does, asks again for what is busy: a transition that is preempted for too long gives pages back, and a witness that is
 * not asked for a while goes. When the next one may come is as the test has set it. A move that the watchdog has ended is made again,
 * too: an emulated processor that others hold up for 5 ms is reason enough. Not when the agent has seen a change without libc, and leaves all
 * alone: the first answer is what is tested then. */
static uint32_t ask(uint32_t kind, const struct extent_element *x, uint8_t *status) {
        uint64_t next_usec = A.witness.next_usec, broken = A.watch.broken;
        uint32_t longest = transition_apply(&A, kind, x, 1, status), n;
        struct extent_element busy[BLOCK_PAGES];
        for (unsigned tries = 0;
             tries < BUSY_TRIES && !A.raw && (n = busy_extents(x, tries < BROKEN_TRIES && A.watch.broken != broken, status, busy)); tries++) {
                uint8_t again[BLOCK_PAGES];
                agent_drain(&A);
                sys_yield();
                A.witness.next_usec = next_usec;
                broken = A.watch.broken;
                longest = MAX(longest, transition_apply(&A, kind, busy, n, again));
                for (unsigned i = 0; i < BLOCK_PAGES; i++)
                        if (again[i] != APPLY_NOT_ASKED)
                                status[i] = again[i];
        }
        return longest;
}

static struct extent_element extent(uint32_t kind, const uint8_t *block, unsigned at, unsigned n, unsigned slot) {
        return (struct extent_element) { .page = ((uint64_t) block >> KSM_PAGE_SHIFT) + at, .n_pages = n,
                                         .segment = kind == APPLY_MERGE, .slot = kind == APPLY_MERGE ? slot : 0 };
}

uint32_t apply_once(uint32_t kind, const uint8_t *block, unsigned at, unsigned n, unsigned slot, uint8_t *status) {
        struct extent_element x = extent(kind, block, at, n, slot);
        return transition_apply(&A, kind, &x, 1, status);
}

uint32_t apply(uint32_t kind, const uint8_t *block, unsigned at, unsigned n, unsigned slot, uint8_t *status) {
        struct extent_element x = extent(kind, block, at, n, slot);
        return ask(kind, &x, status);
}

uint8_t apply_one(const uint8_t *page, uint32_t segment, uint32_t slot) {
        struct extent_element x = { .page = (uint64_t) page >> KSM_PAGE_SHIFT, .n_pages = 1, .segment = segment, .slot = slot };
        uint8_t status[64];
        (void) ask(APPLY_MERGE, &x, status);
        return status[x.page % BLOCK_PAGES];
}

uint64_t slot_of(const uint8_t *page, uint32_t segment) {
        struct vma v;
        if (vma_query(A.maps_fd, (uint64_t) page, false, &v) < 0 || !v.segment ||
            v.inode != segments_find(&A.segments, segment)->inode)
                return UINT64_MAX;
        return (v.offset + ((uint64_t) page - v.start)) >> KSM_PAGE_SHIFT;
}

uint64_t tracked_pages(const uint8_t *block) {
        uint64_t tracked = 0;
        for (unsigned i = 0; i < PAGES; i++) {
                struct page_region region;
                struct pm_scan_arg a = {
                        .size = sizeof(a),
                        .start = (uint64_t) block + i * KSM_PAGE_SIZE,
                        .end = (uint64_t) block + (i + 1) * KSM_PAGE_SIZE,
                        .vec = (uint64_t) &region,
                        .vec_len = 1,
                        .category_mask = PAGE_IS_PRESENT | PAGE_IS_WPALLOWED,
                        .return_mask = PAGE_IS_WPALLOWED,
                };
                long n = sys_ioctl(A.pagemap_fd, PAGEMAP_SCAN, &a);
                assert_true(n >= 0);
                tracked |= (uint64_t) n << i;
        }
        return tracked;
}

uint64_t file_pages(const uint8_t *block) {
        struct look look;
        assert_int_equal(look_at(A.pagemap_fd, (uint64_t) block, PAGES, &look), 0);
        return look.file;
}

bool is_free(const uint8_t *block) {
        int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
        struct context c = { -1 };
        assert_int_equal(context_open(&c, device, 0), 0);
        close(device);
        bool is = context_register(&c, (uint64_t) block, (uint64_t) block + BLOCK_BYTES, UFFDIO_REGISTER_MODE_MISSING) == 0;
        context_close(&c);
        return is;
}

void *discard(void *p) {
        map_enter(); /* as the shim's madvise does */
        sys_call(SYS_madvise, (long) p, BLOCK_BYTES, MADV_DONTNEED, 0, 0, 0); /* the program's: never made to fail */
        map_leave();
        return NULL;
}

void *touch(void *p) {
        uint64_t sum = 0;
        for (unsigned i = 0; i < BLOCK_BYTES; i++)
                sum += __atomic_load_n((const uint8_t *) p + i, __ATOMIC_RELAXED); /* others may write the same words meanwhile */
        return (void *) sum;
}

void *join_draining(pthread_t t) {
        void *r;
        while (pthread_tryjoin_np(t, &r) == EBUSY) {
                agent_drain(&A);
                sys_yield();
        }
        return r;
}

__attribute__((no_sanitize("thread"))) bool in_transition(void) {
        return *(struct transition *volatile *) &A.current;
}
