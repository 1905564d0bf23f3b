/* The codec against its table: every type there and back, every field broken, sizes off by one, and random bytes. */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "tests/support/frames.h"

static uint64_t seed;
static _Alignas(FRAME_ALIGN) uint8_t packet[FRAME_MAX_BYTES];

static struct frame_header *header(void) {
        return (struct frame_header *) packet;
}
static void *body(void) {
        return packet + sizeof(struct frame_header);
}
static void *elements(void) {
        return packet + sizeof(struct frame_header) + message_body_bytes(header()->type);
}

static enum codec_error decode(size_t size, struct frame *ret) {
        uint16_t type = header()->type;
        return frame_decode(packet, size, message_fds(type), message_senders(type), ret);
}

static size_t valid(uint16_t type, uint32_t count) {
        size_t size = random_frame(packet, type, count, &seed);

        assert_int_not_equal(size, 0);
        return size;
}

static void test_round_trip(void **state) {
        static _Alignas(FRAME_ALIGN) uint8_t again[FRAME_MAX_BYTES];

        for (const uint16_t *t = message_types; *t; t++)
                for (unsigned i = 0; i < 200; i++) {
                        uint32_t max = message_max_count(*t);
                        uint32_t count = i == 0 ? 0 : i == 1 ? max : (uint32_t) random_below(&seed, max + 1);
                        size_t size = valid(*t, count);
                        struct frame f;

                        if (decode(size, &f) != CODEC_OK)
                                fail_msg("%s with %u elements is refused: %s", message_name(*t), count,
                                         codec_error_string(decode(size, &f)));
                        assert_int_equal(f.type, *t);
                        assert_ptr_equal(f.body, body());
                        assert_ptr_equal(f.elements, elements());
                        assert_int_equal(frame_encode(again, sizeof(again), f.type, f.body, f.elements, f.count), size);
                        assert_memory_equal(again, packet, size);
                }
}

static void test_size_off_by_one(void **state) {
        struct frame f;

        for (const uint16_t *t = message_types; *t; t++) {
                size_t size = valid(*t, 3);

                assert_int_equal(decode(size - 1, &f), CODEC_SHORT);
                assert_int_equal(decode(size + 1, &f), CODEC_SHORT);
                for (int d = -1; d <= 1; d += 2) {
                        header()->size = (uint32_t) ((long) size + d);
                        assert_int_equal(decode(size, &f), CODEC_SHORT);
                        assert_int_equal(decode(header()->size, &f), CODEC_SIZE);
                }
                header()->size = (uint32_t) size;
                header()->count++;
                assert_int_equal(decode(size, &f), CODEC_SIZE);
                header()->count = UINT32_MAX;
                assert_int_equal(decode(size, &f), CODEC_SIZE);
        }
        for (size_t size = 0; size < sizeof(struct frame_header); size++)
                assert_int_equal(decode(size, &f), CODEC_SHORT);
}

/* One more than the table allows, with a size that fits it: the count itself must be refused. */
static void test_count_over_limit(void **state) {
        struct frame f;

        for (const uint16_t *t = message_types; *t; t++) {
                size_t size = valid(*t, message_max_count(*t));
                size_t element = message_element_bytes(*t);

                if (element == 0 || size + element > sizeof(packet))
                        continue;
                memset(packet + size, 0, element);
                header()->count = message_max_count(*t) + 1;
                header()->size = (uint32_t) (size + element);
                assert_int_equal(decode(size + element, &f), CODEC_SIZE);
                assert_int_equal(frame_encode(packet, sizeof(packet), (enum message_type) *t, packet, packet,
                                              message_max_count(*t) + 1),
                                 0);
        }
}

static void test_header(void **state) {
        struct frame f;

        for (const uint16_t *t = message_types; *t; t++) {
                size_t size = valid(*t, 1);
                unsigned senders = message_senders(*t), fds = message_fds(*t);

                assert_int_equal(frame_decode(packet, size, fds + 1, senders, &f), CODEC_FDS);
                if (fds > 0)
                        assert_int_equal(frame_decode(packet, size, fds - 1, senders, &f), CODEC_FDS);
                for (unsigned role = ROLE_AGENT; role <= ROLE_DAEMON; role <<= 1)
                        assert_int_equal(frame_decode(packet, size, fds, role, &f),
                                         role & senders ? CODEC_OK : CODEC_TYPE);
                assert_int_equal(frame_decode(packet, size, fds, ROLE_AGENT | ROLE_ADMIN | ROLE_DAEMON, &f), CODEC_OK);

                header()->reserved = 1;
                assert_int_equal(decode(size, &f), CODEC_RESERVED);
                header()->version = PROTO_VERSION + 1;
                assert_int_equal(decode(size, &f), CODEC_VERSION);
        }
}

static void test_unknown_types(void **state) {
        struct frame f;
        unsigned known = 0;

        for (unsigned type = 0; type <= UINT16_MAX; type++) {
                if (message_senders((uint16_t) type) != 0) {
                        known++;
                        continue;
                }
                *header() = (struct frame_header) {
                        .size = sizeof(struct frame_header), .type = (uint16_t) type, .version = PROTO_VERSION
                };
                assert_int_equal(frame_decode(packet, sizeof(struct frame_header), 0, 7, &f), CODEC_TYPE);
                assert_string_equal(message_name((uint16_t) type), "?");
                assert_int_equal(message_body_bytes((uint16_t) type), 0);
                assert_int_equal(frame_encode(packet, sizeof(packet), (enum message_type) type, packet, NULL, 0), 0);
        }
        for (const uint16_t *t = message_types; *t; t++)
                known--;
        assert_int_equal(known, 0);
}

static void test_encode_capacity(void **state) {
        static uint8_t content[FRAME_MAX_BYTES];
        size_t size = frame_encode(packet, sizeof(packet), MSG_PING, content, NULL, 0);

        assert_int_equal(size, sizeof(struct frame_header) + sizeof(struct msg_ping));
        memset(packet, 0xaa, sizeof(packet));
        assert_int_equal(frame_encode(packet, size - 1, MSG_PING, content, NULL, 0), 0);
        for (size_t i = 0; i < size; i++)
                assert_int_equal(packet[i], 0xaa);
}

/* -- every checked field, one bad value each --------------------------------------------------------------- */

/* Breaks `field` of a fresh valid frame and expects `error`, in the first and in the last element. */
struct bad_field {
        const char *what;
        uint16_t type;
        uint8_t in_element;
        size_t offset, size;
        uint64_t value;
        enum codec_error error;
};
#define BODY(TYPE, s, field, value, error) \
        { #TYPE "." #field, MSG_##TYPE, 0, offsetof(struct s, field), sizeof(((struct s *) 0)->field), value, error }
#define ELEMENT(TYPE, s, field, value, error) \
        { #TYPE "[]." #field, MSG_##TYPE, 1, offsetof(struct s, field), sizeof(((struct s *) 0)->field), value, error }

static const struct bad_field bad_fields[] = {
        BODY(HELLO, msg_hello, flags, HELLO_FLAGS_ALL + 1, CODEC_VALUE),
        BODY(HELLO, msg_hello, page_size, 0, CODEC_VALUE),
        BODY(HELLO, msg_hello, page_size, 65537, CODEC_VALUE),
        BODY(HELLO, msg_hello, max_map_count, UINT32_MAX, CODEC_VALUE),
        BODY(HELLO, msg_hello, n_vmas, UINT32_MAX, CODEC_VALUE),
        BODY(WELCOME, msg_welcome, flags, WELCOME_FLAGS_ALL + 1, CODEC_VALUE),
        BODY(REFUSED, msg_refused, error, 0, CODEC_VALUE),
        BODY(REFUSED, msg_refused, error, (uint32_t) -1, CODEC_VALUE),
        BODY(REFUSED, msg_refused, error, 4096, CODEC_VALUE),
        BODY(REFUSED, msg_refused, reserved, 1, CODEC_RESERVED),
        BODY(RANGE_ADD, msg_range_add, n_vmas, UINT32_MAX, CODEC_VALUE),
        BODY(RANGE_ADD, msg_range_add, reserved, 1, CODEC_RESERVED),
        ELEMENT(RANGE_ADD, range_element, start, 1, CODEC_VALUE),
        ELEMENT(RANGE_ADD, range_element, start, ADDRESS_LIMIT, CODEC_VALUE),
        ELEMENT(RANGE_ADD, range_element, length, 0, CODEC_VALUE),
        ELEMENT(RANGE_ADD, range_element, length, 4097, CODEC_VALUE),
        ELEMENT(RANGE_ADD, range_element, length, ADDRESS_LIMIT + 4096, CODEC_VALUE),
        ELEMENT(RANGE_ADD, range_element, length, UINT64_MAX & ~UINT64_C(4095), CODEC_VALUE),
        BODY(RANGE_DEL, msg_range_del, reserved, UINT64_C(1) << 63, CODEC_RESERVED),
        ELEMENT(RANGE_DEL, range_element, start, 4095, CODEC_VALUE),
        BODY(GONE, msg_gone, reserved, 1, CODEC_RESERVED),
        ELEMENT(GONE, range_element, length, 0, CODEC_VALUE),
        BODY(MERGE_REQUEST, msg_merge_request, start, 1, CODEC_VALUE),
        BODY(MERGE_REQUEST, msg_merge_request, length, 0, CODEC_VALUE),
        BODY(MERGE_DONE, msg_merge_done, error, (uint32_t) -1, CODEC_VALUE),
        BODY(MERGE_DONE, msg_merge_done, reserved, 1, CODEC_RESERVED),
        BODY(AGENT_STATS, msg_agent_stats, n_vmas, UINT32_MAX, CODEC_VALUE),
        BODY(AGENT_STATS, msg_agent_stats, flags, AGENT_FLAGS_ALL + 1, CODEC_VALUE),
        BODY(SEGMENT, msg_segment, n_slots, 0, CODEC_VALUE),
        BODY(SEGMENT, msg_segment, n_slots, SEGMENT_SLOTS_MAX + 1, CODEC_VALUE),
        BODY(SEGMENT_DROP, msg_segment_drop, reserved, 1, CODEC_RESERVED),
        BODY(APPLY, msg_apply, op, 0, CODEC_VALUE),
        BODY(APPLY, msg_apply, kind, 0, CODEC_VALUE),
        BODY(APPLY, msg_apply, kind, APPLY_RESTORE + 1, CODEC_VALUE),
        BODY(APPLY, msg_apply, reserved, 1, CODEC_RESERVED),
        ELEMENT(APPLY, extent_element, page, ADDRESS_LIMIT >> 12, CODEC_VALUE),
        ELEMENT(APPLY, extent_element, page, UINT64_MAX, CODEC_VALUE),
        ELEMENT(APPLY, extent_element, n_pages, 0, CODEC_VALUE),
        ELEMENT(APPLY, extent_element, n_pages, 65, CODEC_VALUE),
        ELEMENT(APPLY, extent_element, n_pages, UINT32_MAX, CODEC_VALUE),
        ELEMENT(APPLY, extent_element, slot, UINT32_MAX, CODEC_VALUE),
        ELEMENT(APPLY, extent_element, reserved, 1, CODEC_RESERVED),
        BODY(APPLIED, msg_applied, op, 0, CODEC_VALUE),
        BODY(APPLIED, msg_applied, reserved, 1, CODEC_RESERVED),
        BODY(APPLIED, msg_applied, status[0], APPLY_STATUS_MAX_, CODEC_VALUE),
        BODY(APPLIED, msg_applied, status[63], APPLY_STATUS_MAX_, CODEC_VALUE),
        BODY(ADMIN_HELLO, msg_admin_hello, flags, 1, CODEC_VALUE),
        BODY(ADMIN_HELLO, msg_admin_hello, reserved, 1, CODEC_RESERVED),
        BODY(RUNS, msg_runs, reserved, 1, CODEC_RESERVED),
        ELEMENT(RUNS, run_element, page, ADDRESS_LIMIT >> KSM_PAGE_SHIFT, CODEC_VALUE),
        ELEMENT(RUNS, run_element, n_pages, 0, CODEC_VALUE),
        ELEMENT(RUNS, run_element, n_pages, BLOCK_PAGES + 1, CODEC_VALUE),
        ELEMENT(RUNS, run_element, slot, SEGMENT_SLOTS_MAX, CODEC_VALUE),
        BODY(NODES_REQUEST, msg_nodes_request, op, 0, CODEC_VALUE),
        ELEMENT(NODES_REQUEST, nodes_wanted_element, page, 63, CODEC_VALUE),
        ELEMENT(NODES_REQUEST, nodes_wanted_element, page, ADDRESS_LIMIT >> KSM_PAGE_SHIFT, CODEC_VALUE),
        BODY(NODES, msg_nodes, op, 0, CODEC_VALUE),
        BODY(ADMIN_WELCOME, msg_admin_welcome, daemon_pid, UINT32_MAX, CODEC_VALUE),
        BODY(ADMIN_WELCOME, msg_admin_welcome, privileged, 2, CODEC_VALUE),
        BODY(STATS_REQUEST, msg_stats_request, reserved, 1, CODEC_RESERVED),
        BODY(CLIENTS_REQUEST, msg_clients_request, reserved, 1, CODEC_RESERVED),
        BODY(CLIENTS_REPLY, msg_clients_reply, reserved, 1, CODEC_RESERVED),
        ELEMENT(CLIENTS_REPLY, client_element, pid, UINT32_MAX, CODEC_VALUE),
        ELEMENT(CLIENTS_REPLY, client_element, flags, HELLO_FLAGS_ALL + 1, CODEC_VALUE),
        ELEMENT(CLIENTS_REPLY, client_element, state, CLIENT_STATE_MAX_, CODEC_VALUE),
        ELEMENT(CLIENTS_REPLY, client_element, reserved, 1, CODEC_RESERVED),
        BODY(TUNABLES_REQUEST, msg_tunables_request, reserved, 1, CODEC_RESERVED),
        BODY(TUNABLES_REPLY, msg_tunables_reply, reserved, 1, CODEC_RESERVED),
        ELEMENT(TUNABLES_REPLY, tunable_element, id, TUNABLES_MAX, CODEC_VALUE),
        ELEMENT(TUNABLES_REPLY, tunable_element, reserved, 1, CODEC_RESERVED),
        BODY(TUNABLE_SET, msg_tunable_set, id, TUNABLES_MAX, CODEC_VALUE),
        BODY(TUNABLE_SET, msg_tunable_set, flags, UNMERGE_FLAGS_ALL + 1, CODEC_VALUE),
        BODY(ADMIN_MERGE, msg_admin_merge, pid, UINT32_MAX, CODEC_VALUE),
        BODY(ADMIN_MERGE, msg_admin_merge, reserved, 1, CODEC_RESERVED),
        BODY(ADMIN_UNMERGE, msg_admin_unmerge, pid, UINT32_MAX, CODEC_VALUE),
        BODY(ADMIN_UNMERGE, msg_admin_unmerge, flags, UNMERGE_FLAGS_ALL + 1, CODEC_VALUE),
        BODY(ADMIN_UNMERGE, msg_admin_unmerge, page, UINT64_C(1) << 52, CODEC_VALUE),
        BODY(ADMIN_UNMERGE, msg_admin_unmerge, n_pages, UINT64_MAX, CODEC_VALUE),
        BODY(ADMIN_DONE, msg_admin_done, error, (uint32_t) -1, CODEC_VALUE),
        BODY(ADMIN_DONE, msg_admin_done, pid, UINT32_MAX, CODEC_VALUE),
        BODY(DOMAINS_REQUEST, msg_domains_request, reserved, 1, CODEC_RESERVED),
        BODY(DOMAINS_REPLY, msg_domains_reply, reserved, 1, CODEC_RESERVED),
        BODY(DOMAINS_REPLY, msg_domains_reply, next, 1, CODEC_VALUE),
        ELEMENT(DOMAINS_REPLY, domain_element, reserved, 1, CODEC_RESERVED),
        BODY(RANGES_REQUEST, msg_ranges_request, reserved, 1, CODEC_RESERVED),
        BODY(RANGES_REPLY, msg_ranges_reply, next, 1, CODEC_VALUE),
        BODY(RANGES_REPLY, msg_ranges_reply, next, UINT64_MAX, CODEC_VALUE),
        ELEMENT(RANGES_REPLY, client_range_element, flags, RANGE_FLAGS_ALL + 1, CODEC_VALUE),
        ELEMENT(RANGES_REPLY, client_range_element, page, ADDRESS_LIMIT >> KSM_PAGE_SHIFT, CODEC_VALUE),
        ELEMENT(RANGES_REPLY, client_range_element, n_pages, 0, CODEC_VALUE),
        ELEMENT(RANGES_REPLY, client_range_element, n_pages, UINT64_MAX, CODEC_VALUE),
        ELEMENT(RANGES_REPLY, client_range_element, reserved, 1, CODEC_RESERVED),
};

static void test_bad_fields(void **state) {
        for (const struct bad_field *b = bad_fields; b < bad_fields + ARRAY_SIZE(bad_fields); b++)
                for (unsigned last = 0; last <= b->in_element; last++) {
                        size_t size = valid(b->type, 4);
                        uint8_t *base = body();
                        struct frame f;
                        enum codec_error e;

                        if (b->in_element)
                                base = (uint8_t *) elements() +
                                       (last ? header()->count - 1 : 0) * message_element_bytes(b->type);
                        if (b->type == MSG_APPLY && strstr(b->what, "slot"))
                                ((struct msg_apply *) body())->kind = APPLY_MERGE;
                        memcpy(base + b->offset, &b->value, b->size);
                        e = decode(size, &f);
                        if (e != b->error)
                                fail_msg("%s = %#" PRIx64 ": %s", b->what, b->value, codec_error_string(e));
                }
}

static void test_text(void **state) {
        static const struct {
                uint16_t type;
                uint8_t in_element;
                size_t offset, size;
        } texts[] = {
                { MSG_HELLO, 0, offsetof(struct msg_hello, comm), 16 },
                { MSG_REFUSED, 0, offsetof(struct msg_refused, reason), 112 },
                { MSG_ADMIN_WELCOME, 0, offsetof(struct msg_admin_welcome, version), 56 },
                { MSG_CLIENTS_REPLY, 1, offsetof(struct client_element, comm), 16 },
                { MSG_DOMAINS_REPLY, 1, offsetof(struct domain_element, key), 96 },
        };

        for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
                size_t size = valid(texts[i].type, 1);
                char *text = (char *) (texts[i].in_element ? elements() : body()) + texts[i].offset;
                struct frame f;

                memset(text, 'x', texts[i].size);
                assert_int_equal(decode(size, &f), CODEC_VALUE);
                text[texts[i].size - 1] = 0;
                assert_int_equal(decode(size, &f), CODEC_OK);
                text[2] = 0; /* stray bytes behind the end */
                assert_int_equal(decode(size, &f), CODEC_VALUE);
                memset(text, 0, texts[i].size);
                assert_int_equal(decode(size, &f), CODEC_OK);
        }
}

static enum codec_error apply(uint32_t kind, const struct extent_element *extents, uint32_t n) {
        struct msg_apply request = { .op = 1, .kind = kind };
        size_t size = frame_encode(packet, sizeof(packet), MSG_APPLY, &request, extents, n);
        struct frame f;

        return decode(size, &f);
}

static void test_extents(void **state) {
        struct extent_element e[2] = { { .page = 64, .n_pages = 10 }, { .page = 74, .n_pages = 54 } };

        assert_int_equal(apply(APPLY_ZERO, e, 2), CODEC_OK);
        assert_int_equal(apply(APPLY_ZERO, e, 0), CODEC_VALUE);
        e[1].n_pages = 55; /* into the next block */
        assert_int_equal(apply(APPLY_ZERO, e, 2), CODEC_VALUE);
        e[1] = (struct extent_element) { .page = 73, .n_pages = 1 }; /* overlap */
        assert_int_equal(apply(APPLY_ZERO, e, 2), CODEC_VALUE);
        e[1].page = 128; /* another block */
        assert_int_equal(apply(APPLY_ZERO, e, 2), CODEC_VALUE);
        e[1].page = 63; /* descending, into the block before */
        assert_int_equal(apply(APPLY_ZERO, e, 2), CODEC_VALUE);
        e[1] = (struct extent_element) { .page = 127, .n_pages = 1 };
        assert_int_equal(apply(APPLY_ZERO, e, 2), CODEC_OK);
        e[1].segment = 1;
        assert_int_equal(apply(APPLY_RESTORE, e, 2), CODEC_VALUE);
        assert_int_equal(apply(APPLY_MERGE, e, 2), CODEC_OK);
        e[1].slot = SEGMENT_SLOTS_MAX - 1;
        assert_int_equal(apply(APPLY_MERGE, e, 2), CODEC_OK);
        e[1].n_pages = 2, e[1].page = 126;
        assert_int_equal(apply(APPLY_MERGE, e, 2), CODEC_VALUE);
}

static void test_runs(void **state) {
        struct run_element e = { .page = 64 + 54, .n_pages = 10, .inode = 1 };
        struct msg_runs runs = { 0 };
        struct frame f;

        assert_int_equal(decode(frame_encode(packet, sizeof(packet), MSG_RUNS, &runs, &e, 1), &f), CODEC_OK);
        e.n_pages = 11; /* into the next block */
        assert_int_equal(decode(frame_encode(packet, sizeof(packet), MSG_RUNS, &runs, &e, 1), &f), CODEC_VALUE);
        e.n_pages = 10;
        e.slot = SEGMENT_SLOTS_MAX - 10;
        assert_int_equal(decode(frame_encode(packet, sizeof(packet), MSG_RUNS, &runs, &e, 1), &f), CODEC_OK);
        e.slot++; /* its last page is behind the last slot */
        assert_int_equal(decode(frame_encode(packet, sizeof(packet), MSG_RUNS, &runs, &e, 1), &f), CODEC_VALUE);
}

static void test_nodes(void **state) {
        struct nodes_wanted_element wanted[2] = { { .page = 64, .wanted = 1 }, { .page = 192, .wanted = ~0ULL } };
        struct nodes_element nodes = { { NODE_MAX, -1, -4095 } };
        uint64_t op = 1;
        struct frame f;

        assert_int_equal(decode(frame_encode(packet, sizeof(packet), MSG_NODES_REQUEST, &op, wanted, 2), &f), CODEC_OK);
        wanted[1].page = 193; /* within a block */
        assert_int_equal(decode(frame_encode(packet, sizeof(packet), MSG_NODES_REQUEST, &op, wanted, 2), &f), CODEC_VALUE);
        wanted[1].page = 64; /* twice */
        assert_int_equal(decode(frame_encode(packet, sizeof(packet), MSG_NODES_REQUEST, &op, wanted, 2), &f), CODEC_VALUE);
        assert_int_equal(decode(frame_encode(packet, sizeof(packet), MSG_NODES, &op, &nodes, 1), &f), CODEC_OK);
        nodes.node[63] = NODE_MAX + 1;
        assert_int_equal(decode(frame_encode(packet, sizeof(packet), MSG_NODES, &op, &nodes, 1), &f), CODEC_VALUE);
        nodes.node[63] = -4096;
        assert_int_equal(decode(frame_encode(packet, sizeof(packet), MSG_NODES, &op, &nodes, 1), &f), CODEC_VALUE);
}

static void test_client_order(void **state) {
        struct client_element c[3] = { { .client = 1 }, { .client = 5 }, { .client = 5 } };
        struct msg_clients_reply reply = { 0 };
        struct frame f;

        assert_int_equal(decode(frame_encode(packet, sizeof(packet), MSG_CLIENTS_REPLY, &reply, c, 3), &f),
                         CODEC_VALUE);
        c[2].client = 6;
        assert_int_equal(decode(frame_encode(packet, sizeof(packet), MSG_CLIENTS_REPLY, &reply, c, 3), &f), CODEC_OK);
}

/* -- no input crashes; what is accepted is exactly what would be written ------------------------------------- */

static void check_any(size_t size, unsigned n_fds) {
        static _Alignas(FRAME_ALIGN) uint8_t again[FRAME_MAX_BYTES];
        struct frame f;

        if (frame_decode(packet, size, n_fds, ROLE_AGENT | ROLE_ADMIN | ROLE_DAEMON, &f) != CODEC_OK)
                return;
        assert_int_equal(frame_encode(again, sizeof(again), f.type, f.body, f.elements, f.count), size);
        assert_memory_equal(again, packet, size);
}

static void test_random_bytes(void **state) {
        for (unsigned i = 0; i < 20000; i++) {
                size_t size = random_below(&seed, 256);

                for (size_t b = 0; b < size; b++)
                        packet[b] = (uint8_t) (random_next(&seed) >> 40);
                if (size >= sizeof(struct frame_header) && i % 2) { /* get past the header */
                        header()->size = (uint32_t) size;
                        header()->version = PROTO_VERSION;
                        header()->type = (uint16_t) random_below(&seed, 64);
                        header()->reserved = 0;
                        header()->count = (uint32_t) random_below(&seed, 4);
                }
                check_any(size, (unsigned) random_below(&seed, 6));
        }
}

static void test_mutated_frames(void **state) {
        for (const uint16_t *t = message_types; *t; t++)
                for (unsigned i = 0; i < 500; i++) {
                        size_t size = valid(*t, (uint32_t) random_below(&seed, 8));

                        for (unsigned n = 1 + (unsigned) random_below(&seed, 3); n > 0; n--)
                                packet[random_below(&seed, size)] ^= (uint8_t) (1u << random_below(&seed, 8));
                        check_any(size, message_fds(*t));
                }
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_round_trip),
                cmocka_unit_test(test_size_off_by_one),
                cmocka_unit_test(test_count_over_limit),
                cmocka_unit_test(test_header),
                cmocka_unit_test(test_unknown_types),
                cmocka_unit_test(test_encode_capacity),
                cmocka_unit_test(test_bad_fields),
                cmocka_unit_test(test_text),
                cmocka_unit_test(test_extents),
                cmocka_unit_test(test_runs),
                cmocka_unit_test(test_nodes),
                cmocka_unit_test(test_client_order),
                cmocka_unit_test(test_random_bytes),
                cmocka_unit_test(test_mutated_frames),
        };
        const char *given = getenv("TEST_SEED");

        seed = given ? strtoull(given, NULL, 0) : (uint64_t) time(NULL) * 0x9e3779b97f4a7c15u | 1;
        printf("# TEST_SEED=%#" PRIx64 "\n", seed);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
