"""Where a program under userksm may be answered otherwise than without. Nothing else may differ.

`allowed`: pairs of answers that compare equal, as (operation, errno without, errno under userksm); 0 is success. Everything that
the operation does afterwards is the same in both, so that a program goes on after it.
`avoided`: what programs do not do, or do not look at, because the kernel alone does not answer the same each time either, or
because it is a documented limit of which nothing more can be said."""
import dataclasses
import errno


@dataclasses.dataclass
class Exemption:
    name: str
    text: str
    allowed: frozenset = frozenset()


EXEMPTIONS = [
    Exemption("mremap of several mappings",
              "A growing mremap of a range in several mappings of equal protection succeeds (or finds no room), where the kernel says EFAULT. The shim "
              "cannot tell mappings that the program has split (by advice, by earlier moves) from those that merging has.",
              frozenset({("remap_grow", errno.EFAULT, 0), ("remap_grow", errno.EFAULT, errno.ENOMEM),
                         ("remap_roam", errno.EFAULT, 0)})),
    Exemption("mremap of pages that may be pinned",
              "Fails with ENOMEM, and nothing has changed, where the pages were copied on write inside a merged run and the process has "
              "io_uring or O_DIRECT descriptors. Programs use mremap and MADV_WIPEONFORK, or such descriptors, not both."),
    Exemption("the limit of mappings",
              "A merged run is a mapping, so vm.max_map_count (ENOMEM) is met earlier, but not before half of it. Programs stay below."),
    Exemption("accesses that cannot wait",
              "/proc/PID/mem and ptrace get EIO on a page in transition. They are tried again while a plain read of the page succeeds; "
              "how often is printed."),
    Exemption("MADV_FREE",
              "What is read between MADV_FREE and the next write, the old bytes or zeros, is the kernel's choice in both; each page must "
              "be one of the two."),
    Exemption("MADV_FREE of pages that may be pinned",
              "Succeeds without freeing where a page was copied on write inside a merged run and cannot be restored; then also where "
              "another mapping of the range would have made the kernel say EINVAL.",
              frozenset({("free_lazily", errno.EINVAL, 0)})),
    Exemption("missing zeros",
              "A merged page of zeros is absent. A userfaultfd of the program that is registered later for missing pages hears of an access to "
              "it, though the program had once written zeros there. Programs fill or discard what they register."),
    Exemption("mremap beside a userfaultfd",
              "A move over several mappings, one of which the program's own userfaultfd watches, succeeds where the kernel says EFAULT. "
              "Programs do not move memory while they have a userfaultfd."),
    Exemption("MREMAP_DONTUNMAP of locked memory",
              "The kernel unlocks all of the mapping that the range lies in, and merging may have left the mapping in pieces. Programs "
              "unlock the range before."),
    Exemption("mincore", "Which pages are resident is not compared, only the result."),
    Exemption("MADV_COLLAPSE", "Whether the kernel has a huge page to give is not compared, only the bytes."),
    Exemption("brk beside malloc",
              "The shim and the agent do not use the break, but libc's heap does: programs that move the break themselves keep malloc from it."),
    Exemption("interrupting signals",
              "A signal that interrupts a system call changes what even the kernel alone answers (short reads). They come in races only, "
              "where the bytes are judged; elsewhere signals come at determined points."),
    Exemption("addresses", "Where the kernel puts a mapping that has no address of its own is not compared."),
    Exemption("a fork beside discards",
              "A fork around libc and the shim (clone by a `syscall` instruction) while another thread discards merged memory, or a parent "
              "that is killed, or stopped for 10 s, in the microseconds between hearing of the discard and noting it: the child may find "
              "what the page held when it was merged, instead of zeros. Forks by libc are exact."),
]

ALLOWED = frozenset().union(*(e.allowed for e in EXEMPTIONS))


def main():
    for e in EXEMPTIONS:
        print(f"{e.name}: {e.text}")
        for operation, without, under in sorted(e.allowed):
            print(f"    {operation}: {errno.errorcode.get(without, 'success')} without, {errno.errorcode.get(under, 'success')} under userksm")


if __name__ == "__main__":
    main()
