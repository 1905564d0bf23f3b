#!/usr/bin/env python3
"""Holds docs/ksm.md, what kernel KSM offers and where it is tested, against the tests."""
import pathlib
import re
import sys

root = pathlib.Path(sys.argv[1])
rows = [line.split("|")[1:-1] for line in (root / "docs/ksm.md").read_text().splitlines() if line.startswith("| ")][1:]
bad = 0
for kernel, _, tests in rows:
    named = re.findall(r"`([\w/.]+):(\w+)`", tests)
    if not named:
        print(f"no test of: {kernel.strip()}")
        bad += 1
    for path, name in named:
        file = root / path
        if not file.exists() or not re.search(rf"\b{name}\b", file.read_text()):
            print(f"{path} has no {name}: {kernel.strip()}")
            bad += 1
print(f"{len(rows)} rows, {bad} without a test")
sys.exit(1 if bad or len(rows) < 15 else 0)
