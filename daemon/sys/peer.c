#include "daemon/sys/peer.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "common/cleanup.h"

#ifndef SO_PEERPIDFD /* Linux 6.5 */
#define SO_PEERPIDFD 77
#endif

/* /proc/PID/cgroup has one line a hierarchy (some 14 on hybrid hosts); /proc/PID/status some 1.5 KiB. */
#define PROC_TEXT_BYTES 16384
#define LABEL_BYTES 1024

int peer_get(int socket_fd, struct peer *ret) {
        struct ucred cred;
        socklen_t size = sizeof(cred);
        if (getsockopt(socket_fd, SOL_SOCKET, SO_PEERCRED, &cred, &size) < 0)
                return -errno;
        *ret = (struct peer){ .pid = cred.pid, .uid = cred.uid, .pidfd = -1 };
        if (cred.pid > 0) {
                int fd;
                size = sizeof(fd);
                if (getsockopt(socket_fd, SOL_SOCKET, SO_PEERPIDFD, &fd, &size) < 0)
                        return errno == EINVAL ? -ESRCH : -errno;
                ret->pidfd = fd;
        }
        return 0;
}

void peer_clear(struct peer *p) {
        p->pidfd = close_fd(p->pidfd);
}

bool peer_is_alive(const struct peer *p) {
        struct pollfd fd = { .fd = p->pidfd, .events = POLLIN };
        return p->pidfd >= 0 && poll(&fd, 1, 0) == 0;
}

/* Reads /proc/PID/name whole and NUL-terminates it. Bytes read, or -errno. */
static ssize_t read_proc(const struct peer *p, const char *name, char *text, size_t capacity) {
        char path[64];
        (void) snprintf(path, sizeof(path), "/proc/%d/%s", (int) p->pid, name);
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
                return -errno;
        size_t n = 0;
        for (;;) {
                ssize_t k = read(fd, text + n, capacity - 1 - n);
                if (k < 0)
                        return -errno;
                if (k == 0)
                        break;
                n += (size_t) k;
                if (n == capacity - 1)
                        return -EFBIG;
        }
        text[n] = '\0';
        return (ssize_t) n;
}

/* -- cgroup paths ------------------------------------------------------------------------------------------------ */

static bool line_path(const char *line, const char *prefix, const char **ret, size_t *ret_length) {
        size_t n = strlen(prefix);
        if (strncmp(line, prefix, n) != 0 || line[n] != '/')
                return false;
        *ret = line + n;
        *ret_length = strcspn(*ret, "\n");
        return true;
}

bool cgroup_find_path(const char *text, const char **ret_path, size_t *ret_length) {
        const char *unified = NULL, *named = NULL;
        size_t unified_length = 0, named_length = 0;
        for (const char *line = text; line; line = strchr(line, '\n')) {
                if (*line == '\n')
                        line++;
                if (line_path(line, "0::", &unified, &unified_length))
                        continue;
                const char *colon = strchr(line, ':');
                if (colon && !named)
                        (void) line_path(colon + 1, "name=systemd:", &named, &named_length);
        }
        bool use_named = named && (!unified || (unified_length == 1 && named_length > 1));
        *ret_path = use_named ? named : unified;
        *ret_length = use_named ? named_length : unified_length;
        return *ret_path;
}

static bool has_prefix(const char *s, size_t length, const char *prefix) {
        size_t n = strlen(prefix);
        return length > n && memcmp(s, prefix, n) == 0;
}

static bool has_suffix(const char *s, size_t length, const char *suffix) {
        size_t n = strlen(suffix);
        return length > n && memcmp(s + length - n, suffix, n) == 0;
}

static bool equals(const char *s, size_t length, const char *text) {
        return length == strlen(text) && memcmp(s, text, length) == 0;
}

static bool is_container_id(const char *s, size_t length) {
        if (length != 64)
                return false;
        for (size_t i = 0; i < length; i++)
                if (!((s[i] >= '0' && s[i] <= '9') || (s[i] >= 'a' && s[i] <= 'f')))
                        return false;
        return true;
}

/* docker, podman, cri-o, containerd, nspawn and libvirt (below machine.slice), lxc and incus. */
static bool is_container(const char *s, size_t length, const char *parent, size_t parent_length) {
        static const char *const scopes[] = { "docker-", "libpod-", "crio-", "cri-containerd-", "machine-" };
        static const char *const payloads[] = { "lxc.payload.", "lxc.payload/", "lxc.monitor." };
        for (size_t i = 0; i < ARRAY_SIZE(scopes); i++)
                if (has_prefix(s, length, scopes[i]) && has_suffix(s, length, ".scope"))
                        return true;
        for (size_t i = 0; i < ARRAY_SIZE(payloads); i++)
                if (has_prefix(s, length, payloads[i]))
                        return true;
        return is_container_id(s, length) || equals(parent, parent_length, "machine.slice") ||
               equals(parent, parent_length, "lxc") || equals(parent, parent_length, "lxc.payload");
}

/* Slices that systemd itself makes: they say nothing about who runs there that the uid does not. */
static bool is_stock_slice(const char *s, size_t length) {
        return equals(s, length, "system.slice") || equals(s, length, "user.slice") || has_prefix(s, length, "user-") ||
               has_prefix(s, length, "system-");
}

void cgroup_scope(const char *path, size_t length, const char **ret, size_t *ret_length) {
        size_t container_end = 0, slices_end = 0;
        bool in_slices = true;
        const char *parent = "";
        size_t parent_length = 0;
        for (size_t i = 0; i < length;) {
                if (path[i] == '/') {
                        i++;
                        continue;
                }
                const char *s = path + i;
                size_t n = 0;
                while (i + n < length && s[n] != '/')
                        n++;
                i += n;
                if (is_container(s, n, parent, parent_length))
                        container_end = i;
                in_slices = in_slices && has_suffix(s, n, ".slice");
                if (in_slices && !is_stock_slice(s, n))
                        slices_end = i;
                parent = s;
                parent_length = n;
        }
        *ret = path;
        *ret_length = container_end ? container_end : slices_end;
}

int cgroup_unit_template(const char *path, size_t length, char *ret, size_t capacity) {
        const char *scope, *unit = NULL;
        size_t scope_length, unit_length = 0;
        cgroup_scope(path, length, &scope, &scope_length);
        for (size_t i = scope_length; i < length;) {
                if (path[i] == '/') {
                        i++;
                        continue;
                }
                const char *s = path + i;
                size_t n = 0;
                while (i + n < length && s[n] != '/')
                        n++;
                i += n;
                if (has_suffix(s, n, ".service") || has_suffix(s, n, ".scope")) {
                        unit = s;
                        unit_length = n;
                }
        }
        if (!unit) {
                unit = path + scope_length;
                unit_length = length - scope_length;
                if (equals(unit, unit_length, "/"))
                        unit_length = 0;
        }
        /* name@instance.suffix -> name@.suffix */
        const char *at = memchr(unit, '@', unit_length);
        const char *dot = at ? memrchr(at, '.', unit_length - (size_t) (at - unit)) : NULL;
        size_t head = dot ? (size_t) (at - unit) + 1 : unit_length, tail = dot ? unit_length - (size_t) (dot - unit) : 0;
        if (head + tail >= capacity)
                return -ENAMETOOLONG;
        memcpy(ret, unit, head);
        if (tail)
                memcpy(ret + head, dot, tail);
        ret[head + tail] = '\0';
        return (int) (head + tail);
}

/* -- the key -------------------------------------------------------------------------------------------------------- */

/* "" without an LSM that labels sockets. */
static int read_label(int socket_fd, char label[static LABEL_BYTES]) {
        socklen_t size = LABEL_BYTES - 1;
        if (getsockopt(socket_fd, SOL_SOCKET, SO_PEERSEC, label, &size) < 0) {
                if (errno != ENOPROTOOPT)
                        return -errno;
                size = 0;
        }
        label[size] = '\0';
        return 0;
}

/* Keys of facts begin with "uid=". */
#define ALONE "alone="

bool peer_key_lasts(const char *key, size_t size) {
        return size < strlen(ALONE) || memcmp(key, ALONE, strlen(ALONE)) != 0;
}

size_t peer_facts_key(uid_t uid, const char *label, const char *cgroup, char key[static PEER_KEY_BYTES]) {
        char unit[PEER_KEY_BYTES / 4] = "";
        const char *path, *scope;
        size_t length, scope_length;
        if (!cgroup_find_path(cgroup, &path, &length))
                return 0;
        cgroup_scope(path, length, &scope, &scope_length);
        if (uid == 0 && cgroup_unit_template(path, length, unit, sizeof(unit)) < 0)
                return 0;
        /* Paths and labels hold no newline, so the fields cannot run into each other. */
        int n = snprintf(key, PEER_KEY_BYTES, "uid=%u\nlabel=%s\nscope=%.*s\nunit=%s", uid, label, (int) scope_length, scope, unit);
        return n > 0 && n < PEER_KEY_BYTES ? (size_t) n : 0;
}

/* It is this process that lacks something, for now. */
static bool is_lack(ssize_t r) {
        return r == -EMFILE || r == -ENFILE || r == -ENOMEM;
}

ssize_t peer_domain_key(int socket_fd, const struct peer *p, uint64_t serial, char key[static PEER_KEY_BYTES]) {
        char label[LABEL_BYTES], text[PROC_TEXT_BYTES];
        size_t size = 0;
        if (p->pid > 0 && read_label(socket_fd, label) == 0) {
                ssize_t r = read_proc(p, "cgroup", text, sizeof(text));
                if (is_lack(r))
                        return r;
                if (r >= 0 && peer_is_alive(p))
                        size = peer_facts_key(p->uid, label, text, key);
        }
        return size ? (ssize_t) size : snprintf(key, PEER_KEY_BYTES, ALONE "%llu", (unsigned long long) serial);
}

static bool ids_differ(const char *status, const char *name) {
        unsigned long real, effective, saved, fs;
        const char *line = strstr(status, name);
        return !line ||
               sscanf(line + strlen(name), "%lu %lu %lu %lu", &real, &effective, &saved, &fs) != 4 ||
               real != effective || real != saved || real != fs;
}

bool status_has_other_ids(const char *text) {
        return ids_differ(text, "\nUid:") || ids_differ(text, "\nGid:");
}

int peer_check_eligible(const struct peer *p, const char **ret_reason) {
        char text[PROC_TEXT_BYTES], path[64];
        struct stat st;
        *ret_reason = NULL;
        if (p->pid <= 0) /* another pid namespace: a domain of its own is all it gets */
                return 0;
        (void) snprintf(path, sizeof(path), "/proc/%d/status", (int) p->pid); /* process_is_its_users says why not the directory */
        ssize_t r = read_proc(p, "status", text, sizeof(text));
        if (is_lack(r))
                return (int) r;
        if (r < 0 || stat(path, &st) < 0 || !peer_is_alive(p))
                *ret_reason = "its /proc entry cannot be read";
        else if (status_has_other_ids(text))
                *ret_reason = "setuid or setgid program";
        else if (st.st_uid != p->uid)
                *ret_reason = "not dumpable";
        return *ret_reason ? -EPERM : 0;
}
