"""QEMU guests (TCG) with a Debian kernel and a busybox initramfs: what the workload `qemu` and scripts/test-guest share."""
import gzip
import pathlib
import shutil
import subprocess

from measure import Skip

# Without cmpxchg16b: TCG of QEMU 7.2 (Debian 12) leaves garbage in the flags register after that instruction when an
# interrupt comes at the wrong time, and about every second Linux 6.12 guest dies of it while booting.
CPU = "qemu64,-cx16"
HERE = pathlib.Path(__file__).parent


def kernel_image(*which):
    """The path of a kernel to boot, `which` as fetch-kernel has it; downloaded once."""
    result = subprocess.run([HERE / "fetch-kernel", *which], capture_output=True, text=True)
    if result.returncode == 77:
        raise Skip("guest kernel: " + result.stderr.strip().rsplit("\n", 1)[-1])
    result.check_returncode()
    return result.stdout.strip()


def add_busybox(root):
    """Makes /bin/busybox and the mount points of a guest's root in an empty directory."""
    busybox = shutil.which("busybox")
    if not busybox or not shutil.which("cpio"):
        raise Skip("busybox-static or cpio is not installed")
    if b"/ld-linux" in pathlib.Path(busybox).read_bytes()[:4096]:
        raise Skip("busybox is not the static one (package busybox-static)")
    for name in ("bin", "proc", "sys", "dev"):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox, root / "bin/busybox")


def pack_initramfs(root, path):
    """Packs a directory into an initramfs and removes it."""
    names = "\n".join(str(p.relative_to(root)) for p in sorted(root.rglob("*")))
    archive = subprocess.run(["cpio", "-o", "-H", "newc", "--quiet", "--owner=+0:+0"], cwd=root, input=names.encode(),
                             capture_output=True, check=True)
    path.write_bytes(gzip.compress(archive.stdout, 1))
    shutil.rmtree(root)
    return path


def numa_arguments(nodes, cpus, memory_mib):
    """So many NUMA nodes, with the memory divided and the CPUs dealt out among them."""
    arguments = []
    for node in range(nodes):
        of_node = "".join(f",cpus={cpu}" for cpu in range(node, cpus, nodes))
        arguments += ["-object", f"memory-backend-ram,id=node{node},size={memory_mib // nodes}M",
                      "-numa", f"node,nodeid={node},memdev=node{node}{of_node}"]
    return arguments


def qemu_command(kernel, initramfs, console, memory_mib, append, cpus=1, nodes=1):
    """The command of a guest. Its serial console goes to a file; it ends when the guest stops, restarts or panics."""
    qemu = shutil.which("qemu-system-x86_64")
    if not qemu:
        raise Skip("qemu-system-x86_64 is not installed")
    # Where several threads emulate, a CPU now and then runs code while another patches it, and the guest panics (seen with 6.12, in the
    # scheduler, as /proc/sys/kernel/numa_balancing was switched).
    threads = "multi" if cpus > 1 and nodes == 1 else "single"
    return [qemu, "-accel", f"tcg,thread={threads}", "-machine", "pc", "-cpu", CPU, "-smp", cpus, "-m", memory_mib,
            *(numa_arguments(nodes, cpus, memory_mib) if nodes > 1 else []), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", f"file:{console}",
            "-kernel", kernel, "-initrd", initramfs, "-append", f"console=ttyS0 quiet panic=-1 {append}"]
