/* NUMA nodes. With merge_across_nodes=0 only pages of one node share, as with the kernel's KSM (admin guide, ksm).
 *
 * The node is part of what a content is: its hash is mixed with the node's number, and carries it. So each node has chains of its own
 * in the same index, and everything that looks for equals (chain.c, publish.c, prune.c) finds those of its node only. A segment is bound
 * to one node, and its slots are dups of chains of that node. With merge_across_nodes=1, or one node, the nid is 0 everywhere.
 *
 * A node is a hint like a hash: it is asked for when a page is read, and wrong as soon as the kernel migrates the page. The shell
 * says when anything was migrated (core_pages_migrated); then the next pass ends with a look that asks where all pages are:
 *  - A private page that is filed under another node is read again, and filed under its own.
 *  - Of a page in flight nobody knows: it may have been read, or be merged into what was there, before the migration. The client is
 *    looked at once more.
 *  - A shared page, a slot, that is not where its segment is bound to is misplaced. It takes no new sharers, and those it has are read
 *    again where they lie, each at its own client's look. They find the chain of their content on the node that they are on now, if
 *    there is one (the collision of the kernel's stable_tree_search), or each other, and a slot is published there for them; the
 *    agents map them over; with the last one the misplaced slot is dead. One that the kernel has moved back is as it was. It may have
 *    taken sharers after their look and before the one that found it out: so with each that is found all clients are looked at again.
 *    While it is being read nothing is unshared but in the books.
 * Until then such a page may be merged by what is known: the kernel's KSM too notices a migration when it comes by.
 *
 * The tunable may change at any time. The look refiles what is private; the segments of the other setting are misbound, and are
 * cleaned one after the other (clean.c). When nodes begin to matter their sharers are restored, so that each process has its pages on
 * a node of its own again before they are merged anew; the kernel asks its administrator to unmerge everything first. When nodes cease to
 * matter nothing is restored: sharers are read where they lie, and find each other across nodes. */
#include "daemon/core/internal.h"

/* A look that asks for nodes costs 0.1 us a page. None is made for that reason alone before so much time for each page has passed:
 * 1 % of a CPU, however often the kernel migrates (it does so when it compacts memory, too). 4 GiB are looked at every 10 s. */
#define PLACE_USEC 10
#define NID_SHIFT PAYLOAD_SHIFT
#define NID_MASK ((UINT64_C(1) << NID_BITS) - 1)

_Static_assert(CORE_NODE_MAX + 1 <= NID_MASK, "a nid has room in a hash");

bool nodes_matter(const struct core *c) {
        return c->has_nodes && !c->tunables.merge_across_nodes;
}

/* Changes the key (the upper half) as well; not in order, so that the contents of two nodes lie apart in the index. */
static uint64_t spread(unsigned nid) {
        return nid * UINT64_C(0x9e3779b97f4a7c15);
}

uint64_t content_with_nid(uint64_t hash, unsigned nid) {
        return (record_hash(hash) & ~(NID_MASK << NID_SHIFT)) | (uint64_t) nid << NID_SHIFT;
}

uint64_t content_hash(uint64_t hash, unsigned nid) {
        return content_with_nid(hash ^ spread(nid), nid);
}

uint64_t content_on(uint64_t hash, unsigned nid) {
        return content_hash(hash ^ spread(content_nid(hash)), nid);
}

unsigned content_nid(uint64_t content_hash) {
        return (unsigned) (content_hash >> NID_SHIFT & NID_MASK);
}

int node_nid(const struct core *c, const struct op *op, int32_t node) {
        if (op->wants_nodes != nodes_matter(c)) /* changed meanwhile */
                return -1;
        if (!op->wants_nodes)
                return 0;
        return node >= 0 && node <= CORE_NODE_MAX ? node + 1 : -1;
}

void core_set_nodes(struct core *c, bool has_many) {
        if (c->has_nodes != has_many)
                c->node_round++;
        c->has_nodes = has_many;
}

void core_pages_migrated(struct core *c) {
        if (nodes_matter(c))
                c->node_round++;
}

bool core_wants_nodes(const struct core *c) {
        return nodes_matter(c);
}

/* -- looks ---------------------------------------------------------------------------------------------------------------- */

bool node_wants_look(const struct core *c, const struct client *cl, uint64_t now_usec) {
        return cl->node_round != c->node_round && now_usec >= cl->node_usec;
}

void node_look_begins(struct core *c, struct client *cl, uint64_t now_usec) {
        cl->is_placing = node_wants_look(c, cl, now_usec);
        if (!cl->is_placing)
                return;
        cl->node_round = c->node_round;
        cl->node_usec = nodes_matter(c) ? now_usec + states_tracked(cl->states) * PLACE_USEC : 0;
}

void node_look_failed(struct core *c, struct client *cl) {
        cl->node_round = c->node_round - 1;
}

bool segment_is_misbound(const struct core *c, const struct segment *s) {
        return (s->nid != 0) != nodes_matter(c);
}

void slot_placed(struct core *c, struct domain *d, uint32_t slot, bool is_misplaced) {
        c->slots_misplaced -= slot_at(d, slot)->is_misplaced;
        slot_at(d, slot)->is_misplaced = is_misplaced;
        c->slots_misplaced += is_misplaced;
}

/* A slot of the client's was seen on that node. True: it is not bound to it. */
static bool is_off_its_node(struct core *c, const struct client *cl, uint32_t slot, unsigned nid) {
        struct domain *d = client_domain(c, cl);
        const struct segment *s = segment_of(d, slot);
        bool is_misplaced = s->nid != nid;

        if (nid == 0 || segment_is_misbound(c, s) || s->events & SEGMENT_CLEANING) /* clean.c has it */
                return false;
        if (is_misplaced && !slot_at(d, slot)->is_misplaced)
                c->node_round++; /* others may have come to share it since their look */
        slot_placed(c, d, slot, is_misplaced);
        return is_misplaced;
}

void page_placed(struct core *c, uint32_t block, unsigned i, unsigned nid) {
        struct client *cl = block_client(c, block_at(c, block));
        struct domain *d = client_domain(c, cl);
        uint64_t r = block_at(c, block)->page[i];
        bool in_flight = false, is_elsewhere = false;

        switch (record_state(r)) {
        case PAGE_HASHED:
        case PAGE_UNSHARED:
                is_elsewhere = content_nid(record_hash(r)) != nid;
                break;
        case PAGE_PARTNER:
        case PAGE_SOURCE:
                in_flight = true;
                is_elsewhere = content_nid(record_hash(r)) != nid;
                break;
        case PAGE_MATCHED:
                in_flight = true;
                is_elsewhere = segment_of(d, (uint32_t) record_payload(r))->nid != nid;
                break;
        case PAGE_READING:
        case PAGE_MERGING:
                in_flight = true;
                break;
        case PAGE_MERGED:
                is_elsewhere = is_off_its_node(c, cl, page_file_slot(c, block_at(c, block), i), nid);
                break;
        default:
                break;
        }
        if (is_elsewhere)
                page_fresh(c, block, i, record_fails(r), NOT_WRITTEN_USEC);
        if (in_flight && nid != 0)
                node_look_failed(c, cl);
}
