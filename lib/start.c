/* Starting the agent, from a program thread; and what all threads may ask about it. */
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/single_threaded.h>

#include "lib/agent.h"
#include "lib/agent_start.h"
#include "lib/mailbox.h"
#include "lib/maplock.h"
#include "lib/notes.h"
#include "lib/sys.h"
#include "proto/messages.h"
#include "common/cleanup.h"
#include "common/fault.h"

static struct agent_control control;
__thread bool agent_making_thread __attribute__((tls_model("initial-exec")));

/* The writable data of every shared object: libc's and this library's are the agent's own memory, and libc unmaps the others
 * (dlclose) by calls of its own. The program itself may be merged. */
static int note_object(struct dl_phdr_info *info, size_t size, void *userdata) {
        bool *first = userdata;
        if (*first) { /* the program: always first */
                *first = false;
                return 0;
        }
        for (unsigned i = 0; i < info->dlpi_phnum; i++) {
                const ElfW(Phdr) *p = &info->dlpi_phdr[i];
                if (p->p_type != PT_LOAD || !(p->p_flags & PF_W))
                        continue;
                uint64_t start = (info->dlpi_addr + p->p_vaddr) & ~(KSM_PAGE_SIZE - 1);
                uint64_t end = (info->dlpi_addr + p->p_vaddr + p->p_memsz + KSM_PAGE_SIZE - 1) & ~(KSM_PAGE_SIZE - 1);
                notes_put((struct note) { .kind = NOTE_EXCLUDE, .start = start, .end = end });
        }
        return 0;
}

void agent_note_objects(void) {
        bool first = true;
        (void) dl_iterate_phdr(note_object, &first);
}

static int create_thread(void) {
        sigset_t all, old;
        pthread_attr_t attr;
        pthread_t thread;
        sigfillset(&all);
        control.stack = own_alloc(AGENT_STACK_BYTES);
        if (!control.stack)
                return -EAGAIN;
        pthread_attr_init(&attr);
        pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
        int r = pthread_attr_setstack(&attr, control.stack, AGENT_STACK_BYTES);
        if (r == 0) {
                pthread_sigmask(SIG_SETMASK, &all, &old);
                agent_making_thread = true;
                control.made_by_leader = sys_call(SYS_gettid, 0, 0, 0, 0, 0, 0) == sys_call(SYS_getpid, 0, 0, 0, 0, 0, 0);
                r = fault_call(FAULT_sys_thread) ? EAGAIN : pthread_create(&thread, &attr, agent_main, NULL);
                agent_making_thread = false;
                pthread_sigmask(SIG_SETMASK, &old, NULL);
        }
        pthread_attr_destroy(&attr);
        if (r != 0) {
                own_free(control.stack, AGENT_STACK_BYTES);
                control.stack = NULL;
                return -EAGAIN;
        }
        return 0;
}

static void wait_for_state(uint32_t state, uint64_t deadline_usec) {
        uint32_t s;
        while ((s = atomic_load(&control.state)) < state && s != AGENT_FAILED) {
                uint64_t now = now_usec();
                if (deadline_usec && now >= deadline_usec)
                        return;
                uint64_t left = deadline_usec ? deadline_usec - now : 0;
                struct timespec ts = { (time_t) (left / 1000000), (long) (left % 1000000 * 1000) };
                (void) sys_futex_wait(&control.state, s, deadline_usec ? &ts : NULL);
        }
}

void control_set_state(struct agent_control *c, uint32_t state) {
        atomic_store(&c->state, state);
        (void) sys_futex_wake(&c->state, INT32_MAX);
}

static int take_path(const char *socket_path) {
        if (!socket_path)
                socket_path = getenv("USERKSM_SOCKET");
        if (!socket_path || !*socket_path)
                socket_path = SOCKET_DEFAULT;
        if (strlen(socket_path) >= sizeof(control.path))
                return -ENAMETOOLONG;
        memmove(control.path, socket_path, strlen(socket_path) + 1);
        return 0;
}

static void *map_faults(const char *path, size_t length) {
        long fd = sys_open(path, O_RDWR | O_CLOEXEC);
        if (fd < 0)
                return NULL;
        long p = sys_mmap(0, length, PROT_READ | PROT_WRITE, MAP_SHARED, (int) fd, 0);
        sys_close((int) fd);
        return sys_is_error(p) ? NULL : (void *) p;
}

/* Once; a forked child inherits it. */
static void arm_faults(void) {
        if (!fault_page)
                (void) fault_arm(secure_getenv("USERKSM_FAULT"), map_faults);
}

static pthread_once_t atfork_once = PTHREAD_ONCE_INIT;

int agent_start(const char *socket_path, unsigned flags) {
        uint32_t expected = AGENT_NONE;
        if (atomic_load(&control.state) == AGENT_RETIRED)
                return -EAGAIN;
        if (!fork_same_process(&control))
                agent_fork_child();
        if (!atomic_compare_exchange_strong(&control.state, &expected, AGENT_STARTING)) {
                wait_for_state(AGENT_RUNNING, 0);
                if (flags & HELLO_MERGE_ANY && agent_running()) {
                        struct request r = { .kind = REQUEST_MERGE_ANY, .start = 1 };
                        return mailbox_call(&r, 0);
                }
                return agent_running() ? 0 : -EAGAIN;
        }
        int r = take_path(socket_path);
        if (r < 0) {
                control_set_state(&control, AGENT_NONE);
                return r;
        }
        arm_faults();
        control.flags = flags;
        r = fork_mark_process(&control);
        if (r < 0) {
                control_set_state(&control, AGENT_NONE);
                return r;
        }
        fault_point(FAULT_start_marked);
        /* A forked child has inherited them; ld.so's lock may be held for ever there. */
        if (!control.objects_noted)
                agent_note_objects();
        control.objects_noted = true;
        pthread_once(&atfork_once, fork_register);
        if (__libc_single_threaded)
                (void) map_lock_init(); /* while it is for nothing; tried again with the contexts, which says what is wrong */
        r = create_thread();
        if (r < 0) {
                control_set_state(&control, AGENT_NONE);
                return r;
        }
        fault_point(FAULT_start_thread);
        wait_for_state(AGENT_RUNNING, 0);
        return agent_running() ? 0 : -EAGAIN;
}

bool agent_running(void) {
        return atomic_load(&control.state) == AGENT_RUNNING && fork_same_process(&control);
}

bool agent_merge_any(void) {
        return control.flags & HELLO_MERGE_ANY;
}

struct agent_control *agent_control(void) {
        return &control;
}
