/* What is in the tree: inodes, their names, attributes and texts. Nothing is kept: each question about a domain or a process, and each
 * value, is asked of the daemon. Errors: -errno, -EIO without a daemon. */
#pragma once

#include <sys/stat.h>

#include "ctl/sysfs/attribute.h"
#include "ctl/sysfs/domain.h"
#include "ctl/sysfs/process.h"
#include "ctl/sysfs/tree.h"

/* What sysfs says of the size of each file, and the most that one write hands to a store function; the rest is another write's. */
#define SYSFS_FILE_BYTES 4096

/* Inodes: the root directory, the attributes behind it; a domain's directory has its id in the upper half and 0 in the lower, its
 * files their number from 1 on; no domain has the id 0. Those of processes have PROCESS_FLAG besides; process 0 is the directory of all. */
#define INO_FIRST (FUSE_ROOT_ID + 1)
#define OWNER_SHIFT 32
#define PROCESS_FLAG (UINT64_C(1) << 31)
#define PROCESS_INO PROCESS_FLAG

static inline fuse_ino_t domain_ino(uint32_t domain, unsigned file) {
        return (fuse_ino_t) domain << OWNER_SHIFT | file;
}

static inline fuse_ino_t process_ino(uint32_t pid, unsigned file) {
        return (fuse_ino_t) pid << OWNER_SHIFT | PROCESS_FLAG | file;
}

static inline bool is_process(fuse_ino_t ino) {
        return ino & PROCESS_FLAG;
}

/* 0: no domain's. */
static inline uint32_t ino_domain(fuse_ino_t ino) {
        return is_process(ino) ? 0 : (uint32_t) (ino >> OWNER_SHIFT);
}

static inline uint32_t ino_pid(fuse_ino_t ino) {
        return (uint32_t) (ino >> OWNER_SHIFT);
}

/* Of a domain or a process: 0 is the directory. */
static inline unsigned ino_file(fuse_ino_t ino) {
        return (unsigned) (ino & (PROCESS_FLAG - 1));
}

/* NULL: no file of the kernel's. */
static inline const struct attribute *ino_attribute(fuse_ino_t ino) {
        return ino >= INO_FIRST && ino - INO_FIRST < ATTRIBUTE_MAX_ ? &attribute_table[ino - INO_FIRST] : NULL;
}

int node_find(const struct tree *t, fuse_ino_t parent, const char *name, fuse_ino_t *ret);
/* By the form of the inode alone, but for the owner of a process's file. */
int node_stat(const struct tree *t, fuse_ino_t ino, struct stat *ret);
/* -ENOENT when the domain is gone. */
int node_exists(const struct tree *t, fuse_ino_t ino);

/* Room for any file's text. */
#define NODE_TEXT_BYTES PROCESS_TEXT_BYTES
/* Length of the text. -EACCES: the process is not the reader's (any more). */
int node_text(const struct tree *t, fuse_ino_t ino, uid_t reader, char text[NODE_TEXT_BYTES]);
