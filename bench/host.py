"""What the host of a virtual machine does while we measure."""
import contextlib
import pathlib

PARAMETER = pathlib.Path("/sys/module/page_reporting/parameters/page_reporting_order")
# What was found, while it is changed: were we killed outright, the next start puts that back.
LEFT = pathlib.Path("/run/lock/userksm-bench-page-reporting")


def never():
    """One above the order of the largest free block that there is, which the kernel accepts: of none is told."""
    return str(len(pathlib.Path("/proc/buddyinfo").read_text().split("\n")[0].split()) - len("Node 0, zone DMA".split()))


def takes_free_memory(parameter=PARAMETER):
    """Without a device to tell the parameter is not there, or -1 (Linux 6.5), which the kernel does not take back."""
    return parameter.exists() and int(parameter.read_text()) < int(never())


@contextlib.contextmanager
def keeping_free_memory(parameter=PARAMETER, left=LEFT):
    """A guest may tell its host of free memory (Linux page_reporting, virtio-balloon), and the host takes it back. Whoever is given it next
    waits for the host at each page, in time that is counted as his: rounds that free much differ threefold by it. Where the kernel
    refuses, all goes on with the host."""
    if left.exists():
        parameter.write_text(left.read_text())
        left.unlink()
    if not takes_free_memory(parameter):
        yield
        return
    found = parameter.read_text().strip()
    left.write_text(found)
    try:
        with contextlib.suppress(OSError):
            parameter.write_text(never())
        yield
    finally:
        parameter.write_text(found)
        left.unlink()
