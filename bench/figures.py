"""The arithmetic of the results: medians over rounds, and targets met or missed. No machine, no files."""
import dataclasses
import statistics


@dataclasses.dataclass(frozen=True)
class Check:
    """One target of a row: a value and the most (or least) that it may be."""
    what: str
    value: float | None  # None: could not be measured
    limit: float
    unit: str = ""  # behind the number: "x" (a ratio), "ms", "%"
    at_least: bool = False

    @property
    def verdict(self):
        if self.value is None:
            return "not measured"
        return "met" if (self.value >= self.limit if self.at_least else self.value <= self.limit) else "missed"


def ratio(part, whole):
    """None where there is nothing to compare with."""
    return None if part is None or not whole else part / whole


def medians(rounds):
    """[{side: {figure: number}}, ...] -> {side: {figure: median}}. A figure that a round lacks counts in the others only."""
    values = {}
    for one in rounds:
        for side, figures in one.items():
            for name, value in figures.items():
                if isinstance(value, (int, float)):
                    values.setdefault(side, {}).setdefault(name, []).append(value)
    return {side: {name: statistics.median(v) for name, v in figures.items()} for side, figures in values.items()}


def spread(rounds, side, figure):
    """(least, greatest) over the rounds, or None."""
    found = [one[side][figure] for one in rounds if figure in one.get(side, {})]
    return (min(found), max(found)) if found else None


def figure(middle, side, name):
    return middle.get(side, {}).get(name)


def difference(one, other):
    return None if one is None or other is None else one - other


def cost(middle, side):
    """CPU seconds of a side: the daemon (ksmd), the agents, and what the processes themselves needed more than without merging."""
    parts = [figure(middle, side, f"{part}_cpu_s") for part in ("engine", "agents", "subjects")] + [figure(middle, "plain", "subjects_cpu_s")]
    if None in parts:
        return None
    engine, agents, with_merging, without = parts
    return engine + agents + with_merging - without


def reached(curve, mib):
    """The point of a curve of [seconds, CPU seconds, MiB saved, ...] where it came to so much, in a straight line between two looks. None:
    never."""
    before = [0.0] * 4
    for point in curve:
        if point[2] >= mib:
            part = (mib - before[2]) / (point[2] - before[2]) if point[2] > before[2] else 1.0
            return [a + part * (b - a) for a, b in zip(before, point)]
        before = point
    return None


# More than that of a CPU is no share to aim at: the sleep between batches would have to vanish.
SHARE_MOST = 0.95


def batch_for_share(share, page_usec, sleep_msec):
    """The batch with which ksmd takes this share of a CPU, at so much a page and with so long a sleep between two batches."""
    share = min(share, SHARE_MOST)
    return max(1, round(1000 * sleep_msec * share / (1 - share) / page_usec))


def percentile(buckets, part):
    """Of a histogram, [(upper bound, count), ...] in ascending order, the last bound None: between the bounds of the bucket that holds it,
    as if they lay evenly there. In the last bucket: its lower bound."""
    total = sum(n for _, n in buckets)
    below, lower = 0, 0
    for upper, n in buckets:
        if n and below + n >= part * total:
            return lower if upper is None else lower + (upper - lower) * (part * total - below) / n
        below, lower = below + n, upper
    return None


def number(value):
    """Three digits; counts whole, nothing in powers of ten."""
    if value is None:
        return "-"
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    if abs(value) >= 1:
        return f"{value:.2f}"
    return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3f}"


def with_unit(value, unit):
    return number(value) + (f" {unit}" if unit and value is not None else "")
