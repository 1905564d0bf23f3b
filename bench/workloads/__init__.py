"""The rows of docs/performance.md, in its order; workloads/base.py says what a row is."""
from workloads import merging, programs, scanning, size

ROWS = {row.name: row for row in (scanning.Steady, merging.Converge, merging.Scattered, scanning.Dirty, scanning.Hot, merging.FirstWrite,
                                  merging.FirstRead, merging.Stall, merging.Unmerge, scanning.Sparse, programs.Redis, programs.Python,
                                  programs.PythonNoAslr, programs.Qemu, programs.Node, programs.Java, size.LateWorker,
                                  programs.RedisLatency, size.Metadata, size.Growth)}
