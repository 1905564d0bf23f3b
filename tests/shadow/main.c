/* shadow: see shadow.h. Executes one program and writes what its operations said.
 *
 *  shadow --family F --seed N --ops N [--raw OPERATION] | --replay FILE
 *         [--print]          the program as text (which is what --replay reads) and nothing else
 *         --log FILE         the records
 *         --directory DIR    scratch files
 *         [--settle USEC]    wait up to this long for merging at settle operations; without it this is a plain run
 *         [--linger]         stays after its account until standard input ends, so that the daemon can be asked about it
 *         [--plant BITS]     planted faults: 1 a lost byte, 2 a call around its wrapper */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <malloc.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "tests/shadow/shadow.h"

#define ARGUMENTS_MAX 40
#define TOP_PAD_BYTES (8 << 20) /* several times what the blocks below mmap's threshold can take; mlockall makes it all present */
#define TOP_BYTES (400 << 10) /* more than malloc begins with, in pieces that it takes from there */

struct run run;

static struct {
        const char *family, *replay, *log, *raw;
        uint64_t seed;
        uint32_t ops;
        bool print, linger;
        int shared_fd, state_fd; /* after an exec; -1 before */
        uint32_t next;
        char **argv;
        int argc;
} options = { .family = "sequence", .raw = "", .ops = 10000, .shared_fd = -1, .state_fd = -1 };

void fail(const char *format, ...) {
        char text[512];
        int error = errno;
        va_list ap;
        va_start(ap, format);
        vsnprintf(text, sizeof(text), format, ap);
        va_end(ap);
        dprintf(2, "shadow: %s (errno %s), operation about %u\n", text, strerror(error),
                run.control ? atomic_load(&run.control->turn) : 0);
        if (run.control)
                atomic_store(&run.control->failed, 1);
        _exit(3);
}

uint64_t now_usec(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t) t.tv_sec * 1000000 + (uint64_t) t.tv_nsec / 1000;
}

void *shared_alloc(size_t bytes) {
        void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        check(p != MAP_FAILED, "memory");
        return p;
}

static void parse(int argc, char **argv) {
        static const struct option names[] = {
                { "family", 1, NULL, 'f' }, { "seed", 1, NULL, 's' },   { "ops", 1, NULL, 'n' },     { "replay", 1, NULL, 'r' },
                { "print", 0, NULL, 'p' },  { "log", 1, NULL, 'l' },    { "directory", 1, NULL, 'd' }, { "settle", 1, NULL, 't' },
                { "plant", 1, NULL, 'P' },  { "raw", 1, NULL, 'R' },    { "resume", 1, NULL, 'u' },  { "linger", 0, NULL, 'L' },
                { 0 },
        };
        for (int c; (c = getopt_long(argc, argv, "", names, NULL)) != -1;) {
                switch (c) {
                case 'f': options.family = optarg; break;
                case 's': options.seed = strtoull(optarg, NULL, 0); break;
                case 'n': options.ops = (uint32_t) strtoul(optarg, NULL, 0); break;
                case 'r': options.replay = optarg; break;
                case 'p': options.print = true; break;
                case 'l': options.log = optarg; break;
                case 'd': run.directory = optarg; break;
                case 't': run.settle_usec = (uint32_t) strtoul(optarg, NULL, 0); break;
                case 'P': run.plant = (uint32_t) strtoul(optarg, NULL, 0); break;
                case 'R': options.raw = optarg; break;
                case 'L': options.linger = true; break;
                case 'u':
                        if (sscanf(optarg, "%d,%d,%u", &options.shared_fd, &options.state_fd, &options.next) == 3)
                                break;
                        exit(64);
                default: exit(64);
                }
        }
        options.argv = argv;
        options.argc = argc;
}

void run_again(int state, uint32_t next) {
        char *argv[ARGUMENTS_MAX], text[64];
        int n = options.argc;
        if (options.state_fd >= 0)
                n -= 2; /* the last exec's --resume */
        check(n + 3 <= ARGUMENTS_MAX, "too many arguments");
        memcpy(argv, options.argv, (size_t) n * sizeof(*argv));
        snprintf(text, sizeof(text), "%d,%d,%u", options.shared_fd, state, next);
        argv[n] = (char *) (uintptr_t) "--resume";
        argv[n + 1] = text;
        argv[n + 2] = NULL;
        execv("/proc/self/exe", argv);
        fail("execv");
}

/* Control, mailbox and log: in a file, so that they outlive an exec. */
static void share(void) {
        size_t control = (sizeof(struct control) + PAGE - 1) & ~(PAGE - 1), mailbox = remote_bytes();
        size_t bytes = control + mailbox + run.program.n * sizeof(struct record);
        if (options.state_fd < 0) {
                options.shared_fd = memfd_create("shadow", 0);
                check(options.shared_fd >= 0 && ftruncate(options.shared_fd, (off_t) bytes) == 0, "memfd");
        }
        uint8_t *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, options.shared_fd, 0);
        check(p != MAP_FAILED, "mmap");
        run.control = (struct control *) p;
        remote_attach(p + control);
        run.log = (struct record *) (p + control + mailbox);
}

static bool has(enum op_kind kind) {
        for (uint32_t i = 0; i < run.program.n; i++)
                if (run.program.ops[i].kind == kind)
                        return true;
        return false;
}

static void make_pattern(void) {
        char path[256];
        snprintf(path, sizeof(path), "%s/pattern", run.directory);
        run.pattern = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        check(run.pattern >= 0, "%s", path);
        for (uint32_t i = 0; i < PATTERN_PAGES; i++)
                check(pwrite(run.pattern, content(i / 2), PAGE, (off_t) (i * PAGE)) == PAGE, "%s", path);
        run.pattern_direct = run.pins ? open(path, O_RDONLY | O_DIRECT | O_CLOEXEC) : -1;
        if (run.pattern_direct >= 0)
                (void) fdatasync(run.pattern);
}

static void write_log(void) {
        int fd = open(options.log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        check(fd >= 0, "%s", options.log);
        size_t bytes = run.program.n * sizeof(*run.log);
        for (size_t done = 0; done < bytes;) {
                ssize_t n = write(fd, (uint8_t *) run.log + done, bytes - done);
                check(n > 0, "%s", options.log);
                done += (size_t) n;
        }
        close(fd);
}

/* One line of JSON: how much was done, and of what. */
static void print_account(void) {
        uint32_t kinds[OP_KINDS] = { 0 };
        for (uint32_t i = 0; i < run.program.n; i++)
                kinds[run.program.ops[i].kind] += run.log[i].result != SKIPPED;
        printf("{\"ops\": %u, \"merged_pages_seen\": %llu, \"looks\": %llu, \"refused\": %llu, \"kinds\": {", run.program.n,
               (unsigned long long) atomic_load(&run.control->merged_seen),
               (unsigned long long) atomic_load(&run.control->merged_looks),
               (unsigned long long) atomic_load(&run.control->refused));
        for (unsigned k = 0; k < OP_KINDS; k++)
                printf("%s\"%s\": %u", k ? ", " : "", op_names[k], kinds[k]);
        printf("}}\n");
        (void) fflush(stdout);
}

int main(int argc, char **argv) {
        parse(argc, argv);
        if (options.replay)
                program_read(&run.program, options.replay);
        else
                program_generate(&run.program, family_of(options.family), options.seed, options.ops, options.raw);
        if (options.print) {
                program_print(&run.program);
                return 0;
        }
        if (!run.directory || !options.log)
                return 64;
        share();
        contents_init();
        access_init();
        run.pins = has(OP_direct_in) || has(OP_direct_out);
        make_pattern();
        /* The program's own brk and malloc's would get in each other's way: with a big top malloc never calls it again. */
        if (has(OP_brk_by) || has(OP_brk_to)) {
                run.top_pad_bytes = TOP_PAD_BYTES;
                (void) mallopt(M_TOP_PAD, TOP_PAD_BYTES);
                (void) mallopt(M_TRIM_THRESHOLD, INT32_MAX);
                void *more[] = { malloc(TOP_BYTES / 4), malloc(TOP_BYTES / 4), malloc(TOP_BYTES / 4), malloc(TOP_BYTES / 4) };
                for (unsigned i = 0; i < ARRAY_SIZE(more); i++)
                        free(more[i]);
        }
        arenas_init();
        atomic_store(&run.control->pid[0], getpid());
        if (options.state_fd >= 0) {
                exec_resume(options.state_fd);
                turn_pass(options.next);
        } else {
                remote_start();
        }
        if (run.program.family == FAMILY_RACE)
                race_init();
        if (run.program.family == FAMILY_RACE && (run.program.seed & 2))
                alarms(true); /* not elsewhere: a signal changes what even the kernel alone answers (short reads, ECANCELED) */
        run_threads();
        alarms(false);
        write_log();
        print_account();
        for (char c; options.linger && read(STDIN_FILENO, &c, 1) > 0;)
                ;
        return 0;
}
