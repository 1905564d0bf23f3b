/* A program that gives memory back behind libc's back: MADV_DONTNEED by an instruction of its own, on merged pages. It reads
 * zeros, what it writes then stays, and the rest is as it was. Or ("moves") one that moves merged pages so, by mremap: they are as they
 * were, what stays behind reads as zeros, and libc's calls do there what they do elsewhere.
 *
 * Says "merged" when its pages are, "raw" after the raw calls; then it goes on writing equal pages and comparing
 * until its input ends, and says "right". */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "common/uapi.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

#define PAGE 4096UL
#define PAGES 256U
#define MERGE_SECONDS 20
#define DROPPED 24U /* pages a raw call takes */
#define RAW_CALLS 4U

static uint8_t *memory, *elsewhere, *shadow; /* shadow: MAP_SHARED, never merged */
static uint8_t *where[PAGES];               /* the pages, now */

static void fail(const char *what) {
        fprintf(stderr, "raw: %s: %s\n", what, strerror(errno));
        abort();
}

static long raw_call(long number, const void *a, size_t b, size_t c, long d, const void *e) {
        long ret;
#if defined(__x86_64__)
        register long r10 __asm__("r10") = d;
        register const void *r8 __asm__("r8") = e;
        __asm__ volatile("syscall"
                         : "=a"(ret)
                         : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                         : "rcx", "r11", "memory");
#elif defined(__aarch64__)
        register long x8 __asm__("x8") = number;
        register long x0 __asm__("x0") = (long) a;
        register size_t x1 __asm__("x1") = b;
        register size_t x2 __asm__("x2") = c;
        register long x3 __asm__("x3") = d;
        register const void *x4 __asm__("x4") = e;
        __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
        ret = x0;
#endif
        return ret;
}

static void raw_discard(uint8_t *at, size_t length) {
        long r = raw_call(SYS_madvise, at, length, MADV_DONTNEED, 0, NULL);
        if (r != 0) {
                errno = (int) -r;
                fail("MADV_DONTNEED");
        }
}

static void raw_move(unsigned page, int flags) {
        uint8_t *to = elsewhere + page * PAGE;
        long r = raw_call(SYS_mremap, where[page], PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | flags, to);
        if (r != (long) to) {
                errno = (int) -r;
                fail("mremap");
        }
        where[page] = to;
}

static unsigned merged_now(int pagemap) {
        struct page_region found[PAGES];
        struct pm_scan_arg arg = { .size = sizeof(arg),
                                   .start = (uint64_t) memory,
                                   .end = (uint64_t) memory + PAGES * PAGE,
                                   .vec = (uint64_t) found,
                                   .vec_len = PAGES,
                                   .category_mask = PAGE_IS_FILE | PAGE_IS_PRESENT,
                                   .return_mask = PAGE_IS_FILE };
        int n = ioctl(pagemap, PAGEMAP_SCAN, &arg);
        unsigned pages = 0;
        if (n < 0)
                fail("PAGEMAP_SCAN");
        for (int i = 0; i < n; i++)
                pages += (unsigned) ((found[i].end - found[i].start) / PAGE);
        return pages;
}

/* Two of each content, so that a process alone has what to merge. */
static void fill(unsigned first, unsigned n, unsigned generation) {
        for (unsigned i = first; i < first + n; i++) {
                memset(shadow + i * PAGE, (int) (1 + i % (PAGES / 2) + generation), PAGE);
                memset(shadow + i * PAGE + 100, (int) generation, 8);
                memcpy(where[i], shadow + i * PAGE, PAGE);
        }
}

static void verify(const char *when) {
        for (unsigned i = 0; i < PAGES; i++)
                if (memcmp(where[i], shadow + i * PAGE, PAGE) != 0) {
                        fprintf(stderr, "raw: page %u differs %s: %02x, expected %02x\n", i, when, where[i][0], shadow[i * PAGE]);
                        abort();
                }
}

static void say(const char *text) {
        printf("%s\n", text);
        fflush(stdout);
}

static void discard_some(unsigned k) {
        unsigned first = k * (PAGES / RAW_CALLS) + 3;
        raw_discard(memory + first * PAGE, DROPPED * PAGE);
        memset(shadow + first * PAGE, 0, DROPPED * PAGE);
        if (k % 2) { /* by the kernel's hand first, then by ours */
                int fds[2];
                uint8_t byte = 1;
                if (pipe(fds) < 0 || write(fds[1], memory + first * PAGE, 1) != 1 || read(fds[0], &byte, 1) != 1 || byte)
                        fail("a system call read other than zero");
                close(fds[0]);
                close(fds[1]);
        }
        verify("after a raw MADV_DONTNEED");
        shadow[first * PAGE + 9] = memory[first * PAGE + 9] = 77;
        verify("after a write to what was given back");
}

/* The agent has what was moved in its book a moment later: until then the kernel says EINVAL, as for any file mapping. */
static void free_lazily(unsigned page) {
        for (time_t end = time(NULL) + MERGE_SECONDS; madvise(where[page], PAGE, MADV_FREE) < 0; usleep(1000))
                if (errno != EINVAL || time(NULL) > end)
                        fail("MADV_FREE of what was moved");
        memcpy(where[page], shadow + page * PAGE, PAGE);
}

static void move_some(unsigned k) {
        static const uint8_t zeros[PAGE];
        unsigned first = k * (PAGES / RAW_CALLS) + 3;
        for (unsigned i = first; i < first + DROPPED; i++)
                raw_move(i, i % 2 ? MREMAP_DONTUNMAP : 0);
        verify("after a raw mremap");
        for (unsigned i = first; i < first + DROPPED; i++)
                if (i % 2 && memcmp(memory + i * PAGE, zeros, PAGE) != 0)
                        fail("what was left behind is not zeros");
        if (madvise(where[first], PAGE, MADV_DONTNEED) < 0)
                fail("MADV_DONTNEED of what was moved");
        memset(shadow + first * PAGE, 0, PAGE);
        free_lazily(first + 1);
        verify("after libc's calls on what was moved");
}

int main(int argc, char **argv) {
        bool moves = argc > 1 && strcmp(argv[1], "moves") == 0;
        memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        elsewhere = mmap(NULL, PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        shadow = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
        if (memory == MAP_FAILED || elsewhere == MAP_FAILED || shadow == MAP_FAILED || pagemap < 0)
                fail("set-up");
        for (unsigned i = 0; i < PAGES; i++)
                where[i] = memory + i * PAGE;
        fill(0, PAGES, 0);
        if (madvise(memory, PAGES * PAGE, MADV_MERGEABLE) < 0)
                fail("MADV_MERGEABLE");
        time_t end = time(NULL) + MERGE_SECONDS;
        while (merged_now(pagemap) < PAGES) {
                if (time(NULL) > end)
                        fail("not merged in time");
                usleep(1000);
        }
        say("merged");

        for (unsigned k = 0; k < RAW_CALLS; k++)
                if (moves)
                        move_some(k);
                else
                        discard_some(k);
        say("raw");

        unsigned generation = 0;
        for (struct pollfd in = { 0, POLLIN, 0 }; poll(&in, 1, 20) == 0;) {
                if (++generation % 16 == 1) /* equal pages again: were it not for the raw calls, they would be merged */
                        fill(0, PAGES, generation / 16 % 100);
                verify("later");
        }
        printf("right, %u pages still merged\n", merged_now(pagemap));
        return 0;
}
