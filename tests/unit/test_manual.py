#!/usr/bin/env python3
"""The manual pages: groff and man have nothing to remark, and every key of --help is there with its range and default.

usage: test_manual.py USERKSMD KSMCTL USERKSM_SYSFS USERKSMD_8 KSMCTL_1 USERKSM_SYSFS_8. Skips (77) without groff."""
import pathlib
import re
import shutil
import subprocess
import sys

userksmd, ksmctl, sysfs, daemon_page, ctl_page, sysfs_page = sys.argv[1:]
failures = []


def check(what, ok, output=""):
    print(("ok    " if ok else "FAIL  ") + what)
    if not ok:
        print(output)
        failures.append(what)


def run(*command):
    r = subprocess.run(command, capture_output=True, text=True, timeout=120, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANWIDTH": "80"})
    return r.stdout, r.stderr


def words(text):
    return re.sub(r"\s+", " ", text)


if not shutil.which("groff"):
    print("SKIP: groff is not installed")
    sys.exit(77)

pages = {}
for page in daemon_page, ctl_page, sysfs_page:
    output, remarks = run("groff", "-man", "-ww", "-z", page)
    check(f"groff -man -ww -z {page}: no remark", not (output or remarks), output + remarks)
    # One long line a paragraph, so that nothing is hyphenated or broken.
    pages[page], remarks = run("groff", "-man", "-Tascii", "-P-cbou", "-rLL=1000n", "-rHY=0", page)
    if shutil.which("man"):
        _, remarks = run("man", "--warnings", "-l", page)
        check(f"man --warnings -l {page}: no remark", not remarks, remarks)

entries = re.findall(r"^  (\S+) +\[(.*, default .*)\]\n +(.*)$", run(userksmd, "--help")[0], re.M)
names = run(ksmctl, "get", "--help")[0]
check("userksmd --help names tunables as ksmctl get --help does", len(entries) > 20 and all(f"  {n} " in names for n, _, _ in entries))
text = words(pages[daemon_page])
for name, values, meaning in entries:
    check(f"userksmd(8): {name} ({values})", f"{name} ({values}) {words(meaning)}" in text)
for name in re.findall(r"^  (\S+) ", run(userksmd, "--help")[0].split("Section [daemon]")[1].split("Section [tunables]")[0], re.M):
    check(f"userksmd(8): {name}", re.search(rf" {name} \(.*?default ", text) is not None)
text = words(pages[ctl_page])
verbs = re.findall(r"^  (\w+) ", run(ksmctl, "--help")[0].split("Verbs")[1].split("Options:")[0], re.M)
check("ksmctl(1): verbs", len(verbs) >= 8)
for verb in verbs:
    usage, rest = run(ksmctl, verb, "--help")[0].split("\n", 1)
    check(f"ksmctl(1): {verb}", f"ksmctl {usage.split('] ', 1)[1]}" in text, usage)
    first = rest.strip().split("\n\n")[0]
    check(f"ksmctl(1): {verb} says what it does", words(first) in text, first)
for name in re.findall(r"^  (\w+) ", run(ksmctl, "stats", "--help")[0].split("Counters:")[1], re.M):
    check(f"ksmctl(1): {name}", re.search(rf" {name} ", text) is not None)
text = words(pages[sysfs_page])
options = re.findall(r"^  (?:-\w, )?--(\w+)", run(sysfs, "--help")[0], re.M)
check("userksm-sysfs(8): options", len(options) >= 4 and all(f"--{o}" in text for o in options), str(options))
# By the kernel's own files where there are any: the table has no others (tests/e2e/test_sysfs.py).
files = [p.name for p in pathlib.Path("/sys/kernel/mm/ksm").glob("*")] or ["run", "pages_sharing"]
for name in files:
    check(f"userksm-sysfs(8): {name}", f" {name} " in text)
check("userksm-sysfs(8): files of a domain", "processes, registered_pages, " in text and "; and key" in text, text)
sys.exit(1 if failures else 0)
