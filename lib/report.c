/* Telling a daemon that asks (WELCOME_REPORT) which pages of ours map which segments since before this connection.
 *
 * The book says where to look, the kernel says what is there: a page that lies in a file mapping and shows the file's page maps the slot
 * that the mapping's offset says. Pages that were written or discarded are not reported; pages without a page table entry (of a forked
 * child, which has not touched them) share nothing yet. The agent's thread alone changes runs, so what a frame says is true when
 * it is sent, and GONE of what the program unmaps later comes behind it in the same connection.
 *
 * A few frames a turn, and only while the daemon reads: a send that would block ends the connection (lib/link.c). */
#include <asm/ioctls.h>
#include <linux/sockios.h>

#include "common/fault.h"
#include "lib/agent_loop.h"
#include "lib/sys.h"
#include "lib/transition.h"

#define FRAMES_A_TURN 4U
/* Of the socket's buffer: most of it stays for the answers to transitions. */
#define UNREAD_BYTES_MAX (256 << 10)
#define PAUSE_USEC 1000U

struct gathered {
        struct run_element x[RUNS_MAX];
        uint32_t n;
};

/* [at, at + n) of a block show pages of a file, of one mapping as far as v reaches. */
static void gather_run(struct agent *a, uint64_t base, unsigned at, unsigned n, struct vma *v, struct gathered *g) {
        while (n) {
                uint64_t address = page_address(base, at);
                if ((address < v->start || address >= v->end) && vma_query(a->maps_fd, address, false, v) < 0)
                        return;
                unsigned k = (unsigned) MIN((uint64_t) n, (v->end - address) >> KSM_PAGE_SHIFT);
                uint64_t slot = (v->offset + (address - v->start)) >> KSM_PAGE_SHIFT;
                if (v->segment && slot + k <= SEGMENT_SLOTS_MAX)
                        g->x[g->n++] = (struct run_element) {
                                .page = address >> KSM_PAGE_SHIFT, .inode = v->inode, .n_pages = k, .slot = (uint32_t) slot };
                at += k;
                n -= k;
        }
}

/* Fills a frame as far as whole blocks surely fit. False: that was the last one. */
static bool gather(struct agent *a, struct gathered *g) {
        struct vma v = { 0 };
        uint64_t block, mask;
        while (g->n + BLOCK_PAGES <= RUNS_MAX) {
                struct look look;
                if (!book_walk_next(&a->report, &block, &mask))
                        return false;
                uint64_t base = block * BLOCK_BYTES;
                if (look_at(a->pagemap_fd, base, BLOCK_PAGES, &look) < 0)
                        continue;
                for (unsigned i = 0, n; next_run(mask & look.present & look.file, &i, &n); i += n)
                        gather_run(a, base, i, n, &v, g);
        }
        return true;
}

void report_begin(struct agent *a) {
        a->report = (struct book_walk) { 0, UINT64_MAX, 0 };
        a->report_at_usec = 0;
        a->reporting = true;
}

void report_step(struct agent *a, uint64_t now) {
        if (!a->reporting || now < a->report_at_usec)
                return;
        for (unsigned i = 0; i < FRAMES_A_TURN && a->reporting; i++) {
                int unread = 0;
                if (sys_ioctl(a->link_fd, SIOCOUTQ, &unread) < 0 || unread > UNREAD_BYTES_MAX) {
                        a->report_at_usec = now + PAUSE_USEC;
                        return;
                }
                struct gathered g = { .n = 0 };
                bool more = gather(a, &g);
                const struct msg_runs body = { 0 };
                if (g.n && !link_send(a, MSG_RUNS, &body, g.x, g.n))
                        return; /* the connection is gone, and with it the question */
                if (g.n)
                        fault_point(FAULT_report_sent);
                a->reporting = more;
                agent_drain(a);
        }
}
