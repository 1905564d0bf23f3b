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

/* What sysfs says of each file, and the most that one write hands to a store function; the rest is another write's. */
#define SYSFS_FILE_BYTES 4096
/* Names and modes of the files never change. */
#define TIMEOUT_SEC 3600.0

/* An inode is its attribute's id behind that of the root directory. */
#define INO_FIRST (FUSE_ROOT_ID + 1)

struct open_file {
        pthread_mutex_t lock; /* reads of one file by several threads */
        const struct attribute *attribute;
        char text[ATTRIBUTE_TEXT_BYTES]; /* what the last read from offset 0 got */
        size_t size;
        bool is_filled;
};

static struct tree *tree_of(fuse_req_t req) {
        return fuse_req_userdata(req);
}

/* -- names and attributes -------------------------------------------------------------------------------------------- */

/* NULL: no file of ours. */
static const struct attribute *attribute_of(fuse_ino_t ino) {
        return ino >= INO_FIRST && ino - INO_FIRST < ATTRIBUTE_MAX_ ? &attribute_table[ino - INO_FIRST] : NULL;
}

static int fill_stat(const struct tree *t, fuse_ino_t ino, struct stat *ret) {
        const struct attribute *a = attribute_of(ino);

        *ret = (struct stat) { .st_ino = ino, .st_uid = t->uid, .st_gid = t->gid };
        ret->st_atim = ret->st_mtim = ret->st_ctim = t->started;
        if (ino == FUSE_ROOT_ID) {
                ret->st_mode = S_IFDIR | 0755;
                ret->st_nlink = 2;
                return 0;
        }
        if (!a)
                return -ENOENT;
        ret->st_mode = S_IFREG | (a->format == ATTRIBUTE_COUNTER ? 0444 : 0644);
        ret->st_nlink = 1;
        ret->st_size = SYSFS_FILE_BYTES;
        return 0;
}

static void tree_lookup(fuse_req_t req, fuse_ino_t parent, const char *name) {
        struct fuse_entry_param e = { .attr_timeout = TIMEOUT_SEC, .entry_timeout = TIMEOUT_SEC };
        int id = parent == FUSE_ROOT_ID ? attribute_find(name) : -ENOENT;

        if (id < 0) {
                fuse_reply_err(req, ENOENT);
                return;
        }
        e.ino = INO_FIRST + (fuse_ino_t) id;
        (void) fill_stat(tree_of(req), e.ino, &e.attr);
        fuse_reply_entry(req, &e);
}

static void tree_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi) {
        struct stat st;
        int r = fill_stat(tree_of(req), ino, &st);

        if (r < 0)
                fuse_reply_err(req, -r);
        else
                fuse_reply_attr(req, &st, TIMEOUT_SEC);
}

/* Truncation is what a shell's `>` does, and does nothing here; neither does touch. Owner and mode stay. */
static void tree_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi) {
        if (to_set & (FUSE_SET_ATTR_MODE | FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID))
                fuse_reply_err(req, EPERM);
        else
                tree_getattr(req, ino, fi);
}

/* Offsets are 1 for ".", 2 for "..", then the attributes'. */
static void tree_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi) {
        _cleanup_free_ char *buffer = malloc(size);
        size_t used = 0;

        if (!buffer) {
                fuse_reply_err(req, ENOMEM);
                return;
        }
        for (off_t next = offset + 1; next <= 2 + ATTRIBUTE_MAX_; next++) {
                const char *name = next == 1 ? "." : next == 2 ? ".." : attribute_table[next - 3].name;
                struct stat st = { .st_ino = FUSE_ROOT_ID, .st_mode = S_IFDIR };
                size_t n;

                if (next > 2)
                        st = (struct stat) { .st_ino = INO_FIRST + (fuse_ino_t) (next - 3), .st_mode = S_IFREG };
                n = fuse_add_direntry(req, buffer + used, size - used, name, &st, next);
                if (n > size - used)
                        break;
                used += n;
        }
        fuse_reply_buf(req, buffer, used);
}

/* -- values ------------------------------------------------------------------------------------------------------------ */

static void tree_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi) {
        const struct attribute *a = attribute_of(ino);
        struct open_file *file = a ? calloc(1, sizeof(*file)) : NULL;
        int r = !a ? -ENOENT : !file ? -ENOMEM : 0;

        /* As sysfs: nothing to write by, nothing to open for writing. */
        if (r == 0 && a->format == ATTRIBUTE_COUNTER && (fi->flags & O_ACCMODE) != O_RDONLY)
                r = -EACCES;
        if (r < 0) {
                free(file);
                fuse_reply_err(req, -r);
                return;
        }
        file->attribute = a;
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

static int value_of(struct link *link, const struct attribute *a, int64_t *ret) {
        return a->format == ATTRIBUTE_COUNTER ? counter_value(link, a->value, ret) : tunable_value(link, a->value, ret);
}

/* As seq_file: a read from the start is a new look, one that goes on gets the rest of the same value. */
static void tree_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi) {
        struct open_file *file = (struct open_file *) (uintptr_t) fi->fh;
        char text[ATTRIBUTE_TEXT_BYTES];
        size_t from, n;
        int64_t value;
        int r = 0;

        pthread_mutex_lock(&file->lock);
        if (offset == 0 || !file->is_filled) {
                r = value_of(tree_of(req)->link, file->attribute, &value);
                file->is_filled = r == 0;
                if (r == 0)
                        file->size = attribute_show(file->attribute, value, file->text);
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
        struct open_file *file = (struct open_file *) (uintptr_t) fi->fh;
        char text[SYSFS_FILE_BYTES + 1];
        int r;

        size = MIN(size, (size_t) SYSFS_FILE_BYTES);
        memcpy(text, data, size);
        text[size] = 0;
        r = store(req, file->attribute, text);
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
