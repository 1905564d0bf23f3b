#include "ctl/sysfs/node.h"

#include <errno.h>
#include <string.h>

#include "common/cleanup.h"

/* 0; -ENOENT: no such domain (any more); -EIO. */
static int find_domain(struct link *link, uint32_t domain, struct domain_element *ret) {
        struct domain_list list;
        int r = link_domains(link, &list);

        if (r < 0)
                return r;
        r = -ENOENT;
        for (size_t i = 0; i < list.n; i++)
                if (list.domains[i].domain == domain) {
                        *ret = list.domains[i];
                        r = 0;
                }
        domain_list_free(&list);
        return r;
}

/* 0; -ENOENT: not connected; -EIO. */
static int find_process(struct link *link, uint32_t pid, struct client_element *ret) {
        struct client_list list;
        int r = link_clients(link, &list);

        if (r < 0)
                return r;
        r = -ENOENT;
        for (size_t i = 0; i < list.n; i++)
                if (list.clients[i].pid == pid) {
                        *ret = list.clients[i];
                        r = 0;
                }
        client_list_free(&list);
        return r;
}

/* A process that is not connected has nothing to hide, and nobody knows whose it is. */
static void fill_process_stat(struct link *link, fuse_ino_t ino, struct stat *st) {
        struct client_element c;

        if (ino_file(ino) == 0)
                st->st_mode = S_IFDIR | 0555;
        else if (find_process(link, ino_pid(ino), &c) == 0) {
                st->st_mode = S_IFREG | 0400;
                st->st_uid = c.uid;
        } else
                st->st_mode = S_IFREG | 0444;
}

int node_stat(const struct tree *t, fuse_ino_t ino, struct stat *ret) {
        const struct attribute *a = ino_attribute(ino);
        bool is_owned = is_process(ino) || ino_domain(ino);
        bool is_directory = ino == FUSE_ROOT_ID || (is_owned && ino_file(ino) == 0);

        if (!is_directory && !a && !is_owned)
                return -ENOENT;
        *ret = (struct stat) { .st_ino = ino, .st_uid = t->uid, .st_gid = t->gid, .st_nlink = is_directory ? 2 : 1 };
        ret->st_atim = ret->st_mtim = ret->st_ctim = t->started;
        ret->st_size = is_directory || is_process(ino) ? 0 : SYSFS_FILE_BYTES;
        if (is_process(ino))
                fill_process_stat(t->link, ino, ret);
        else if (is_directory)
                ret->st_mode = S_IFDIR | (ino == FUSE_ROOT_ID ? 0755 : 0500);
        else
                ret->st_mode = S_IFREG | (!a ? 0400 : a->format == ATTRIBUTE_COUNTER ? 0444 : 0644);
        return 0;
}

static int find_process_name(fuse_ino_t parent, const char *name, fuse_ino_t *ret) {
        uint32_t pid = ino_pid(parent);
        int r = pid ? process_file_find(name) : process_parse(name, &pid);

        if (r >= 0)
                *ret = process_ino(pid, ino_pid(parent) ? (unsigned) r + 1 : 0);
        return MIN(r, 0);
}

int node_find(const struct tree *t, fuse_ino_t parent, const char *name, fuse_ino_t *ret) {
        struct domain_element d;
        uint32_t domain;
        int r;

        if (is_process(parent))
                return find_process_name(parent, name, ret);
        if (parent == FUSE_ROOT_ID && strcmp(name, PROCESS_DIRECTORY) == 0) {
                *ret = PROCESS_INO;
                return 0;
        }
        if (ino_domain(parent)) {
                r = domain_file_find(name);
                *ret = domain_ino(ino_domain(parent), (unsigned) r + 1);
                return MIN(r, 0);
        }
        r = attribute_find(name);
        if (r >= 0) {
                *ret = INO_FIRST + (fuse_ino_t) r;
                return 0;
        }
        r = domain_parse(name, &domain);
        if (r == 0)
                r = find_domain(t->link, domain, &d);
        *ret = domain_ino(domain, 0);
        return r;
}

int node_exists(const struct tree *t, fuse_ino_t ino) {
        struct domain_element d;

        return ino_domain(ino) ? find_domain(t->link, ino_domain(ino), &d) : 0;
}

/* -- values ------------------------------------------------------------------------------------------------------------ */

/* Pages that scanning has seen: with run=2 the kernel forgets them all, the daemon keeps them for run=1. */
static bool is_of_scanning(int counter) {
        return counter == COUNTER_pages_unshared || counter == COUNTER_pages_volatile;
}

static int counter_value(struct link *link, int counter, int64_t *ret) {
        struct tunable_values tunables = { .values.run = 1 };
        struct counters counters;
        int r = link_counters(link, &counters);

        if (r == 0 && is_of_scanning(counter))
                r = link_tunables(link, &tunables);
        *ret = tunables.values.run == 2 ? 0 : ((int64_t *) &counters)[counter];
        return r;
}

static int tunable_value(struct link *link, int tunable, int64_t *ret) {
        struct tunable_values tunables;
        int r = link_tunables(link, &tunables);

        if (r == 0 && !tunables.known[tunable])
                r = -EIO; /* a daemon older than we are */
        *ret = tunable_get(&tunables.values, (enum tunable_id) tunable);
        return r;
}

/* Whose the process is may have changed since the file was opened. */
static int process_text(struct link *link, fuse_ino_t ino, uid_t reader, char text[NODE_TEXT_BYTES]) {
        struct client_element c;
        int r = find_process(link, ino_pid(ino), &c);

        if (r < 0 && r != -ENOENT)
                return r;
        if (r == 0 && reader != 0 && reader != c.uid)
                return -EACCES;
        return (int) process_show((enum process_file) (ino_file(ino) - 1), r == 0 ? &c : NULL, text);
}

int node_text(const struct tree *t, fuse_ino_t ino, uid_t reader, char text[NODE_TEXT_BYTES]) {
        const struct attribute *a = ino_attribute(ino);
        struct link *link = t->link;
        struct domain_element d;
        int64_t value;
        int r;

        if (is_process(ino))
                return process_text(link, ino, reader, text);
        if (!a) {
                r = find_domain(link, ino_domain(ino), &d);
                return r < 0 ? r : (int) domain_show((enum domain_file) (ino_file(ino) - 1), &d, text);
        }
        r = a->format == ATTRIBUTE_COUNTER ? counter_value(link, a->value, &value) : tunable_value(link, a->value, &value);
        return r < 0 ? r : (int) attribute_show(a, value, text);
}
