/* Any replies of a daemon that the codec lets pass: ksmctl prints them without overflow, and nothing but printable text.
 * Input: frames, each after two bytes of its size. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "ctl/report.h"
#include "tests/fuzz/fuzz.h"

#define RANGE_LISTS_MAX 4096

/* As the verbs do with each reply. */
static void take_frame(const struct frame *f, struct report *r) {
        switch (f->type) {
        case MSG_ADMIN_WELCOME:
                admin_decode_welcome(f, &r->welcome);
                break;
        case MSG_STATS_REPLY:
                admin_decode_counters(f, &r->counters);
                r->uptime_usec = ((const struct msg_stats_reply *) f->body)->uptime_usec;
                break;
        case MSG_TUNABLES_REPLY:
                admin_decode_tunables(f, &r->tunables);
                break;
        case MSG_CLIENTS_REPLY:
                if (client_list_append(&r->clients, f) < 0)
                        abort();
                break;
        case MSG_DOMAINS_REPLY:
                r->with_domains = true;
                if (domain_list_append(&r->domains, f) < 0)
                        abort();
                break;
        case MSG_RANGES_REPLY: /* of the first client */
                if (!r->ranges && !(r->ranges = calloc(RANGE_LISTS_MAX, sizeof(*r->ranges))))
                        abort();
                if (range_list_append(&r->ranges[0], f) < 0)
                        abort();
                break;
        default:
                break;
        }
        if (r->clients.n > RANGE_LISTS_MAX)
                r->clients.n = RANGE_LISTS_MAX;
}

static void print(const struct report *r) {
        char *text = NULL;
        size_t size = 0;
        FILE *f = open_memstream(&text, &size);

        if (!f || report_print_status(r, true, f) < 0 || report_print_json(r, REPORT_WITH_PROCESSES, f) < 0 ||
            report_print_counters(r, f) < 0 || report_print_processes(r, f) < 0 || report_print_domains(r, f) < 0 || fclose(f) != 0)
                abort();
        for (size_t i = 0; i < size; i++)
                if (!isprint((unsigned char) text[i]) && text[i] != '\n')
                        abort();
        free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        static _Alignas(FRAME_ALIGN) uint8_t packet[FRAME_MAX_BYTES];
        struct report r = { 0 };

        while (size >= 2) {
                size_t n = (size_t) data[0] << 8 | data[1];
                struct frame f;

                data += 2;
                size -= 2;
                n = MIN(n, size);
                n = MIN(n, sizeof(packet));
                memcpy(packet, data, n);
                if (frame_decode(packet, n, 0, ROLE_DAEMON, &f) == CODEC_OK)
                        take_frame(&f, &r);
                data += n;
                size -= n;
        }
        print(&r);
        if (r.ranges)
                range_list_free(&r.ranges[0]);
        free(r.ranges);
        domain_list_free(&r.domains);
        client_list_free(&r.clients);
        return 0;
}
