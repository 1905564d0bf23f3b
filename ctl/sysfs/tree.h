/* The file system: libfuse's low-level operations over the tables of attributes and domains' files, and the daemon.
 *
 * Nothing is cached: each read from offset 0 asks the daemon, each write returns what the daemon answered. Permissions are the
 * kernel's to check (mount option default_permissions), but for one that it does not: not even root opens a read-only file for writing. */
#pragma once

#include <sys/types.h>
#include <time.h>

#include "ctl/sysfs/fuse.h"
#include "ctl/sysfs/link.h"

struct tree {
        struct link *link;
        uid_t uid; /* owner of the files: who may write */
        gid_t gid;
        struct timespec started;
        pthread_mutex_t lock;
        struct open_file *files; /* what a mount that ends has not closed */
};

void tree_init(struct tree *t, struct link *link);
void tree_done(struct tree *t); /* after the session */

extern const struct fuse_lowlevel_ops tree_operations; /* userdata: struct tree */
