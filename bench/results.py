"""Files of results: one JSON file a row, written after every round, so that a run can be cut short and gone on with."""
import dataclasses
import json
import os
import pathlib
import subprocess
import time

from host import takes_free_memory

ROOT = pathlib.Path(__file__).resolve().parents[1]
DIRECTORY = ROOT / "bench/results"
DIGITS = 6
# Above this share of the processors' time the machine did something else beside the measurement: kernel threads and ticks take 1 to 4 %.
BUSY_SHARE = 0.1
# The same by the load before a round, for each processor.
BUSY_LOAD = 0.75


def machine():
    cpuinfo = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")), "unknown")
    memory_kib = int(pathlib.Path("/proc/meminfo").read_text().split()[1])  # its first line is MemTotal
    return {"kernel": os.uname().release, "cpu": model, "cpus": os.cpu_count(), "memory_gib": round(memory_kib / 2**20, 1),
            "thp": pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text().split("[")[1].split("]")[0],
            "host_takes_memory": takes_free_memory()}


def commit():
    out = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, text=True)
    return out.stdout.strip() or "unknown"


def begin(row, plan):
    return {"name": row.name, "plan": dataclasses.asdict(plan), "machine": machine(), "commit": commit(),
            "begun": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "settings": {}, "others": [], "unit_costs": [], "curves": {}, "rounds": []}


def rounded(figures):
    return {name: round(value, DIGITS) if isinstance(value, float) else value for name, value in figures.items()}


def text_of(result):
    """JSON with a line for each side of each round, so that a difference between two runs can be read."""
    lines = []
    for name, value in result.items():
        if name == "rounds":
            rounds = [" {" + ",\n  ".join(f"{json.dumps(side)}: {json.dumps(figures)}" for side, figures in one.items()) + "}" for one in value]
            lines.append('"rounds": [\n' + ",\n".join(rounds) + "]")
        elif name in ("curves", "profile"):
            lines.append(f'"{name}": {{\n ' + ",\n ".join(f"{json.dumps(side)}: {json.dumps(curve)}" for side, curve in value.items()) + "}")
        else:
            lines.append(f"{json.dumps(name)}: {json.dumps(value)}")
    return "{" + ",\n".join(lines) + "}\n"


def save(result, directory):
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{result['name']}.json"
    partial = path.with_suffix(".json.partial")
    partial.write_text(text_of(result))
    partial.replace(path)


def load(name, directory):
    path = directory / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def same_plan(result, plan):
    """Whether rounds of this result may stand beside new ones (how many there are to be does not matter)."""
    return {**result["plan"], "rounds": 0} == {**dataclasses.asdict(plan), "rounds": 0} and result["machine"] == machine()


def is_busy(result):
    """Whether something else ran during a round. Results from before this was measured tell the load before each round (per CPU), which
    is known to hold the rounds before it."""
    if "others" not in result:
        return any(one > BUSY_LOAD * result["machine"]["cpus"] for one in result["load"])
    return any(one > BUSY_SHARE for one in result["others"])
