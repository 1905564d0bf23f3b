#!/usr/bin/python3
"""Runs the same workloads against userksm and against kernel KSM, side by side, and writes docs/performance.md from the results.

In every round each side of a row runs once, on fresh identical processes, one side after the other; what counts is the median over the
rounds. Every row is a file of bench/results/, rewritten after each round. Kernel KSM's settings, and whether the host is told of free memory, are put
back at the end, whatever that is; were this killed outright, the next start puts them back."""
import argparse
import json
import pathlib
import signal
import subprocess
import sys
import time

import report
import results
from figures import medians, with_unit
from host import keeping_free_memory
from sides import KsmSide  # first: it knows where measure is
from others import Others
from measure import BUILD, Skip, Wrong
from profiles import profile_row
from workloads import ROWS
from workloads.base import Plan

QUICK = {"rounds": 1, "period_s": 1.0, "passes": 5, "scale": 0.125}


def say(text):
    print(text, file=sys.stderr, flush=True)


def run_round(row, plan, result):
    known, curves = {}, {}
    for label, make in row.sides(plan, known):
        side = make()
        begin = time.monotonic()
        found = row.measure(side, plan)
        curve = found.pop("curve", None)
        if curve:
            curves[label] = curve
        known[label] = results.rounded(found)
        row.finish(known, curves)
        result["settings"][label] = side.settings_text
        shown = ", ".join(f"{text} {with_unit(known[label].get(name), unit)}" for name, unit, text in row.shows)
        say(f"  {label:16} {shown}  ({time.monotonic() - begin:.0f} s)")
    result["curves"] = result["curves"] or curves  # one round's are enough to draw
    return known


def unit_costs():
    """What the least work of a merger costs on this machine now (bench/limit.c)."""
    out = subprocess.run([BUILD / "bench/limit"], capture_output=True, text=True, timeout=60)
    if out.returncode != 0:
        raise RuntimeError(f"limit: {out.stderr.strip()}")
    return json.loads(out.stdout)


def run_row(row, plan, arguments):
    """True when all rounds have run. A round of which one side fails does not count and is tried again once."""
    result = results.load(row.name, arguments.results) if arguments.resume else None
    if not result or not results.same_plan(result, plan):
        result = results.begin(row, plan)
    result["plan"]["rounds"] = plan.rounds
    failures = 0
    while len(result["rounds"]) < plan.rounds:
        say(f"{row.name}, round {len(result['rounds']) + 1} of {plan.rounds}: {row.title}")
        others = Others()
        try:
            costs = unit_costs()
            figures = run_round(row, plan, result)
        except Skip as e:
            say(f"  skip: {e}")
            return False
        except (TimeoutError, RuntimeError) as e:
            failures += 1
            say(f"  FAILED: {e}")
            if failures > 1:
                return False
            continue
        result["others"].append(round(others.share(), 3))
        result.setdefault("unit_costs", []).append(costs)
        result["rounds"].append(figures)
        results.save(result, arguments.results)
    return True


def add_profile(row, plan, arguments):
    result = results.load(row.name, arguments.results)
    if result and result["rounds"]:
        say(f"{row.name}: once more under perf")
        try:
            result["profile"] = profile_row(row, plan, result)
        except RuntimeError as e:
            say(f"  no profile: {e}")
            return
        if not result.get("unit_costs"):  # of a run before they were measured
            result["unit_costs"] = [unit_costs()]
        results.save(result, arguments.results)


def print_row(row, result):
    middle = medians(result["rounds"])
    print(f"\n{row.name}: {row.title} ({len(result['rounds'])} rounds)")
    for label, figures in middle.items():
        print(f"  {label:16} " + ", ".join(f"{text} {with_unit(figures.get(name), unit)}" for name, unit, text in row.shows))
    for check in row.checks(middle):
        bound = "at least" if check.at_least else "at most"
        print(f"  {check.verdict:12} {check.what}: {with_unit(check.value, check.unit)} ({bound} {with_unit(check.limit, check.unit)})")


def parse():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", metavar="NAME[,NAME]", help="these rows; the other rows of the table keep the figures they have")
    parser.add_argument("--list", action="store_true", help="names of the rows, what runs, what it must reach")
    parser.add_argument("--rounds", type=int, help=f"rounds ({Plan.rounds})")
    parser.add_argument("--period", type=float, metavar="SECONDS", help=f"pass period of both sides where it matters ({Plan.period_s:g})")
    parser.add_argument("--passes", type=int, help=f"passes over which what they cost is averaged ({Plan.passes})")
    parser.add_argument("--scale", type=float, help="of the memory (1)")
    parser.add_argument("--quick", action="store_true",
                        help="does it work at all: " + ", ".join(f"{k}={v:g}" for k, v in QUICK.items()) + "; writes to results/quick/")
    parser.add_argument("--resume", action="store_true", help="keep the rounds that are there, when they were made in the same way")
    parser.add_argument("--profile", action="store_true", help="after the rounds each side once more under perf: where the time goes")
    parser.add_argument("--report", action="store_true", help="run nothing, write docs/performance.md from the results that are there")
    parser.add_argument("--results", type=pathlib.Path, help="directory of results (bench/results); of another one the report is in it, too")
    return parser.parse_args()


def choose(arguments):
    names = arguments.only.split(",") if arguments.only else list(ROWS)
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        sys.exit(f"scripts/bench: no row {', '.join(unknown)}; there are: {', '.join(ROWS)}")
    return [ROWS[name]() for name in names]


def make_plan(arguments):
    chosen = dict(QUICK) if arguments.quick else {}
    for option, name in (("rounds", "rounds"), ("period", "period_s"), ("passes", "passes"), ("scale", "scale")):
        if getattr(arguments, option) is not None:
            chosen[name] = getattr(arguments, option)
    return Plan(**chosen)


def main():
    arguments = parse()
    rows = choose(arguments)
    if arguments.list:
        for row in rows:
            print(f"{row.name:12} {row.title}\n{'':12} {row.target}")
        return 0
    if arguments.results is None:
        arguments.results = results.DIRECTORY / "quick" if arguments.quick else results.DIRECTORY
    complete = True
    if not arguments.report:
        if not (BUILD / "bench/subject").exists():
            sys.exit(f"{BUILD} is not built: run scripts/build")
        plan = make_plan(arguments)
        try:
            KsmSide.mend()
            with keeping_free_memory():
                for row in rows:
                    complete = run_row(row, plan, arguments) and complete
                    if arguments.profile:
                        add_profile(row, plan, arguments)
        except Skip as e:
            say(f"skip: {e}")
            return 77
        except Wrong as e:
            say(f"WRONG: {e}")  # no figure is worth anything beside a wrong byte
            return 1
    for row in rows:
        result = results.load(row.name, arguments.results)
        if result and result["rounds"]:
            print_row(row, result)
    if arguments.results == results.DIRECTORY:
        report.write(arguments.results, report.DOCUMENT)
    elif not arguments.quick:
        report.write(arguments.results, arguments.results / report.DOCUMENT.name)
    return 0 if complete else 1


if __name__ == "__main__":
    # An ordinary kill unwinds as ^C does, so that processes end and kernel KSM is put back as it was.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())
