#!/usr/bin/env python3
"""What the shim and its rules add to the start of a program: CPU time of /bin/true from fork to exit, the median of rounds.

usage: exec_cost.py BUILD_DIR [ROUNDS]

Without the shim; with it and no directory of rules; with a file of 30 rules by path, by user, by unit, none of which holds."""
import os
import pathlib
import resource
import statistics
import sys
import tempfile

RUNS = 200


def usec_a_run(environment):
    """User and system time of so many children, one after the other."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(RUNS):
        os.waitpid(os.posix_spawn("/bin/true", ["true"], environment), 0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e6 / RUNS


def main():
    build, rounds = pathlib.Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 15
    shim = {"LD_PRELOAD": str(build / "lib/libuserksm-preload.so")}
    with tempfile.TemporaryDirectory() as directory:
        ways = {"without": {}, "shim, no rules": {**shim, "USERKSM_RULES_DIR": "/nonexistent/rules.d"}}
        for kind in ("exe=/opt/x/bin/*", "uid=4000000000", "unit=x@*.service"):
            path = pathlib.Path(directory, kind.split("=")[0])
            path.mkdir()
            (path / "50.conf").write_text(f"merge-any {kind}\n" * 30)
            ways["shim, by " + path.name] = {**shim, "USERKSM_RULES_DIR": str(path)}
        found = {name: [] for name in ways}
        for _ in range(rounds):
            for name, environment in ways.items():
                found[name].append(usec_a_run(environment))
    for name, values in found.items():
        print(f"{name:15} {statistics.median(values):6.0f} us of CPU time ({min(values):.0f} to {max(values):.0f})")


if __name__ == "__main__":
    main()
