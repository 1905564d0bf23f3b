/* Configuration: an INI file and the command line, from one table each of options (OPTIONS below) and of tunables
 * (common/tunables.h). Section [daemon] holds the options, [tunables] the tunables; every key is also a command line option
 * --key=value ('-' and '_' are the same there), and the command line wins. An unknown section or key, a value out of range,
 * a key given twice in a file, or a line that is not INI is an error that names file and line. Not thread-safe. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "common/tunables.h"

#define CONFIG_DEFAULT_PATH "/etc/userksm/userksmd.conf"
#define CONFIG_DEFAULT_SOCKET "/run/userksm/userksm.sock"
/* sun_path, its NUL included. */
#define CONFIG_SOCKET_BYTES 108
#define CONFIG_PATH_BYTES 256

/* sysexits(3), as far as we use them. */
enum exit_status {
        EXIT_STATUS_OK = 0,
        EXIT_STATUS_USAGE = 64,
        EXIT_STATUS_UNAVAILABLE = 69, /* kernel too old, feature missing */
        EXIT_STATUS_OS = 71,          /* the system refused something we need */
        EXIT_STATUS_CONFIG = 78,
};

/* What LeakSanitizer calls at the end (clone, ptrace) is not on the allow-list, and must not be: its builds start without. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CONFIG_DEFAULT_SANDBOX 0
#else
#define CONFIG_DEFAULT_SANDBOX 1
#endif

/* X(name, kind, minimum, maximum, default, reloadable, text). STRING: text in the struct's array of the same name;
 * the numbers are its length limits. LEVEL: a syslog level by name. */
#define OPTIONS(X)                                                                                                    \
        X(socket, STRING, 1, CONFIG_SOCKET_BYTES - 1, CONFIG_DEFAULT_SOCKET, 0, "path to listen on, @NAME for an abstract one") \
        X(open_to_all, NUMBER, 0, 1, 0, 0, "let every user connect, not only root, the daemon's and group userksm")   \
        X(pressure_file, STRING, 1, CONFIG_PATH_BYTES - 1, "/proc/pressure/memory", 0, "memory pressure of the machine, or memory.pressure of a control group") \
        X(log_level, LEVEL, 3, 7, 6, 1, "err, warning, notice, info or debug")                                        \
        X(workers, NUMBER, 0, 64, 0, 0, "reading and scanning threads, 0: one a CPU, two to four")                    \
        X(max_clients, NUMBER, 1, 1000000, 10000, 1, "connections in all; the limit of open files may allow fewer")   \
        X(max_clients_per_uid, NUMBER, 1, 1000000, 4096, 1, "connections of one user")                                \
        X(fast_read, NUMBER, 0, 1, 1, 1, "hash through process_vm_readv where the kernel permits it")                 \
        X(sandbox, NUMBER, 0, 1, CONFIG_DEFAULT_SANDBOX, 0, "forbid system calls that are not needed (seccomp)")

struct config {
        char socket[CONFIG_SOCKET_BYTES], pressure_file[CONFIG_PATH_BYTES];
        int64_t open_to_all, log_level, workers, max_clients, max_clients_per_uid, fast_read, sandbox;
        struct tunables tunables;
        /* Command line only. */
        bool private_mode, show_help, show_version;
        const char *path; /* of --config; NULL: the default one, which may be absent */
};

/* Text for a person: what is wrong and where. */
struct config_error {
        char text[512];
};

void config_init(struct config *c);
/* 0, or -errno with *ret_error set; *c is then undefined. -ENOENT: no such file. */
int config_read_file(struct config *c, const char *path, struct config_error *ret_error);
/* 0, or -EINVAL with *ret_error set. argv must outlive *c. */
int config_parse_args(struct config *c, int argc, char **argv, struct config_error *ret_error);
/* All of it in the right order: defaults, file, command line. 0 or an exit status (USAGE or CONFIG). */
int config_load(struct config *c, int argc, char **argv, struct config_error *ret_error);

/* Sets one key from text: 0, -ENOENT unknown key, -EINVAL bad value. */
int config_set_option(struct config *c, const char *key, const char *value);
int config_set_tunable(struct config *c, const char *key, const char *value);

/* The first option that differs and cannot be changed while running, or NULL. */
const char *config_fixed_difference(const struct config *a, const struct config *b);
void config_print_help(void);
