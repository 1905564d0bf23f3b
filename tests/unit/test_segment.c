/* Segments: what clients hold cannot be written by anyone, not even by the daemon once it is full (I2). */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/uapi.h"
#include "daemon/sys/digest.h"
#include "daemon/sys/segment.h"

#define SLOTS 16

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
        struct segment_file *s;
        assert_int_equal(segment_file_new(SLOTS, -1, "key", 3, &s), 0);
        struct stat st;
        assert_int_equal(fstat(s->client_fd, &st), 0);
        assert_int_equal(st.st_mode & 07777, 0400);
        assert_int_equal(st.st_size, (SLOTS + 1) * KSM_PAGE_SIZE);
        assert_int_equal(fcntl(s->client_fd, F_GETFL) & O_ACCMODE, O_RDONLY);

        /* A client maps it before it is full, and sees what is filled in later. */
        const uint8_t *seen = mmap(NULL, SLOTS * KSM_PAGE_SIZE, PROT_READ, MAP_PRIVATE, s->client_fd, 0);
        assert_true(seen != MAP_FAILED);
        memset(s->slots + 3 * KSM_PAGE_SIZE, 0xa5, KSM_PAGE_SIZE);
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

/* A file with the bytes of a segment, label and all, is none: whoever may write to the disk could change it. */
static void test_no_memfd(void **state) {
        static uint8_t bytes[(SLOTS + 1) * KSM_PAGE_SIZE];
        char name[] = "segment-XXXXXX", key[SEGMENT_KEY_BYTES];
        struct segment_file *s, *adopted = NULL;
        size_t key_size;
        const char *reason = NULL;
        assert_int_equal(segment_file_new(SLOTS, -1, "key", 3, &s), 0);
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
        assert_int_equal(segment_file_new(0, -1, NULL, 0, &s), -EINVAL);
        assert_int_equal(segment_file_new(SEGMENT_LIMIT_SLOTS + 1, -1, NULL, 0, &s), -EINVAL);
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
                cmocka_unit_test(test_no_memfd),
                cmocka_unit_test(test_bounds),
                cmocka_unit_test(test_zero_page),
                cmocka_unit_test(test_digest),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
