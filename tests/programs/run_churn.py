#!/usr/bin/python3
"""Programs that allocate, check and drop, in Node, Java and Python: what they print under the shim, in merge-any mode with an
aggressive scan, is what they print without.

usage: run_churn.py {node,java,python} [--rounds N]"""
import argparse
import pathlib
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "e2e"), str(HERE)]
from fast import report  # noqa: E402
from harness import BUILD, Daemon, skip  # noqa: E402

COPIES = 2
RUN_SECONDS = 600
# Program looked for, package that has it, command, rounds of the normal suite.
PROGRAMS = {
    "node": ("node", "nodejs", ["node", HERE / "churn.js"], 60),
    "java": ("java", "openjdk-17-jdk-headless", ["java", "-Xmx512m", HERE / "Churn.java"], 60),
    "python": ("/usr/bin/python3", "python3", ["/usr/bin/python3", HERE / "churn.py"], 25),
}


def start(command, directory, name):
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=open(directory / f"{name}.out", "wb"),
                            stderr=open(directory / f"{name}.err", "wb"), cwd=directory)


def said(process, directory, name):
    status = process.wait(RUN_SECONDS)
    if status:
        error = (directory / f"{name}.err").read_text(errors="replace")
        sys.exit(f"{name}: ended with status {status}: {error[-3000:]}")
    return (directory / f"{name}.out").read_text().splitlines()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("--rounds", type=int)
    arguments = parser.parse_args()
    program, package, command, rounds = PROGRAMS[arguments.program]
    if not shutil.which(program):
        skip(f"{program} is not installed (package {package})")
    command = [*command, str(arguments.rounds or rounds)]
    with tempfile.TemporaryDirectory(prefix="userksm-churn-") as place, Daemon() as daemon:
        directory = pathlib.Path(place)
        plain = said(start(command, directory, "plain"), directory, "plain")
        run = [BUILD / "ctl/ksmctl", "--socket", daemon.socket, "run", "--quiet", "--", *command]
        copies = {f"merged{n}": start(run, directory, f"merged{n}") for n in range(COPIES)}
        for name, process in copies.items():
            for without, with_userksm in zip(plain, said(process, directory, name), strict=True):
                if without != with_userksm:
                    sys.exit(f"{name} differs: {without!r} without, {with_userksm!r} with userksm")
        return report(daemon, f"{COPIES} x {len(plain)} checksums as without userksm")


sys.exit(main())
