/* What a program has set on its memory is there after merge and restore, as smaps shows it: put back, or never touched. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "lib/agent.h"
#include "tests/lib/rig.h"

#define FLAGS_BYTES 128

/* VmFlags of the mapping at page, without those of userfaultfds and soft-dirty; and its name. */
static void attributes(const uint8_t *page, char flags[FLAGS_BYTES]) {
        char line[512];
        bool inside = false;
        FILE *f = fopen("/proc/self/smaps", "re");
        assert_non_null(f);
        flags[0] = 0;
        while (fgets(line, sizeof(line), f)) {
                unsigned long start, end;
                if (sscanf(line, "%lx-%lx ", &start, &end) == 2) {
                        inside = (uintptr_t) page >= start && (uintptr_t) page < end;
                        if (inside && strstr(line, "[anon:"))
                                strcat(flags, "named");
                } else if (inside && strncmp(line, "VmFlags:", 8) == 0) {
                        for (char *s, *w = strtok_r(line + 8, " \n", &s); w; w = strtok_r(NULL, " \n", &s))
                                if (strcmp(w, "sd") != 0 && strcmp(w, "um") != 0 && strcmp(w, "uw") != 0 && strcmp(w, "ui") != 0 &&
                                    strlen(flags) + 4 < FLAGS_BYTES)
                                        strcat(strcat(flags, " "), w);
                }
        }
        fclose(f);
}

static int advise(uint8_t *b, int advice) {
        int r = madvise(b, BLOCK_BYTES, advice);
        if (r == 0 && (advice == MADV_DONTFORK || advice == MADV_HUGEPAGE || advice == MADV_NOHUGEPAGE))
                agent_note_advice((uint64_t) b, BLOCK_BYTES, advice); /* as the wrappers do */
        return r;
}

static int lock(uint8_t *b, int ignored) {
        return mlock(b, BLOCK_BYTES);
}

static int name(uint8_t *b, int ignored) {
        return prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, b, BLOCK_BYTES, "mine");
}

static const struct attribute {
        int (*set)(uint8_t *b, int advice);
        int advice;
        bool merges;
        const char *shows; /* NULL: the plain case */
} attributes_table[] = {
        { advise, MADV_NORMAL, true, NULL },
        { advise, MADV_HUGEPAGE, true, " hg" },
        { advise, MADV_NOHUGEPAGE, true, " nh" },
        { advise, MADV_DONTFORK, true, " dc" },
        { advise, MADV_WIPEONFORK, false, " wf" },
        { advise, MADV_DONTDUMP, false, " dd" },
        { lock, 0, false, " lo" },
        { name, 0, false, "named" },
};

static void merge_zero_and_restore(uint8_t *b, const struct attribute *t) {
        char before[FLAGS_BYTES], after[FLAGS_BYTES];
        uint8_t status[64];
        attributes(b, before);
        if (t->shows && !strstr(before, t->shows)) {
                printf("this kernel does not show%s\n", t->shows);
                return;
        }
        for (unsigned i = 0; i < PAGES; i++)
                fill(b + i * KSM_PAGE_SIZE, i % CONTENTS);
        (void) apply(APPLY_MERGE, b, 8, PAGES - 8, 8, status);
        assert_int_equal(file_pages(b), t->merges ? ~0xffULL : 0);
        (void) apply(APPLY_ZERO, b, 0, 1, 0, status);
        assert_int_equal(status[0] == APPLY_OK, t->merges);
        (void) apply(APPLY_RESTORE, b, 0, PAGES, 0, status);
        assert_int_equal(file_pages(b), 0);
        for (unsigned i = 0; i < PAGES; i++) {
                uint8_t want[KSM_PAGE_SIZE];
                attributes(b + i * KSM_PAGE_SIZE, after);
                assert_string_equal(after, before);
                fill(want, i % CONTENTS);
                assert_memory_equal(b + i * KSM_PAGE_SIZE, want, KSM_PAGE_SIZE);
        }
}

static uint8_t *block_plain(void) {
        uint8_t *p = mmap(NULL, 3 * BLOCK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        assert_ptr_not_equal(p, MAP_FAILED);
        return (uint8_t *) (((uintptr_t) p + BLOCK_BYTES - 1) & ~(BLOCK_BYTES - 1));
}

static void forget(uint8_t *b) {
        munmap(b, BLOCK_BYTES);
        registry_forget(&A, (uint64_t) b, (uint64_t) b + BLOCK_BYTES);
}

/* Set before the memory is registered: the agent reads them. */
static void test_set_before(void **state) {
        for (unsigned k = 0; k < ARRAY_SIZE(attributes_table); k++) {
                uint8_t *b = block_plain();
                (void) attributes_table[k].set(b, attributes_table[k].advice);
                (void) registry_register(&A, (uint64_t) b, (uint64_t) b + BLOCK_BYTES, true);
                agent_consume_notes(&A);
                merge_zero_and_restore(b, &attributes_table[k]);
                forget(b);
        }
}

/* Set on merged memory, and taken back: the agent is told. */
static void test_set_on_merged(void **state) {
        static const struct { int advice; const char *shows; } t[] = { { MADV_HUGEPAGE, " hg" }, { MADV_NOHUGEPAGE, " nh" },
                                                                      { MADV_HUGEPAGE, " hg" }, { MADV_DONTFORK, " dc" } };
        uint8_t *b = block_new(), status[64];
        for (unsigned k = 0; k < ARRAY_SIZE(t); k++) {
                char flags[FLAGS_BYTES];
                for (unsigned i = 0; i < PAGES; i++)
                        fill(b + i * KSM_PAGE_SIZE, i % CONTENTS);
                (void) apply(APPLY_MERGE, b, 0, PAGES, 0, status);
                assert_int_equal(file_pages(b), ~0ULL);
                bool set = advise(b, t[k].advice) == 0;
                agent_consume_notes(&A);
                (void) apply(APPLY_RESTORE, b, 0, PAGES, 0, status);
                assert_int_equal(file_pages(b), 0);
                attributes(b, flags);
                if (set)
                        assert_non_null(strstr(flags, t[k].shows));
                assert_true(!strstr(flags, " hg") || !strstr(flags, " nh"));
        }
        forget(b);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_set_before),
                cmocka_unit_test(test_set_on_merged),
        };
        return cmocka_run_group_tests(tests, rig_setup, NULL);
}
