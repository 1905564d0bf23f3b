#include "daemon/nodes.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "daemon/session.h"

static void finish(struct nodes_question *q, int error) {
        for (size_t i = q->next; i < q->n_pages; i++)
                q->ret_nodes[i] = (int16_t) error;
        q->done(q, error);
}

/* As many pages from q->next on as fit a frame. Returns how many blocks they lie in. */
static uint32_t gather(struct nodes_question *q, struct nodes_wanted_element blocks[static NODES_BLOCKS_MAX]) {
        uint32_t n = 0;
        for (q->end = q->next; q->end < q->n_pages; q->end++) {
                uint64_t page = q->pages[q->end], first = page & ~(uint64_t) (BLOCK_PAGES - 1);
                if (n == 0 || blocks[n - 1].page != first) {
                        if (n == NODES_BLOCKS_MAX)
                                break;
                        blocks[n++] = (struct nodes_wanted_element){ .page = first };
                }
                blocks[n - 1].wanted |= UINT64_C(1) << (page - first);
        }
        return n;
}

static int send_next(struct client *c, struct nodes_question *q) {
        struct nodes_wanted_element blocks[NODES_BLOCKS_MAX];
        uint32_t n = gather(q, blocks);
        struct msg_nodes_request body = { .op = ++c->nodes_op };
        int r = session_send(c->session, MSG_NODES_REQUEST, &body, blocks, n, -1);
        if (r < 0)
                return r;
        c->nodes[c->n_nodes++] =
                (struct client_nodes){ .op = body.op, .sent_usec = now_usec(), .n_blocks = n, .question = q };
        return 0;
}

int nodes_ask(struct client *c, struct nodes_question *q) {
        assert(q->n_pages > 0);
        if (!(c->flags & HELLO_NODES))
                return -EOPNOTSUPP;
        if (c->n_nodes == CLIENT_NODES_WINDOW)
                return -EAGAIN;
        q->next = 0;
        return send_next(c, q);
}

static void take(struct nodes_question *q, const struct nodes_element *block) {
        for (size_t i = q->next; i < q->end; i++) {
                if (i > q->next && q->pages[i] >> BLOCK_SHIFT != q->pages[i - 1] >> BLOCK_SHIFT)
                        block++;
                q->ret_nodes[i] = block->node[q->pages[i] % BLOCK_PAGES];
        }
        q->next = q->end;
}

int nodes_told(struct client *c, const struct frame *f) {
        /* One thread answers them, over one connection: in the order of asking. */
        if (c->n_nodes == 0 || c->nodes[0].op != ((const struct msg_nodes *) f->body)->op || c->nodes[0].n_blocks != f->count)
                return -EPROTO;
        struct nodes_question *q = c->nodes[0].question;
        c->n_nodes--;
        memmove(c->nodes, c->nodes + 1, c->n_nodes * sizeof(*c->nodes));
        if (!q)
                return 0;
        take(q, f->elements);
        int r = q->next < q->n_pages ? send_next(c, q) : 0;
        if (r < 0 || q->next == q->n_pages)
                finish(q, r);
        return 0;
}

void nodes_give_up(struct client *c, int error) {
        for (unsigned i = 0; i < c->n_nodes; i++) {
                struct nodes_question *q = c->nodes[i].question;
                c->nodes[i].question = NULL;
                if (q)
                        finish(q, error);
        }
}
