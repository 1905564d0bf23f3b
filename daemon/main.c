#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "common/fault.h"
#include "common/kernel.h"
#include "common/log.h"
#include "daemon/config.h"
#include "daemon/manager.h"

/* Names the first thing missing. 0 or an exit status. */
static int preflight(void) {
        struct kernel_info info;
        char text[512];
        int r = kernel_probe(&info);
        if (r < 0) {
                log_errno(r, "cannot examine the kernel");
                return EXIT_STATUS_OS;
        }
        const struct kernel_check *missing = kernel_first_missing(&info);
        if (missing) {
                log_error("userksmd cannot run here: %s", kernel_check_text(missing, text, sizeof(text)));
                return EXIT_STATUS_UNAVAILABLE;
        }
        for (int i = 0; i < KERNEL_CHECK_MAX_; i++)
                if (info.checks[i].need == KERNEL_OPTIONAL && info.checks[i].status != KERNEL_OK)
                        log_info("%s", kernel_check_text(&info.checks[i], text, sizeof(text)));
        return 0;
}

/* Opened before the sandbox and for the whole life: its fd goes to every agent. -1: logged. */
static int open_uffd_device(void) {
        int fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
        if (fd < 0)
                log_errno(errno, "/dev/userfaultfd");
        return fd;
}

static void *map_faults(const char *path, size_t length) {
        int fd = open(path, O_RDWR | O_CLOEXEC);
        void *p = fd < 0 ? MAP_FAILED : mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        close_fd(fd);
        return p == MAP_FAILED ? NULL : p;
}

/* Who may set our environment starts us, and could as well not. An operator must see it all the same. */
static int arm_faults(void) {
        const char *specification = secure_getenv("USERKSM_FAULT");
        int r = fault_arm(specification, map_faults);
        if (r < 0)
                log_errno(r, "USERKSM_FAULT=%s", specification);
        else if (fault_page)
                log_warning("USERKSM_FAULT=%s: this daemon is under test and will fail on purpose", specification);
        return r;
}

int main(int argc, char **argv) {
        struct config config;
        struct config_error error;
        struct manager *manager;

        int status = config_load(&config, argc, argv, &error);
        if (status) {
                log_error("userksmd: %s", error.text);
                return status;
        }
        if (config.show_help) {
                config_print_help();
                return EXIT_STATUS_OK;
        }
        if (config.show_version) {
                printf("userksmd " USERKSM_VERSION "\n");
                return EXIT_STATUS_OK;
        }
        log_set_max_level((int) config.log_level);
        /* A log reader that went away must not take the daemon with it; sockets are written with MSG_NOSIGNAL. */
        (void) signal(SIGPIPE, SIG_IGN);

        if (arm_faults() < 0)
                return EXIT_STATUS_USAGE;
        fault_point(FAULT_daemon_configured);
        status = preflight();
        if (status)
                return status;
        int uffd_device = open_uffd_device();
        if (uffd_device < 0)
                return EXIT_STATUS_UNAVAILABLE;
        fault_point(FAULT_daemon_probed);
        if (manager_new(&config, argc, argv, uffd_device, &manager) < 0)
                return EXIT_STATUS_OS;
        int r = manager_run(manager);
        manager_free(manager);
        return r < 0 ? EXIT_STATUS_OS : EXIT_STATUS_OK;
}
