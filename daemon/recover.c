#include "daemon/recover.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/fault.h"
#include "common/log.h"
#include "daemon/manager.h"
#include "daemon/notify.h"
#include "daemon/passed.h"
#include "daemon/sys/clock.h"

#define READ_SLOTS 64U /* stays in the processor's second level cache between reading and hashing */
/* A full store of the largest segments, 64 GiB, takes half a minute where memory is fast, and the manager ends a start after 90 s. So
 * it is told at each segment: 16 MiB that take longer than this are no progress. */
#define SEGMENT_TIMEOUT_USEC (30 * USEC_PER_SEC)

/* Returns how many slots hold something; the rest of the segment is lost, as is what there is no memory for. */
static uint64_t adopt_slots(struct core *core, const struct segment_file *file, const struct store_domain *domain, uint32_t segment,
                            uint8_t *buffer) {
        uint64_t n_adopted = 0;
        for (uint32_t slot = 0; slot < file->n_slots;) {
                int n = segment_file_read(file, slot, buffer, READ_SLOTS * KSM_PAGE_SIZE);
                if (n <= 0) {
                        log_warning_errno(n, "segment %" PRIu64 ": slot %u cannot be read", file->inode, slot);
                        break;
                }
                for (uint32_t i = 0; i < (uint32_t) n; i++) {
                        const uint8_t *page = buffer + i * KSM_PAGE_SIZE;
                        /* Never written; or written with zeros, which no page is merged with. */
                        if (!digest_page_is_zero(page) &&
                            core_slot_adopt(core, domain->id, segment, slot + i, digest_page(&domain->secret, page)) == 0)
                                n_adopted++;
                }
                slot += (uint32_t) n;
        }
        return n_adopted;
}

static int adopt_file(struct manager *m, struct segment_file *file, const char *key, size_t key_size, uint8_t *buffer,
                      uint64_t *n_slots) {
        struct store_domain *domain;
        uint32_t domain_id, segment;
        int r = core_domain(m->core, key, key_size, &domain_id);
        if (r == 0)
                r = store_domain_open(&m->store, domain_id, key, key_size, &domain);
        if (r != 0)
                return r;
        r = core_segment_adopt(m->core, domain_id, file->n_slots, file->node, &segment);
        if (r == 0)
                r = store_segment_adopt(&m->store, segment, domain, file);
        if (r == 0) {
                fault_point(FAULT_segment_adopted);
                *n_slots += adopt_slots(m->core, file, domain, segment, buffer);
                fault_point(FAULT_slots_adopted);
        }
        store_domain_unref(domain);
        return r;
}

/* 0: the fd is the store's. */
static int recover(struct manager *m, int fd, uint8_t *buffer, uint64_t *n_slots) {
        char key[SEGMENT_KEY_BYTES];
        size_t key_size;
        const char *reason;
        struct segment_file *file;
        int r = segment_file_adopt(fd, &file, key, &key_size, &reason);
        if (r < 0) {
                log_warning("fd %d of the service manager is not taken over: %s", fd, reason);
                return r;
        }
        r = adopt_file(m, file, key, key_size, buffer, n_slots);
        if (r < 0) {
                log_warning_errno(r, "segment %" PRIu64 " is not taken over", file->inode);
                free(file); /* the fd is the caller's */
        }
        return r;
}

void recover_segments(struct manager *m, struct passed *p) {
        uint64_t n_slots = 0, from = now_usec();
        unsigned n = 0;
        uint8_t *buffer = malloc(READ_SLOTS * KSM_PAGE_SIZE);
        for (unsigned i = 0; i < p->n_segments && buffer; i++) {
                struct stat st;
                notify_starting(SEGMENT_TIMEOUT_USEC);
                if (recover(m, p->segment_fds[i], buffer, &n_slots) == 0) {
                        p->segment_fds[i] = -1;
                        n++;
                } else if (fstat(p->segment_fds[i], &st) == 0)
                        notify_forget_fd(st.st_ino);
        }
        free(buffer);
        if (n == 0)
                return;
        uint64_t now = now_usec();
        core_adopted(m->core, now);
        log_info("took over %u segments of an earlier daemon with %" PRIu64 " shared pages in %" PRIu64 " ms", n, n_slots,
                 (now - from) / USEC_PER_MSEC);
}
