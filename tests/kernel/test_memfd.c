/* Segments: memfds that the daemon fills once and clients map privately. */
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "tests/support/kernel.h"

#define NOBODY 65534
#define SEALS (F_SEAL_FUTURE_WRITE | F_SEAL_GROW | F_SEAL_SHRINK)

static int memfd(unsigned flags, size_t n_pages) {
        int fd = memfd_create("segment", MFD_CLOEXEC | MFD_ALLOW_SEALING | flags);

        CHECK(fd >= 0);
        CHECK(ftruncate(fd, (off_t) (n_pages * KSM_PAGE_SIZE)) == 0);
        return fd;
}

static int reopen(int fd, int flags) {
        char path[64];

        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        return open(path, flags | O_CLOEXEC);
}

static void *map_writable(int fd) {
        return mmap(NULL, KSM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
}

static void future_write_seal_stops_everyone_but_the_old_mapping(void) {
        int fd = memfd(MFD_NOEXEC_SEAL, 2);
        void *writer = map_writable(fd), *reader;

        CHECK(writer != MAP_FAILED);
        CHECK(fcntl(fd, F_ADD_SEALS, SEALS) == 0);
        page_fill(writer, 1);
        CHECK(pwrite(fd, "x", 1, 0) < 0 && errno == EPERM);
        CHECK(map_writable(fd) == MAP_FAILED && errno == EPERM);
        CHECK(ftruncate(fd, 0) < 0 && errno == EPERM);
        CHECK(ftruncate(fd, 1 << 20) < 0 && errno == EPERM);
        CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, KSM_PAGE_SIZE) < 0 && errno == EPERM);
        CHECK(madvise(writer, KSM_PAGE_SIZE, MADV_REMOVE) < 0);
        reader = map_segment(NULL, 1, fd, 0);
        page_fill(writer, 2);
        CHECK(page_holds(reader, 2)); /* published through the old mapping */
        page_fill(reader, 3);
        CHECK(page_holds(writer, 2)); /* a client writes its own copy */
}

static int copy_page(int uffd, void *to, const void *from) {
        struct uffdio_copy copy = { .dst = (uintptr_t) to, .src = (uintptr_t) from, .len = KSM_PAGE_SIZE };

        return ioctl(uffd, UFFDIO_COPY, &copy) < 0 ? -errno : 0;
}

/* Read-only mappings of a read-write fd. */
static void read_only_mapping_from_before_the_seal_can_be_filled_once(void) {
        int fd = memfd(MFD_NOEXEC_SEAL, 2), uffd = uffd_open(UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_SIGBUS);
        void *before = mmap(NULL, 2 * KSM_PAGE_SIZE, PROT_READ, MAP_SHARED, fd, 0), *after, *reader;
        void *bytes = map_filled(2, 7);
        int mem = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);

        CHECK(before != MAP_FAILED);
        CHECK_EQ(uffd_register(uffd, before, 2, UFFDIO_REGISTER_MODE_MISSING), 0);
        CHECK(fcntl(fd, F_ADD_SEALS, SEALS) == 0);
        after = mmap(NULL, 2 * KSM_PAGE_SIZE, PROT_READ, MAP_SHARED, fd, 0);
        CHECK(after != MAP_FAILED);
        CHECK_EQ(uffd_register(uffd, after, 2, UFFDIO_REGISTER_MODE_MISSING), -EPERM);
        CHECK_EQ(copy_page(uffd, before, bytes), 0);
        CHECK_EQ(copy_page(uffd, before, page_at(bytes, 1)), -EEXIST);
        reader = map_segment(NULL, 2, fd, 0);
        CHECK(page_holds(before, 7) && page_holds(after, 7) && page_holds(reader, 7));
        /* What is missing is not made by a look at it. */
        CHECK(pread(mem, bytes, KSM_PAGE_SIZE, (off_t) (uintptr_t) page_at(before, 1)) < 0);
        CHECK_EQ(copy_page(uffd, page_at(before, 1), bytes), 0);
}

static void write_seal_needs_the_writable_mapping_gone_and_seal_seal_after_it(void) {
        int fd = memfd(MFD_NOEXEC_SEAL, 1);
        void *writer = map_writable(fd);

        CHECK(writer != MAP_FAILED);
        CHECK(fcntl(fd, F_ADD_SEALS, SEALS) == 0);
        CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) < 0 && errno == EBUSY);
        CHECK(munmap(writer, KSM_PAGE_SIZE) == 0);
        CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0);
        CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL) == 0);
        CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW) < 0 && errno == EPERM);
}

static void reopen_as_nobody(int fd, int expected) {
        int status;
        pid_t child = fork();

        CHECK(child >= 0);
        if (child == 0) {
                CHECK(setresgid(NOBODY, NOBODY, NOBODY) == 0 && setresuid(NOBODY, NOBODY, NOBODY) == 0);
                _exit(reopen(fd, O_RDWR) >= 0 ? 0 : errno);
        }
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
        CHECK_EQ(WEXITSTATUS(status), expected);
}

static void mode_decides_whether_others_reopen_it_writable(void) {
        int fd = memfd(0, 1), ro = reopen(fd, O_RDONLY);

        if (geteuid() != 0)
                fact_skip("needs root to become nobody");
        CHECK(ro >= 0);
        reopen_as_nobody(ro, 0); /* mode 0777: read-only is no protection */
        CHECK(fchmod(fd, 0400) == 0);
        reopen_as_nobody(ro, EACCES);
}

static uint64_t allocated(int fd) {
        struct stat s;

        CHECK(fstat(fd, &s) == 0);
        return (uint64_t) s.st_blocks * 512 / KSM_PAGE_SIZE;
}

/* Why slots that were never written must never be mapped. */
static void reading_a_hole_of_a_sealed_memfd_allocates(void) {
        int fd = memfd(MFD_NOEXEC_SEAL, 4);
        void *p;

        CHECK(fcntl(fd, F_ADD_SEALS, SEALS) == 0);
        p = map_segment(NULL, 4, fd, 0);
        CHECK_EQ(allocated(fd), 0);
        CHECK(page_is_zero(page_at(p, 2)));
        CHECK(allocated(fd) > 0);
}

static void noexec_memfd_can_be_mapped_private_and_made_executable(void) {
        int fd = memfd(MFD_NOEXEC_SEAL, 1);
        void *p = map_segment(NULL, 1, fd, 0);

        CHECK(mprotect(p, KSM_PAGE_SIZE, PROT_READ | PROT_EXEC) == 0);
        CHECK(mprotect(p, KSM_PAGE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC) == 0);
        CHECK(fchmod(fd, 0500) < 0 && errno == EPERM); /* but it cannot be executed as a file */
}

static void read_only_fd_maps_private_writable_but_not_shared_writable(void) {
        int fd = memfd(MFD_NOEXEC_SEAL, 1), ro;

        CHECK(fchmod(fd, 0400) == 0);
        ro = reopen(fd, O_RDONLY);
        CHECK(ro >= 0);
        CHECK(map_writable(ro) == MAP_FAILED && errno == EACCES);
        page_fill(map_segment(NULL, 1, ro, 0), 4);
}

FACTS(FACT(future_write_seal_stops_everyone_but_the_old_mapping),
      FACT(read_only_mapping_from_before_the_seal_can_be_filled_once),
      FACT(write_seal_needs_the_writable_mapping_gone_and_seal_seal_after_it),
      FACT(mode_decides_whether_others_reopen_it_writable),
      FACT(reading_a_hole_of_a_sealed_memfd_allocates),
      FACT(noexec_memfd_can_be_mapped_private_and_made_executable),
      FACT(read_only_fd_maps_private_writable_but_not_shared_writable))
