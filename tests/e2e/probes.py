"""USDT probes of a program, attached to with perf_event_open and nothing else: the notes from readelf, one uprobe event for each
place, the arguments out of the registers that the kernel saved with each sample."""
import ctypes
import errno
import mmap
import os
import pathlib
import re
import struct
import subprocess

PMU = pathlib.Path("/sys/bus/event_source/devices/uprobe/type")
SYS_PERF_EVENT_OPEN = 298
PERF_FLAG_FD_CLOEXEC = 8
PERF_SAMPLE_REGS_USER = 1 << 12
PERF_RECORD_LOST, PERF_RECORD_SAMPLE = 2, 9
RING_PAGES = 256  # 1 MiB: some 7000 hits between two looks
HEAD, TAIL, DATA_OFFSET = 1024, 1032, 1040  # in struct perf_event_mmap_page
# By number in the kernel's enum perf_event_x86_regs: without segment registers.
REGISTERS = dict(zip("ax bx cx dx si di bp sp ip".split(), range(9)), **{f"r{n}": n + 8 for n in range(8, 16)})
REGISTER_MASK = sum(1 << n for n in REGISTERS.values())


def notes(program, provider):
    """name -> [(file offset of the nop, [argument in sys/sdt.h's notation])]."""
    text = subprocess.run(["readelf", "-W", "-n", program], check=True, capture_output=True, text=True).stdout
    found = {}
    for name, where, arguments in re.findall(rf"Provider: {provider}\n\s+Name: (\w+)\n\s+Location: (\w+),.*\n\s+Arguments: (.*)", text):
        found.setdefault(name, []).append((file_offset(program, int(where, 16)), arguments.split()))
    return found


def file_offset(program, address):
    segments = subprocess.run(["readelf", "-W", "-l", program], check=True, capture_output=True, text=True).stdout
    for offset, start, size in re.findall(r"LOAD\s+(0x\w+) (0x\w+) 0x\w+ (0x\w+)", segments):
        if int(start, 16) <= address < int(start, 16) + int(size, 16):
            return address - int(start, 16) + int(offset, 16)
    raise AssertionError(f"{address:#x} is in no segment")


def register_of(operand):
    """Number of the 64-bit register that the operand is in, e.g. %edx, %r14d, %al; None: it is none."""
    name = operand.removeprefix("%")
    for pattern, to in ((r"(r\d+)[dwb]?", r"\1"), (r"[re]?([abcd]x|[sd]i|[bs]p)", r"\1"), (r"([abcd])l", r"\1x"), (r"([sd]i|[bs]p)l", r"\1")):
        if operand.startswith("%") and re.fullmatch(pattern, name):
            return REGISTERS[re.sub(pattern, to, name)]
    return None


class Refused(Exception):
    """This machine lets nobody (or not us) look at uprobes."""


class Place:
    """One place of one probe in one process."""

    def __init__(self, pid, program, offset, arguments):
        self.arguments = arguments
        path = ctypes.create_string_buffer(os.fsencode(program))
        # type, size; config, period, sample_type, read_format, flags; wakeup_events, bp_type; config1 (path), config2 (offset), branches,
        # sample_regs_user
        attributes = struct.pack("<IIQQQQQIIQQQQ", int(PMU.read_text()), 112, 0, 1, PERF_SAMPLE_REGS_USER, 0, 0, 0, 0,
                                 ctypes.addressof(path), offset, 0, REGISTER_MASK).ljust(112, b"\0")
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.syscall(SYS_PERF_EVENT_OPEN, attributes, pid, -1, -1, PERF_FLAG_FD_CLOEXEC)
        if self.fd < 0:
            number = ctypes.get_errno()
            if number in (errno.EACCES, errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOENT):
                raise Refused(f"perf_event_open of a uprobe: {os.strerror(number)}")
            raise OSError(number, os.strerror(number))
        self.ring = mmap.mmap(self.fd, (1 + RING_PAGES) * mmap.PAGESIZE)

    def value(self, argument, registers):
        size, operand = argument.split("@")
        if operand.startswith("$"):
            return int(operand[1:])
        value = registers[register_of(operand)]
        bits = abs(int(size)) * 8
        value &= (1 << bits) - 1
        return value - (1 << bits) if int(size) < 0 and value >> (bits - 1) else value

    def hits(self):
        """Arguments of each hit since the last look."""
        head, tail, data = (struct.unpack_from("<Q", self.ring, at)[0] for at in (HEAD, TAIL, DATA_OFFSET))
        size, found = RING_PAGES * mmap.PAGESIZE, []
        while tail < head:
            def at(n, start=tail):
                return b"".join(self.ring[data + (start + i) % size:data + (start + i) % size + 8] for i in range(0, n, 8))
            kind, _, length = struct.unpack("<IHH", at(8))
            assert kind != PERF_RECORD_LOST, "more hits than the ring holds"
            if kind == PERF_RECORD_SAMPLE:
                values = struct.unpack(f"<{len(REGISTERS)}Q", at(length)[16:16 + 8 * len(REGISTERS)])
                registers = dict(zip(sorted(REGISTERS.values()), values))
                found.append(tuple(self.value(a, registers) for a in self.arguments))
            tail += length
        struct.pack_into("<Q", self.ring, TAIL, tail)
        return found


class Probes:
    """All probes of `provider` in a running process; `hits[name]` grows with each look()."""

    def __init__(self, pid, program, provider):
        if not PMU.exists():
            raise Refused("the kernel has no uprobe events (CONFIG_UPROBE_EVENTS)")
        self.places = [(name, Place(pid, program, *where)) for name, wheres in notes(program, provider).items() for where in wheres]
        self.hits = {name: [] for name, _ in self.places}

    def look(self):
        for name, place in self.places:
            self.hits[name] += place.hits()
        return self.hits
