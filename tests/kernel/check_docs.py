#!/usr/bin/env python3
"""Holds docs/kernel.md, the facts in tests/kernel/test_*.c and the list in meson.build against each other."""
import pathlib
import re
import sys

root = pathlib.Path(sys.argv[1])
documented = re.findall(r"^\| `(\w+)` \|", (root / "docs/kernel.md").read_text(), re.M)
built = re.findall(r"^    '(\w+)',$", (root / "tests/kernel/meson.build").read_text(), re.M)
written = [name for path in sorted((root / "tests/kernel").glob("test_*.c"))
           for name in re.findall(r"\bFACT\((\w+)\)", path.read_text())]
bad = 0
for what, names in (("docs/kernel.md", documented), ("meson.build", built), ("test_*.c", written)):
    for name in sorted(set(documented + built + written) - set(names)):
        print(f"{name} is not in {what}")
        bad += 1
    for name in sorted({n for n in names if names.count(n) > 1}):
        print(f"{name} is twice in {what}")
        bad += 1
print(f"{len(written)} facts, {bad} disagreements")
sys.exit(1 if bad or not written else 0)
