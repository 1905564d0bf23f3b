#include "daemon/turn.h"

#include "common/cleanup.h"
#include "daemon/bounds.h"

int turn_init(struct turn *t, uv_loop_t *loop) {
        t->number = 1;
        return uv_loop_configure(loop, UV_METRICS_IDLE_TIME);
}

void turn_start(struct turn *t) {
        t->ended_usec = now_usec();
        t->ended_cpu_usec = clock_usec(CLOCK_THREAD_CPUTIME_ID);
}

static void count(uint64_t buckets[TURN_BUCKETS], uint64_t *longest, uint64_t usec) {
        unsigned i = 0;
        while (i < TURN_BUCKETS - 1 && usec > turn_bucket_usec[i])
                i++;
        buckets[i]++;
        *longest = MAX(*longest, usec);
}

void turn_end(struct turn *t, uv_loop_t *loop) {
        uint64_t now = now_usec(), cpu = clock_usec(CLOCK_THREAD_CPUTIME_ID), idle = uv_metrics_idle_time(loop);
        uint64_t wall = now - t->ended_usec, slept = (idle - t->ended_idle_nsec) / 1000;
        count(t->wall, &t->longest_usec, wall > slept ? wall - slept : 0);
        count(t->cpu, &t->longest_cpu_usec, cpu - t->ended_cpu_usec);
        t->ended_usec = now;
        t->ended_cpu_usec = cpu;
        t->ended_idle_nsec = idle;
        t->began_usec = 0;
        t->number++;
}

bool turn_is_over(struct turn *t, uint64_t now) {
        if (t->began_usec == 0)
                t->began_usec = now;
        return now >= t->began_usec + TURN_USEC;
}

void turn_counters(const struct turn *t, struct counters *ret) {
        int64_t *wall = (int64_t *) ret + COUNTER_turn_le_256_usec, *cpu = (int64_t *) ret + COUNTER_turn_cpu_le_256_usec;
        for (unsigned i = 0; i < TURN_BUCKETS; i++) {
                wall[i] = (int64_t) t->wall[i];
                cpu[i] = (int64_t) t->cpu[i];
        }
        ret->turn_longest_usec = (int64_t) t->longest_usec;
        ret->turn_cpu_longest_usec = (int64_t) t->longest_cpu_usec;
}
_Static_assert(COUNTER_turn_gt_250000_usec - COUNTER_turn_le_256_usec + 1 == TURN_BUCKETS &&
               COUNTER_turn_cpu_gt_250000_usec - COUNTER_turn_cpu_le_256_usec + 1 == TURN_BUCKETS,
               "buckets stand together");
