#include "tests/support/frames.h"

#include <string.h>

#include "common/cleanup.h"

const uint16_t message_types[] = {
#define X(number, ...) number,
        MESSAGES(X)
#undef X
                0
};

unsigned message_senders(uint16_t type) {
        switch (type) {
#define X(number, NAME, senders, ...) \
        case number:                  \
                return senders;
                MESSAGES(X)
#undef X
        default:
                return 0;
        }
}

uint64_t random_next(uint64_t *state) {
        *state ^= *state >> 12;
        *state ^= *state << 25;
        *state ^= *state >> 27;
        return *state * UINT64_C(2685821657736338717);
}

static void random_text(char *text, size_t size, uint64_t *state) {
        size_t n = random_below(state, size);

        memset(text, 0, size);
        for (size_t i = 0; i < n; i++)
                text[i] = (char) (1 + random_below(state, 255));
}

static void random_range(uint64_t *start, uint64_t *length, uint64_t *state) {
        uint64_t limit_pages = ADDRESS_LIMIT >> KSM_PAGE_SHIFT, page = random_below(state, limit_pages);

        *start = page << KSM_PAGE_SHIFT;
        *length = (1 + random_below(state, limit_pages - page)) << KSM_PAGE_SHIFT;
}

static uint32_t random_int(uint64_t *state) {
        return (uint32_t) random_below(state, INT32_MAX);
}

/* Extents from the first page of a block on; how many fit is how many there are. */
static uint32_t random_extents(struct msg_apply *apply, struct extent_element *extent, uint32_t count,
                               uint64_t *state) {
        uint64_t block = random_below(state, ADDRESS_LIMIT >> (KSM_PAGE_SHIFT + BLOCK_SHIFT));
        uint32_t i, page = 0;

        apply->kind = 1 + (uint32_t) random_below(state, APPLY_RESTORE);
        for (i = 0; i < MAX(count, 1u) && page < BLOCK_PAGES; i++) {
                uint32_t room = BLOCK_PAGES - page, length = 1 + (uint32_t) random_below(state, count > 16 ? 1 : room);

                extent[i] = (struct extent_element) { .page = (block << BLOCK_SHIFT) + page, .n_pages = length };
                if (apply->kind == APPLY_MERGE) {
                        extent[i].segment = (uint32_t) random_next(state);
                        extent[i].slot = (uint32_t) random_below(state, SEGMENT_SLOTS_MAX - length);
                }
                page += length;
        }
        return i;
}

static void random_clients(struct client_element *client, uint32_t count, uint64_t *state) {
        uint32_t id = 0;

        for (uint32_t i = 0; i < count; i++) {
                client[i].client = id += 1 + (uint32_t) random_below(state, 1000);
                client[i].pid = random_int(state);
                client[i].flags = (uint32_t) random_below(state, HELLO_FLAGS_ALL + 1);
                client[i].state = (uint32_t) random_below(state, CLIENT_STATE_MAX_);
                client[i].reserved = 0;
                random_text(client[i].comm, sizeof(client[i].comm), state);
        }
}

static void random_domains(struct msg_domains_reply *reply, struct domain_element *domain, uint32_t count, uint64_t *state) {
        uint32_t id = 0;

        for (uint32_t i = 0; i < count; i++) {
                domain[i].domain = id += 1 + (uint32_t) random_below(state, 1000);
                domain[i].reserved = 0;
                random_text(domain[i].key, sizeof(domain[i].key), state);
        }
        *reply = (struct msg_domains_reply) { .next = random_below(state, 2) ? id : 0 };
}

static void random_client_ranges(struct msg_ranges_reply *reply, struct client_range_element *range, uint32_t count, uint64_t *state) {
        uint64_t end = 0;

        for (uint32_t i = 0; i < count; i++) {
                range[i].page = end + random_below(state, 1 << 20);
                range[i].n_pages = 1 + random_below(state, 1 << 20);
                range[i].flags = (uint32_t) random_below(state, RANGE_FLAGS_ALL + 1);
                range[i].reserved = 0;
                end = range[i].page + range[i].n_pages;
        }
        *reply = (struct msg_ranges_reply) { .next = random_below(state, 2) ? end : 0 };
}

/* Makes the random bytes of body and elements valid. */
static uint32_t tame(uint16_t type, void *body, void *elements, uint32_t count, uint64_t *state) {
        union {
                void *p;
                struct msg_hello *hello;
                struct msg_welcome *welcome;
                struct msg_refused *refused;
                struct msg_range_add *range_add;
                struct msg_merge_request *merge_request;
                struct msg_merge_done *merge_done;
                struct msg_agent_stats *agent_stats;
                struct msg_segment *segment;
                struct msg_apply *apply;
                struct msg_applied *applied;
                struct msg_admin_welcome *admin_welcome;
                struct msg_tunable_set *tunable_set;
                struct msg_admin_merge *admin_merge;
                struct msg_admin_unmerge *admin_unmerge;
                struct msg_admin_done *admin_done;
        } b = { body };
        struct range_element *range = elements;
        struct run_element *run = elements;
        struct tunable_element *tunable = elements;
        struct nodes_wanted_element *wanted = elements;
        struct nodes_element *nodes = elements;

        switch ((enum message_type) type) {
        case MSG_HELLO:
                b.hello->flags = (uint32_t) random_below(state, HELLO_FLAGS_ALL + 1);
                b.hello->page_size = KSM_PAGE_SIZE;
                b.hello->max_map_count = random_int(state);
                b.hello->n_vmas = random_int(state);
                random_text(b.hello->comm, sizeof(b.hello->comm), state);
                break;
        case MSG_REFUSED:
                *b.refused = (struct msg_refused) { .error = 1 + (int32_t) random_below(state, 4095) };
                random_text(b.refused->reason, sizeof(b.refused->reason), state);
                break;
        case MSG_RANGE_ADD:
                b.range_add->n_vmas = random_int(state);
                b.range_add->reserved = 0;
                /* fallthrough */
        case MSG_RANGE_DEL:
        case MSG_GONE:
                if (type != MSG_RANGE_ADD)
                        memset(body, 0, message_body_bytes(type));
                for (uint32_t i = 0; i < count; i++)
                        random_range(&range[i].start, &range[i].length, state);
                break;
        case MSG_MERGE_REQUEST:
                random_range(&b.merge_request->start, &b.merge_request->length, state);
                break;
        case MSG_MERGE_DONE:
                b.merge_done->error = (int32_t) random_below(state, 4096);
                b.merge_done->reserved = 0;
                break;
        case MSG_AGENT_STATS:
                b.agent_stats->n_vmas = random_int(state);
                b.agent_stats->flags = (uint32_t) random_below(state, AGENT_FLAGS_ALL + 1);
                break;
        case MSG_SEGMENT:
                b.segment->n_slots = 1 + (uint32_t) random_below(state, SEGMENT_SLOTS_MAX);
                break;
        case MSG_APPLY:
                *b.apply = (struct msg_apply) { .op = random_next(state) | 1 };
                count = random_extents(b.apply, elements, count, state);
                break;
        case MSG_APPLIED:
                b.applied->op |= 1;
                b.applied->reserved = 0;
                for (size_t i = 0; i < sizeof(b.applied->status); i++)
                        b.applied->status[i] = (uint8_t) random_below(state, APPLY_STATUS_MAX_);
                break;
        case MSG_ADMIN_WELCOME:
                b.admin_welcome->daemon_pid = random_int(state);
                b.admin_welcome->privileged = (uint32_t) random_below(state, 2);
                random_text(b.admin_welcome->version, sizeof(b.admin_welcome->version), state);
                break;
        case MSG_CLIENTS_REPLY:
                memset(body, 0, message_body_bytes(type));
                random_clients(elements, count, state);
                break;
        case MSG_TUNABLES_REPLY:
                memset(body, 0, message_body_bytes(type));
                for (uint32_t i = 0; i < count; i++)
                        tunable[i] = (struct tunable_element) { .id = i, .value = (int64_t) random_next(state) };
                break;
        case MSG_TUNABLE_SET:
                b.tunable_set->id = (uint32_t) random_below(state, TUNABLES_MAX);
                b.tunable_set->flags = (uint32_t) random_below(state, UNMERGE_FLAGS_ALL + 1);
                break;
        case MSG_ADMIN_MERGE:
                *b.admin_merge = (struct msg_admin_merge) { .pid = random_int(state) };
                break;
        case MSG_ADMIN_UNMERGE:
                *b.admin_unmerge = (struct msg_admin_unmerge) {
                        .pid = random_int(state),
                        .flags = (uint32_t) random_below(state, UNMERGE_FLAGS_ALL + 1),
                        .page = random_below(state, UINT64_C(1) << 35),
                        .n_pages = random_below(state, UINT64_C(1) << 35),
                };
                break;
        case MSG_ADMIN_DONE:
                b.admin_done->error = (int32_t) random_below(state, 4096);
                b.admin_done->pid = random_int(state);
                break;
        case MSG_WELCOME:
                b.welcome->flags = (uint32_t) random_below(state, WELCOME_FLAGS_ALL + 1);
                break;
        case MSG_RUNS:
                memset(body, 0, message_body_bytes(type));
                for (uint32_t i = 0; i < count; i++) {
                        uint32_t at = (uint32_t) random_below(state, BLOCK_PAGES);
                        run[i].page = (random_next(state) % (ADDRESS_LIMIT >> KSM_PAGE_SHIFT) & ~(uint64_t) (BLOCK_PAGES - 1)) + at;
                        run[i].n_pages = 1 + (uint32_t) random_below(state, BLOCK_PAGES - at);
                        run[i].slot = (uint32_t) random_below(state, SEGMENT_SLOTS_MAX - run[i].n_pages);
                }
                break;
        case MSG_NODES_REQUEST:
                *(uint64_t *) body |= 1;
                for (uint32_t i = 0; i < count; i++)
                        wanted[i].page = ((i ? wanted[i - 1].page >> BLOCK_SHIFT : 0) + 1 + random_below(state, UINT64_C(1) << 30))
                                         << BLOCK_SHIFT;
                break;
        case MSG_NODES:
                *(uint64_t *) body |= 1;
                for (uint32_t i = 0; i < count; i++)
                        for (unsigned k = 0; k < BLOCK_PAGES; k++)
                                nodes[i].node[k] = (int16_t) ((int) random_below(state, NODE_MAX + 4096) - 4095);
                break;
        case MSG_DOMAINS_REPLY:
                random_domains(body, elements, count, state);
                break;
        case MSG_RANGES_REPLY:
                random_client_ranges(body, elements, count, state);
                break;
        case MSG_RANGES_REQUEST:
        case MSG_DOMAINS_REQUEST:
        case MSG_CLIENTS_REQUEST:
        case MSG_SEGMENT_DROP: /* first word free, second reserved */
                ((uint32_t *) body)[1] = 0;
                break;
        case MSG_ADMIN_HELLO:
        case MSG_STATS_REQUEST:
        case MSG_TUNABLES_REQUEST:
                memset(body, 0, message_body_bytes(type));
                break;
        case MSG_PING:
        case MSG_PONG:
        case MSG_STATS_REPLY:
                break;
        }
        return count;
}

size_t random_frame(void *buffer, uint16_t type, uint32_t count, uint64_t *state) {
        _Alignas(FRAME_ALIGN) uint8_t content[FRAME_MAX_BYTES];
        size_t body_bytes = message_body_bytes(type);

        for (size_t i = 0; i < sizeof(content); i++)
                content[i] = (uint8_t) (random_next(state) >> 32);
        count = MIN(count, message_max_count(type));
        count = tame(type, content, content + body_bytes, count, state);
        return frame_encode(buffer, FRAME_MAX_BYTES, (enum message_type) type, content, content + body_bytes, count);
}
