#include "ctl/sysfs/tree.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "ctl/sysfs/node.h"

/* Names and modes of the files never change. */
#define TIMEOUT_SEC 3600.0

struct open_file {
        struct open_file *next, **previous; /* under tree.lock */
        pthread_mutex_t lock;               /* reads of one file by several threads */
        char text[NODE_TEXT_BYTES]; /* what the last read from offset 0 got */
        size_t size;
        bool is_filled;
};

static struct tree *tree_of(fuse_req_t req) {
        return fuse_req_userdata(req);
}

/* -- names and attributes -------------------------------------------------------------------------------------------- */

static void tree_lookup(fuse_req_t req, fuse_ino_t parent, const char *name) {
        struct fuse_entry_param e = { 0 };
        int r = node_find(tree_of(req), parent, name, &e.ino);

        if (r < 0) {
                fuse_reply_err(req, -r);
                return;
        }
        if (ino_attribute(e.ino))
                e.attr_timeout = e.entry_timeout = TIMEOUT_SEC; /* domains and processes come and go */
        (void) node_stat(tree_of(req), e.ino, &e.attr);
        fuse_reply_entry(req, &e);
}

static void tree_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi) {
        struct stat st;
        int r = node_stat(tree_of(req), ino, &st);

        if (r == 0)
                r = node_exists(tree_of(req), ino);
        if (r < 0)
                fuse_reply_err(req, -r);
        else
                fuse_reply_attr(req, &st, ino == FUSE_ROOT_ID || ino_attribute(ino) ? TIMEOUT_SEC : 0);
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

static struct open_file *file_new(struct tree *t) {
        struct open_file *file = calloc(1, sizeof(*file));

        if (!file)
                return NULL;
        pthread_mutex_init(&file->lock, NULL);
        pthread_mutex_lock(&t->lock);
        file->next = t->files;
        file->previous = &t->files;
        if (file->next)
                file->next->previous = &file->next;
        t->files = file;
        pthread_mutex_unlock(&t->lock);
        return file;
}

static void file_free(struct tree *t, struct open_file *file) {
        pthread_mutex_lock(&t->lock);
        *file->previous = file->next;
        if (file->next)
                file->next->previous = file->previous;
        pthread_mutex_unlock(&t->lock);
        pthread_mutex_destroy(&file->lock);
        free(file);
}

void tree_init(struct tree *t, struct link *link) {
        *t = (struct tree) { .link = link, .uid = geteuid(), .gid = getegid() };
        clock_gettime(CLOCK_REALTIME, &t->started);
        pthread_mutex_init(&t->lock, NULL);
}

void tree_done(struct tree *t) {
        while (t->files)
                file_free(t, t->files);
        pthread_mutex_destroy(&t->lock);
}

static void tree_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi) {
        const struct attribute *a = ino_attribute(ino);
        struct open_file *file;

        /* As sysfs: nothing to write by, nothing to open for writing. */
        if ((!a || a->format == ATTRIBUTE_COUNTER) && (fi->flags & O_ACCMODE) != O_RDONLY) {
                fuse_reply_err(req, EACCES);
                return;
        }
        file = file_new(tree_of(req));
        if (!file) {
                fuse_reply_err(req, ENOMEM);
                return;
        }
        fi->fh = (uintptr_t) file;
        fi->direct_io = 1; /* no page cache between the daemon and a reader */
        if (fuse_reply_open(req, fi) == -ENOENT)
                file_free(tree_of(req), file); /* interrupted: nobody will release it */
}

static void tree_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi) {
        file_free(tree_of(req), (struct open_file *) (uintptr_t) fi->fh);
        fuse_reply_err(req, 0);
}

/* As seq_file: a read from the start is a new look, one that goes on gets the rest of the same value. */
static void tree_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi) {
        struct open_file *file = (struct open_file *) (uintptr_t) fi->fh;
        char text[NODE_TEXT_BYTES];
        size_t from, n;
        int r = 0;

        pthread_mutex_lock(&file->lock);
        if (offset == 0 || !file->is_filled) {
                r = node_text(tree_of(req), ino, fuse_req_ctx(req)->uid, file->text);
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
        const struct attribute *a = ino_attribute(ino);
        char text[SYSFS_FILE_BYTES + 1];
        int r;

        if (!a) { /* nothing else is open for writing */
                fuse_reply_err(req, EBADF);
                return;
        }
        size = MIN(size, (size_t) SYSFS_FILE_BYTES);
        memcpy(text, data, size);
        text[size] = 0;
        r = store(req, a, text);
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
