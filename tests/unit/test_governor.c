/* The governor: what it decides from which facts, that its bucket holds what it says, and how it reads the kernel's files. The core is a
 * real one, without clients: has_work and pace are asked of it. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "daemon/bounds.h"
#include "daemon/governor.h"

static void test_decision(void **state) {
        static const struct {
                int64_t run, only, pressure_threshold, low_threshold, idle, most;
                int pressure, available; /* -1: not known */
                bool has_work;
                enum governor_state governor;
                enum core_pace pace;
                unsigned cpu_permille;
        } cases[] = {
                { 1, 0, 50, 100, 50, 1000, 0, 900, true, GOVERNOR_WORK, CORE_PACE_NORMAL, 1000 },
                { 1, 0, 50, 100, 50, 1000, 0, 900, false, GOVERNOR_IDLE, CORE_PACE_NORMAL, 50 },
                { 1, 0, 50, 100, 500, 300, 0, 900, false, GOVERNOR_IDLE, CORE_PACE_NORMAL, 300 }, /* the cap holds always */
                { 0, 0, 50, 100, 50, 1000, 900, 10, true, GOVERNOR_STOPPED, CORE_PACE_NORMAL, 1000 },
                { 2, 1, 50, 100, 50, 1000, 0, 900, true, GOVERNOR_STOPPED, CORE_PACE_NORMAL, 1000 },
                /* The thresholds belong to what is short, or not. */
                { 1, 0, 50, 100, 50, 700, 50, 900, false, GOVERNOR_HURRY, CORE_PACE_FAST, 700 },
                { 1, 0, 50, 100, 50, 700, 49, 900, false, GOVERNOR_IDLE, CORE_PACE_NORMAL, 50 },
                { 1, 0, 50, 100, 50, 700, 0, 99, false, GOVERNOR_HURRY, CORE_PACE_FAST, 700 },
                { 1, 0, 50, 100, 50, 700, 0, 100, false, GOVERNOR_IDLE, CORE_PACE_NORMAL, 50 },
                /* Each alone can be turned off, or be missing. */
                { 1, 0, 0, 100, 50, 700, 1000, 900, false, GOVERNOR_IDLE, CORE_PACE_NORMAL, 50 },
                { 1, 0, 50, 0, 50, 700, 0, 0, false, GOVERNOR_IDLE, CORE_PACE_NORMAL, 50 },
                { 1, 0, 50, 100, 50, 700, -1, 50, false, GOVERNOR_HURRY, CORE_PACE_FAST, 700 },
                { 1, 0, 50, 100, 50, 700, 60, -1, false, GOVERNOR_HURRY, CORE_PACE_FAST, 700 },
                { 1, 0, 50, 100, 50, 700, -1, -1, true, GOVERNOR_WORK, CORE_PACE_NORMAL, 700 },
                /* Only under pressure: work is no reason. */
                { 1, 1, 50, 100, 50, 700, 0, 900, true, GOVERNOR_REST, CORE_PACE_REST, 700 },
                { 1, 1, 50, 100, 50, 700, 60, 900, false, GOVERNOR_HURRY, CORE_PACE_FAST, 700 },
                { 1, 1, 50, 100, 50, 700, -1, -1, true, GOVERNOR_REST, CORE_PACE_REST, 700 },
        };

        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                struct governor_facts f = {
                        .knows_pressure = cases[i].pressure >= 0,
                        .knows_available = cases[i].available >= 0,
                        .pressure_permille = (unsigned) MAX(cases[i].pressure, 1000 * (cases[i].pressure < 0)),
                        .available_permille = (unsigned) MAX(cases[i].available, 0),
                        .has_work = cases[i].has_work,
                };
                struct governor_shortage shortage = { 0 };
                struct governor_decision d;
                struct tunables t;

                tunables_init(&t);
                t.run = cases[i].run;
                t.only_under_pressure = cases[i].only;
                t.pressure_permille = cases[i].pressure_threshold;
                t.low_memory_permille = cases[i].low_threshold;
                t.idle_cpu_permille = cases[i].idle;
                t.max_cpu_permille = cases[i].most;
                d = governor_decide(&t, &f, &shortage);
                assert_int_equal(d.state, cases[i].governor);
                assert_int_equal(d.pace, cases[i].pace);
                assert_int_equal(d.cpu_permille, cases[i].cpu_permille);
        }
}

static enum governor_state decide(unsigned pressure, unsigned available, struct governor_shortage *shortage) {
        struct governor_facts f = { .knows_pressure = true, .knows_available = true, .pressure_permille = pressure, .available_permille = available };
        struct tunables t;

        tunables_init(&t);
        t.pressure_permille = 50;
        t.low_memory_permille = 80;
        return governor_decide(&t, &f, shortage).state;
}

/* Values that dance around a threshold do not make the state dance. */
static void test_no_flicker(void **state) {
        struct governor_shortage s = { 0 };

        assert_int_equal(decide(30, 900, &s), GOVERNOR_IDLE);
        assert_int_equal(decide(50, 900, &s), GOVERNOR_HURRY);
        assert_int_equal(decide(25, 900, &s), GOVERNOR_HURRY);
        assert_int_equal(decide(24, 900, &s), GOVERNOR_IDLE);
        assert_int_equal(decide(30, 900, &s), GOVERNOR_IDLE);
        assert_int_equal(decide(0, 85, &s), GOVERNOR_IDLE);
        assert_int_equal(decide(0, 79, &s), GOVERNOR_HURRY);
        assert_int_equal(decide(0, 89, &s), GOVERNOR_HURRY);
        assert_int_equal(decide(0, 90, &s), GOVERNOR_IDLE);
        assert_int_equal(decide(0, 85, &s), GOVERNOR_IDLE);
}

/* CPU time used in `seconds` by scanning that always wants more, in jobs of job_usec, asking every step_usec. */
static uint64_t use(struct governor *g, struct core *core, uint64_t *now, unsigned seconds, uint64_t job_usec, uint64_t step_usec) {
        static uint64_t cpu;
        uint64_t end = *now + seconds * USEC_PER_SEC, before = cpu;

        while (*now < end) {
                uint64_t wait = governor_wait(g, core, *now, cpu);

                if (wait == 0) {
                        cpu += job_usec;
                        *now += job_usec;
                } else
                        *now += step_usec ? step_usec : wait; /* others wake the loop, or nobody does */
        }
        return cpu - before;
}

static void test_bucket(void **state) {
        struct governor g;
        struct core *core;
        uint64_t now = 1000000;

        assert_int_equal(core_new(NULL, 1, &core), 0);
        governor_open(&g, "/dev/null", now);
        g.facts = (struct governor_facts){ 0 };
        g.look_due_usec = UINT64_MAX;
        /* Nobody there: idle, 5 % of a core, whatever the jobs and however often it is asked. */
        static const struct { uint64_t job, step; } loads[] = { { 100, 0 }, { 8000, 0 }, { 100, 3 }, { 8000, 1 }, { 30, 100000 } };
        (void) use(&g, core, &now, 2, 1000, 0); /* the burst */
        for (size_t i = 0; i < ARRAY_SIZE(loads); i++) {
                uint64_t used = use(&g, core, &now, 20, loads[i].job, loads[i].step);

                assert_int_equal(g.now.state, GOVERNOR_IDLE);
                assert_in_range(used, 20 * 40000, 20 * 50000 + 8000);
        }
        /* A domain of one client with a new range: work, and all of a core. */
        uint32_t domain, client;
        assert_int_equal(core_domain(core, "d", 1, &domain), 0);
        assert_int_equal(core_client_add(core, domain, &(struct core_client_config){ 0 }, &client), 0);
        assert_int_equal(core_range_add(core, client, 100, 100), 0);
        assert_in_range(use(&g, core, &now, 10, 1000, 0), 9900000, 10000000);
        assert_int_equal(g.now.state, GOVERNOR_WORK);
        assert_int_equal(core_tunable_set(core, TUNABLE_max_cpu_permille, 200, now), 0);
        assert_in_range(use(&g, core, &now, 10, 1000, 0), 1900000, 2100000);
        governor_close(&g);
        core_free(core);
}

static void test_parse_stall(void **state) {
        static const struct {
                const char *text;
                int permille; /* -1: not understood */
        } cases[] = {
                { "some avg10=12.34 avg60=0.00 avg300=0.00 total=473110\nfull avg10=99.00 avg60=0.00 avg300=0.00 total=1\n", 123 },
                { "some avg10=0.00 avg60=9.00 avg300=9.00 total=0\nfull avg10=1.00 avg60=0.00 avg300=0.00 total=1\n", 0 },
                { "full avg10=99.00 avg60=0.00 avg300=0.00 total=1\nsome avg10=100.00 avg60=0.00 avg300=0.00 total=1\n", 1000 },
                { "full avg10=99.00 avg60=0.00 avg300=0.00 total=1\n", -1 },
                { "some avg60=0.00\nfull avg10=3.00\n", -1 },
                { "some avg10= 1.00\n", -1 },
                { "some avg10=-1.00\n", -1 },
                { "some avg10=101.00\n", -1 },
                { "some avg10=1\n", -1 },
                { "some avg10=1.x\n", -1 },
                { "some avg10=", -1 },
                { "some ", -1 },
                { "", -1 },
        };

        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                unsigned permille = 0;

                assert_int_equal(pressure_parse_stall(cases[i].text, &permille), cases[i].permille < 0 ? -EBADMSG : 0);
                if (cases[i].permille >= 0)
                        assert_int_equal(permille, cases[i].permille);
        }
}

static void test_parse_meminfo(void **state) {
        unsigned permille;

        assert_int_equal(pressure_parse_meminfo("MemTotal:       1000 kB\nMemFree:  9 kB\nMemAvailable:    123 kB\n", &permille), 0);
        assert_int_equal(permille, 123);
        assert_int_equal(pressure_parse_meminfo("MemTotal: 3 kB\nMemAvailable: 9 kB\n", &permille), 0);
        assert_int_equal(permille, 1000);
        assert_int_equal(pressure_parse_meminfo("MemTotal: 18446744073709551615 kB\nMemAvailable: 18446744073709551615 kB\n", &permille), 0);
        assert_int_equal(permille, 1000);
        assert_int_equal(pressure_parse_meminfo("MemTotal: 0 kB\nMemAvailable: 0 kB\n", &permille), -EBADMSG);
        assert_int_equal(pressure_parse_meminfo("MemTotal: 10 kB\n", &permille), -EBADMSG);
        assert_int_equal(pressure_parse_meminfo("XMemTotal: 10 kB\nMemAvailable: 5 kB\n", &permille), -EBADMSG);
        assert_int_equal(pressure_parse_meminfo("MemTotal: -10 kB\nMemAvailable: 5 kB\n", &permille), -EBADMSG);
        assert_int_equal(pressure_parse_meminfo("MemTotal: 10 kB\nMemAvailable: x kB\n", &permille), -EBADMSG);
}

/* The kernel's own files, again and again on one open file; and a file that is not there. */
static void test_files(void **state) {
        char path[] = "/tmp/userksm-pressure-XXXXXX";
        static const char text[] = "some avg10=50.00 avg60=0.00 avg300=0.00 total=1\n";
        struct pressure p;
        unsigned permille;
        int fd = mkstemp(path);

        assert_true(fd >= 0);
        assert_int_equal(pressure_open(&p, path), 0);
        assert_int_equal(pressure_stall_permille(&p, &permille), -EBADMSG);
        assert_int_equal(pwrite(fd, text, sizeof(text) - 1, 0), sizeof(text) - 1);
        assert_int_equal(pressure_stall_permille(&p, &permille), 0);
        assert_int_equal(permille, 500);
        assert_int_equal(pressure_available_permille(&p, &permille), 0);
        assert_in_range(permille, 0, 1000);
        pressure_close(&p);
        close_fd(fd);
        assert_int_equal(unlink(path), 0);
        assert_int_equal(pressure_open(&p, path), -ENOENT);
        assert_int_equal(pressure_stall_permille(&p, &permille), -EBADF);
        assert_int_equal(pressure_available_permille(&p, &permille), 0);
        pressure_close(&p);
        assert_int_equal(pressure_open(&p, "/dev/full"), 0); /* reads zeros for ever */
        assert_int_equal(pressure_stall_permille(&p, &permille), -EBADMSG);
        pressure_close(&p);
        if (pressure_open(&p, "/proc/pressure/memory") == 0)
                assert_int_equal(pressure_stall_permille(&p, &permille), 0);
        pressure_close(&p);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_decision),
                cmocka_unit_test(test_no_flicker),
                cmocka_unit_test(test_bucket),
                cmocka_unit_test(test_parse_stall),
                cmocka_unit_test(test_parse_meminfo),
                cmocka_unit_test(test_files),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
