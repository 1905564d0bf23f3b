#!/usr/bin/python3
"""Runs meson's suites build by build, prints every skip with its reason, and ends with the counts.

usage: run_tests.py --run BUILD_DIR[:SETUP] [SUITE | SUITE/TEST]... [--run ...]...

SETUP is one of meson's test setups (valgrind). Without a SUITE all run but those of ON_REQUEST: `guest` looks at another machine than
this one, `static` looks at no machine, `kselftest` wants a large package.
Suites that look at the machine (all but the first two) run one test at a time: two that measure memory, or load the
kernel's userfaultfd, would disturb each other and the answer."""
import json
import os
import pathlib
import shutil
import subprocess
import sys

PARALLEL = ("unit", "sim")
ON_REQUEST = ("guest", "static", "kselftest")
SKIPPED = 77
REPORT_CHARS = 8000
TSAN_SUPPRESSIONS = pathlib.Path(__file__).resolve().parent.parent / "tests/tsan.supp"


def suites_of(build):
    out = subprocess.run(["meson", "introspect", "--tests", build], check=True, capture_output=True, text=True).stdout
    names = {s.split(":")[-1] for t in json.loads(out) for s in t["suite"]}
    return [s for s in PARALLEL if s in names] + sorted(names - set(PARALLEL))


def reason(record):
    """The line in which the test says why it was skipped, else its last line."""
    lines = [s.strip() for s in (record.get("stdout", "") + "\n" + record.get("stderr", "")).splitlines() if s.strip()]
    said = [s for s in lines if s.lower().startswith("skip")]
    return (said or lines or ["no reason given"])[-1]


def run_suite(build, setup, suite, tests):
    """Returns (passed, failed, skipped) counts; every test is printed by meson as it ends. Without tests: all of the suite."""
    print(f"\n== {build}: {suite}{' under ' + setup if setup else ''}", flush=True)
    logbase = f"log-{suite}"
    command = ["meson", "test", "-C", build, "--no-rebuild", "--print-errorlogs", "--suite", suite, f"--logbase={logbase}", *tests]
    if setup:
        command.append(f"--setup={setup}")
        logbase += f"-{setup}"  # which meson appends
    if suite not in PARALLEL:
        command.append("--num-processes=1")
    # A sanitizer's report goes to a file, whichever process it is about and whoever looks at its exit status.
    reports = pathlib.Path(build, "meson-logs", "sanitizer").resolve()
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir(parents=True)
    reports.chmod(0o1777)  # some tests change their user
    log_path = f"log_path={reports}/report"
    # meson fills malloc'ed memory with a random byte unless told not to: pages of programs would differ by run.
    environment = dict(os.environ, UBSAN_OPTIONS=f"halt_on_error=1:print_stacktrace=1:{log_path}", ASAN_OPTIONS=log_path,
                       TSAN_OPTIONS=f"suppressions={TSAN_SUPPRESSIONS}:{log_path}",
                       MALLOC_PERTURB_="0")
    log = pathlib.Path(build, "meson-logs", f"{logbase}.json")
    log.unlink(missing_ok=True)
    status = subprocess.run(command, stdin=subprocess.DEVNULL, env=environment).returncode
    passed = failed = skipped = 0
    if log.exists():
        for line in log.read_text().splitlines():
            record = json.loads(line)
            if record["result"] in ("OK", "EXPECTEDFAIL"):
                passed += 1
            elif record["result"] == "SKIP" or record.get("returncode") == SKIPPED:
                skipped += 1
                print(f"SKIPPED {record['name']}: {reason(record)}", flush=True)
            else:
                failed += 1
                print(f"FAILED {record['name']}: {record['result']}", flush=True)
    for report in sorted(reports.iterdir()):
        failed += 1
        print(f"FAILED suite {suite}: a sanitizer's report\n{report.read_text(errors='replace')[:REPORT_CHARS]}", flush=True)
    if status != 0 and failed == 0:
        print(f"FAILED suite {suite}: meson test ended with status {status}", flush=True)
        failed += 1
    return passed, failed, skipped


def main():
    runs = []
    for argument in sys.argv[1:]:
        if argument == "--run":
            runs.append([])
        elif not runs:
            sys.exit(__doc__)
        else:
            runs[-1].append(argument)
    totals = [0, 0, 0]
    for place, *wanted in runs:
        build, _, setup = place.partition(":")
        known = suites_of(build)
        tests = {}
        for suite, _, test in (s.partition("/") for s in wanted):
            tests.setdefault(suite, []).extend([test] if test else [])
        unknown = [s for s in tests if s not in known]
        if unknown:
            sys.exit(f"{build}: no suite {', '.join(unknown)}; there are: {', '.join(known)}")
        for suite in [s for s in known if s in (tests or set(known) - set(ON_REQUEST))]:
            totals = [a + b for a, b in zip(totals, run_suite(build, setup, suite, tests.get(suite, [])))]
    print(f"\n{totals[0]} passed, {totals[1]} failed, {totals[2]} skipped")
    return 1 if totals[1] or sum(totals) == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
