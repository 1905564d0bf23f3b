"""What guests boot: a kernel, and an initramfs made of this build. Two kinds: busybox with tests and the libraries they are
linked with, every file at the path that it has here; and Debian with systemd, where userksm is installed as an administrator
would."""
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig

from guest import add_busybox, pack_initramfs
from measure import BUILD, ROOT, Skip

GUEST = ROOT / "tests/guest"
RELEASE = ROOT / "build-release"
# Parts of Python's library that no test needs, and that are most of it.
UNUSED_PYTHON = ("test", "idlelib", "lib2to3", "ensurepip", "tkinter", "turtledemo", "pydoc_data", "distutils", "unittest",
                 "dist-packages", "site-packages", "__pycache__", "config-*")


def is_elf(path):
    with open(path, "rb") as f:
        return f.read(4) == b"\x7fELF"


class Root:
    """The guest's file system: every file has the path that it has here."""

    def __init__(self, directory):
        self.path = directory
        add_busybox(directory)

    def add(self, path):
        to = self.path / pathlib.Path(path).relative_to("/")
        if to.exists():
            return
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to)
        if is_elf(path):
            self.add_libraries(path)

    def add_libraries(self, path):
        out = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
        for library in re.findall(r"(?:=> |^\s*)(/\S+) \(0x", out, re.MULTILINE):
            self.add(library)

    def add_python(self):
        library = pathlib.Path(sysconfig.get_path("stdlib"))
        to = self.path / library.relative_to("/")
        shutil.copytree(library, to, symlinks=False, ignore=shutil.ignore_patterns(*UNUSED_PYTHON))
        for extension in library.rglob("*.so"):
            self.add_libraries(extension)
        self.add(os.path.realpath(sys.executable))


def guest_command(case):
    """The case as a command of the guest's shell."""
    command = list(case.command)
    if command[0].endswith(".py"):
        command.insert(0, os.path.realpath(sys.executable))
    environment = [f"{name}={value}" for name, value in case.environment.items()]
    return f"cd {shlex.quote(str(BUILD))} && exec {shlex.join(['env', *environment, *command])}"


def plan(cases, command=lambda case: ""):
    return "".join(f"{c.name}\t{c.seconds}\t{command(c)}\n" for c in cases)


def tests_image(directory, cases):
    """An initramfs in which tests/guest/init runs the cases."""
    root = Root(directory / "root")
    for folder in ("daemon", "ctl", "lib", "tests/e2e"):
        for path in sorted((BUILD / folder).iterdir()):
            if path.is_file() and is_elf(path):
                root.add(path)
    scripts = set()
    for case in cases:
        if case.command[0].endswith(".py"):
            scripts.add(pathlib.Path(case.command[0]).parent)
        for word in case.command:
            if (BUILD / word).is_file():
                root.add(BUILD / word)
    for path in (path for folder in scripts for path in folder.glob("*.py")):
        root.add(path)
    if scripts:
        root.add_python()
    for name in ("/etc/passwd", "/etc/group"):
        root.add(name)
    shutil.copy(GUEST / "init", root.path / "init")
    (root.path / "init").chmod(0o755)
    (root.path / "plan").write_text(plan(cases, guest_command))
    return pack_initramfs(root.path, directory / "initramfs.gz")


def install_release(destination):
    """Builds as docs/operations.md says, what is installed and no more, and stages it."""
    quiet = {"check": True, "stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    if not (RELEASE / "build.ninja").exists():
        subprocess.run(["meson", "setup", "--buildtype=release", "--prefix=/usr", RELEASE, ROOT], **quiet)
    out = subprocess.run(["meson", "introspect", "--targets", RELEASE], check=True, capture_output=True, text=True).stdout
    targets = [os.path.relpath(name, RELEASE) for t in json.loads(out) if t["installed"] for name in t["filename"]]
    subprocess.run(["ninja", "-C", RELEASE, *targets], **quiet)
    subprocess.run(["meson", "install", "-C", RELEASE, "--no-rebuild", "--destdir", destination], **quiet)


def system_image(directory, cases):
    """Debian with systemd from tests/guest/fetch-root, and on top of it tests/guest/system and userksm, not yet installed."""
    result = subprocess.run([GUEST / "fetch-root"], capture_output=True, text=True)
    if result.returncode == 77:
        raise Skip("guest system: " + result.stderr.strip().rsplit("\n", 1)[-1])
    result.check_returncode()
    root = directory / "root"
    shutil.copytree(GUEST / "system/root", root, symlinks=True)
    install_release(root / "staged")
    shutil.copytree(GUEST / "system", root / "tests", ignore=shutil.ignore_patterns("root", "__pycache__"))
    (root / "plan").write_text(plan(cases))
    names = "\n".join(str(p.relative_to(root)) for p in sorted(root.rglob("*")))
    ours = subprocess.run(["cpio", "-o", "-H", "newc", "--quiet", "--owner=+0:+0"], cwd=root, input=names.encode(),
                          capture_output=True, check=True).stdout
    shutil.rmtree(root)
    image = directory / "initramfs"
    shutil.copy(result.stdout.strip(), image)
    with open(image, "ab") as f:  # the kernel unpacks one archive after the other
        f.write(ours)
    return image
