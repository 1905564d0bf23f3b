#!/usr/bin/env python3
"""Enforces the table of docs/architecture.md: which folder may include which.

Reads the table between the "layers" markers, greps every #include "...", and fails naming file, line and rule."""
import pathlib
import re
import sys

root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
text = (root / "docs/architecture.md").read_text()
table = re.search(r"<!-- layers -->(.*?)<!-- /layers -->", text, re.S).group(1)
allowed = {}
for row in table.splitlines():
    cells = [c.strip() for c in row.strip().strip("|").split("|")]
    if len(cells) < 2 or not cells[0].startswith("`"):
        continue
    folder = cells[0].strip("`").rstrip("/")
    allowed[folder] = {c.rstrip("/") for c in re.findall(r"`([^`]+)`", cells[1])} | {folder}

def folder_of(path):
    """The longest folder of the table that holds the path."""
    parts = path.split("/")
    for n in range(len(parts) - 1, 0, -1):
        if "/".join(parts[:n]) in allowed:
            return "/".join(parts[:n])
    return None

bad = checked = 0
for top in sorted({f.split("/")[0] for f in allowed}):
    for path in sorted((root / top).rglob("*.[ch]")):
        rel = path.relative_to(root).as_posix()
        own = folder_of(rel)
        for number, line in enumerate(path.read_text().splitlines(), 1):
            m = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
            if not m:
                continue
            checked += 1
            target = folder_of(m.group(1))
            if target is None:
                print(f'{rel}:{number}: "{m.group(1)}" is not named from the top folder')
                bad += 1
            elif target not in allowed[own]:
                print(f"{rel}:{number}: {own}/ may not include {target}/")
                bad += 1
print(f"{checked} includes checked, {bad} against the table")
sys.exit(1 if bad or not checked else 0)
