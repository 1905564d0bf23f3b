"""3 QEMU guests (TCG, 384 MiB): a Debian kernel with a small busybox initramfs, the same in each.

QEMU itself offers its guests' RAM with MADV_MERGEABLE, so it runs without merge-any: the shim catches that call. Each
guest checks its files in a loop and prints the result on its serial console; the host knows the right answer."""
import hashlib
import os
import pathlib
import random
import re
import shutil
import subprocess
import tempfile

from guest import HERE, add_busybox, kernel_image, pack_initramfs, qemu_command
from measure import Wrong, spawn, stop, wait_until

GUESTS = 3
GUEST_MIB = 384
BLOB_BYTES = 4 << 20
FILES = 20
# TCG on a busy machine of two cores: generous, only a bound.
BOOT_SECONDS = 240
ROUND_SECONDS = 180
LINE = re.compile(r"userksm-guest round (\d+) sum ([0-9a-f]{32}) own (\w+)\s*$")


def common_blob():
    return random.Random(384).randbytes(BLOB_BYTES)


def expected_sum():
    """What `md5sum <file`, over all files, piped into md5sum prints in the guest."""
    blob = common_blob()
    lines = "".join(hashlib.md5(b"x" * n + blob).hexdigest() + "  -\n" for n in range(1, FILES + 1))
    return hashlib.md5(lines.encode()).hexdigest()


def build_initramfs(directory):
    root = pathlib.Path(directory) / "root"
    add_busybox(root)
    shutil.copy(HERE / "guest-init", root / "init")
    (root / "init").chmod(0o755)
    (root / "blob").write_bytes(common_blob())
    return pack_initramfs(root, pathlib.Path(directory) / "initramfs.gz")


class QemuSet:
    name = "qemu"
    merge_any = False
    ranges = "mergeable"
    describes = f"{GUESTS} QEMU guests (TCG) of {GUEST_MIB} MiB"
    change = None

    def __init__(self):
        self.processes, self.consoles = [], []

    def start(self, engine):
        self.engine = engine
        kernel = kernel_image()
        self.expected = expected_sum()
        self.directory = tempfile.mkdtemp(prefix="userksm-qemu-")
        initramfs = build_initramfs(self.directory)
        for n in range(GUESTS):
            self.consoles.append(os.path.join(self.directory, f"console.{n}"))
            argv = qemu_command(kernel, initramfs, self.consoles[n], GUEST_MIB,
                                f"userksm.files={FILES} userksm.guest={n}")
            with open(os.path.join(self.directory, f"qemu.{n}.log"), "w") as log:
                self.processes.append(spawn(engine.command(argv, self.merge_any), engine.environment(self.merge_any),
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT))
        for n in range(GUESTS):
            wait_until(lambda: self.rounds(n) >= 1, BOOT_SECONDS, f"guest {n}: first round", 0.5)

    def rounds(self, n):
        """Rounds completed by a guest, all of them right."""
        console = pathlib.Path(self.consoles[n])
        text = console.read_text(errors="replace") if console.exists() else ""
        if self.processes[n].poll() is not None:
            log = pathlib.Path(self.directory, f"qemu.{n}.log").read_text()
            raise Wrong(f"guest {n} ended with status {self.processes[n].returncode}: {log[-500:]} {text[-1500:]}")
        if "Kernel panic" in text or "BUG:" in text:
            raise Wrong(f"guest {n}: {text[-1500:]}")
        last = 0
        for line in text.splitlines(keepends=True):
            m = LINE.search(line) if line.endswith("\n") else None
            if not m:
                continue
            if m[2] != self.expected or m[3] != "yes" or int(m[1]) != last + 1:
                raise Wrong(f"guest {n}: {line.strip()}; expected sum {self.expected}")
            last = int(m[1])
        return last

    def pids(self):
        return [self.engine.pid_of(p, self.merge_any) for p in self.processes]

    def verify(self):
        """Two more whole rounds in every guest, begun and ended after now."""
        targets = [self.rounds(n) + 2 for n in range(GUESTS)]
        for n, target in enumerate(targets):
            wait_until(lambda: self.rounds(n) >= target, ROUND_SECONDS, f"guest {n}: round {target}", 0.5)
        return f"{sum(self.rounds(n) for n in range(GUESTS))} rounds in {GUESTS} guests right"

    def stop(self):
        stop(self.processes)
        if hasattr(self, "directory"):
            shutil.rmtree(self.directory, ignore_errors=True)
