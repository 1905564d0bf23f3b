/* Takes away the system calls that a running daemon has no use for. */
#pragma once

/* Installs the allow-list (libseccomp) for the calling thread and all that it starts: call before the workers. Anything
 * else kills the process at once (SCMP_ACT_KILL_PROCESS, audited by the kernel): the clients keep their memory as it is,
 * and a daemon that does what it never does is not to be trusted with going on. 0 or -errno. */
int sandbox_enter(void);
