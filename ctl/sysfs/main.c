/* userksm-sysfs: arguments, the mount, the loop.
 *
 * Two ways to live. With a directory it mounts there, and unmounts when it is told to end. With --handed it serves a mount that another
 * process makes in a mount namespace of its own and whose descriptor comes over a socket (ctl/run_sysfs.h): it stands outside
 * of that namespace, does not hold it, and ends with it, because the kernel then ends the mount. */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "ctl/sysfs/tree.h"

/* A write of run=2 holds a thread until all is unmerged; readers must find others. */
#define THREADS_MAX 64

/* Of sysexits.h, as in ctl/ctl.h. */
enum { EXIT_USAGE = 64, EXIT_OSERR = 71 };

struct arguments {
        const char *socket_path, *directory;
        int handed_fd; /* -1: mount on directory */
};

static int usage(FILE *f) {
        fprintf(f, "Usage: userksm-sysfs [--socket PATH] DIRECTORY\n"
                   "       userksm-sysfs [--socket PATH] --handed FD\n\n"
                   "Shows userksmd as the files of /sys/kernel/mm/ksm, with the same names, formats and errors, on\n"
                   "DIRECTORY, until SIGTERM or SIGINT. 'ksmctl run --sysfs' mounts it over that path for one command.\n\n"
                   "Options:\n"
                   "  --socket PATH   the daemon's socket (default: $USERKSM_SOCKET, else " DEFAULT_SOCKET_PATH ")\n"
                   "  --handed FD     serve the mount whose descriptor is received from the socket FD\n"
                   "  -h, --help      this text\n"
                   "  -V, --version   the version\n\n"
                   "docs/sysfs.md is the manual.\n");
        return f == stdout ? EXIT_SUCCESS : EXIT_USAGE;
}

/* -1: go on. */
static int parse_arguments(struct arguments *a, int argc, char **argv) {
        static const struct option options[] = {
                { "socket", required_argument, NULL, 's' },
                { "handed", required_argument, NULL, 'f' },
                { "help", no_argument, NULL, 'h' },
                { "version", no_argument, NULL, 'V' },
                { 0 },
        };
        int c;

        while ((c = getopt_long(argc, argv, "hV", options, NULL)) >= 0)
                switch (c) {
                case 's':
                        a->socket_path = optarg;
                        break;
                case 'f':
                        a->handed_fd = atoi(optarg);
                        break;
                case 'h':
                        return usage(stdout);
                case 'V':
                        printf("userksm-sysfs (userksm) " USERKSM_VERSION "\n");
                        return EXIT_SUCCESS;
                default:
                        return usage(stderr);
                }
        if (optind < argc)
                a->directory = argv[optind++];
        return optind < argc || !a->directory == (a->handed_fd < 0) ? usage(stderr) : -1;
}

/* What a server that was killed has left: every access fails, a new mount as well. */
static void remove_dead_mount(const char *directory) {
        struct stat st;

        if (stat(directory, &st) == 0 || errno != ENOTCONN)
                return;
        if (umount2(directory, MNT_DETACH) == 0)
                log_notice("%s: removed the mount of a server that is gone", directory);
}

/* 0: a descriptor was handed over; -ECANCELED: whoever was to do so is gone. */
static int receive_fd(int socket_fd, int *ret_fd) {
        union {
                char bytes[CMSG_SPACE(sizeof(int))];
                struct cmsghdr header;
        } control = { 0 };
        char byte;
        struct iovec iov = { &byte, 1 };
        struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
        ssize_t n;

        do
                n = recvmsg(socket_fd, &m, MSG_CMSG_CLOEXEC);
        while (n < 0 && errno == EINTR);
        if (n < 0)
                return -errno;
        if (n == 0 || !CMSG_FIRSTHDR(&m) || control.header.cmsg_type != SCM_RIGHTS)
                return -ECANCELED;
        memcpy(ret_fd, CMSG_DATA(&control.header), sizeof(*ret_fd));
        return 0;
}

static void log_fuse(enum fuse_log_level level, const char *format, va_list ap) {
        char text[512];
        size_t n;

        (void) vsnprintf(text, sizeof(text), format, ap);
        n = strlen(text);
        if (n > 0 && text[n - 1] == '\n')
                text[n - 1] = 0;
        log_line((int) level, "%s", text);
}

/* Everybody may look in, and a killed server's mount goes, where this is ours to ask for: both are root's by default. */
static int new_session(struct tree *tree, bool is_mounting, struct fuse_session **ret) {
        struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
        const char *options = "-ofsname=userksm,subtype=userksm,default_permissions,nosuid,nodev,noexec";
        int r;

        r = fuse_opt_add_arg(&args, "userksm-sysfs");
        if (r == 0 && is_mounting)
                r = fuse_opt_add_arg(&args, options);
        if (r == 0 && is_mounting && geteuid() == 0)
                r = fuse_opt_add_arg(&args, "-oallow_other,auto_unmount");
        *ret = r == 0 ? fuse_session_new(&args, &tree_operations, sizeof(tree_operations), tree) : NULL;
        fuse_opt_free_args(&args);
        return *ret ? 0 : -ENOMEM;
}

static int loop(struct fuse_session *session) {
        struct fuse_loop_config *config = fuse_loop_cfg_create();
        int r;

        if (!config)
                return -ENOMEM;
        fuse_loop_cfg_set_max_threads(config, THREADS_MAX);
        r = fuse_session_loop_mt(session, config);
        fuse_loop_cfg_destroy(config);
        return r > 0 ? 0 : r; /* a signal's number: the end that was asked for */
}

static int serve(const struct arguments *a, struct tree *tree) {
        struct fuse_session *session;
        char path[PATH_MAX];
        int r, fd = -1;

        if (a->directory) {
                remove_dead_mount(a->directory);
                snprintf(path, sizeof(path), "%s", a->directory);
        } else {
                r = receive_fd(a->handed_fd, &fd);
                if (r < 0)
                        return log_errno(r, "no mount was handed over");
                snprintf(path, sizeof(path), "/dev/fd/%d", fd);
        }
        r = new_session(tree, a->directory, &session);
        if (r < 0)
                return log_errno(r, "cannot start");
        if (fuse_set_signal_handlers(session) != 0 || fuse_session_mount(session, path) != 0) {
                fuse_session_destroy(session);
                return -EIO; /* libfuse has said why */
        }
        /* Whoever handed it over waits for this; if he is gone the mount is, too. */
        if (a->handed_fd >= 0)
                (void) send(a->handed_fd, "", 1, MSG_NOSIGNAL);
        close_fd(a->handed_fd);
        r = loop(session);
        if (r < 0)
                log_errno(r, "the loop ended");
        fuse_session_unmount(session);
        fuse_remove_signal_handlers(session);
        fuse_session_destroy(session);
        return r;
}

int main(int argc, char **argv) {
        const char *environment = getenv("USERKSM_SOCKET");
        struct arguments a = {
                .socket_path = environment && *environment ? environment : DEFAULT_SOCKET_PATH,
                .handed_fd = -1,
        };
        struct tree tree;
        struct link link;
        int r = parse_arguments(&a, argc, argv);

        if (r >= 0)
                return r;
        fuse_set_log_func(log_fuse);
        link_init(&link, a.socket_path);
        tree_init(&tree, &link);
        r = serve(&a, &tree);
        tree_done(&tree);
        link_done(&link);
        return r < 0 ? EXIT_OSERR : EXIT_SUCCESS;
}
