#!/usr/bin/env python3
"""The kernel's own tests of KSM, unmodified, under `ksmctl run --sysfs`: what run_vmtests.sh runs, and more of their options. What fails is in the
tables below, each with its heading in docs/sysfs.md.

usage: run.py"""
import os
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "e2e"))
from harness import BUILD, skip  # noqa: E402

DOCS = (HERE.parents[1] / "docs/sysfs.md").read_text()
KSM_TESTS = ("-M -p 10", "-M -p 10 -t 1", "-M -p 2000", "-U", "-U -t 1", "-Z -p 10 -z 0", "-Z -p 10 -z 1", "-N -m 1", "-N -m 0", "-P -s 100",
             "-H -s 100", "-D -s 100", "-C", "-M -p 10 -a r")
FAILS = {
    "ksm_tests -M -p 10 -a r": "Memory that is left alone",
    "test_prot_none": "Memory that is left alone",
    "test_unmerge_zero_pages": "Counters",
    "test_prctl_fork": "Counters",
}
# Its argument vector has no end: what exec makes of it is chance, under the kernel as well.
CHANCE = {"test_prctl_fork_exec"}
FUNCTIONAL = {"test_unmerge", "test_unmerge_zero_pages", "test_unmerge_discarded", "test_unmerge_uffd_wp", "test_prot_none", "test_prctl",
              "test_prctl_fork", "test_prctl_fork_exec", "test_prctl_unmerge"}


def under_userksm(folder, *command):
    r = subprocess.run([BUILD / "ctl/ksmctl", "run", "--quiet", "--sysfs", "--", "stdbuf", "-oL", *command], cwd=folder, timeout=300, text=True,
                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                       env={**os.environ, "USERKSM_SOCKET": "/nonexistent/userksm.sock"})
    return r.stdout


def main():
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.W_OK):
        skip("mounting FUSE and reading page frames want root and /dev/fuse")
    r = subprocess.run([HERE / "fetch"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if r.returncode:
        skip(r.stderr.strip().split("\n")[-1])
    folder = pathlib.Path(r.stdout.strip())
    results, said = {}, {}
    for options in KSM_TESTS:
        name = f"ksm_tests {options}"
        said[name] = under_userksm(folder, "./ksm_tests", *options.split())
        results[name] = "SKIP" if "# SKIP" in said[name] else "ok" if re.search(r"^ok 1", said[name], re.M) else "fails"
    text = under_userksm(folder, "./ksm_functional_tests")
    for part in text.split("# [RUN] ")[1:]:
        name = part.split("\n")[0]
        said[name] = part
        if name not in CHANCE:  # a child that did not exec runs the next one before its parent does
            results[name] = "ok" if re.search(r"^ok ", part, re.M) else "fails"
    missing = FUNCTIONAL - CHANCE - set(results)
    wrong = [f"{n}: {r}\n{said[n]}" for n, r in results.items() if r != "SKIP" and (r == "fails") != (n in FAILS)]
    for name, r in results.items():
        print(f"{r:5} {name}{f' (docs/sysfs.md, {FAILS[name]})' if r == 'fails' and name in FAILS else ''}")
    assert all(f"## {h}" in DOCS for h in FAILS.values())
    if wrong or missing:
        print("other than noted:", *wrong, *missing, sep="\n")
    return 1 if wrong or missing else 0


sys.exit(main())
