#!/usr/bin/env python3
"""The lost-write test: several processes of torture under the shim with an impatient daemon; no byte may differ.

  test_shim_torture.py [--chaos] [--seconds N] [--processes N] [--delay-usec N] [--seed N] [--thp always|madvise] [--merge-any]

--chaos: advice at random, at once and sometimes wrong (chaos.c) in place of userksmd's.
--delay-usec: random delays at every step of a transition, up to this."""
import argparse
import pathlib
import sys
import time

from harness import BUILD, Daemon
from test_shim_support import Chaos, finish, spawn

SHOWN = ("merges", "unshares", "failed_changed", "failed_pinned_or_forked", "failed_vma_gone", "failed_error",
         "ksm_zero_pages", "transitions", "agent_busy", "raw_syscalls")
THP = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def thp_now():
    return THP.read_text().split("[")[1].split("]")[0]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--chaos", action="store_true")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=5)
    parser.add_argument("--regions", type=int, default=6)
    parser.add_argument("--delay-usec", type=int, default=300)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1000000007)
    parser.add_argument("--thp", choices=["always", "madvise"], default="madvise")
    parser.add_argument("--merge-any", action="store_true")
    args = parser.parse_args()
    thp_before = thp_now()
    try:
        if thp_before != args.thp:
            THP.write_text(args.thp)
        run(args)
    finally:
        if thp_now() != thp_before:
            THP.write_text(thp_before)


def run(args):
    with Chaos(args.seed) if args.chaos else Daemon() as daemon:
        extra = {"USERKSM_FAULT": f"any:random:1:{args.delay_usec}"}
        if args.merge_any:
            extra["USERKSM_MERGE_ANY"] = "1"
        programs = [spawn([BUILD / "tests/e2e/torture", f"--seconds={args.seconds}", f"--seed={args.seed + i}",
                           f"--threads={args.threads}", f"--regions={args.regions}", f"--directory={daemon.directory}",
                           "--expect-merges=1"], daemon.socket, **extra)
                    for i in range(args.processes)]
        failed = None
        for program in programs:
            try:
                print(finish(program, args.seconds + 60, f"torture of seed {args.seed}").strip())
            except AssertionError as e:
                failed = e
                print(e, file=sys.stderr)
        if not args.chaos:
            stats = daemon.stats()
            print({name: stats[name] for name in SHOWN})
            assert failed or stats["raw_syscalls"] == 0, "a program was taken for one that goes around libc"
        if failed:
            raise failed


main()
