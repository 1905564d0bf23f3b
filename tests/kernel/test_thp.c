/* Transparent huge pages under UFFDIO_MOVE: the agent moves 4 KiB pieces, so what splits a huge page, and when, is what
 * its merge transition stands on. */
#include <fcntl.h>
#include <sched.h>
#include <sys/uio.h>
#include <time.h>

#include "tests/support/kernel.h"

#define HUGE_PAGES 512

static size_t count_compound(void *at) {
        size_t n = 0;

        for (size_t i = 0; i < HUGE_PAGES; i++)
                n += page_is_compound(page_at(at, i));
        return n;
}

static void check_contents(void *at, uint64_t seed) {
        for (size_t i = 0; i < HUGE_PAGES; i++)
                CHECK(page_holds(page_at(at, i), seed + i));
}

/* A huge page that only its PTEs map: mprotect of one page splits the mapping, not the folio. */
static void *map_huge_by_ptes(uint64_t seed) {
        void *p = map_huge(seed);

        CHECK(mprotect(page_at(p, 7), KSM_PAGE_SIZE, PROT_READ) == 0);
        CHECK(mprotect(page_at(p, 7), KSM_PAGE_SIZE, PROT_READ | PROT_WRITE) == 0);
        CHECK(!(page_categories(p) & PAGE_IS_HUGE));
        CHECK_EQ(count_compound(p), HUGE_PAGES);
        return p;
}

/* Where somebody holds a reference at the moment, the call does nothing and says nothing (cold_fails_silently_on_a_referenced_huge_page):
 * reclaim does so, and DAMON where it watches this machine's memory. */
static void split_by_cold(void *p) {
        for (unsigned tries = 0; tries < 100; tries++) {
                CHECK(madvise(page_at(p, 5), KSM_PAGE_SIZE, MADV_COLD) == 0);
                if (count_compound(p) == 0)
                        break;
                sched_yield();
        }
}

static void cold_on_a_piece_splits_a_mapped_huge_page(void) {
        void *p = map_huge(1);

        CHECK_EQ(count_compound(p), HUGE_PAGES);
        split_by_cold(p);
        CHECK(!(page_categories(p) & PAGE_IS_HUGE));
        CHECK_EQ(count_compound(p), 0);
        check_contents(p, 1);
        CHECK_EQ(count_pages(p, HUGE_PAGES, PAGE_IS_PRESENT), HUGE_PAGES); /* nothing reclaimed */
}

static void cold_on_a_piece_splits_a_huge_page_mapped_by_ptes(void) {
        void *p = map_huge_by_ptes(2);

        split_by_cold(p);
        CHECK_EQ(count_compound(p), 0);
        check_contents(p, 2);
}

static void cold_on_the_whole_splits_nothing(void) {
        void *p = map_huge(3);

        CHECK(madvise(p, HUGE_PAGES * KSM_PAGE_SIZE, MADV_COLD) == 0);
        CHECK_EQ(count_compound(p), HUGE_PAGES);
}

/* vmsplice keeps a plain reference (no pin) to the page in a pipe. */
static int hold_a_reference(void *page) {
        struct iovec iov = { page, KSM_PAGE_SIZE };
        int fds[2];

        CHECK(pipe2(fds, O_CLOEXEC) == 0);
        CHECK_EQ(vmsplice(fds[1], &iov, 1, 0), KSM_PAGE_SIZE);
        return fds[0];
}

/* The call reports success though nothing was split. A huge mapping still shows as HUGE, one by PTEs shows nothing. */
static void cold_fails_silently_on_a_referenced_huge_page(void) {
        void *p = map_huge(4);
        int pipe_fd = hold_a_reference(page_at(p, 100));

        CHECK(madvise(page_at(p, 5), KSM_PAGE_SIZE, MADV_COLD) == 0);
        CHECK_EQ(count_compound(p), HUGE_PAGES);
        CHECK(page_categories(p) & PAGE_IS_HUGE);
        close_fd(pipe_fd);
}

static void *scratch_for(int context, size_t n_pages) {
        void *scratch = map_anon(n_pages);

        CHECK_EQ(uffd_register(context, scratch, n_pages, UFFDIO_REGISTER_MODE_MISSING), 0);
        return scratch;
}

static void move_of_a_piece_splits_by_itself(void *p, uint64_t seed) {
        int context = uffd_open(SCRATCH_FEATURES);
        void *scratch = scratch_for(context, 1);

        CHECK_EQ(uffd_move(context, scratch, page_at(p, 9), 1, 0, NULL), 0);
        CHECK(page_holds(scratch, seed + 9));
        CHECK(!page_is_compound(scratch));
        CHECK_EQ(count_compound(p), 0);
        for (size_t i = 0; i < HUGE_PAGES; i++)
                if (i != 9)
                        CHECK(page_holds(page_at(p, i), seed + i));
}

static void move_of_a_piece_of_a_mapped_huge_page_works(void) {
        move_of_a_piece_splits_by_itself(map_huge(5), 5);
}

static void move_of_a_piece_of_a_huge_page_mapped_by_ptes_works(void) {
        move_of_a_piece_splits_by_itself(map_huge_by_ptes(6), 6);
}

static void move_of_a_run_of_pieces_works(void) {
        int context = uffd_open(SCRATCH_FEATURES);
        void *scratch = scratch_for(context, 64), *p = map_huge(7);

        CHECK_EQ(uffd_move(context, scratch, page_at(p, 64), 64, 0, NULL), 0);
        for (size_t i = 0; i < 64; i++)
                CHECK(page_holds(page_at(scratch, i), 7 + 64 + i));
}

/* So after step 1 of a merge PAGEMAP_SCAN no longer shows a huge page, though the folio is still one. */
static void registering_a_piece_splits_the_mapping_and_not_the_folio(void) {
        int context = uffd_open(GUARD_FEATURES);
        void *p = map_huge(12);

        CHECK_EQ(uffd_register(context, page_at(p, 64), 64, UFFDIO_REGISTER_MODE_MISSING), 0);
        CHECK_EQ(count_pages(p, HUGE_PAGES, PAGE_IS_HUGE), 0);
        CHECK_EQ(count_compound(p), HUGE_PAGES);
        check_contents(p, 12);
}

/* UFFDIO_MOVE of a piece of a referenced huge page repeats inside the kernel for ever on some kernels, with the VMA locked
 * but killable. The way out is a page at the destination: the next try fails EEXIST. This runs it with that way out
 * ready: the main thread is the watchdog, and the process can be killed at any time. */
#define STUCK_PAGES 4
struct stuck_move {
        int context;
        void *dst, *src;
        int result;
};

static void do_stuck_move(void *argument) {
        struct stuck_move *m = argument;

        m->result = uffd_move(m->context, m->dst, m->src, STUCK_PAGES, 0, NULL);
}

static uint64_t now_ms(void) {
        struct timespec t;

        CHECK(clock_gettime(CLOCK_MONOTONIC, &t) == 0);
        return (uint64_t) t.tv_sec * 1000 + (uint64_t) t.tv_nsec / 1000000;
}

static void zeropage_at_the_destination_ends_a_stuck_move(void *p, uint64_t seed) {
        struct stuck_move m = { .context = uffd_open(SCRATCH_FEATURES), .src = page_at(p, 9), .result = 1 };
        struct toucher mover;
        uint64_t start_ms = now_ms();
        int zero = -EAGAIN, pipe_fd;
        bool stuck;

        m.dst = scratch_for(m.context, STUCK_PAGES);
        pipe_fd = hold_a_reference(page_at(p, 9));
        toucher_start(&mover, do_stuck_move, &m);
        while (!toucher_done(&mover) && now_ms() - start_ms < 50)
                sched_yield();
        stuck = !toucher_done(&mover);
        start_ms = now_ms();
        if (stuck) {
                do
                        zero = uffd_zeropage(m.context, m.dst, 1);
                while (zero == -EAGAIN && now_ms() - start_ms < 5000);
                CHECK_EQ(zero, 0);
        }
        while (!toucher_done(&mover) && now_ms() - start_ms < 10000)
                sched_yield();
        CHECK(toucher_done(&mover));
        toucher_join(&mover);
        printf("move %s, result %d (%s), ended after %llu ms\n", stuck ? "was stuck" : "returned by itself", m.result,
               m.result < 0 ? strerror(-m.result) : "ok", (unsigned long long) (now_ms() - start_ms));
        CHECK(m.result != 0);
        if (stuck)
                CHECK_EQ(m.result, -EEXIST);
        close_fd(pipe_fd);
        CHECK(page_holds(m.src, seed + 9)); /* the source kept its page */
}

static void stuck_move_of_a_mapped_huge_page_can_be_ended(void) {
        zeropage_at_the_destination_ends_a_stuck_move(map_huge(8), 8);
}

static void stuck_move_of_a_huge_page_mapped_by_ptes_can_be_ended(void) {
        zeropage_at_the_destination_ends_a_stuck_move(map_huge_by_ptes(11), 11);
}

FACTS(FACT(cold_on_a_piece_splits_a_mapped_huge_page),
      FACT(cold_on_a_piece_splits_a_huge_page_mapped_by_ptes),
      FACT(cold_on_the_whole_splits_nothing),
      FACT(cold_fails_silently_on_a_referenced_huge_page),
      FACT(move_of_a_piece_of_a_mapped_huge_page_works),
      FACT(move_of_a_piece_of_a_huge_page_mapped_by_ptes_works),
      FACT(move_of_a_run_of_pieces_works),
      FACT(registering_a_piece_splits_the_mapping_and_not_the_folio),
      FACT(stuck_move_of_a_mapped_huge_page_can_be_ended),
      FACT(stuck_move_of_a_huge_page_mapped_by_ptes_can_be_ended))
