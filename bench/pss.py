#!/usr/bin/python3
"""Proportional memory (PSS) of processes, from smaps_rollup: what the savings are measured by.

usage: pss.py [--json] PID...

A page that n processes map counts 1/n in each of them, so the sum over all that map it is the memory in use. Pages of
a segment that the daemon alone still holds are in the daemon's PSS, or in nobody's once it has unmapped them: give the
daemon's pid too for the whole truth."""
import json
import sys


def pss_kib(pid):
    """PSS of one process in KiB. Raises FileNotFoundError or ProcessLookupError when it is gone."""
    with open(f"/proc/{pid}/smaps_rollup") as f:
        for line in f:
            if line.startswith("Pss:"):
                return int(line.split()[1])
    raise ProcessLookupError(pid)


def sum_pss_mib(pids):
    return sum(pss_kib(pid) for pid in pids) / 1024


def main():
    arguments = sys.argv[1:]
    as_json = "--json" in arguments
    pids = [a for a in arguments if a != "--json"]
    if not pids or not all(p.isdigit() for p in pids):
        print("usage: pss.py [--json] PID...", file=sys.stderr)
        return 64
    each = {int(pid): pss_kib(pid) for pid in pids}
    if as_json:
        print(json.dumps({"processes": {str(p): k * 1024 for p, k in each.items()},
                          "total": sum(each.values()) * 1024}))
    else:
        for pid, kib in each.items():
            print(f"{pid:8} {kib / 1024:10.1f} MiB")
        print(f"{'total':>8} {sum(each.values()) / 1024:10.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
