/* The shadow-model test: a random program of memory operations runs twice, plain and under userksm, and says of every
 * operation what it returned, which errno it set, and a digest of the bytes that it met. The two accounts must be equal:
 * the plain run is the shadow that never saw userksm, and the kernel is the model.
 *
 * A program is a list of operations (struct op), drawn from a seed or read from a file; any part of the list is a program too,
 * because an operation does something defined whatever state it meets. That is what makes shrinking simple.
 *
 * Actors execute it: threads, and processes that the program forks. Families differ in how they are ordered:
 *   sequence  one operation at a time, in the order of the list, whichever actor it belongs to. Only userksm runs beside it.
 *   parallel  threads at the same time, each on arenas of its own, so that each one's results are still determined.
 *   race      threads at the same time on the same pages, in rounds; judged by the set of legal outcomes (race.c).
 *   raw       as sequence, by one thread; some mapping calls go around libc.
 *
 * Arenas lie at fixed addresses, so that both runs have the same; nothing else of an address is ever reported. */
#pragma once

#include <errno.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PAGE 4096UL
#define ACTORS 6U        /* 0: main; 1, 2: its threads; 3 to 5: processes that were forked */
#define THREADS 3U
#define ARENAS 12U
#define CONTENTS 48U     /* page contents; 0 is zeros. Few, so that merging finds them again and again */
#define WINDOW_PAGES 64U /* the most that one operation touches, but for whole arenas */
#define BOUNCE_PAGES 72U

enum family { FAMILY_SEQUENCE, FAMILY_PARALLEL, FAMILY_RACE, FAMILY_RAW, FAMILIES };

enum arena_kind {
        ARENA_ANON,
        ARENA_NORESERVE,
        ARENA_HUGE,         /* 2 MiB aligned, MADV_HUGEPAGE */
        ARENA_SHARED,       /* MAP_SHARED, anonymous */
        ARENA_FILE_PRIVATE, /* its file ends before it does: SIGBUS */
        ARENA_FILE_SHARED,
        ARENA_ROAMING,      /* where the kernel put it; mremap moves it */
        ARENA_BRK,
        ARENA_NONE
};

struct arena {
        enum arena_kind kind;
        uint8_t *base;
        uint32_t pages; /* ARENA_BRK: now */
};

/* The operations: name, weight in the list, where it may occur. One table; the functions are op_NAME. */
enum { IN_SEQUENCE = 1, IN_PARALLEL = 2, IN_BOTH = 3, BY_MAIN = 4, CAN_BE_RAW = 8, IN_RACE = 16 };
#define OPS(X)                                                                                                        \
        /* bytes */                                                                                                   \
        X(load, 2600, IN_BOTH | IN_RACE) X(store, 2600, IN_BOTH | IN_RACE) X(fill, 300, IN_BOTH)                      \
        X(digest, 260, IN_BOTH) X(copy, 60, IN_BOTH) X(settle, 2, IN_BOTH)                                            \
        /* mappings */                                                                                                \
        X(map_anon, 30, IN_BOTH | CAN_BE_RAW | IN_RACE) X(map_noreplace, 6, IN_BOTH) X(map_shared, 4, IN_BOTH)        \
        X(map_file, 8, IN_BOTH) X(map_where, 6, IN_BOTH) X(reset, 14, IN_BOTH) X(unmap, 14, IN_BOTH | CAN_BE_RAW)     \
        X(remap_shrink, 8, IN_BOTH | CAN_BE_RAW) X(remap_grow, 16, IN_BOTH | CAN_BE_RAW)                              \
        X(remap_away, 10, IN_BOTH | CAN_BE_RAW) X(remap_fixed, 14, IN_BOTH | CAN_BE_RAW)                              \
        X(remap_dontunmap, 8, IN_BOTH | CAN_BE_RAW) X(remap_roam, 6, IN_BOTH) X(protect, 30, IN_BOTH | CAN_BE_RAW)    \
        X(lock, 5, IN_BOTH) X(unlock, 10, IN_BOTH) X(lock_all, 1, IN_SEQUENCE)                    \
        X(sync, 6, IN_BOTH) X(incore, 6, IN_BOTH) X(brk_by, 10, IN_SEQUENCE) X(brk_to, 4, IN_SEQUENCE)                \
        /* advice */                                                                                                  \
        X(dontneed, 60, IN_BOTH | CAN_BE_RAW | IN_RACE) X(free_lazily, 14, IN_BOTH | CAN_BE_RAW)                      \
        X(remove, 8, IN_BOTH) X(hugepage, 6, IN_BOTH) X(nohugepage, 4, IN_BOTH) X(dontfork, 6, IN_BOTH)               \
        X(dofork, 8, IN_BOTH) X(wipeonfork, 4, IN_BOTH) X(keeponfork, 8, IN_BOTH) X(cold, 8, IN_BOTH | IN_RACE)       \
        X(pageout, 6, IN_BOTH | IN_RACE) X(willneed, 6, IN_BOTH) X(populate_read, 14, IN_BOTH | IN_RACE)              \
        X(populate_write, 14, IN_BOTH | IN_RACE) X(mergeable, 20, IN_BOTH) X(unmergeable, 8, IN_BOTH)                 \
        X(dontdump, 3, IN_BOTH) X(dodump, 5, IN_BOTH) X(guard_install, 4, IN_BOTH) X(guard_remove, 8, IN_BOTH)        \
        X(collapse, 1, IN_BOTH) X(advise_badly, 4, IN_BOTH) X(advise_vector, 12, IN_BOTH)                             \
        /* system calls into and out of pages */                                                                      \
        X(read_in, 90, IN_BOTH | IN_RACE) X(write_out, 90, IN_BOTH | IN_RACE) X(readv_in, 40, IN_BOTH)                \
        X(writev_out, 40, IN_BOTH) X(pipe_in, 30, IN_BOTH) X(pipe_out, 30, IN_BOTH) X(direct_in, 4, IN_BOTH)          \
        X(direct_out, 4, IN_BOTH) X(uring_register, 6, IN_BOTH) X(uring_in, 12, IN_BOTH) X(uring_out, 12, IN_BOTH)    \
        /* others' hands on the memory */                                                                             \
        X(remote_read, 40, IN_BOTH) X(remote_write, 40, IN_BOTH) X(peek, 8, IN_SEQUENCE) X(poke, 8, IN_SEQUENCE)      \
        X(proc_mem_read, 10, IN_BOTH) X(proc_mem_write, 10, IN_BOTH)                                                  \
        X(uffd_register, 4, IN_SEQUENCE) X(uffd_unregister, 6, IN_SEQUENCE)                                           \
        /* processes, signals, heap */                                                                                \
        X(fork, 3, IN_SEQUENCE) X(exit, 3, IN_SEQUENCE) X(fork_check, 3, IN_BOTH | IN_RACE) X(vfork, 3, IN_BOTH)      \
        X(spawn, 1, IN_SEQUENCE) X(exec, 1, IN_SEQUENCE | BY_MAIN) X(signal, 16, IN_BOTH) X(signal_stack, 8, IN_BOTH) \
        X(heap_new, 60, IN_BOTH) X(heap_resize, 40, IN_BOTH) X(heap_free, 50, IN_BOTH) X(thread, 3, IN_BOTH)

enum op_kind {
#define X(name, weight, where) OP_##name,
        OPS(X)
#undef X
                OP_KINDS
};

struct op {
        uint16_t kind;
        uint8_t actor, arena, to, raw;
        uint16_t page, pages, to_page;
        uint32_t value, arg; /* what it writes; how it does it */
        uint32_t round;      /* race */
};

/* What an operation says. Unused ones (an actor that does not live) say SKIPPED. */
struct record {
        int32_t result, error;
        uint64_t digest;
};
#define SKIPPED (-77)

struct program {
        enum family family;
        uint64_t seed;
        struct op *ops;
        uint32_t n;
};

/* Shared by all processes of a run. */
struct control {
        _Atomic uint32_t turn;       /* sequence: the operation that is due */
        _Atomic uint32_t failed;     /* somebody crashed: all stop */
        _Atomic uint32_t bell[ACTORS]; /* rung when the turn comes to one */
        _Atomic int32_t pid[ACTORS]; /* 0: not living */
        _Atomic uint64_t merged_seen, merged_looks; /* pages seen merged at settle operations */
        _Atomic uint64_t refused;    /* accesses tried again because they cannot wait (EIO) */
};

struct uring;
struct actor {
        uint32_t index;
        int scratch, direct, pattern, pipe[2], pagemap; /* direct -1: not here */
        uint8_t *bounce;                       /* BOUNCE_PAGES of MAP_SHARED memory */
        struct uring *uring;
};

struct run {
        struct program program;
        struct control *control;
        struct record *log;
        struct arena arenas[ARENAS];
        const uint8_t (*contents)[PAGE];
        int pattern, pattern_direct; /* a file of PATTERN_PAGES known pages; the same with O_DIRECT, -1: not here */
        const char *directory;
        bool pins; /* the program uses O_DIRECT, by descriptors that are opened only then */
        size_t top_pad_bytes; /* what malloc keeps on top of its heap, for programs that move the break themselves */
        uint32_t settle_usec; /* 0: a settle operation does nothing */
        uint32_t plant;       /* planted faults, one bit each */
};
extern struct run run;

#define PATTERN_PAGES 96U
#define FILE_PAGES 48U /* of the arenas' files; the arenas are longer */

enum { PLANT_BYTE = 1, PLANT_WRAPPER = 2 };

__attribute__((noreturn, format(printf, 1, 2))) void fail(const char *format, ...);
#define check(x, ...)                            \
        do {                                     \
                if (__builtin_expect(!(x), 0))   \
                        fail(__VA_ARGS__);       \
        } while (0)
uint64_t now_usec(void);
void *shared_alloc(size_t bytes);

/* program.c */
extern const char *const op_names[OP_KINDS];
void program_generate(struct program *p, enum family family, uint64_t seed, uint32_t n, const char *raw);
uint32_t fork_slot(const struct op *o); /* the actor that a fork makes */
void program_read(struct program *p, const char *path);
void program_print(const struct program *p);
const char *family_name(enum family family);
enum family family_of(const char *name);

/* arenas.c */
void arenas_init(void);
void arena_reset(struct arena *a, bool filled);
void contents_init(void);
static inline const uint8_t *content(uint32_t value) {
        return run.contents[value % CONTENTS];
}

/* The range of an operation, clipped to its arena; bytes may be 0 (brk). */
struct span {
        uint8_t *at;
        size_t bytes;
};
struct span op_span(const struct op *o);
struct span op_span_to(const struct op *o, size_t bytes);
/* The same, moved and shortened by odd byte counts drawn from arg. */
struct span op_span_bytes(const struct op *o);

/* access.c: loads and stores that may fault; a fault is a result (signal and code), not an end. */
void access_init(void);
int guarded_load(uint8_t *to, const uint8_t *from, size_t bytes);   /* within one page of `from` */
int guarded_store(uint8_t *to, const uint8_t *from, size_t bytes);  /* within one page of `to` */
int guarded_copy(uint8_t *to, const uint8_t *from, size_t bytes);   /* any; stops at the first fault */
int guarded_raise(int number);
uint64_t digest_bytes(uint64_t h, const void *p, size_t bytes);
uint64_t digest_memory(const void *p, size_t bytes);                /* page by page, faults included */

/* The mapping calls by libc or around it (calls.c). */
struct calls {
        void *(*mmap)(void *, size_t, int, int, int, off_t);
        int (*munmap)(void *, size_t);
        void *(*mremap)(void *, size_t, size_t, int, void *);
        int (*mprotect)(void *, size_t, int);
        int (*madvise)(void *, size_t, int);
};
const struct calls *calls_of(const struct op *o);

/* actors.c */
void actor_open(struct actor *a, uint32_t index);
void actor_forked(uint32_t index) __attribute__((noreturn)); /* the life of a forked actor */
void run_threads(void);
void turn_pass(uint32_t next);

struct record execute(struct actor *a, const struct op *o);

/* ops_*.c */
#define X(name, weight, where) struct record op_##name(struct actor *a, const struct op *o);
OPS(X)
#undef X
void uring_close(struct actor *a);
void uffd_forget(void); /* a child has the descriptor, but not the context */
bool uffd_is_open(void);
size_t remote_bytes(void);
void remote_attach(void *shared);
void remote_start(void);
void exec_resume(int fd);
void alarms(bool on);
/* main.c: this program again, from operation `next`, with the arenas' bytes in `state`. */
void run_again(int state, uint32_t next) __attribute__((noreturn));

/* race.c */
void race_init(void);
void race_thread(struct actor *a);

/* What a call returned, and its errno if it failed. */
static inline struct record outcome(long result) {
        return (struct record) { .result = (int32_t) result, .error = result == -1 ? errno : 0 };
}
