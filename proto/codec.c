/* One walk for every frame: the shape (size, count, fds) from the table MESSAGES, then the rules of its fields from the
 * table below, then what relates fields to each other. Nothing is read before the size that it needs was checked, and
 * every sum is bounded by the table before it is formed, so no input can overflow it. */
#include "proto/codec.h"

#include <string.h>

#include "common/cleanup.h"

#define MAX_ERRNO 4095u       /* the kernel's own limit on errno values */
#define MESSAGE_NUMBERS 64u   /* all numbers of MESSAGES are below: the table is an array */
#define PAGE_SIZE_MAX 65536u  /* largest base page of any Linux port: anything else is no page size at all */
#define INT_VALUE_MAX 0x7fffffffu /* what the kernel keeps in an int: pids, sysctl vm.max_map_count, VMAs */

struct message_shape {
        const char *name;
        uint32_t senders, body_bytes, element_bytes, max_count, fds;
};

static const struct message_shape shapes[MESSAGE_NUMBERS] = {
#define X(number, NAME, senders, body, element, max, fds) \
        [number] = { #NAME, senders, sizeof(body), (max) > 0 ? sizeof(element) : 0, max, fds },
        MESSAGES(X)
#undef X
};

/* 8-byte sizes keep bodies and elements aligned in an aligned packet. */
#define X(number, NAME, senders, body, element, max, fds)                                                             \
        _Static_assert((number) < MESSAGE_NUMBERS, #NAME ": number");                                                 \
        _Static_assert(sizeof(struct frame_header) + sizeof(body) + sizeof(element) * (max) <= FRAME_MAX_BYTES,       \
                       #NAME ": larger than a frame");                                                                \
        _Static_assert(sizeof(body) % 8 == 0 && ((max) == 0 || sizeof(element) % 8 == 0), #NAME ": alignment");       \
        _Static_assert((fds) <= FRAME_MAX_FDS, #NAME ": fds");
MESSAGES(X)
#undef X
_Static_assert(sizeof(struct frame_header) == 16, "the header is the same in every version");

enum field_kind { FIELD_NUMBER, FIELD_RESERVED, FIELD_TEXT, FIELD_BYTES };

/* A field of a body or an element: an unsigned number in [min, max], zero, text padded with NULs, or bytes each at
 * most max. What has no row here may have any value. */
struct field_rule {
        uint16_t type, offset, size;
        uint8_t in_element, kind;
        uint64_t min, max;
};
#define RULE(TYPE, member_of, field, is_element, kind, min, max)                                                       \
        { MSG_##TYPE, offsetof(struct member_of, field), sizeof(((struct member_of *) 0)->field), is_element, kind,   \
          min, max }
#define NUMBER(TYPE, s, field, min, max) RULE(TYPE, s, field, 0, FIELD_NUMBER, min, max)
#define RESERVED(TYPE, s, field) RULE(TYPE, s, field, 0, FIELD_RESERVED, 0, 0)
#define TEXT(TYPE, s, field) RULE(TYPE, s, field, 0, FIELD_TEXT, 0, 0)
#define BYTES(TYPE, s, field, max) RULE(TYPE, s, field, 0, FIELD_BYTES, 0, max)
#define ELEMENT_NUMBER(TYPE, s, field, min, max) RULE(TYPE, s, field, 1, FIELD_NUMBER, min, max)
#define ELEMENT_RESERVED(TYPE, s, field) RULE(TYPE, s, field, 1, FIELD_RESERVED, 0, 0)
#define ELEMENT_TEXT(TYPE, s, field) RULE(TYPE, s, field, 1, FIELD_TEXT, 0, 0)

/* Sorted by type. */
static const struct field_rule rules[] = {
        NUMBER(HELLO, msg_hello, flags, 0, HELLO_FLAGS_ALL),
        NUMBER(HELLO, msg_hello, page_size, KSM_PAGE_SIZE, PAGE_SIZE_MAX),
        NUMBER(HELLO, msg_hello, max_map_count, 0, INT_VALUE_MAX),
        NUMBER(HELLO, msg_hello, n_vmas, 0, INT_VALUE_MAX),
        TEXT(HELLO, msg_hello, comm),
        NUMBER(WELCOME, msg_welcome, flags, 0, WELCOME_FLAGS_ALL),
        NUMBER(REFUSED, msg_refused, error, 1, MAX_ERRNO),
        RESERVED(REFUSED, msg_refused, reserved),
        TEXT(REFUSED, msg_refused, reason),
        NUMBER(RANGE_ADD, msg_range_add, n_vmas, 0, INT_VALUE_MAX),
        RESERVED(RANGE_ADD, msg_range_add, reserved),
        RESERVED(RANGE_DEL, msg_range_del, reserved),
        RESERVED(GONE, msg_gone, reserved),
        NUMBER(MERGE_DONE, msg_merge_done, error, 0, MAX_ERRNO),
        RESERVED(MERGE_DONE, msg_merge_done, reserved),
        NUMBER(AGENT_STATS, msg_agent_stats, n_vmas, 0, INT_VALUE_MAX),
        NUMBER(AGENT_STATS, msg_agent_stats, flags, 0, AGENT_FLAGS_ALL),
        NUMBER(SEGMENT, msg_segment, n_slots, 1, SEGMENT_SLOTS_MAX),
        RESERVED(SEGMENT_DROP, msg_segment_drop, reserved),
        NUMBER(APPLY, msg_apply, op, 1, UINT64_MAX),
        NUMBER(APPLY, msg_apply, kind, APPLY_MERGE, APPLY_RESTORE),
        RESERVED(APPLY, msg_apply, reserved),
        ELEMENT_NUMBER(APPLY, extent_element, page, 0, (ADDRESS_LIMIT >> KSM_PAGE_SHIFT) - 1),
        ELEMENT_NUMBER(APPLY, extent_element, n_pages, 1, BLOCK_PAGES),
        ELEMENT_NUMBER(APPLY, extent_element, slot, 0, SEGMENT_SLOTS_MAX - 1),
        ELEMENT_RESERVED(APPLY, extent_element, reserved),
        NUMBER(APPLIED, msg_applied, op, 1, UINT64_MAX),
        RESERVED(APPLIED, msg_applied, reserved),
        BYTES(APPLIED, msg_applied, status, APPLY_STATUS_MAX_ - 1),
        RESERVED(RUNS, msg_runs, reserved),
        ELEMENT_NUMBER(RUNS, run_element, page, 0, (ADDRESS_LIMIT >> KSM_PAGE_SHIFT) - 1),
        ELEMENT_NUMBER(RUNS, run_element, n_pages, 1, BLOCK_PAGES),
        ELEMENT_NUMBER(RUNS, run_element, slot, 0, SEGMENT_SLOTS_MAX - 1),
        NUMBER(NODES_REQUEST, msg_nodes_request, op, 1, UINT64_MAX),
        ELEMENT_NUMBER(NODES_REQUEST, nodes_wanted_element, page, 0, (ADDRESS_LIMIT >> KSM_PAGE_SHIFT) - BLOCK_PAGES),
        NUMBER(NODES, msg_nodes, op, 1, UINT64_MAX),
        NUMBER(ADMIN_HELLO, msg_admin_hello, flags, 0, 0),
        RESERVED(ADMIN_HELLO, msg_admin_hello, reserved),
        NUMBER(ADMIN_WELCOME, msg_admin_welcome, daemon_pid, 0, INT_VALUE_MAX),
        NUMBER(ADMIN_WELCOME, msg_admin_welcome, privileged, 0, 1),
        TEXT(ADMIN_WELCOME, msg_admin_welcome, version),
        RESERVED(STATS_REQUEST, msg_stats_request, reserved),
        RESERVED(CLIENTS_REQUEST, msg_clients_request, reserved),
        RESERVED(CLIENTS_REPLY, msg_clients_reply, reserved),
        ELEMENT_NUMBER(CLIENTS_REPLY, client_element, pid, 0, INT_VALUE_MAX),
        ELEMENT_NUMBER(CLIENTS_REPLY, client_element, flags, 0, HELLO_FLAGS_ALL),
        ELEMENT_NUMBER(CLIENTS_REPLY, client_element, state, 0, CLIENT_STATE_MAX_ - 1),
        ELEMENT_RESERVED(CLIENTS_REPLY, client_element, reserved),
        ELEMENT_TEXT(CLIENTS_REPLY, client_element, comm),
        RESERVED(TUNABLES_REQUEST, msg_tunables_request, reserved),
        RESERVED(TUNABLES_REPLY, msg_tunables_reply, reserved),
        ELEMENT_NUMBER(TUNABLES_REPLY, tunable_element, id, 0, TUNABLES_MAX - 1),
        ELEMENT_RESERVED(TUNABLES_REPLY, tunable_element, reserved),
        NUMBER(TUNABLE_SET, msg_tunable_set, id, 0, TUNABLES_MAX - 1),
        NUMBER(TUNABLE_SET, msg_tunable_set, flags, 0, UNMERGE_FLAGS_ALL),
        NUMBER(ADMIN_MERGE, msg_admin_merge, pid, 0, INT_VALUE_MAX),
        RESERVED(ADMIN_MERGE, msg_admin_merge, reserved),
        NUMBER(ADMIN_UNMERGE, msg_admin_unmerge, pid, 0, INT_VALUE_MAX),
        NUMBER(ADMIN_UNMERGE, msg_admin_unmerge, flags, 0, UNMERGE_FLAGS_ALL),
        NUMBER(ADMIN_UNMERGE, msg_admin_unmerge, page, 0, (ADDRESS_LIMIT >> KSM_PAGE_SHIFT) - 1),
        NUMBER(ADMIN_UNMERGE, msg_admin_unmerge, n_pages, 0, ADDRESS_LIMIT >> KSM_PAGE_SHIFT),
        NUMBER(ADMIN_DONE, msg_admin_done, error, 0, MAX_ERRNO),
        NUMBER(ADMIN_DONE, msg_admin_done, pid, 0, INT_VALUE_MAX),
        RESERVED(DOMAINS_REQUEST, msg_domains_request, reserved),
        RESERVED(DOMAINS_REPLY, msg_domains_reply, reserved),
        ELEMENT_RESERVED(DOMAINS_REPLY, domain_element, reserved),
        ELEMENT_TEXT(DOMAINS_REPLY, domain_element, key),
        RESERVED(RANGES_REQUEST, msg_ranges_request, reserved),
        ELEMENT_NUMBER(RANGES_REPLY, client_range_element, flags, 0, RANGE_FLAGS_ALL),
        ELEMENT_RESERVED(RANGES_REPLY, client_range_element, reserved),
};

static const struct message_shape *find_shape(uint16_t type) {
        if (type >= MESSAGE_NUMBERS || !shapes[type].name)
                return NULL;
        return &shapes[type];
}

static uint64_t field_value(const uint8_t *field, size_t size) {
        uint32_t u32;
        uint64_t u64;

        if (size == sizeof(u32)) {
                memcpy(&u32, field, sizeof(u32));
                return u32;
        }
        memcpy(&u64, field, sizeof(u64));
        return u64;
}

/* Terminated, and nothing behind the end: padding must not carry stray memory of the sender. */
static int text_is_padded(const uint8_t *text, size_t size) {
        const uint8_t *end = memchr(text, 0, size);

        if (!end)
                return 0;
        for (; end < text + size; end++)
                if (*end)
                        return 0;
        return 1;
}

static enum codec_error check_field(const struct field_rule *rule, const uint8_t *base) {
        const uint8_t *field = base + rule->offset;
        uint64_t value;

        switch ((enum field_kind) rule->kind) {
        case FIELD_TEXT:
                return text_is_padded(field, rule->size) ? CODEC_OK : CODEC_VALUE;
        case FIELD_BYTES:
                for (size_t i = 0; i < rule->size; i++)
                        if (field[i] > rule->max)
                                return CODEC_VALUE;
                return CODEC_OK;
        case FIELD_RESERVED:
                return field_value(field, rule->size) == 0 ? CODEC_OK : CODEC_RESERVED;
        case FIELD_NUMBER:
                break;
        }
        value = field_value(field, rule->size);
        return value >= rule->min && value <= rule->max ? CODEC_OK : CODEC_VALUE;
}

static enum codec_error check_fields(const struct frame *f, const struct message_shape *shape) {
        const struct field_rule *rule = rules, *end = rules + ARRAY_SIZE(rules);
        enum codec_error e;

        while (rule < end && rule->type < f->type)
                rule++;
        for (; rule < end && rule->type == f->type; rule++) {
                const uint8_t *base = rule->in_element ? f->elements : f->body;
                uint32_t n = rule->in_element ? f->count : 1;

                for (uint32_t i = 0; i < n; i++, base += shape->element_bytes) {
                        e = check_field(rule, base);
                        if (e != CODEC_OK)
                                return e;
                }
        }
        return CODEC_OK;
}

static int address_range_is_valid(uint64_t start, uint64_t length) {
        return range_is_valid(start, length) && start + length <= ADDRESS_LIMIT;
}

static enum codec_error check_ranges(const struct frame *f) {
        const struct range_element *range = f->elements;

        for (uint32_t i = 0; i < f->count; i++)
                if (!address_range_is_valid(range[i].start, range[i].length))
                        return CODEC_VALUE;
        return CODEC_OK;
}

/* One block, ascending, disjoint; slots inside the largest segment; none where the kind has none. */
static enum codec_error check_extents(const struct frame *f) {
        const struct msg_apply *apply = f->body;
        const struct extent_element *extent = f->elements;
        uint64_t block, next_page;

        if (f->count == 0)
                return CODEC_VALUE;
        block = extent[0].page >> BLOCK_SHIFT;
        next_page = block << BLOCK_SHIFT;
        for (uint32_t i = 0; i < f->count; i++) {
                uint64_t end = extent[i].page + extent[i].n_pages;

                if (extent[i].page < next_page || (end - 1) >> BLOCK_SHIFT != block)
                        return CODEC_VALUE;
                if (apply->kind == APPLY_MERGE) {
                        if (extent[i].slot + extent[i].n_pages > SEGMENT_SLOTS_MAX)
                                return CODEC_VALUE;
                } else if (extent[i].segment != 0 || extent[i].slot != 0)
                        return CODEC_VALUE;
                next_page = end;
        }
        return CODEC_OK;
}

static enum codec_error check_runs(const struct frame *f) {
        const struct run_element *run = f->elements;

        for (uint32_t i = 0; i < f->count; i++)
                if ((run[i].page + run[i].n_pages - 1) >> BLOCK_SHIFT != run[i].page >> BLOCK_SHIFT ||
                    run[i].slot + run[i].n_pages > SEGMENT_SLOTS_MAX)
                        return CODEC_VALUE;
        return CODEC_OK;
}

/* Whole blocks, ascending. */
static enum codec_error check_nodes_wanted(const struct frame *f) {
        const struct nodes_wanted_element *block = f->elements;

        for (uint32_t i = 0; i < f->count; i++)
                if (block[i].page % BLOCK_PAGES != 0 || (i > 0 && block[i].page <= block[i - 1].page))
                        return CODEC_VALUE;
        return CODEC_OK;
}

static enum codec_error check_nodes(const struct frame *f) {
        const struct nodes_element *block = f->elements;

        for (uint32_t i = 0; i < f->count; i++)
                for (unsigned k = 0; k < BLOCK_PAGES; k++)
                        if (block[i].node[k] < -(int) MAX_ERRNO || block[i].node[k] > NODE_MAX)
                                return CODEC_VALUE;
        return CODEC_OK;
}

/* Ids ascend, so that a reader who continues after the last one comes to an end. */
static enum codec_error check_clients(const struct frame *f) {
        const struct client_element *client = f->elements;

        for (uint32_t i = 1; i < f->count; i++)
                if (client[i].client <= client[i - 1].client)
                        return CODEC_VALUE;
        return CODEC_OK;
}

/* Ids ascend, and `next` is none before the last: a reader who follows it comes to an end. */
static enum codec_error check_domains(const struct frame *f) {
        const struct msg_domains_reply *reply = f->body;
        const struct domain_element *domain = f->elements;

        for (uint32_t i = 1; i < f->count; i++)
                if (domain[i].domain <= domain[i - 1].domain)
                        return CODEC_VALUE;
        return reply->next == 0 || f->count == 0 || reply->next >= domain[f->count - 1].domain ? CODEC_OK : CODEC_VALUE;
}

static enum codec_error check_client_ranges(const struct frame *f) {
        const struct msg_ranges_reply *reply = f->body;
        const struct client_range_element *range = f->elements;
        const uint64_t limit = ADDRESS_LIMIT >> KSM_PAGE_SHIFT;
        uint64_t end = 0;

        for (uint32_t i = 0; i < f->count; i++) {
                if (range[i].page < end || range[i].page >= limit || range[i].n_pages == 0 ||
                    range[i].n_pages > limit - range[i].page)
                        return CODEC_VALUE;
                end = range[i].page + range[i].n_pages;
        }
        return reply->next == 0 || (f->count > 0 && reply->next >= end && reply->next <= limit) ? CODEC_OK : CODEC_VALUE;
}

static enum codec_error check_relations(const struct frame *f) {
        const struct msg_merge_request *request;

        switch (f->type) {
        case MSG_RANGE_ADD:
        case MSG_RANGE_DEL:
        case MSG_GONE:
                return check_ranges(f);
        case MSG_MERGE_REQUEST:
                request = f->body;
                return address_range_is_valid(request->start, request->length) ? CODEC_OK : CODEC_VALUE;
        case MSG_APPLY:
                return check_extents(f);
        case MSG_RUNS:
                return check_runs(f);
        case MSG_NODES_REQUEST:
                return check_nodes_wanted(f);
        case MSG_NODES:
                return check_nodes(f);
        case MSG_CLIENTS_REPLY:
                return check_clients(f);
        case MSG_DOMAINS_REPLY:
                return check_domains(f);
        case MSG_RANGES_REPLY:
                return check_client_ranges(f);
        default:
                return CODEC_OK;
        }
}

enum codec_error frame_decode(const void *packet, size_t size, unsigned n_fds, unsigned sender, struct frame *ret) {
        const struct message_shape *shape;
        struct frame_header header;
        struct frame f;
        enum codec_error e;

        if (size < sizeof(header))
                return CODEC_SHORT;
        memcpy(&header, packet, sizeof(header));
        if (header.size != size)
                return CODEC_SHORT;
        if (header.version != PROTO_VERSION)
                return CODEC_VERSION;
        shape = find_shape(header.type);
        if (!shape || !(shape->senders & sender))
                return CODEC_TYPE;
        if (header.count > shape->max_count ||
            size != sizeof(header) + shape->body_bytes + (size_t) header.count * shape->element_bytes)
                return CODEC_SIZE;
        if (n_fds != shape->fds)
                return CODEC_FDS;
        if (header.reserved != 0)
                return CODEC_RESERVED;

        f.type = (enum message_type) header.type;
        f.body = (const uint8_t *) packet + sizeof(header);
        f.elements = (const uint8_t *) f.body + shape->body_bytes;
        f.count = header.count;
        e = check_fields(&f, shape);
        if (e == CODEC_OK)
                e = check_relations(&f);
        if (e == CODEC_OK)
                *ret = f;
        return e;
}

size_t frame_header_fill(struct frame_header *ret, enum message_type type, uint32_t count) {
        const struct message_shape *shape = find_shape((uint16_t) type);

        if (!shape || count > shape->max_count)
                return 0;
        *ret = (struct frame_header) {
                .size = (uint32_t) (sizeof(*ret) + shape->body_bytes + (size_t) count * shape->element_bytes),
                .type = (uint16_t) type,
                .version = PROTO_VERSION,
                .count = count,
        };
        return ret->size;
}

size_t frame_encode(void *buffer, size_t capacity, enum message_type type, const void *body, const void *elements,
                    uint32_t count) {
        const struct message_shape *shape = find_shape((uint16_t) type);
        struct frame_header header;
        uint8_t *p = buffer;
        size_t size = frame_header_fill(&header, type, count);

        if (!shape || size == 0 || size > capacity)
                return 0;
        memcpy(p, &header, sizeof(header));
        memcpy(p + sizeof(header), body, shape->body_bytes);
        if (count > 0)
                memcpy(p + sizeof(header) + shape->body_bytes, elements, size - sizeof(header) - shape->body_bytes);
        return size;
}

const char *codec_error_string(enum codec_error e) {
        switch (e) {
        case CODEC_OK:
                return "no error";
        case CODEC_SHORT:
                return "packet shorter than its header says";
        case CODEC_VERSION:
                return "another protocol version";
        case CODEC_TYPE:
                return "unknown message, or not for this sender";
        case CODEC_SIZE:
                return "size or count does not fit the message";
        case CODEC_FDS:
                return "wrong number of file descriptors";
        case CODEC_RESERVED:
                return "a reserved field is not zero";
        case CODEC_VALUE:
                return "a field is outside its range";
        }
        return "unknown error";
}

const char *message_name(uint16_t type) {
        const struct message_shape *shape = find_shape(type);
        return shape ? shape->name : "?";
}

size_t message_body_bytes(uint16_t type) {
        const struct message_shape *shape = find_shape(type);
        return shape ? shape->body_bytes : 0;
}

size_t message_element_bytes(uint16_t type) {
        const struct message_shape *shape = find_shape(type);
        return shape ? shape->element_bytes : 0;
}

uint32_t message_max_count(uint16_t type) {
        const struct message_shape *shape = find_shape(type);
        return shape ? shape->max_count : 0;
}

unsigned message_fds(uint16_t type) {
        const struct message_shape *shape = find_shape(type);
        return shape ? shape->fds : 0;
}
