/* The table of fault points (common/fault.h): X(side, name, what has just happened).
 *
 * One for every step after which the death, a stop or a delay of this process leaves something else behind than the step before.
 * tests/fault/ reads the table: it does each of these at each point, and fails when a point was never reached. docs/contributing.md
 * says how to add one. */
#pragma once

#define FAULT_TABLE(X)                                                                                                 \
        /* the life of an agent */                                                                                     \
        X(AGENT, start_marked, "the process is marked as having an agent; there is no thread yet")                     \
        X(AGENT, start_thread, "the agent's thread was made, and waits for its first turn")                            \
        X(AGENT, agent_table, "the agent has a descriptor table of its own, empty")                                    \
        X(AGENT, agent_ready, "its files, memory and watchdog are there; program threads wait still")                  \
        X(AGENT, agent_running, "program threads go on; there is no daemon yet")                                       \
        X(AGENT, link_connected, "connected, HELLO not sent")                                                          \
        X(AGENT, link_hello, "HELLO sent")                                                                             \
        X(AGENT, link_welcome, "WELCOME came; no userfaultfd is open")                                                 \
        X(AGENT, contexts_opened, "the four userfaultfds are open, inherited runs not watched yet")                    \
        X(AGENT, contexts_shared, "inherited runs are watched; nothing is announced")                                  \
        X(AGENT, link_ranges, "all ranges are tracked and announced")                                                  \
        X(AGENT, link_segment, "a segment came and was taken")                                                         \
        X(AGENT, link_dropped, "a segment was forgotten because the daemon says so")                                   \
        X(AGENT, link_apply, "APPLY came, nothing done")                                                               \
        X(AGENT, link_applied, "the transition is over, APPLIED not sent")                                             \
        X(AGENT, link_answered, "APPLIED sent")                                                                        \
        X(AGENT, link_stats, "AGENT_STATS sent")                                                                       \
        X(AGENT, link_asked, "a merge on demand was asked for; its caller waits")                                      \
        X(AGENT, link_told, "MERGE_DONE came, its caller was told")                                                    \
        X(AGENT, report_sent, "a daemon that asked which segments our pages map was told of some")                     \
        X(AGENT, link_closed, "the connection is gone, segments are forgotten, callers told")                          \
        X(AGENT, request_taken, "a request of a program thread was taken, nothing done")                               \
        X(AGENT, range_noted, "a range is in the books, not tracked")                                                  \
        X(AGENT, range_tracked, "a range is tracked, not announced")                                                   \
        X(AGENT, range_restored, "a range that leaves has private pages again")                                        \
        X(AGENT, range_untracked, "a range that leaves is tracked no more; the daemon does not know")                  \
        /* merge and zero: lib/hole.c */                                                                               \
        X(AGENT, transition_locked, "the mapping lock is held")                                                        \
        X(AGENT, hole_untracked, "the span is in no userfaultfd")                                                      \
        X(AGENT, hole_armed, "the span is in the guard, its pages are all there")                                      \
        X(AGENT, hole_moving, "one UFFDIO_MOVE to scratch was made, whatever came of it")                              \
        X(AGENT, hole_exclusive, "a page that a fork had shared was made exclusive")                                   \
        X(AGENT, hole_moved, "the pages are in scratch, accesses wait")                                                \
        X(AGENT, hole_compared, "the bytes were compared")                                                             \
        X(AGENT, hole_mapped, "the segment is mapped over a run, in no userfaultfd")                                   \
        X(AGENT, hole_shared, "the run is in `shared`, its entries are empty")                                         \
        X(AGENT, hole_placed, "all equal runs are in place")                                                           \
        X(AGENT, hole_returning, "one UFFDIO_MOVE back was made")                                                      \
        X(AGENT, hole_disarmed, "what was not replaced is out of the guard, not tracked")                              \
        X(AGENT, hole_closed, "all is in its place; who waits was not woken")                                          \
        X(AGENT, hole_woken, "who waited goes on; scratch holds the old pages still")                                  \
        X(AGENT, transition_over, "the mapping lock was released")                                                     \
        /* restore: lib/freeze.c; merge and zero inside merged runs: lib/remerge.c, placing as in a hole */            \
        X(AGENT, freeze_filled, "every entry of the run is there")                                                     \
        X(AGENT, freeze_unshared, "the run is in no userfaultfd")                                                      \
        X(AGENT, freeze_armed, "the run is in the guard, not protected")                                               \
        X(AGENT, freeze_protected, "writers wait")                                                                     \
        X(AGENT, freeze_beside, "the entries of the run are in another mapping; readers wait, too")                    \
        X(AGENT, freeze_copied, "the bytes stand in memory of ours")                                                   \
        X(AGENT, freeze_compared, "the bytes of frozen pages were compared")                                           \
        X(AGENT, freeze_replaced, "a part of the run is private memory, in no userfaultfd")                            \
        X(AGENT, freeze_thawed, "a part that stays is in `shared` again")                                              \
        X(AGENT, freeze_tracked, "what was replaced is tracked; who waits was not woken")                              \
        X(AGENT, freeze_woken, "who waited goes on")                                                                   \
        X(AGENT, witness_made, "a witness was forked, nothing is frozen")                                              \
        X(AGENT, witness_gone, "a witness was reaped")                                                                 \
        X(AGENT, plain_copied, "a child without daemon has a plain copy of a run")                                     \
        /* events: lib/events.c */                                                                                     \
        X(AGENT, event_read, "a discard of merged pages was read, and its caller goes on; the book does not know")     \
        X(AGENT, event_discard, "a discard of merged pages was read and noted; its caller goes on")                    \
        X(AGENT, event_zero, "a discarded page has its zeros")                                                         \
        X(AGENT, event_fault, "an access to an absent merged page was answered")                                       \
        X(AGENT, event_waits, "an access was seen to wait for the transition")                                         \
        /* fork: lib/fork.c, in the forking thread */                                                                  \
        X(AGENT, fork_settled, "discarded pages have their zeros")                                                     \
        X(AGENT, fork_gated, "the agent keeps its books still")                                                        \
        X(AGENT, fork_locked, "the mapping lock is held, the fork comes next")                                         \
        X(AGENT, fork_parent, "back in the parent, everything let go")                                                 \
        X(AGENT, child_zeros, "child: what the parent had discarded has its zeros")                                    \
        X(AGENT, child_reset, "child: the books are its own, there is no agent")                                       \
        X(AGENT, child_started, "child: its agent runs, merged runs may not be watched")                               \
        X(AGENT, child_watched, "child: goes on, with its runs watched or copied")                                     \
        /* the daemon's life */                                                                                        \
        X(DAEMON, daemon_configured, "configuration read")                                                             \
        X(DAEMON, daemon_probed, "the kernel was examined, the userfaultfd device is open")                            \
        X(DAEMON, daemon_listening, "the socket is there, nobody accepts")                                             \
        X(DAEMON, daemon_sandboxed, "the system call filter is on, no worker runs")                                    \
        X(DAEMON, segment_adopted, "a segment of an earlier daemon is in the books, its slots are not")                \
        X(DAEMON, slots_adopted, "its slots are")                                                                      \
        X(DAEMON, daemon_ready, "all is made, the loop comes next")                                                    \
        X(DAEMON, reload_read, "the configuration was read again, nothing applied")                                    \
        X(DAEMON, reload_applied, "the new configuration holds; the service manager was not told")                     \
        X(DAEMON, stop_asked, "the loop was told to end")                                                              \
        X(DAEMON, stop_deaf, "the socket is gone, clients are connected")                                              \
        X(DAEMON, stop_alone, "all clients are disconnected, workers run")                                             \
        X(DAEMON, stop_idle, "workers have ended, segments are held")                                                  \
        X(DAEMON, stop_freed, "segments and books are gone")                                                           \
        /* connections */                                                                                              \
        X(DAEMON, accepted, "a connection was accepted, nothing made for it")                                          \
        X(DAEMON, session_made, "it is in the books")                                                                  \
        X(DAEMON, session_queued, "a frame was queued: its reader does not read")                                      \
        X(DAEMON, session_flushed, "queued frames were sent")                                                          \
        X(DAEMON, session_left, "a client is gone; the core does not know")                                            \
        X(DAEMON, hello_come, "HELLO came, nothing done")                                                              \
        X(DAEMON, hello_held, "pagemap, mem and pidfd of the process are held")                                        \
        X(DAEMON, hello_known, "the core knows the client, WELCOME not sent")                                          \
        X(DAEMON, welcomed, "WELCOME sent")                                                                            \
        X(DAEMON, client_parked, "a client that does not answer was parked, or one that does again was not")           \
        X(DAEMON, client_freed, "the core and everybody else forgot a client")                                         \
        X(DAEMON, ping_sent, "PING sent")                                                                              \
        X(DAEMON, pong_come, "PONG came")                                                                              \
        X(DAEMON, stats_come, "AGENT_STATS came")                                                                      \
        X(DAEMON, ranges_come, "ranges were added, removed or forgotten")                                              \
        X(DAEMON, runs_come, "what an agent reported of its runs is in the books")                                     \
        X(DAEMON, merge_asked, "a merge on demand is with the core")                                                   \
        X(DAEMON, merge_told, "MERGE_DONE sent")                                                                       \
        X(DAEMON, admin_asked, "an administrator's merge or unmerge is with the core")                                 \
        X(DAEMON, admin_told, "ADMIN_DONE sent")                                                                       \
        X(DAEMON, tunable_set, "a tunable was changed")                                                                \
        /* scan, read, publish, apply */                                                                               \
        X(DAEMON, job_started, "a job was handed to the workers")                                                      \
        X(DAEMON, scan_walked, "worker: pages are protected again, what was written is known to it alone")             \
        X(DAEMON, scan_known, "the core knows")                                                                        \
        X(DAEMON, read_hashed, "worker: pages were read and hashed")                                                   \
        X(DAEMON, read_known, "the core knows")                                                                        \
        X(DAEMON, segment_made, "a segment's memory was made, not sealed against writing")                             \
        X(DAEMON, segment_opened, "it is sealed but for our mapping, the fd for clients is open")                      \
        X(DAEMON, segment_kept, "the service manager holds its fd too; the books do not know it")                      \
        X(DAEMON, publish_written, "worker: slots are written and hashed, not yet live")                               \
        X(DAEMON, publish_live, "the core knows them")                                                                 \
        X(DAEMON, segment_unmapped, "worker: our mapping of a full segment is gone, the last seal missing")            \
        X(DAEMON, segment_sealed, "worker: the last seal is on")                                                       \
        X(DAEMON, segment_sent, "SEGMENT sent, APPLY not")                                                             \
        X(DAEMON, apply_sent, "APPLY sent")                                                                            \
        X(DAEMON, applied_come, "APPLIED came, the core does not know")                                                \
        X(DAEMON, applied_known, "the core knows")                                                                     \
        X(DAEMON, segment_dropped, "clients were told to forget a segment; it is held still")                          \
        X(DAEMON, segment_freed, "worker: its memory was let go")                                                      \
        /* Calls that can be made to fail: the agent's through lib/sys.h, the daemon's by tests/fault/exhaust.c. */    \
        X(CALL, sys_mmap, "agent")                                                                                     \
        X(CALL, sys_munmap, "agent")                                                                                   \
        X(CALL, sys_mprotect, "agent")                                                                                 \
        X(CALL, sys_mremap, "agent")                                                                                   \
        X(CALL, sys_madvise, "agent")                                                                                  \
        X(CALL, sys_ioctl, "agent: what is not named below")                                                           \
        X(CALL, uffd_open, "agent")                                                                                    \
        X(CALL, uffd_register, "agent")                                                                                \
        X(CALL, uffd_unregister, "agent")                                                                              \
        X(CALL, uffd_move, "agent")                                                                                    \
        X(CALL, uffd_fill, "agent: UFFDIO_CONTINUE, UFFDIO_ZEROPAGE, UFFDIO_COPY")                                     \
        X(CALL, uffd_protect, "agent")                                                                                 \
        X(CALL, sys_look, "agent: PAGEMAP_SCAN")                                                                       \
        X(CALL, sys_read, "agent")                                                                                     \
        X(CALL, sys_pread, "agent")                                                                                    \
        X(CALL, sys_open, "agent")                                                                                     \
        X(CALL, sys_thread, "agent: pthread_create")                                                                   \
        X(CALL, malloc, "daemon: malloc, calloc, realloc")                                                             \
        X(CALL, mmap, "daemon")                                                                                        \
        X(CALL, memfd_create, "daemon")                                                                                \
        X(CALL, ftruncate, "daemon")                                                                                   \
        X(CALL, fchmod, "daemon")                                                                                      \
        X(CALL, fcntl, "daemon")                                                                                       \
        X(CALL, open, "daemon: open, openat")                                                                          \
        X(CALL, ioctl, "daemon")                                                                                       \
        X(CALL, pread, "daemon: pread, preadv, process_vm_readv")                                                      \
        X(CALL, pwrite, "daemon")                                                                                      \
        X(CALL, sendmsg, "daemon")                                                                                     \
        X(CALL, recvmsg, "daemon")                                                                                     \
        X(CALL, accept, "daemon")                                                                                      \
        X(CALL, socket, "daemon: socket, socketpair, eventfd, epoll_create1")                                          \
        X(CALL, pthread_create, "daemon")
