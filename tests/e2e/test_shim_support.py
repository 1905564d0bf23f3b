"""What the tests of the shim share, beside harness.py: programs under the shim, and what their kernel maps."""
import os
import pathlib
import signal
import subprocess

from harness import BUILD

SHIM = BUILD / "lib/libuserksm-preload.so"


def environment(socket, **extra):
    """That of a program under the shim; merging is asked for by the program, or by USERKSM_MERGE_ANY=1."""
    return dict(os.environ, LD_PRELOAD=str(SHIM), USERKSM_SOCKET=str(socket), **extra)


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
