#include "ctl/sysfs/tree.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "ctl/sysfs/attribute.h"
#include "ctl/sysfs/domain.h"
#include "ctl/sysfs/process.h"

/* What sysfs says of each file, and the most that one write hands to a store function; the rest is another write's. */
#define SYSFS_FILE_BYTES 4096
/* Names and modes of the files never change. */
#define TIMEOUT_SEC 3600.0

/* Inodes: the root directory, the attributes behind it; a domain's directory has its id in the upper half and 0 in the lower, its
 * files their number from 1 on; no domain has the id 0. Those of processes have PROCESS_FLAG besides; process 0 is the directory of all. */
#define INO_FIRST (FUSE_ROOT_ID + 1)
#define OWNER_SHIFT 32
#define PROCESS_FLAG (UINT64_C(1) << 31)
#define PROCESS_INO PROCESS_FLAG

static fuse_ino_t domain_ino(uint32_t domain, unsigned file) {
        return (fuse_ino_t) domain << OWNER_SHIFT | file;
}

static fuse_ino_t process_ino(uint32_t pid, unsigned file) {
        return (fuse_ino_t) pid << OWNER_SHIFT | PROCESS_FLAG | file;
}

static bool is_process(fuse_ino_t ino) {
        return ino & PROCESS_FLAG;
}

/* 0: no domain's. */
static uint32_t ino_domain(fuse_ino_t ino) {
        return is_process(ino) ? 0 : (uint32_t) (ino >> OWNER_SHIFT);
}

static uint32_t ino_pid(fuse_ino_t ino) {
        return (uint32_t) (ino >> OWNER_SHIFT);
}

/* Of a domain or a process: 0 is the directory. */
static unsigned ino_file(fuse_ino_t ino) {
        return (unsigned) (ino & (PROCESS_FLAG - 1));
}

#define TEXT_BYTES PROCESS_TEXT_BYTES

struct open_file {
        pthread_mutex_t lock; /* reads of one file by several threads */
        char text[TEXT_BYTES]; /* what the last read from offset 0 got */
        size_t size;
        bool is_filled;
};
_Static_assert(TEXT_BYTES >= ATTRIBUTE_TEXT_BYTES && TEXT_BYTES >= DOMAIN_TEXT_BYTES, "any file's text");

static struct tree *tree_of(fuse_req_t req) {
        return fuse_req_userdata(req);
}

/* -- names and attributes -------------------------------------------------------------------------------------------- */

/* NULL: no file of ours. */
static const struct attribute *attribute_of(fuse_ino_t ino) {
        return ino >= INO_FIRST && ino - INO_FIRST < ATTRIBUTE_MAX_ ? &attribute_table[ino - INO_FIRST] : NULL;
}

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

/* Of domains and processes only the form of the inode is looked at. */
static int fill_stat(const struct tree *t, fuse_ino_t ino, struct stat *ret) {
        const struct attribute *a = attribute_of(ino);
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

/* 0 with the inode that has this name, or -errno. */
static int find_name(struct link *link, fuse_ino_t parent, const char *name, fuse_ino_t *ret) {
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
                r = find_domain(link, domain, &d);
        *ret = domain_ino(domain, 0);
        return r;
}

static void tree_lookup(fuse_req_t req, fuse_ino_t parent, const char *name) {
        struct fuse_entry_param e = { 0 };
        int r = find_name(tree_of(req)->link, parent, name, &e.ino);

        if (r < 0) {
                fuse_reply_err(req, -r);
                return;
        }
        if (attribute_of(e.ino))
                e.attr_timeout = e.entry_timeout = TIMEOUT_SEC; /* domains and processes come and go */
        (void) fill_stat(tree_of(req), e.ino, &e.attr);
        fuse_reply_entry(req, &e);
}

static void tree_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi) {
        struct domain_element d;
        struct stat st;
        int r = fill_stat(tree_of(req), ino, &st);

        if (r == 0 && ino_domain(ino))
                r = find_domain(tree_of(req)->link, ino_domain(ino), &d);
        if (r < 0)
                fuse_reply_err(req, -r);
        else
                fuse_reply_attr(req, &st, ino == FUSE_ROOT_ID || attribute_of(ino) ? TIMEOUT_SEC : 0);
}

/* Truncation is what a shell's `>` does, and does nothing here; neither does touch. Owner and mode stay. */
static void tree_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi) {
        if (to_set & (FUSE_SET_ATTR_MODE | FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID))
                fuse_reply_err(req, EPERM);
        else
                tree_getattr(req, ino, fi);
}

struct listing {
        fuse_req_t req;
        char *buffer;
        size_t size, used;
};

/* next: the offset at which a listing goes on behind this name. False: no room. */
static bool list_name(struct listing *l, const char *name, fuse_ino_t ino, mode_t type, off_t next) {
        struct stat st = { .st_ino = ino, .st_mode = type };
        size_t n = fuse_add_direntry(l->req, l->buffer + l->used, l->size - l->used, name, &st, next);

        if (n > l->size - l->used)
                return false;
        l->used += n;
        return true;
}

/* Offsets are 1 for ".", 2 for "..", then the attributes', then those of the domains by their ids, which stay when others go. Without
 * a daemon the files are there, as they answer EIO. */
static void list_root(struct listing *l, off_t offset) {
        const off_t first_domain = 2 + ATTRIBUTE_MAX_;
        struct domain_list domains;
        char name[DOMAIN_NAME_BYTES];

        for (off_t next = offset + 1; next <= first_domain; next++) {
                bool is_attribute = next > 2;

                if (!list_name(l, next == 1 ? "." : next == 2 ? ".." : attribute_table[next - 3].name,
                               is_attribute ? INO_FIRST + (fuse_ino_t) next - 3 : FUSE_ROOT_ID, is_attribute ? S_IFREG : S_IFDIR, next))
                        return;
        }
        if (link_domains(tree_of(l->req)->link, &domains) < 0)
                return;
        for (size_t i = 0; i < domains.n; i++) {
                off_t next = first_domain + domains.domains[i].domain;

                domain_name(domains.domains[i].domain, name);
                if (next > offset && !list_name(l, name, domain_ino(domains.domains[i].domain, 0), S_IFDIR, next))
                        break;
        }
        domain_list_free(&domains);
}

static void list_domain(struct listing *l, uint32_t domain, off_t offset) {
        for (off_t next = offset + 1; next <= 2 + DOMAIN_FILE_MAX_; next++) {
                bool is_file = next > 2;

                if (!list_name(l, next == 1 ? "." : next == 2 ? ".." : domain_file_names[next - 3],
                               next == 2 ? FUSE_ROOT_ID : domain_ino(domain, is_file ? (unsigned) next - 2 : 0),
                               is_file ? S_IFREG : S_IFDIR, next))
                        return;
        }
}

static void tree_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi) {
        _cleanup_free_ char *buffer = malloc(size);
        struct listing l = { .req = req, .buffer = buffer, .size = size };

        if (!buffer) {
                fuse_reply_err(req, ENOMEM);
                return;
        }
        if (ino_domain(ino))
                list_domain(&l, ino_domain(ino), offset);
        else if (!is_process(ino)) /* those are looked up by number */
                list_root(&l, offset);
        fuse_reply_buf(req, buffer, l.used);
}

/* -- values ------------------------------------------------------------------------------------------------------------ */

static void tree_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi) {
        const struct attribute *a = attribute_of(ino);
        struct open_file *file = calloc(1, sizeof(*file));
        int r = file ? 0 : -ENOMEM;

        /* As sysfs: nothing to write by, nothing to open for writing. */
        if (r == 0 && (!a || a->format == ATTRIBUTE_COUNTER) && (fi->flags & O_ACCMODE) != O_RDONLY)
                r = -EACCES;
        if (r < 0) {
                free(file);
                fuse_reply_err(req, -r);
                return;
        }
        pthread_mutex_init(&file->lock, NULL);
        fi->fh = (uintptr_t) file;
        fi->direct_io = 1; /* no page cache between the daemon and a reader */
        if (fuse_reply_open(req, fi) == -ENOENT) {
                pthread_mutex_destroy(&file->lock); /* interrupted: nobody will release it */
                free(file);
        }
}

static void tree_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi) {
        struct open_file *file = (struct open_file *) (uintptr_t) fi->fh;

        pthread_mutex_destroy(&file->lock);
        free(file);
        fuse_reply_err(req, 0);
}

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
static int fill_process_text(fuse_req_t req, fuse_ino_t ino, char text[TEXT_BYTES]) {
        uid_t uid = fuse_req_ctx(req)->uid;
        struct client_element c;
        int r = find_process(tree_of(req)->link, ino_pid(ino), &c);

        if (r < 0 && r != -ENOENT)
                return r;
        if (r == 0 && uid != 0 && uid != c.uid)
                return -EACCES;
        return (int) process_show((enum process_file) (ino_file(ino) - 1), r == 0 ? &c : NULL, text);
}

/* Length of the text, or -errno. */
static int fill_text(fuse_req_t req, fuse_ino_t ino, char text[TEXT_BYTES]) {
        const struct attribute *a = attribute_of(ino);
        struct link *link = tree_of(req)->link;
        struct domain_element d;
        int64_t value;
        int r;

        if (is_process(ino))
                return fill_process_text(req, ino, text);
        if (!a) {
                r = find_domain(link, ino_domain(ino), &d);
                return r < 0 ? r : (int) domain_show((enum domain_file) (ino_file(ino) - 1), &d, text);
        }
        r = a->format == ATTRIBUTE_COUNTER ? counter_value(link, a->value, &value) : tunable_value(link, a->value, &value);
        return r < 0 ? r : (int) attribute_show(a, value, text);
}

/* As seq_file: a read from the start is a new look, one that goes on gets the rest of the same value. */
static void tree_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi) {
        struct open_file *file = (struct open_file *) (uintptr_t) fi->fh;
        char text[TEXT_BYTES];
        size_t from, n;
        int r = 0;

        pthread_mutex_lock(&file->lock);
        if (offset == 0 || !file->is_filled) {
                r = fill_text(req, ino, file->text);
                file->is_filled = r >= 0;
                file->size = (size_t) MAX(r, 0);
        }
        from = MIN((size_t) offset, file->size);
        n = MIN(size, file->size - from);
        memcpy(text, file->text + from, n);
        pthread_mutex_unlock(&file->lock);
        /* With the answer the reader may close the file, and another thread free it. */
        if (r < 0)
                fuse_reply_err(req, -r);
        else
                fuse_reply_buf(req, text, n);
}

static bool is_interrupted(void *userdata) {
        return fuse_req_interrupted(userdata);
}

static int store(fuse_req_t req, const struct attribute *a, const char *text) {
        struct link *link = tree_of(req)->link;
        int64_t value;
        int r = attribute_parse(a, text, &value);

        if (r == 0)
                r = link_set(link, (enum tunable_id) a->value, value);
        if (r < 0 || a->value != TUNABLE_run || value != 2)
                return r;
        r = link_wait_unmerged(link, is_interrupted, req);
        if (r == -EBUSY)
                log_warning("run=2: some pages could not be restored yet; the daemon goes on trying");
        return r;
}

/* As kernfs: the offset means nothing, each write is one value, of which a page at most is looked at. */
static void tree_write(fuse_req_t req, fuse_ino_t ino, const char *data, size_t size, off_t offset,
                       struct fuse_file_info *fi) {
        char text[SYSFS_FILE_BYTES + 1];
        int r;

        size = MIN(size, (size_t) SYSFS_FILE_BYTES);
        memcpy(text, data, size);
        text[size] = 0;
        r = store(req, attribute_of(ino), text);
        if (r < 0)
                fuse_reply_err(req, -r);
        else
                fuse_reply_write(req, size);
}

/* -- what sysfs does not let anybody do -------------------------------------------------------------------------------- */

static void tree_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi) {
        fuse_reply_err(req, EACCES);
}

static void tree_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev) {
        fuse_reply_err(req, S_ISREG(mode) ? EACCES : EPERM); /* a file is created, which is another operation in the kernel */
}

static void tree_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode) {
        fuse_reply_err(req, EPERM);
}

static void tree_unlink(fuse_req_t req, fuse_ino_t parent, const char *name) {
        fuse_reply_err(req, EPERM);
}

static void tree_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name) {
        fuse_reply_err(req, EPERM);
}

static void tree_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t new_parent, const char *new_name,
                        unsigned flags) {
        fuse_reply_err(req, EPERM);
}

static void tree_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t new_parent, const char *new_name) {
        fuse_reply_err(req, EPERM);
}

const struct fuse_lowlevel_ops tree_operations = {
        .lookup = tree_lookup,
        .getattr = tree_getattr,
        .setattr = tree_setattr,
        .readdir = tree_readdir,
        .open = tree_open,
        .release = tree_release,
        .read = tree_read,
        .write = tree_write,
        .create = tree_create,
        .mknod = tree_mknod,
        .mkdir = tree_mkdir,
        .rmdir = tree_unlink,
        .unlink = tree_unlink,
        .symlink = tree_symlink,
        .rename = tree_rename,
        .link = tree_link,
};
