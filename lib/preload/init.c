/* The shim's start: looks the real functions up, and starts the agent when the whole process is to be merged
 * (USERKSM_MERGE_ANY, set by `ksmctl run`) or, later, at the first merge advice. Nothing else happens here: a program
 * that never asks for merging gets no thread, no fd and no mapping from us.
 *
 *  USERKSM_SOCKET     socket of the daemon (default: lib/userksm.h)
 *  USERKSM_MERGE_ANY  1: merge every eligible mapping
 *  USERKSM_DISABLE    1: pass everything on; merge advice goes to the kernel
 *  USERKSM_RULES_DIR  directory of rules (default: common/rules.h); empty: none
 *
 * The first of these that speaks decides: USERKSM_DISABLE; a rule that says off; USERKSM_MERGE_ANY or a rule that says merge-any; else
 * the program's own advice is followed. So nobody's wish not to be merged is overruled, neither that of who starts the program nor
 * that of who looks after the machine. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/un.h>

#include "lib/preload/preload.h"

static bool enabled;
static char socket_path[sizeof(((struct sockaddr_un *) NULL)->sun_path)];

static bool env_is_set(const char *name) {
        const char *value = getenv(name);
        return value && *value && strcmp(value, "0") != 0;
}

static enum rule_action ask_rules(void) {
        const char *directory = getenv(RULES_DIRECTORY_ENV);
        if (!directory)
                directory = RULES_DIRECTORY;
        return *directory ? shim_rules(directory) : RULE_NONE;
}

bool shim_enabled(void) {
        return enabled;
}

int shim_start_agent(bool merge_any) {
        if (!merge_any && agent_running())
                return 0;
        unsigned flags = HELLO_SHIM | (merge_any ? HELLO_MERGE_ANY : 0);
        unsigned depth = request_begin();
        int r = agent_start(socket_path[0] ? socket_path : NULL, flags);
        request_end(depth);
        return r;
}

__attribute__((constructor)) static void shim_init(void) {
        int saved = errno;
        real_resolve_all();
        syscall_route_init();
        thread_count_init();
        /* Gives the main thread its word of the mapping lock before any vfork can share it. */
        map_enter();
        map_leave();
        /* A setuid program's memory is not ours to hand out; it also must not trust its environment. */
        enabled = !getauxval(AT_SECURE) && !env_is_set("USERKSM_DISABLE");
        enum rule_action rule = enabled ? ask_rules() : RULE_NONE;
        if (rule == RULE_OFF)
                enabled = false;
        const char *path = getenv("USERKSM_SOCKET");
        if (path && strlen(path) < sizeof(socket_path))
                strcpy(socket_path, path);
        if (enabled && (rule == RULE_MERGE_ANY || env_is_set("USERKSM_MERGE_ANY")))
                (void) shim_start_agent(true); /* without it the program runs as it is */
        errno = saved;
}
