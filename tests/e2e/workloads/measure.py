"""What every workload needs: paths, processes, the oracle, PSS, and waiting for a condition.

Processes are started and ended here by pid, never by name, and all of them end with the driver (PDEATHSIG)."""
import ctypes
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[3]
BUILD = pathlib.Path(os.environ.get("USERKSM_BUILD", ROOT / "build")).resolve()
IDEAL = BUILD / "bench/ideal"
sys.path.insert(0, str(ROOT / "bench"))
from pss import sum_pss_mib  # noqa: E402

PR_SET_PDEATHSIG = 1
STOP_SECONDS = 10


class Skip(Exception):
    """The machine lacks something; the reason is the text. Exit status 77."""


class Wrong(Exception):
    """A program computed something else than it must."""


libc = ctypes.CDLL(None, use_errno=True)


def _die_with_parent():
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def spawn(argv, env=None, **options):
    """A child that the terminal's ^C does not reach and that dies with us."""
    full = dict(os.environ, **(env or {}))
    return subprocess.Popen([str(a) for a in argv], env=full, preexec_fn=_die_with_parent, start_new_session=True,
                            **options)


def stop(processes):
    """Asks all, then ends those that do not go."""
    for p in processes:
        if p.poll() is None:
            p.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for p in processes:
        try:
            p.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            p.kill()
            p.wait()


def wait_until(condition, seconds, what, interval=0.05):
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(interval)


def oracle_mib(pids, ranges):
    """What an ideal page merger would save now, in MiB, and the analyser's whole answer."""
    out = subprocess.run([IDEAL, "--json", "--ranges", ranges, *map(str, pids)], check=True, capture_output=True,
                         text=True)
    answer = json.loads(out.stdout)
    return answer["total"]["saved_bytes"] / 2**20, answer


def wait_stable(pids, quiet_seconds, limit_seconds, progress=None):
    """Waits until the sum of PSS has not fallen by more than 0.1 % over quiet_seconds. Returns (MiB, seconds until the
    last fall). Not converging within the limit is not an error: the figure says what was reached."""
    start = time.monotonic()
    mark = lowest = sum_pss_mib(pids)
    changed_at = 0.0
    while True:
        time.sleep(0.5)
        now = sum_pss_mib(pids)
        elapsed = time.monotonic() - start
        lowest = min(lowest, now)
        if lowest < mark * 0.999:
            mark, changed_at = lowest, elapsed
        if progress:
            progress(now, elapsed)
        if elapsed - changed_at >= quiet_seconds or elapsed >= limit_seconds:
            return now, changed_at


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def meminfo_mib(name):
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(name)
