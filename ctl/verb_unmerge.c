/* unmerge: give processes their private copies back, and wait for it. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "ctl/explain.h"
#include "ctl/render.h"
#include "ctl/request.h"
#include "ctl/verb_list.h"

/* How far it is, asked over a connection of its own, for the other waits for the end. */
struct progress {
        const struct ctl *ctl;
        uint32_t pid;
        uint64_t first_pages; /* merged when it was first asked */
        struct admin admin;
        bool is_open, has_failed, has_printed;
};

static int merged_clients(const struct ctl *ctl, struct progress *p, struct client_list *ret) {
        if (!p->is_open && admin_connect(&p->admin, ctl->socket_path) < 0)
                return -ECONNREFUSED;
        p->is_open = true;
        return admin_clients(&p->admin, ret);
}

static bool is_asked_for(const struct progress *p, const struct client_element *c) {
        return c->merged_pages > 0 && (p->pid == 0 || c->pid == p->pid);
}

static void show_progress(void *userdata) {
        struct progress *p = userdata;
        struct client_list l = { 0 };
        char left[TEXT_BYTES];
        uint64_t pages = 0;

        if (p->has_failed)
                return;
        p->has_failed = merged_clients(p->ctl, p, &l) < 0;
        for (size_t i = 0; i < l.n; i++)
                pages += is_asked_for(p, &l.clients[i]) ? l.clients[i].merged_pages : 0;
        client_list_free(&l);
        if (p->has_failed)
                return;
        p->first_pages = p->first_pages < pages ? pages : p->first_pages;
        p->has_printed = true;
        fprintf(stderr, "\r%3" PRIu64 " %%, %s to go \033[K", p->first_pages ? 100 - pages * 100 / p->first_pages : 100,
                format_pages(left, (int64_t) pages));
}

/* Whose they are: of processes that may have pinned them, or do not answer. */
static void name_the_rest(struct progress *p) {
        struct client_list l = { 0 };

        if (merged_clients(p->ctl, p, &l) == 0)
                for (size_t i = 0; i < l.n; i++) {
                        char name[TEXT_BYTES], bytes[TEXT_BYTES];

                        if (is_asked_for(p, &l.clients[i]))
                                fprintf(stderr, "  process %u (%s): %s\n", l.clients[i].pid,
                                        format_name(name, l.clients[i].comm, sizeof(l.clients[i].comm)),
                                        format_pages(bytes, (int64_t) l.clients[i].merged_pages));
                }
        client_list_free(&l);
}

/* "START-END" as in /proc/PID/maps; whole pages. */
static int parse_range(const char *text, struct msg_admin_unmerge *ret) {
        char *end;
        uint64_t start, stop;

        errno = 0;
        start = strtoull(text, &end, 16);
        stop = *end == '-' && end != text ? strtoull(end + 1, &end, 16) : 0;
        if (errno != 0 || *end || start >= stop || (start | stop) & (KSM_PAGE_SIZE - 1) || stop > ADDRESS_LIMIT) {
                complain("'%s' is no range START-END: hexadecimal addresses of whole pages, as /proc/PID/maps has them", text);
                return STATUS_USAGE;
        }
        ret->page = start / KSM_PAGE_SIZE;
        ret->n_pages = (stop - start) / KSM_PAGE_SIZE;
        return STATUS_OK;
}

static int parse(int argc, char **argv, struct msg_admin_unmerge *ret, bool *ret_help) {
        static const struct option options[] = { HELP_OPTION, { "force", no_argument, NULL, 'f' }, { "range", required_argument, NULL, 'r' }, { 0 } };
        int c;

        while ((c = getopt_long(argc, argv, "h", options, NULL)) >= 0) {
                if (c == 'f') {
                        ret->flags |= UNMERGE_FORCE;
                } else if (c == 'r') {
                        if (parse_range(optarg, ret) != STATUS_OK)
                                return STATUS_USAGE;
                } else if (c == 'h') {
                        verb_print_help(&verb_unmerge);
                        *ret_help = true;
                        return STATUS_OK;
                } else {
                        return verb_usage(&verb_unmerge);
                }
        }
        if (argc - optind != 1)
                return verb_usage(&verb_unmerge);
        if (request_parse_pid(argv[optind], &ret->pid) < 0)
                return STATUS_USAGE;
        if (ret->n_pages > 0 && ret->pid == 0) {
                complain("--range needs a process: addresses mean nothing to 'all'");
                return STATUS_USAGE;
        }
        return STATUS_OK;
}

static int run_unmerge(const struct ctl *ctl, int argc, char **argv) {
        struct msg_admin_unmerge body = { 0 };
        struct msg_admin_done done = { 0 };
        struct progress p = { .ctl = ctl, .admin = ADMIN_INIT };
        bool is_help = false;
        char bytes[TEXT_BYTES];
        int status = parse(argc, argv, &body, &is_help);

        if (status != STATUS_OK || is_help)
                return status;
        p.pid = body.pid;
        status = request_run(ctl,
                             &(struct request_call){
                                     .verb = &verb_unmerge,
                                     .who = argv[optind],
                                     .type = MSG_ADMIN_UNMERGE,
                                     .body = &body,
                                     .wait = isatty(STDERR_FILENO) ? show_progress : NULL,
                                     .userdata = &p,
                             },
                             &done);
        if (p.has_printed)
                fputs("\r\033[K", stderr);
        if (status == STATUS_OK)
                printf("restored %" PRIu64 " pages (%s)\n", done.pages, format_pages(bytes, (int64_t) done.pages));
        if (status == STATUS_OK && done.left > 0) {
                complain("%" PRIu64 " pages (%s) are still merged: they could not be restored now (pinned for I/O, no memory, "
                         "or the process does not answer). They stay exact; try again later.",
                         done.left, format_pages(bytes, (int64_t) done.left));
                name_the_rest(&p);
                status = STATUS_FAILED;
        }
        if (p.is_open)
                admin_close(&p.admin);
        return status;
}

const struct verb verb_unmerge = {
        .name = "unmerge",
        .arguments = "[OPTION...] PID|all",
        .summary = "restore private copies of all merged pages",
        .help =
        "Gives every merged page of the process a private copy again and takes its memory out of merging, until the\n"
        "process registers it anew. Returns when done and prints how many pages were restored; exit status 1 when\n"
        "some could not be. 'all' does it for every process that is connected now; processes that come later are\n"
        "merged. To unmerge everything and stay stopped: 'ksmctl set run=2', and run=1 to start again. A process in\n"
        "state raw is not touched, not even to restore.\n"
        "\n"
        "Refused when the private copies would not fit: in the machine's memory that can be had without swapping, or\n"
        "under the memory limits of the process's control groups. Others are served meanwhile; on a terminal it\n"
        "shows how far it is. Only root and the daemon's own user may do this.\n"
        "\n"
        "Options:\n"
        "      --range=START-END  only these addresses, hexadecimal as in /proc/PID/maps\n"
        "      --force            also when memory seems too little\n"
        "  -h, --help             this text",
        .run = run_unmerge,
};
