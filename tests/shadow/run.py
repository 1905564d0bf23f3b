#!/usr/bin/env python3
"""The shadow-model test: random programs, each run plain and under userksm; what their operations say must be equal.

  run.py [--ops N] [--minutes N]     programs until so many operations, or so long; seeds follow --seed
         [--family F] [--daemon userksmd|chaos] [--jobs N] [--program-ops N] [--delay-usec N]
         [--survey]          goes on after a difference and shrinks nothing
  run.py --replay FILE               one program from a file, --tries times
  run.py --regressions               those in regressions/
  run.py --self-check                planted faults: the comparison must fail, and shrink
  run.py --raw-table                 what stays inexact when a program makes one kind of call around libc

A program that differs is shrunk (delta debugging over its operations) and printed, with the name of a replay file."""
import argparse
import collections
import json
import os
import pathlib
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "e2e"))
from exceptions import ALLOWED  # noqa: E402
from harness import BUILD, Daemon, skip  # noqa: E402
from test_shim_support import SHIM, Chaos  # noqa: E402

SHADOW = BUILD / "tests/shadow/shadow"
HERE = pathlib.Path(__file__).resolve().parent
RECORD = struct.Struct("iiQ")
PROGRAM_SECONDS = 300  # a loaded machine may need a minute
SHRINK_PROGRAM_SECONDS = 40
FULL_OPS = 5e5  # from here on every operation must have occurred
SHOWN_LINES = 16
NOTICED_SECONDS = 3  # agents report every second
SETTLE_USEC = {"userksmd": 80000, "chaos": 4000}
# Per hundred programs. race and raw judge less per operation than the first two.
FAMILIES = ["sequence"] * 50 + ["parallel"] * 30 + ["race"] * 15 + ["raw"] * 5


class Run:
    """One execution of a program: what its operations said, or how it ended."""

    def __init__(self, program, directory, merged, args, tag):
        work = pathlib.Path(directory, tag)
        work.mkdir(exist_ok=True)
        log = work / "log"
        log.unlink(missing_ok=True)
        command = [SHADOW, *program, "--log", log, "--directory", work]
        env = dict(os.environ)
        if merged:
            command += ["--settle", str(SETTLE_USEC[args.daemon])]
            env.update(LD_PRELOAD=str(SHIM), USERKSM_SOCKET=str(merged.socket), USERKSM_TEST_DELAY_USEC=str(args.delay_usec))
            if args.merge_any:
                env["USERKSM_MERGE_ANY"] = "1"
            if args.plant:
                command += ["--plant", str(args.plant)]
        ask = merged and args.ask
        process = subprocess.Popen([str(c) for c in command] + ["--linger"] * bool(ask), env=env, stdout=subprocess.PIPE,
                                   stdin=subprocess.PIPE if ask else subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                   start_new_session=True)
        try:
            if ask and select.select([process.stdout], [], [], args.program_seconds)[0]:
                ask()
            out, self.errors = process.communicate(timeout=args.program_seconds)
            self.status = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # the group is this program's own
            out, self.errors = process.communicate()
            self.status = "no end"
        self.log = log.read_bytes() if self.status == 0 else b""
        self.said = json.loads(out) if self.status == 0 else {}

    def records(self):
        return list(RECORD.iter_unpack(self.log))


class Difference(Exception):
    pass


def illegal(run, program):
    """Races are judged by the program itself: 1 = legal."""
    family = program[program.index("--family") + 1] if "--family" in program else text_of(program)[0].split()[1]
    if family != "race":
        return None
    return next((i for i, r in enumerate(run.records()) if r[0] != 1), None)


def compare(program, directory, merged, args, tag=""):
    """Runs both; a Difference says what differs. Returns the account of the merged run."""
    theirs = Run(program, directory, merged, args, "merged" + tag)
    if theirs.status != 0:
        raise Difference(f"the run under userksm ended with {theirs.status}: {theirs.errors.strip()}")
    if (i := illegal(theirs, program)) is not None:
        raise Difference(f"operation {i}: an illegal outcome: {theirs.errors.strip()}")
    ours = Run(program, directory, None, args, "plain" + tag)
    if ours.status != 0:
        raise AssertionError(f"{program}: the plain run ended with {ours.status}: {ours.errors.strip()}")
    said = describe(program, ours, theirs)
    if said:
        again = Run(program, directory, None, args, "again" + tag)
        if again.log != ours.log:
            raise AssertionError(f"{program}: two plain runs differ: {describe(program, ours, again)}")
        raise Difference(said)
    return theirs.said


def describe(program, a, b):
    """The first difference that no exception allows; None if there is none."""
    if a.log == b.log:
        return None
    text = text_of(program)[1:]
    for i, (x, y) in enumerate(zip(a.records(), b.records())):
        if x != y and (text[i].split()[0], x[1], y[1]) not in ALLOWED:
            return f"operation {i}: plain said {shown(x)}, the other {shown(y)}\n  {text[i]}"
    return None if len(a.log) == len(b.log) else "accounts of different length"


def shown(record):
    error = os.strerror(record[1]) if record[1] > 0 else "-"
    return f"(result {record[0]}, errno {error}, bytes {record[2]:016x})"


def text_of(program):
    out = subprocess.run([SHADOW, *program, "--print"], check=True, stdout=subprocess.PIPE, text=True).stdout
    return out.splitlines()


def kind_of(said):
    """Of a difference: the kind of the operation; shrinking must not run after another difference."""
    return said.splitlines()[1].split()[0] if said and "\n" in said else said and said.split(":")[0]


def fails(lines, directory, merged, args, tries, kind=None):
    path = pathlib.Path(directory, "candidate")
    path.write_text("\n".join(lines) + "\n")
    for _ in range(tries):
        try:
            compare(["--replay", str(path)], directory, merged, args)
        except Difference as e:
            if kind in (None, kind_of(str(e))):
                return str(e)
        except AssertionError:
            return None
    return None


def shrink(program, directory, merged, args, tries, seconds):
    """Delta debugging: drops ever smaller parts for as long as the rest still differs. Returns its lines and what it said."""
    head, *ops = text_of(program)
    end = time.monotonic() + seconds
    said = fails([head, *ops], directory, merged, args, tries)
    if not said:
        return [head, *ops], "(not seen again)"
    kind = kind_of(said)
    if said.startswith("operation "):  # what comes after the first difference is of no use
        shorter = ops[:int(said.split()[1].rstrip(":")) + 1]
        if answer := fails([head, *shorter], directory, merged, args, tries, kind):
            ops, said = shorter, answer
    size = max(1, len(ops) // 2)
    while time.monotonic() < end:
        at, before = 0, len(ops)
        while at < len(ops) and time.monotonic() < end:
            rest = ops[:at] + ops[at + size:]
            answer = rest and fails([head, *rest], directory, merged, args, tries, kind)
            if answer:
                ops, said = rest, answer
            else:
                at += size
        if size == 1 and len(ops) == before:
            break
        size = max(1, size // 2)
    return [head, *ops], said


def report(program, said, merged, args):
    """Shrinks, prints, keeps."""
    args.program_seconds = SHRINK_PROGRAM_SECONDS
    keep = pathlib.Path(tempfile.mkdtemp(prefix="userksm-shadow-"))
    print(f"DIFFERENCE: {' '.join(program)} (daemon {args.daemon}, delay {args.delay_usec}, merge-any {args.merge_any}): {said}",
          flush=True)
    (keep / "whole").write_text("\n".join(text_of(program)) + "\n")
    lines, again = shrink(program, str(keep), merged, args, args.tries, args.shrink_seconds)
    (keep / "replay").write_text(f"# {again}\n".replace("\n  ", "\n#  ") + "\n".join(lines) + "\n")
    print(f"shrunk to {len(lines) - 1} operations: {again}", *lines[:SHOWN_LINES], f"replay: {keep}/replay", sep="\n", flush=True)
    return len(lines) - 1


class Totals:
    def __init__(self):
        self.lock, self.ops, self.programs, self.seen, self.refused, self.failed = threading.Lock(), 0, 0, 0, 0, []
        self.kinds = collections.Counter()

    def add(self, said):
        with self.lock:
            self.ops += said["ops"]
            self.programs += 1
            self.seen += said["merged_pages_seen"]
            self.refused += said["refused"]
            self.kinds.update(said["kinds"])


def merger(args):
    return Chaos(args.seed) if args.daemon == "chaos" else Daemon()


def worker(number, merged, args, totals, end, directory):
    seed = args.seed + number
    while time.monotonic() < end and totals.ops < args.ops and (args.survey or not totals.failed):
        family = args.family or FAMILIES[seed * 37 % 100]
        program = ["--family", family, "--seed", str(seed), "--ops", str(args.program_ops)]
        if family == "raw":
            program += ["--raw", args.raw]
        mine = argparse.Namespace(**vars(args))
        mine.merge_any = args.merge_any or seed % 2 == 1
        try:
            totals.add(compare(program, directory, merged, mine, str(number)))
        except Difference as e:
            with totals.lock:
                totals.failed.append((program, str(e), mine))
                totals.ops += args.program_ops
                if args.survey:
                    print(" ".join(program[1::2]), "merge-any" if mine.merge_any else "", str(e), flush=True)
        except BaseException as e:  # noqa: B902 - another thread's loop must hear of it
            totals.failed.append((program, repr(e), None))
            raise
        seed += args.jobs


def random_programs(args):
    totals, directory = Totals(), tempfile.mkdtemp(prefix="userksm-shadow-")
    started = time.monotonic()
    end = started + (args.minutes * 60 if args.minutes else 10 ** 9)
    print(f"seed {args.seed}, daemon {args.daemon}", flush=True)
    with merger(args) as merged:
        threads = [threading.Thread(target=worker, args=(i, merged, args, totals, end, directory)) for i in range(args.jobs)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        for program, said, mine in [] if args.survey else totals.failed:
            if mine is None:
                raise AssertionError(f"{program}: {said}")
            report(program, said, merged, mine)
        if args.daemon == "userksmd":
            stats = merged.stats()
            print({k: stats[k] for k in ("merges", "unshares", "transitions", "agent_busy", "raw_syscalls")})
    seconds = time.monotonic() - started
    print(f"{totals.ops} operations in {totals.programs} programs, {len(totals.failed)} differ, {seconds:.0f} s; pages seen "
          f"merged at looks: {totals.seen}; accesses tried again: {totals.refused}", flush=True)
    shutil.rmtree(directory, ignore_errors=True)
    print("executed:", ", ".join(f"{kind} {n}" for kind, n in totals.kinds.most_common()))
    assert not totals.failed, f"{len(totals.failed)} programs differ"
    assert totals.seen > totals.programs, "hardly anything was merged: the run says nothing"
    never = [kind for kind, n in totals.kinds.items() if not n]
    assert not never or args.family or totals.ops < FULL_OPS, f"never executed: {never}"


def replay(path, args, tries):
    with merger(args) as merged, tempfile.TemporaryDirectory(prefix="userksm-shadow-") as directory:
        for _ in range(tries):
            compare(["--replay", str(path)], directory, merged, args)


def regressions(args):
    for path in sorted((HERE / "regressions").glob("*.txt")):
        args.merge_any = "merge-any" in path.name
        for args.daemon in ("userksmd", "chaos"):
            replay(path, args, args.tries)
        print(f"ok   {path.name}", flush=True)


def self_check(args):
    """Each planted fault must be found and shrink to a few operations."""
    for args.plant, what in ((1, "a lost byte"), (2, "a call around its wrapper")):
        found = False
        with merger(args) as merged, tempfile.TemporaryDirectory(prefix="userksm-shadow-") as directory:
            for seed in range(args.seed, args.seed + 20):
                program = ["--family", "sequence", "--seed", str(seed), "--ops", "6000"]
                try:
                    compare(program, directory, merged, args)
                except Difference as e:
                    found = True
                    n = report(program, str(e), merged, args)
                    assert n <= 12, f"{what}: shrunk to {n} operations only"
                    break
        assert found, f"{what}: not found"
        print(f"ok   planted: {what}", flush=True)


RAW_KINDS = ("dontneed", "free_lazily", "unmap", "map_anon", "protect", "remap_shrink", "remap_grow", "remap_away",
             "remap_fixed", "remap_dontunmap")


def raw_table(args):
    """A process counts as noticed while it lives, so the daemon is asked before the program ends; it hears of it within a second."""
    for kind in RAW_KINDS:
        different, noticed, first = 0, 0, ""
        with merger(args) as merged, tempfile.TemporaryDirectory(prefix="userksm-shadow-") as directory:
            def ask():
                nonlocal noticed
                end = time.monotonic() + NOTICED_SECONDS
                while not (said := merged.stats()["raw_syscalls"]) and time.monotonic() < end:
                    time.sleep(0.1)
                noticed += said

            args.ask = ask if args.daemon == "userksmd" else None
            for seed in range(args.seed, args.seed + args.tries):
                try:
                    compare(["--family", "raw", "--raw", kind, "--seed", str(seed), "--ops", "6000"], directory, merged, args)
                except Difference as e:
                    different, first = different + 1, first or str(e).splitlines()[0]
        print(f"{kind:16} {different}/{args.tries} programs differ, noticed in {noticed if args.ask else '-'}; {first}", flush=True)


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--ops", type=float, default=0)
    parser.add_argument("--minutes", type=float, default=0)
    parser.add_argument("--family", choices=["sequence", "parallel", "race", "raw"])
    parser.add_argument("--raw", default="dontneed")
    parser.add_argument("--daemon", choices=["userksmd", "chaos"], default="userksmd")
    parser.add_argument("--merge-any", action="store_true")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1000000007)
    parser.add_argument("--program-ops", type=int, default=20000)
    parser.add_argument("--jobs", type=int, default=3)
    parser.add_argument("--delay-usec", type=int, default=100)
    parser.add_argument("--tries", type=int, default=4)
    parser.add_argument("--shrink-seconds", type=float, default=120)
    parser.add_argument("--program-seconds", type=float, default=PROGRAM_SECONDS)
    parser.add_argument("--plant", type=int, default=0)
    parser.add_argument("--replay")
    parser.add_argument("--survey", action="store_true")
    parser.add_argument("--regressions", action="store_true")
    parser.add_argument("--self-check", action="store_true")
    parser.add_argument("--raw-table", action="store_true")
    args = parser.parse_args()
    args.ask = None
    if not args.ops and not args.minutes:
        args.ops = 1e5
    args.ops = args.ops or 1e18
    if not os.access("/dev/userfaultfd", os.R_OK | os.W_OK):
        skip("/dev/userfaultfd cannot be opened")
    if args.replay:
        replay(args.replay, args, args.tries)
    elif args.regressions:
        regressions(args)
    elif args.self_check:
        self_check(args)
    elif args.raw_table:
        raw_table(args)
    else:
        random_programs(args)


if __name__ == "__main__":
    main()
