/* Segments: what clients hold cannot be written by anyone, not even by the daemon once it is full (I2). */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/uapi.h"
#include "daemon/sys/digest.h"
#include "daemon/sys/segment.h"
#include "tests/unit/device.h"

#define SLOTS 16

static int open_filler(void) {
        _cleanup_close_ int device = open_device();
        int filler = segment_filler_open(device);
        assert_true(filler >= 0);
        return filler;
}

/* Every way in which the holder of the client's fd could change the bytes that others read. */
static void assert_client_cannot_change(int fd) {
        char path[64];
        errno = 0;
        assert_int_equal(pwrite(fd, "x", 1, 0), -1);
        assert_int_equal(mmap(NULL, KSM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED, 1);
        assert_int_equal(ftruncate(fd, 0), -1);
        assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, KSM_PAGE_SIZE), -1);
        assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
        /* Reopened writable, as root may whatever the mode: the seals still stand. */
        (void) snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        int writable = open(path, O_RDWR | O_CLOEXEC);
        if (writable >= 0) {
                assert_int_equal(pwrite(writable, "x", 1, 0), -1);
                assert_int_equal(ftruncate(writable, 0), -1);
                assert_int_equal(ftruncate(writable, (SLOTS + 2) * KSM_PAGE_SIZE), -1);
                assert_int_equal(fallocate(writable, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, KSM_PAGE_SIZE), -1);
                assert_true(mmap(NULL, KSM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, writable, 0) == MAP_FAILED);
                close_fd(writable);
        }
}

static void test_life(void **state) {
        uint8_t page[KSM_PAGE_SIZE];
        struct segment_file *s;
        _cleanup_close_ int filler = open_filler();
        assert_int_equal(segment_file_new(filler, SLOTS, -1, "key", 3, &s), 0);
        struct stat st;
        assert_int_equal(fstat(s->client_fd, &st), 0);
        assert_int_equal(st.st_mode & 07777, 0400);
        assert_int_equal(st.st_size, (SLOTS + 1) * KSM_PAGE_SIZE);
        assert_int_equal(fcntl(s->client_fd, F_GETFL) & O_ACCMODE, O_RDONLY);

        /* A client maps it before it is full, and sees what is filled in later. */
        const uint8_t *seen = mmap(NULL, SLOTS * KSM_PAGE_SIZE, PROT_READ, MAP_PRIVATE, s->client_fd, 0);
        assert_true(seen != MAP_FAILED);
        memset(page, 0xa5, sizeof(page));
        assert_int_equal(segment_file_fill(s, 3, page, 1), 1);
        assert_int_equal(seen[3 * KSM_PAGE_SIZE], 0xa5);
        assert_client_cannot_change(s->client_fd);

        assert_int_equal(segment_file_seal(s), 0);
        assert_null(s->slots);
        assert_int_equal(s->fd, -1);
        const int all = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE;
        assert_int_equal(fcntl(s->client_fd, F_GET_SEALS) & all, all);
        assert_client_cannot_change(s->client_fd);
        assert_int_equal(seen[3 * KSM_PAGE_SIZE], 0xa5);
        assert_int_equal(segment_file_seal(s), 0); /* again: nothing to do */

        /* The kernel keeps the bytes as long as someone maps them (I3). */
        s = segment_file_free(s);
        assert_int_equal(seen[3 * KSM_PAGE_SIZE], 0xa5);
        assert_int_equal(munmap((void *) seen, SLOTS * KSM_PAGE_SIZE), 0);
}

static sigjmp_buf on_sigbus;

static void handle_sigbus(int number) {
        siglongjmp(on_sigbus, number);
}

/* Nobody waits for a slot that is empty: where the kernel asked for its page, SIGALRM would end this test. */
static void assert_not_read(const uint8_t *slot) {
        void (*before)(int) = signal(SIGBUS, handle_sigbus);
        (void) alarm(10);
        if (sigsetjmp(on_sigbus, 1) == 0) {
                uint8_t byte = *(const volatile uint8_t *) slot;
                fail_msg("an empty slot reads as %d", byte);
        }
        (void) alarm(0);
        (void) signal(SIGBUS, before);
}

/* How a child ends that stores to a slot. */
static int signal_of_store(uint8_t *slot) {
        int status;
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                (void) signal(SIGSEGV, SIG_DFL);
                *(volatile uint8_t *) slot = 1;
                _exit(0);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

/* I2: a slot gets its bytes once, by that one call. */
static void test_filled_once(void **state) {
        uint8_t pages[4 * KSM_PAGE_SIZE], seen[4 * KSM_PAGE_SIZE];
        struct segment_file *s;
        _cleanup_close_ int filler = open_filler();
        assert_int_equal(segment_file_new(filler, SLOTS, -1, "key", 3, &s), 0);
        for (unsigned i = 0; i < 4; i++)
                memset(pages + i * KSM_PAGE_SIZE, (int) (i + 1), KSM_PAGE_SIZE);
        assert_int_equal(segment_file_fill(s, 3, pages, 1), 1);
        assert_int_equal(segment_file_fill(s, 3, pages + KSM_PAGE_SIZE, 1), -EEXIST);
        assert_int_equal(segment_file_fill(s, 2, pages, 4), 1); /* as far as it gets */
        assert_int_equal(segment_file_fill(s, 4, pages + 2 * KSM_PAGE_SIZE, 2), 2);
        assert_int_equal(segment_file_read(s, 2, seen, sizeof(seen)), 4);
        assert_memory_equal(seen, pages, KSM_PAGE_SIZE);
        assert_memory_equal(seen + KSM_PAGE_SIZE, pages, KSM_PAGE_SIZE);
        assert_memory_equal(seen + 2 * KSM_PAGE_SIZE, pages + 2 * KSM_PAGE_SIZE, 2 * KSM_PAGE_SIZE);
        /* Not by a stray store; and what is empty is not read, which would fill it. */
        assert_int_equal(signal_of_store(s->slots + 3 * KSM_PAGE_SIZE), SIGSEGV);
        assert_not_read(s->slots + 7 * KSM_PAGE_SIZE);
        assert_int_equal(segment_file_fill(s, 7, pages, 1), 1);
        assert_int_equal(segment_file_seal(s), 0);
        s = segment_file_free(s);
}

/* A file with the bytes of a segment, label and all, is none: whoever may write to the disk could change it. */
static void test_no_memfd(void **state) {
        static uint8_t bytes[(SLOTS + 1) * KSM_PAGE_SIZE];
        char name[] = "segment-XXXXXX", key[SEGMENT_KEY_BYTES];
        struct segment_file *s, *adopted = NULL;
        size_t key_size;
        const char *reason = NULL;
        _cleanup_close_ int filler = open_filler();
        assert_int_equal(segment_file_new(filler, SLOTS, -1, "key", 3, &s), 0);
        assert_int_equal(pread(s->client_fd, bytes, sizeof(bytes), 0), sizeof(bytes));
        int fd = mkstemp(name);
        assert_true(fd >= 0);
        assert_int_equal(write(fd, bytes, sizeof(bytes)), sizeof(bytes));
        assert_int_equal(fchmod(fd, 0400), 0);
        close_fd(fd);
        fd = open(name, O_RDONLY | O_CLOEXEC);
        assert_int_equal(unlink(name), 0);
        assert_int_equal(segment_file_adopt(fd, &adopted, key, &key_size, &reason), -EINVAL);
        assert_non_null(reason);
        assert_null(adopted);
        close_fd(fd);
        s = segment_file_free(s);
}

static void test_bounds(void **state) {
        struct segment_file *s = NULL;
        assert_int_equal(segment_file_new(-1, 0, -1, NULL, 0, &s), -EINVAL);
        assert_int_equal(segment_file_new(-1, SEGMENT_LIMIT_SLOTS + 1, -1, NULL, 0, &s), -EINVAL);
        assert_null(s);
        assert_null(segment_file_free(NULL));
}

/* Any single bit decides; the last word too. */
static void test_zero_page(void **state) {
        _Alignas(64) uint8_t page[KSM_PAGE_SIZE] = { 0 };
        assert_true(digest_page_is_zero(page));
        for (unsigned i = 0; i < KSM_PAGE_SIZE; i++) {
                page[i] = 1;
                assert_false(digest_page_is_zero(page));
                page[i] = 0;
        }
}

/* Equal bytes, equal hash under one secret; other secrets, other hashes (I4). */
static void test_digest(void **state) {
        static uint8_t a[KSM_PAGE_SIZE], b[KSM_PAGE_SIZE];
        struct digest_secret x, y;
        assert_int_equal(digest_secret_draw(&x), 0);
        assert_int_equal(digest_secret_draw(&y), 0);
        memset(a, 7, sizeof(a));
        memset(b, 7, sizeof(b));
        assert_true(digest_page(&x, a) == digest_page(&x, b));
        assert_true(digest_page(&x, a) != digest_page(&y, a));
        b[KSM_PAGE_SIZE - 1] ^= 1;
        assert_true(digest_page(&x, a) != digest_page(&x, b));
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_life),
                cmocka_unit_test(test_filled_once),
                cmocka_unit_test(test_no_memfd),
                cmocka_unit_test(test_bounds),
                cmocka_unit_test(test_zero_page),
                cmocka_unit_test(test_digest),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
