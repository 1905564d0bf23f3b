/* Start, state and fork of the agent: shared by start.c, agent.c and fork.c. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "lib/sys.h"

/* The agent's frames are small; what counts is the program's static TLS, which glibc places in the stack too. */
#define AGENT_STACK_BYTES ((512U << 10) + STACK_EXTRA_BYTES)
#define SOCKET_DEFAULT "/run/userksm/userksm.sock"

enum agent_state { AGENT_NONE, AGENT_STARTING, AGENT_RUNNING, AGENT_RETIRED, AGENT_FAILED };

struct agent_control {
        _Atomic uint32_t state; /* enum agent_state; futex word */
        _Atomic uint32_t gate;  /* GATE_WORKING | forks under way; futex word */
        _Atomic uint32_t readings; /* of events, begun and ended; odd: some are perhaps not yet in the book (fork_log.h) */
        struct fork_log *log;
        _Atomic uint32_t ready; /* 1: contexts are open; futex word */
        _Atomic uint32_t fork_pending; /* a forked child that has no agent yet though its parent had one */
        char path[108]; /* of sun_path */
        uint32_t flags; /* hello_flags of the parent, for a forked child's agent */
        void *stack;
        bool objects_noted;
        bool made_by_leader; /* the agent's thread, by the process's first */
        _Atomic uint32_t *alive; /* 1 in a page that fork wipes: 0 in a child that no handler told about the fork */
};
#define GATE_WORKING 0x80000000U

struct agent_control *agent_control(void);
void *agent_main(void *userdata);
void agent_reset_in_child(bool libc_knows); /* libc_knows: fork went through libc, which forgot the other threads */
void fork_register(void); /* pthread_atfork */
int fork_mark_process(struct agent_control *c);
/* In a forked child without contexts: replaces what [start, end) maps of segments by zeros. 0 or -errno. */
int fork_child_discard(int maps_fd, uint64_t start, uint64_t end);
/* The same where the parent discarded pages and they have no zeros yet. */
void fork_child_zeros(void);
bool fork_same_process(const struct agent_control *c);

void control_set_state(struct agent_control *c, uint32_t state);
/* The agent: false while a fork is under way. */
bool control_enter(struct agent_control *c);
void control_leave(struct agent_control *c);
void control_ready(struct agent_control *c);
