"""What a row of the table is."""
import dataclasses

from figures import cost, figure, ratio
from sides import KsmSide, Plain, UserksmSide


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much of it: the same for both sides and for every round."""
    rounds: int = 5
    period_s: float = 10.0
    passes: int = 20
    scale: float = 1.0  # of the memory

    def mib(self, full):
        return max(1, round(full * self.scale))


class Workload:
    name = title = target = ""
    shows = ()  # (figure, unit, text) for the table
    profiled = ("userksm", "ksm")  # sides of which perf says where their time goes
    limit_s = 600

    def n_pages(self, plan):
        """Pages that the processes offer, all together."""
        raise NotImplementedError

    def sides(self, plan, known):
        """[(label, side)] in the order in which they run in a round; `known` has the figures of those that ran in it before."""
        return [("plain", Plain), ("userksm", lambda: UserksmSide(plan.period_s)),
                ("ksm", lambda: KsmSide(n_pages=self.n_pages(plan), period_s=plan.period_s))]

    def measure(self, side, plan):
        """What one side did and cost, on fresh processes: a dict of numbers, and "curve" where there is one (sides.wait_saved)."""
        raise NotImplementedError

    def finish(self, known, curves):
        """Called after each side of a round: adds to the figures so far what only several sides together tell."""

    def least_work(self, plan, middle):
        """(pages read, comparisons of two pages, page-table entries written) that no merger does without in this row; None where that says
        nothing. And spent_s(): the CPU seconds in which a side did it."""
        return None

    def spent_s(self, middle, side):
        return cost(middle, side)

    def checks(self, middle):
        """Checks, from the medians {side: {figure: number}}."""
        raise NotImplementedError


def cost_ratio(middle, side="userksm", other="ksm"):
    return ratio(cost(middle, side), cost(middle, other))


def figure_ratio(middle, name, side="userksm", other="ksm"):
    return ratio(figure(middle, side, name), figure(middle, other, name))


def time_ratio_at_equal_share(middle, name, other="ksm, equal CPU"):
    """A time of userksm's, of the other side's had that taken the same share of a CPU: its time is scaled by the share that came out."""
    parts = [(figure(middle, side, name), figure(middle, side, "share")) for side in ("userksm", other)]
    return None if None in parts[0] + parts[1] else ratio(parts[0][0] * parts[0][1], parts[1][0] * parts[1][1])
