/* /dev/userfaultfd for tests. Included after cmocka.h. */
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <string.h>

/* The test is skipped where it may not be opened. */
static inline int open_device(void) {
        int fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
        if (fd < 0) {
                print_message("skipped: /dev/userfaultfd: %s\n", strerror(errno));
                skip();
        }
        return fd;
}
