/* Who is at the other end of a connection, and with whom it may share pages.
 *
 * The domain key is made of kernel facts only: uid (SO_PEERCRED), LSM label (SO_PEERSEC), and from the cgroup path the
 * container; for root also the unit's template. Reading /proc/PID is bracketed by a pidfd that the kernel made for
 * the connection: if it is alive afterwards, the pid meant that process all the time. What cannot be read gets a key of
 * its own: it shares with nobody. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* PATH_MAX for the cgroup path and as much again for label and framing; a longer key is a key of its own. */
#define PEER_KEY_BYTES 8192

struct peer {
        pid_t pid; /* 0: in a pid namespace that is not visible from here */
        uid_t uid;
        int pidfd; /* -1: none */
};

/* 0 or -errno; -ESRCH: the peer has already exited. Free with peer_clear. */
int peer_get(int socket_fd, struct peer *ret);
void peer_clear(struct peer *p);
/* False also when the kernel gave no pidfd. */
bool peer_is_alive(const struct peer *p);

/* Writes the key; its size is returned. `serial` must differ for every connection: it makes the key unique when facts
 * are missing. -EMFILE, -ENFILE, -ENOMEM: this process lacks something, and must not let the peer in alone for ever because of it. */
ssize_t peer_domain_key(int socket_fd, const struct peer *p, uint64_t serial, char key[static PEER_KEY_BYTES]);
/* What the kernel says of a process, as a key; `cgroup` is the text of /proc/PID/cgroup. 0: it cannot be told apart from others. */
size_t peer_facts_key(uid_t uid, const char *label, const char *cgroup, char key[static PEER_KEY_BYTES]);
/* Made of facts alone, so that it means the same domain to a later daemon; not of a serial. */
bool peer_key_lasts(const char *key, size_t size);

/* 0, -EMFILE, -ENFILE or -ENOMEM as above, or -EPERM with static text: the process runs with more or other rights than the user who started it (setuid,
 * setgid), or is not dumpable (unless it is root's: nothing keeps root out). Such a process must not let its memory be compared with others'. */
int peer_check_eligible(const struct peer *p, const char **ret_reason);

/* -- pure parts, for tests ------------------------------------------------------------------------------------- */

/* Finds the path in the text of /proc/PID/cgroup: the unified hierarchy's, or on a hybrid host whose unified path is "/"
 * that of name=systemd. False: neither is there. */
bool cgroup_find_path(const char *text, const char **ret_path, size_t *ret_length);

/* What identifies the container: the path up to and with its deepest container component; without one the chain of slices
 * that the administrator made (not system.slice and user.slice, where every host service and session lives). May be empty:
 * the host itself. */
void cgroup_scope(const char *path, size_t length, const char **ret, size_t *ret_length);

/* The unit inside the scope: of the rest of the path the last service or scope component, its instance left out
 * (redis@1.service -> redis@.service); without such a component the rest of the path itself. Returns the length written,
 * or -ENAMETOOLONG. */
int cgroup_unit_template(const char *path, size_t length, char *ret, size_t capacity);

/* Whether the text of /proc/PID/status names effective, saved or file system ids other than the real ones (of user or group), or
 * none: the process runs with other rights than its user. */
bool status_has_other_ids(const char *text);
