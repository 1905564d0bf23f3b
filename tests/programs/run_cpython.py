#!/usr/bin/python3
"""CPython's own tests under the shim, in merge-any mode with an aggressive scan: the same tests pass as without.

usage: run_cpython.py [--long] [--thp MODE] [MODULE...]

Each module runs once as it is and then as two copies at once under userksm (two, so that there is something to merge), and
what became of each test is compared by name. A test that came out otherwise is run
again, both ways, up to twice: what then agrees is printed and counted as unsteady, what does not fails the run. Not agreeing
means: passed without, and failed, was skipped or did not run with userksm, or the other way round. How long it took both ways is
printed: what is much slower with userksm is worth a look."""
import argparse
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "e2e"), str(HERE)]
from fast import report  # noqa: E402
from harness import BUILD, Daemon, skip  # noqa: E402

PYTHON = "/usr/bin/python3"
MODULE_SECONDS = 1800  # the longest takes 250 s alone on two cores
COPIES = 2
TRIES = 3
THP = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def module_list():
    """Module -> its marks."""
    lines = (HERE / "cpython-modules").read_text().splitlines()
    return {words[0]: words[1:] for words in (line.split() for line in lines if not line.startswith("#"))}


def start(module, marks, directory, prefix):
    directory.mkdir()
    left_out = [word for mark in marks if mark.startswith("without:") for word in ("-i", mark.removeprefix("without:"))]
    out = open(directory / "out", "wb")
    command = [*prefix, PYTHON, "-m", "test", "--junit-xml", directory / "results.xml", *left_out, module]
    # A session of its own: some tests look at their terminal and process group.
    return subprocess.Popen(command, cwd=directory, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                            start_new_session=True, env={**os.environ, "TMPDIR": str(directory)})


def outcome(case):
    children = {child.tag for child in case}
    return "failed" if children & {"failure", "error"} else "skipped" if "skipped" in children else "passed"


def results(process, directory):
    """Test name -> what became of it. A run that crashed or hung has no names: its status stands for all."""
    try:
        status = process.wait(MODULE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # and the workers that it started
        process.wait()
        status = "not within its time"
    path = directory / "results.xml"
    if not path.exists() or not path.stat().st_size:
        return {"(the whole module)": f"status {status}"}
    found = {case.get("name"): outcome(case) for case in ElementTree.parse(path).iter("testcase")}
    # regrtest: 0 passed, 2 a test failed, others are not about tests.
    found["(exit status)"] = str(status)
    return found


def run_once(module, marks, directory, daemon):
    """What became of the tests without; what came out otherwise with userksm: test name -> (without, with); seconds of both."""
    began = time.monotonic()
    plain = results(start(module, marks, directory / "plain", []), directory / "plain")
    between = time.monotonic()
    prefix = [BUILD / "ctl/ksmctl", "--socket", daemon.socket, "run", "--quiet", "--"]
    copies = [(start(module, marks, place, prefix), place) for place in (directory / f"merged{n}" for n in range(COPIES))]
    differences = {}
    for process, place in copies:
        merged = results(process, place)
        for name in sorted({*plain, *merged}):
            if plain.get(name) != merged.get(name):
                differences[name] = (plain.get(name, "did not run"), merged.get(name, "did not run"))
    if "passed" not in plain.values():
        differences["(all tests)"] = ("none passed", "so none shows anything")
    return plain, differences, (between - began, time.monotonic() - between)


def compare(module, marks, directory, daemon):
    """(tests that passed, unsteady tests, differences that stayed, seconds without and with)."""
    unsteady = {}
    for attempt in range(TRIES):
        place = directory / f"{module}.{attempt}"
        place.mkdir()
        plain, differences, seconds = run_once(module, marks, place, daemon)
        passed = sum(what == "passed" for what in plain.values())
        if not differences:
            return passed, unsteady, {}, seconds
        unsteady.update(differences)
    for out in sorted(place.glob("*/out")):
        print(f"--- {out} ---\n{out.read_text(errors='replace')[-3000:]}")
    return passed, {}, differences, seconds


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--long", action="store_true", help="every module of the list, not only the quick ones")
    parser.add_argument("--thp", choices=["madvise", "always"], help="transparent huge pages; put back afterwards")
    parser.add_argument("modules", nargs="*")
    arguments = parser.parse_args()
    if subprocess.run([PYTHON, "-c", "import test.libregrtest"], capture_output=True).returncode:
        skip("CPython's tests are not installed (package libpython3.11-testsuite)")
    found = THP.read_text().split("[")[1].split("]")[0]
    failed = total = flaky = 0
    marks = module_list()
    try:
        if arguments.thp:
            THP.write_text(arguments.thp)
        with tempfile.TemporaryDirectory(prefix="userksm-cpython-") as directory, Daemon() as daemon:
            for module in arguments.modules or [m for m in marks if arguments.long or "quick" in marks[m]]:
                passed, unsteady, differences, seconds = compare(module, marks.get(module, []), pathlib.Path(directory), daemon)
                total += passed
                flaky += len(unsteady)
                failed += bool(differences)
                print(f"{'FAIL' if differences else 'ok  '} {module}: {passed} tests pass "
                      f"({seconds[0]:.0f} s without, {seconds[1]:.0f} s with userksm)", flush=True)
                for name, (without, with_userksm) in (differences or unsteady).items():
                    print(f"     {'differs' if differences else 'unsteady'}: {name}: {without} without, {with_userksm} with "
                          f"userksm", flush=True)
            status = report(daemon, f"{total} tests pass with and without userksm, {flaky} unsteady, {failed} modules differ; "
                                    f"huge pages: {arguments.thp or found}")
    finally:
        if arguments.thp:
            THP.write_text(found)
    return 1 if failed else status


if __name__ == "__main__":
    sys.exit(main())
