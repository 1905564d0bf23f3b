"""What the tests of the shim share, beside harness.py: programs under the shim, and what their kernel maps."""
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile

from harness import BUILD, skip

SHIM = BUILD / "lib/libuserksm-preload.so"


def environment(socket, **extra):
    """That of a program under the shim; merging is asked for by the program, or by USERKSM_MERGE_ANY=1."""
    return {**os.environ, "LD_PRELOAD": str(SHIM), "USERKSM_SOCKET": str(socket), **extra}


def spawn(command, socket, **extra):
    return subprocess.Popen([str(c) for c in command], env=environment(socket, **extra), text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process, seconds, what):
    """Waits for a program and returns its output; its failure is ours."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        out, err = process.communicate()
        raise AssertionError(f"{what} did not end within {seconds} s\n{out}\n{err}") from None
    if process.returncode != 0:
        raise AssertionError(f"{what}: exit status {process.returncode}\n{out}\n{err}")
    return out


def merged_pages(pid):
    """Pages that a process maps from segments, as smaps has it (a page copied on write is Anonymous there)."""
    try:
        text = pathlib.Path(f"/proc/{pid}/smaps").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    pages, ours, resident = 0, False, 0
    for line in text.splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            ours = "/memfd:userksm" in line
        elif ours and words[0] == "Rss:":
            resident = int(words[1])
        elif ours and words[0] == "Anonymous:":
            pages += (resident - int(words[1])) // 4
    return pages


class Chaos:
    """tests/e2e/chaos.c in the place of the daemon."""

    def __init__(self, seed, wrong_permille=20):
        self.directory = tempfile.mkdtemp(prefix="userksm-test-")
        self.socket = f"{self.directory}/sock"
        self.process = subprocess.Popen([BUILD / "tests/e2e/chaos", self.socket, str(seed), str(wrong_permille)], text=True,
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        line = self.process.stdout.readline()
        if line.startswith("SKIP"):
            skip(line.strip())
        assert line == "ready\n", line

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.process.terminate()
        print(self.process.communicate(timeout=20)[0].strip())
        shutil.rmtree(self.directory, ignore_errors=True)
        if not exc[0]:
            assert self.process.returncode == 0, f"chaos: exit status {self.process.returncode}"
