/* NUMA nodes: where a page is, where pages of ours shall go, and whether the kernel has moved any.
 *
 * All of it is a hint, for the books of merge_across_nodes=0: the kernel may migrate a page the moment after it was asked, and nobody's
 * bytes depend on the answer. Raw system calls; a kernel without CONFIG_NUMA answers -ENOSYS. Any thread, but see numa_nodes.
 *
 * The rules: Linux mm/migrate.c (move_pages), mm/mempolicy.c (mbind), mm/vmstat.c; docs/kernel.md, "NUMA nodes", has them as tests. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* What numa_nodes asks about with one system call: 6 KiB of its caller's stack. */
#define NUMA_CALL_PAGES 512

/* The node of each page (page numbers: address >> 12) of process pid, 0: of this one. ret_nodes[i]: 0 and up; -ENOENT: nothing is there
 * now (a hole, swapped out, a page in transition); -EFAULT: no mapping, or the zero page, which is no node's.
 *
 * Nothing is moved and no fault is taken, so it waits for no userfaultfd and no file system. It does take the process's mmap lock for
 * reading, 16 pages at a time and not even killable: like process_vm_readv it is for worker threads, since the owner chooses how long
 * that lock is held. 0.1 to 0.2 us a page.
 *
 * Of another process it takes what reading its /proc/PID/maps takes (PTRACE_MODE_READ_REALCREDS): the same user, as whom it is dumpable,
 * or CAP_SYS_PTRACE; and the LSM's consent (task_movememory). A daemon with a user of its own and no capability gets -EPERM for everybody,
 * and there only the process itself can tell. By pid, not by mm: who asks between two looks at the pidfd knows that it was the process
 * that he meant, though after an exec it is the new program.
 *
 * 0, or -errno with ret_nodes holding anything: -ESRCH, -EPERM, -ENOSYS. */
int numa_nodes(pid_t pid, const uint64_t *pages, size_t n_pages, int16_t *ret_nodes);

/* Pages of this mapping that do not exist yet shall come from the node, whichever CPU touches them first. Of a memfd mapped shared it is
 * the file's own policy: it holds for every mapping of it and for write(2), and goes with the file.
 *
 * A preference (MPOL_PREFERRED): where the node has no free memory the page comes from the nearest that has. MPOL_BIND would have the
 * kernel reclaim on that one node and then kill somebody for it, while the machine has memory elsewhere. So the answer is numa_nodes
 * after the copy. (Besides, whoever maps the file, be it private and of a read-only fd, can give it another policy.)
 *
 * 0 or -errno; -EINVAL: the node is not there, has no memory, or is not in this process's cpuset. */
int numa_bind(void *start, size_t bytes, int node);

/* How many nodes have memory: 1 where the kernel does not say. Nodes come and go with memory hotplug. */
unsigned numa_count(void);

/* /proc/vmstat, for numa_migrations: opened once, for a reader that a sandbox keeps from opening. fd or -errno. */
int numa_open_vmstat(void);
/* How many pages the kernel has migrated since boot, machine-wide, whatever for: between nodes (balancing, move_pages, migrate_pages,
 * demotion, a changed cpuset) and inside one (compaction). Where it has not grown no page has changed its node, but for what a process
 * replaced by writing. Sums over all CPUs: 20 us and more. 0 or -errno; -EBADMSG: this kernel migrates nothing. */
int numa_migrations(int vmstat_fd, uint64_t *ret);

/* The same of the files' texts: a list like "0-1,4"; of a text that is none, -EBADMSG. */
int numa_parse_list(const char *text, unsigned *ret_count);
int numa_parse_vmstat(const char *text, uint64_t *ret);
