#!/usr/bin/python3
"""Static analysis of the project's own sources: every file that BUILD_DIR compiles, once, as many at a time as there are CPUs.

usage: check_static.py analyzer|tidy BUILD_DIR [FILE...]

analyzer is gcc -fanalyzer, tidy is clang-tidy with the checks of .clang-tidy. Any finding fails the run; one that is wrong is
answered in the source, beside its reason. Generated files are left out."""
import concurrent.futures
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SKIPPED = 77
FILE_SECONDS = 300
# What only says where to write, and what clang does not know.
DROP_WITH_VALUE = {"-o", "-MF", "-MQ", "-MT"}
DROP = {"-c", "-MD", "-MMD"}
# With optimisation the analyzer sees inlined code once more in every caller.
ANALYZER = ["-fanalyzer", "-O0", "-U_FORTIFY_SOURCE", "-UNDEBUG", "-fdiagnostics-color=never", "-o", "/dev/null", "-c"]
# Where gcc 12 is wrong, and why. All of these are run under LeakSanitizer or valgrind.
ANALYZER_OFF = {
    "lib/preload/alloc.c": "-Wno-analyzer-malloc-leak",  # it is the allocator: memory "leaks" out of malloc to who called it
    "tests/e2e/torture_heap.c": "-Wno-analyzer-malloc-leak",  # loses blocks kept in an array by a random index
    "tests/sim/world.c": "-Wno-analyzer-malloc-leak",  # loses what is kept in an array that realloc moved
}
# gcc's, unknown to clang.
NOT_CLANG = {"-Wno-alloc-size-larger-than"}


def commands(build):
    """Source -> (directory, arguments without outputs). A file in several targets counts once: the first."""
    found = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        path = pathlib.Path(entry["directory"], entry["file"]).resolve()
        if path.suffix != ".c" or not path.is_relative_to(ROOT) or path.is_relative_to(build) or path in found:
            continue
        words, kept = iter(shlex.split(entry["command"])), []
        for word in words:
            if word in DROP_WITH_VALUE:
                next(words)
            elif word not in DROP and word != entry["file"]:
                kept.append(word)
        if kept[0] == "ccache":
            kept.pop(0)
        found[path] = (entry["directory"], kept)
    return found


def analyse(path, directory, arguments):
    off = ANALYZER_OFF.get(str(path.relative_to(ROOT)))
    return subprocess.run([*arguments, *ANALYZER, *([off] if off else []), path], cwd=directory, capture_output=True, text=True, timeout=FILE_SECONDS)


def tidy(path, directory, arguments):
    command = ["clang-tidy", "--quiet", path, "--", *(word for word in arguments[1:] if word not in NOT_CLANG), "-UNDEBUG"]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=FILE_SECONDS)


def main():
    if len(sys.argv) < 3 or sys.argv[1] not in ("analyzer", "tidy"):
        sys.exit(__doc__)
    what, build = sys.argv[1], pathlib.Path(sys.argv[2]).resolve()
    wanted = {pathlib.Path(name).resolve() for name in sys.argv[3:]}
    check = {"analyzer": analyse, "tidy": tidy}[what]
    if what == "tidy" and not shutil.which("clang-tidy"):
        sys.exit("no clang-tidy (package clang-tidy)")
    todo = {path: how for path, how in commands(build).items() if not wanted or path in wanted}
    if what == "analyzer" and any("clang" in pathlib.Path(how[1][0]).name for how in todo.values()):
        print("SKIP: -fanalyzer is gcc's, and this is a build with clang")
        return SKIPPED
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, done in zip(todo, pool.map(lambda path: check(path, *todo[path]), todo)):
            # clang-tidy counts on stderr what it suppressed in system headers.
            said = done.stdout.strip() if what == "tidy" else (done.stdout + done.stderr).strip()
            if done.returncode or said:
                failed += 1
                print(f"--- {path.relative_to(ROOT)}\n{said or done.stderr.strip()}", flush=True)
    print(f"{what}: {len(todo)} files, {failed} with findings")
    return 1 if failed or not todo else 0


if __name__ == "__main__":
    sys.exit(main())
