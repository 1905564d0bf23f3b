/* Inside the agent thread: its loop's parts that other files of lib/ call. */
#pragma once

#include "lib/mailbox.h"
#include "lib/state.h"
#include "lib/vma.h"

/* serve.c */
void agent_consume_notes(struct agent *a);
void serve_mailbox(struct agent *a);

/* registry.c, contexts.c */
/* Registers [start, end) with the track context as far as the kernel lets; part of ranges. 0 or -errno. */
int agent_track(struct agent *a, uint64_t start, uint64_t end);
/* Opens the four contexts and scratch on first use, then puts every range under tracking and every inherited merged run
 * under `shared`. device_fd is the caller's. 0 or -errno. */
int agent_open_contexts(struct agent *a, int device_fd);
void agent_close_contexts(struct agent *a); /* what is merged stays merged, unheard */

/* registry.c: requests on ranges */
int registry_register(struct agent *a, uint64_t start, uint64_t end, bool strict);
int registry_unregister(struct agent *a, uint64_t start, uint64_t end, bool strict);
int registry_exclude(struct agent *a, uint64_t start, uint64_t end);
int registry_release(struct agent *a, uint64_t start, uint64_t end);
void registry_forget(struct agent *a, uint64_t start, uint64_t end); /* unmapped by the program */
void registry_move(struct agent *a, uint64_t start, uint64_t end, uint64_t to, uint64_t to_end, bool keep); /* mremap */
int registry_retrack(struct agent *a);
/* Adds what is eligible of the VMA's part in [start, end). */
int registry_add_vma(struct agent *a, const struct vma *v, uint64_t start, uint64_t end);
/* The registered part of a mapping that may be a new one. */
void registry_track_again(struct agent *a, const struct vma *v);
int registry_read_special(struct agent *a);

/* discover.c: merge-any */
void discover_step(struct agent *a, uint64_t now);
void discover_anew(struct agent *a); /* the next step walks */
void discover_stop(struct agent *a);
uint32_t count_vmas(struct agent *a);

/* events.c */
/* Gives the removed pages of a block (base: its address) that are still empty their zeros. False: a discard under way kept
 * the context busy for too long. */
bool events_zero_removed(struct agent *a, uint64_t base, uint64_t mask);
void events_note_empty(struct agent *a, uint64_t start, uint64_t end); /* pages there are to be given zeros soon */
void events_prepare_fork(struct agent *a);
bool events_settle_discards(struct agent *a); /* false: more to do soon */

/* link.c: the connection to the daemon */
void link_step(struct agent *a, uint64_t now);    /* connects when it is time, sends stats */
void link_readable(struct agent *a);              /* handles frames */
void link_close(struct agent *a);
void link_send_ranges(struct agent *a, enum message_type type, const struct interval *v, uint32_t n);
int link_request_merge(struct agent *a, uint32_t cookie, uint64_t start, uint64_t length);
/* False: the connection is closed, or was. */
bool link_send(struct agent *a, enum message_type type, const void *body, const void *elements, uint32_t count);
uint64_t link_next_usec(const struct agent *a);

/* nodes.c: NUMA nodes of our pages, for a daemon that may not ask the kernel about them */
bool nodes_can_be_told(struct agent *a);
bool nodes_answer(struct agent *a, const struct frame *f); /* false: the connection is closed */

/* report.c: runs from before this connection */
void report_begin(struct agent *a);
void report_step(struct agent *a, uint64_t now);
