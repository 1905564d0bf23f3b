/* ksmprctl CMD...: runs a program whose private anonymous memory kernel KSM may merge (PR_SET_MEMORY_MERGE, inherited
 * over exec since Linux 6.4). The kernel's counterpart of `ksmctl run`, for comparison only. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sysexits.h>
#include <unistd.h>

#include "common/uapi.h"

int main(int argc, char **argv) {
        if (argc < 2) {
                (void) fprintf(stderr, "usage: ksmprctl CMD...\n");
                return EX_USAGE;
        }
        if (prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0) < 0) {
                (void) fprintf(stderr, "ksmprctl: PR_SET_MEMORY_MERGE: %s\n", strerror(errno));
                return EX_UNAVAILABLE;
        }
        (void) execvp(argv[1], argv + 1);
        (void) fprintf(stderr, "ksmprctl: %s: %s\n", argv[1], strerror(errno));
        return 127;
}
