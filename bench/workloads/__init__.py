"""The rows of docs/performance.md, in its order; workloads/base.py says what a row is."""
from workloads import merging, scanning

ROWS = {row.name: row for row in (scanning.Steady, merging.Converge, merging.Unmerge, scanning.Dirty, merging.FirstWrite,
                                  merging.FirstRead, scanning.Sparse)}
