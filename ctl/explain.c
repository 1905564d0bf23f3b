#include "ctl/explain.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "ctl/render.h"

int admin_explain_connect(const struct ctl *ctl, const struct admin *a, int error) {
        const char *path = ctl->socket_path;

        switch (-error) {
        case EKEYREJECTED:
        case ETIMEDOUT:
        case EPROTO:
        case ECONNRESET:
                return admin_explain(ctl, a, error, "connecting");
        case ENOENT:
        case ENOTDIR:
                complain("no daemon: there is no socket %s. Start one with 'systemctl start userksmd.socket' "
                         "(installed) or "
                         "'userksmd --socket %s'; 'ksmctl run' brings its own.",
                         path, path);
                return STATUS_UNAVAILABLE;
        case ECONNREFUSED:
                complain("no daemon: nobody listens at %s. It was not started, or it ended ('systemctl status "
                         "userksmd' or "
                         "its log says why). Programs that it served keep running, and connect again when it is back.",
                         path);
                return STATUS_UNAVAILABLE;
        case EACCES:
        case EPERM:
                complain("not allowed to connect to %s: %s. See 'ls -l' of the socket and of its directory: the "
                         "installed "
                         "one is open to the group userksm and to root.",
                         path, strerror(-error));
                return STATUS_NOPERM;
        case EPROTOTYPE:
                complain("%s is a socket of another kind: not userksmd's", path);
                return STATUS_UNAVAILABLE;
        case EINVAL:
        case ENAMETOOLONG:
                complain("'%s' cannot be the path of a socket: %s", path, strerror(-error));
                return STATUS_USAGE;
        default:
                complain("cannot connect to %s: %s", path, strerror(-error));
                return STATUS_UNAVAILABLE;
        }
}

int admin_explain(const struct ctl *ctl, const struct admin *a, int error, const char *doing) {
        switch (-error) {
        case EKEYREJECTED:
                complain("%s: the daemon refused: %.*s (%s)", doing, (int) sizeof(a->refused.reason), a->refused.reason,
                         strerror(a->refused.error));
                return a->refused.error == EPROTO || a->refused.error == EPROTONOSUPPORT ? STATUS_PROTOCOL :
                                                                                            STATUS_NOPERM;
        case ETIMEDOUT:
                complain("%s: the daemon at %s did not answer for %d s. It hangs or is stopped; its watchdog or "
                         "'systemctl restart userksmd' ends that. Programs are not held up by it.",
                         doing, ctl->socket_path, ADMIN_TIMEOUT_MSEC / 1000);
                return STATUS_UNAVAILABLE;
        case ECONNRESET:
        case EPIPE:
                complain("%s: the daemon at %s closed the connection: it ended, or speaks another version (this is "
                         "protocol %d). Its log says which.",
                         doing, ctl->socket_path, PROTO_VERSION);
                return STATUS_UNAVAILABLE;
        case EPROTO:
                complain("%s: the answer of %s is not of protocol version %d: ksmctl and userksmd are of different "
                         "builds",
                         doing, ctl->socket_path, PROTO_VERSION);
                return STATUS_PROTOCOL;
        case EPERM:
        case EACCES:
                complain("%s: only root and the daemon's own user may do this", doing);
                return STATUS_NOPERM;
        case ESRCH:
                complain("%s: no such process is connected to the daemon ('ksmctl status' lists them)", doing);
                return STATUS_NO_PROCESS;
        case ENOENT:
                complain("%s: nothing is registered there ('ksmctl status PID --ranges' lists what is)", doing);
                return STATUS_FAILED;
        case EOPNOTSUPP:
                complain("%s: the process changes its mappings by system calls without libc and is left alone; what is "
                         "merged "
                         "there stays exact",
                         doing);
                return STATUS_FAILED;
        case ENOMEM:
                complain("%s: not enough memory, or no room under a limit; what was not done is as it was", doing);
                return STATUS_FAILED;
        default:
                complain("%s: %s", doing, strerror(-error));
                return STATUS_FAILED;
        }
}

int explain_headroom(const struct msg_admin_done *done, const char *doing) {
        char needed[TEXT_BYTES], left[TEXT_BYTES], where[64] = "";

        if (done->pid)
                snprintf(where, sizeof(where), " in the control group of process %u", done->pid);
        complain("%s: refused, the private copies would take %s, and %s can be had%s. Nothing was changed; --force does it all the same.",
                 doing, format_pages(needed, (int64_t) done->pages), format_pages(left, (int64_t) done->left), where);
        return STATUS_FAILED;
}

int admin_open(const struct ctl *ctl, struct admin *a) {
        int r = admin_connect(a, ctl->socket_path);

        return r == 0 ? STATUS_OK : admin_explain_connect(ctl, a, r);
}
