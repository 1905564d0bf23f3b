"""What the runs here share: a scan as aggressive as the tunables allow, and that it merged something."""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "e2e"))
import harness  # noqa: E402

FAST = dict(option.removeprefix("--").split("=") for option in harness.FAST)


def report(engine, what):
    """Prints what was shown. The exit status: a run in which nothing was merged shows nothing."""
    stats = engine.stats()
    print(f"{what}; {stats['merges']} pages merged meanwhile")
    if not stats["merges"]:
        print("nothing was merged: this run says nothing")
        return 1
    return 0
