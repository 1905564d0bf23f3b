/* Rules by which the administrator chooses programs to be merged, without touching them: one line each in files *.conf of a directory
 * (RULES_DIRECTORY), read by the shim at the start of each program that has it loaded, and by `ksmctl check`.
 *
 *     # action    conditions, all of which must hold
 *     merge-any   unit=redis@*.service
 *     merge-any   exe=/usr/bin/python3* uid=1000-1999
 *     madvise     cgroup=/machine.slice/lib*
 *     off         exe=/usr/sbin/sshd
 *
 * Files in the order of their names (bytes), lines from the top: the first rule that holds decides. In a pattern * stands for any number of
 * any characters, / too, and ? for any one. A line that is wrong is no rule. A rule that asks for what cannot be known (no /proc) ends
 * the search without a decision: what comes behind it was written for what it does not catch.
 *
 * Who could write a file could choose for others: directory and files must belong to root or to who reads them, be writable by the
 * owner only, and be a directory and regular files, not links to them.
 *
 * Used inside other programs, before main: no malloc, no stdio, no errno, no system calls but by `struct rules_io`. Any thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RULES_DIRECTORY "/etc/userksm/rules.d"
#define RULES_DIRECTORY_ENV "USERKSM_RULES_DIR" /* another one; empty: none */
#define RULES_SUFFIX ".conf"

#define RULE_LINE_MAX 1024  /* two paths of a usual length and more; a longer line is wrong */
#define RULE_FILES_MAX 64   /* more are taken for a mistake: then none is read. Names are sorted in memory of the stack */
#define RULE_NAME_MAX 64    /* with its NUL; longer names are passed over */
#define RULE_FILE_BYTES_MAX (1U << 20) /* every program would read it at its start: what is behind is not read */

enum rule_action {
        RULE_NONE = 0,  /* no rule holds */
        RULE_MERGE_ANY, /* every eligible mapping, as USERKSM_MERGE_ANY=1 */
        RULE_MADVISE,   /* what the program itself asks for */
        RULE_OFF,       /* nothing, as USERKSM_DISABLE=1 */
};

struct rule_text {
        const char *text; /* not terminated; NULL: not there */
        size_t length;
};
struct rule {
        enum rule_action action;
        struct rule_text unit, cgroup, exe; /* patterns, in the line */
        bool has_uid;
        uint32_t uid_first, uid_last;
};

enum rule_error {
        RULE_OK = 0,
        RULE_EMPTY,          /* nothing but a comment: no error */
        RULE_BAD_ACTION,     /* not merge-any, madvise or off */
        RULE_NO_CONDITION,   /* it would hold for everything: exe=* says so */
        RULE_BAD_CONDITION,  /* no unit=, cgroup=, exe=, uid=, or nothing behind it */
        RULE_TWICE,          /* the same condition twice */
        RULE_BAD_PATH,       /* cgroup or exe that begins with neither / nor * */
        RULE_BAD_UID,        /* not N or N-M with N <= M < 2^32 - 1 */
        RULE_BAD_CHARACTER,  /* a control character */
        RULE_TOO_LONG,
        RULE_BAD_OWNER,      /* of a file or the directory: others could write it */
        RULE_BAD_KIND,       /* not a regular file, or a link */
        RULE_TOO_MANY_FILES,
        RULE_NAME_TOO_LONG,
        RULE_FILE_TOO_LARGE,
        RULE_UNREADABLE,
        RULE_ERROR_MAX_,
};
const char *rule_error_text(enum rule_error e);

/* One line without its newline. *ret points into it; written on RULE_OK only. */
enum rule_error rule_parse(const char *line, size_t length, struct rule *ret);

bool rule_pattern_matches(struct rule_text pattern, struct rule_text text);

/* What rules ask for. Each is found out when the first rule asks for it; text NULL: it cannot be known. */
struct rule_facts {
        uint32_t uid;
        void (*find_exe)(struct rule_facts *f);    /* sets exe */
        void (*find_cgroup)(struct rule_facts *f); /* sets cgroup, and unit if it is in one */
        bool has_exe, has_cgroup;
        struct rule_text exe, cgroup, unit; /* unit: "" when cgroup is known and is no unit's */
};
enum rule_verdict { RULE_HOLDS_NOT, RULE_HOLDS, RULE_UNKNOWN };
enum rule_verdict rule_holds(const struct rule *r, struct rule_facts *f);

/* The path in the text of /proc/PID/cgroup: the unified hierarchy's, or on a host where that has no groups systemd's own. text NULL: none. */
struct rule_text rule_cgroup_path(const char *text, size_t length);
/* The innermost *.service or *.scope of a path; length 0: none. */
struct rule_text rule_cgroup_unit(struct rule_text path);

/* -- reading ---------------------------------------------------------------------------------------------------- */

struct rules_stat {
        uint32_t uid, mode; /* st_mode */
};
/* All return what the system call returns, or -errno. */
struct rules_io {
        int (*open)(int directory, const char *name, int flags); /* directory -1: name is a path of its own */
        int (*stat)(int fd, struct rules_stat *ret);
        long (*list)(int fd, void *buffer, size_t size); /* getdents64 */
        long (*read)(int fd, void *buffer, size_t size);
        void (*close)(int fd);
        uint32_t uid; /* of who reads: files may be his */
};
/* For each line, for what is wrong about a file (line 0), and about the directory (file ""). True: stop. */
typedef bool (*rules_line_fn)(void *userdata, const char *file, unsigned line, const char *text, size_t length, enum rule_error e);

/* Calls fn for every line of every file, in order, with e RULE_OK or RULE_TOO_LONG (text is its beginning then); with another e for
 * what is not read. A directory that does not exist has no lines. */
void rules_read(const struct rules_io *io, const char *directory, rules_line_fn fn, void *userdata);

/* What the rules of the directory say of a program. */
enum rule_action rules_decide(const struct rules_io *io, const char *directory, struct rule_facts *f);
