/* Preloaded into the daemon: its calls of libc fail when the test orders it (the CALL rows of common/fault_points.h).
 *
 * Not those for memory that others make who do not survive it: without memory for its tables libuv ends the process, by design;
 * glibc's getgrnam dies; libseccomp loads a filter that is cut short, which kills at the next call. Not those before the order's page is mapped. A function that fails does nothing and sets errno; any other
 * call goes to the kernel, or to glibc's allocator, at once: dlsym would allocate. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/fault.h"

#define EXPORT __attribute__((visibility("default")))

#define SPARED 3U
static struct library {
        const char *name;
        uintptr_t start, end;
} spared[SPARED] = { { .name = "/libuv." }, { .name = "/libc." }, { .name = "/libseccomp." } };

static int find_spared(struct dl_phdr_info *info, size_t size, void *unused) {
        for (struct library *l = spared; l < spared + SPARED; l++) {
                if (!strstr(info->dlpi_name, l->name))
                        continue;
                l->start = info->dlpi_addr;
                for (unsigned i = 0; i < info->dlpi_phnum; i++)
                        if (info->dlpi_phdr[i].p_type == PT_LOAD)
                                l->end = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr + info->dlpi_phdr[i].p_memsz;
        }
        return 0;
}

static void *map_page(const char *path, size_t length) {
        int fd = (int) syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
        void *p = (void *) syscall(SYS_mmap, NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0L);
        (void) syscall(SYS_close, fd);
        return p == MAP_FAILED ? NULL : p;
}

__attribute__((constructor)) static void arm(void) {
        (void) dl_iterate_phdr(find_spared, NULL);
        if (fault_arm(getenv("USERKSM_FAULT"), map_page) < 0)
                _exit(126);
}

static bool fails(enum fault_id id) {
        int r = fault_call(id);
        if (r < 0)
                errno = -r;
        return r < 0;
}

/* -- memory ------------------------------------------------------------------------------------------------------------- */

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t size);

static bool allocation_fails(const void *caller) {
        for (const struct library *l = spared; l < spared + SPARED; l++)
                if ((uintptr_t) caller >= l->start && (uintptr_t) caller < l->end)
                        return false;
        return fails(FAULT_malloc);
}

EXPORT void *malloc(size_t size) {
        return allocation_fails(__builtin_return_address(0)) ? NULL : __libc_malloc(size);
}

EXPORT void *calloc(size_t n, size_t size) {
        return allocation_fails(__builtin_return_address(0)) ? NULL : __libc_calloc(n, size);
}

EXPORT void *realloc(void *p, size_t size) {
        return allocation_fails(__builtin_return_address(0)) ? NULL : __libc_realloc(p, size);
}

EXPORT void *mmap64(void *address, size_t length, int prot, int flags, int fd, off64_t offset) {
        return fails(FAULT_mmap) ? MAP_FAILED : (void *) syscall(SYS_mmap, address, length, prot, flags, fd, offset);
}

/* -- files -------------------------------------------------------------------------------------------------------------- */

EXPORT int memfd_create(const char *name, unsigned flags) {
        return fails(FAULT_memfd_create) ? -1 : (int) syscall(SYS_memfd_create, name, flags);
}

EXPORT int ftruncate64(int fd, off64_t length) {
        return fails(FAULT_ftruncate) ? -1 : (int) syscall(SYS_ftruncate, fd, length);
}

EXPORT int fchmod(int fd, mode_t mode) {
        return fails(FAULT_fchmod) ? -1 : (int) syscall(SYS_fchmod, fd, mode);
}

EXPORT int fcntl64(int fd, int command, ...) {
        va_list rest;
        va_start(rest, command);
        long argument = va_arg(rest, long);
        va_end(rest);
        return fails(FAULT_fcntl) ? -1 : (int) syscall(SYS_fcntl, fd, command, argument);
}

EXPORT int open64(const char *path, int flags, ...) {
        va_list rest;
        va_start(rest, flags);
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
        va_end(rest);
        return fails(FAULT_open) ? -1 : (int) syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

EXPORT int ioctl(int fd, unsigned long request, ...) {
        va_list rest;
        va_start(rest, request);
        void *argument = va_arg(rest, void *);
        va_end(rest);
        return fails(FAULT_ioctl) ? -1 : (int) syscall(SYS_ioctl, fd, request, argument);
}

EXPORT ssize_t pread64(int fd, void *to, size_t size, off64_t offset) {
        return fails(FAULT_pread) ? -1 : syscall(SYS_pread64, fd, to, size, offset);
}

EXPORT ssize_t pwrite64(int fd, const void *from, size_t size, off64_t offset) {
        return fails(FAULT_pwrite) ? -1 : syscall(SYS_pwrite64, fd, from, size, offset);
}

EXPORT ssize_t process_vm_readv(pid_t pid, const struct iovec *local, unsigned long n_local, const struct iovec *remote,
                                unsigned long n_remote, unsigned long flags) {
        return fails(FAULT_pread) ? -1 : syscall(SYS_process_vm_readv, pid, local, n_local, remote, n_remote, flags);
}

/* -- sockets and threads -------------------------------------------------------------------------------------------------- */

EXPORT ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
        return fails(FAULT_sendmsg) ? -1 : syscall(SYS_sendmsg, fd, message, flags);
}

EXPORT ssize_t recvmsg(int fd, struct msghdr *message, int flags) {
        return fails(FAULT_recvmsg) ? -1 : syscall(SYS_recvmsg, fd, message, flags);
}

EXPORT int accept4(int fd, struct sockaddr *address, socklen_t *size, int flags) {
        return fails(FAULT_accept) ? -1 : (int) syscall(SYS_accept4, fd, address, size, flags);
}

EXPORT int socket(int family, int type, int protocol) {
        return fails(FAULT_socket) ? -1 : (int) syscall(SYS_socket, family, type, protocol);
}

EXPORT int socketpair(int family, int type, int protocol, int pair[2]) {
        return fails(FAULT_socket) ? -1 : (int) syscall(SYS_socketpair, family, type, protocol, pair);
}

EXPORT int eventfd(unsigned value, int flags) {
        return fails(FAULT_socket) ? -1 : (int) syscall(SYS_eventfd2, value, flags);
}

EXPORT int epoll_create1(int flags) {
        return fails(FAULT_socket) ? -1 : (int) syscall(SYS_epoll_create1, flags);
}

EXPORT int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *p) {
        static int (*real)(pthread_t *, const pthread_attr_t *, void *(*) (void *), void *);
        int r = fault_call(FAULT_pthread_create);
        if (r < 0)
                return -r;
        if (!real)
                *(void **) &real = dlsym(RTLD_NEXT, "pthread_create");
        return real(thread, attributes, run, p);
}
