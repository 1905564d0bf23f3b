#!/usr/bin/python3
"""QEMU guests that boot while their memory is being merged as fast as it can be: they come up, and what they compute over
their files is right.

usage: run_qemu.py"""
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "e2e/workloads"), str(HERE)]
from engines import Userksm  # noqa: E402
from fast import FAST, report  # noqa: E402
from measure import Skip  # noqa: E402
from qemu_set import QemuSet  # noqa: E402


def main():
    guests = QemuSet()
    with Userksm(FAST) as engine:
        engine.start_merging()
        try:
            guests.start(engine)
            what = guests.verify()
        except Skip as e:
            print(f"SKIP: {e}")
            return 77
        finally:
            guests.stop()
        return report(engine, f"booted while being merged; {what}")


sys.exit(main())
