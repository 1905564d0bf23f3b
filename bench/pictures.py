"""The pictures of docs/performance.md: gnuplot, SVG."""
import shutil
import subprocess
import sys

from figures import medians

FOLDER = "pictures"
COLOURS = {"userksm": "#0b7a4b", "ksm": "#b5443c", "ksm, equal CPU": "#d9a03f"}
OTHER_COLOUR = "#777777"
COLUMNS = 2
# A row that is far better or worse than its target ends at the edge of the picture.
TARGET_LEAST, TARGET_MOST = 0.01, 10


def gnuplot(script, path):
    out = subprocess.run(["gnuplot"], input=script, capture_output=True, text=True)
    if out.returncode != 0:
        raise RuntimeError(f"gnuplot: {out.stderr.strip()}")
    path.write_text("\n".join(line.rstrip() for line in out.stdout.splitlines()) + "\n")


def terminal(width, height):
    return f"set terminal svg size {width},{height} font 'sans-serif,12' background 'white' noenhanced\n"


def curve_plot(name, curves):
    """Saved MiB against CPU seconds, a line a side."""
    text = ""
    for i, curve in enumerate(curves.values()):
        # From nothing: the first look comes after the beginning.
        text += f"${name.replace('-', '_')}{i} << EOD\n0 0\n" + "".join(f"{point[1]} {point[2]}\n" for point in curve) + "EOD\n"
    lines = [f"${name.replace('-', '_')}{i} with lines lw 2 lc rgb '{COLOURS.get(side, OTHER_COLOUR)}' title '{side}'"
             for i, side in enumerate(curves)]
    return text + f"set title '{name}'\nplot " + ", ".join(lines) + "\n"


def axes():
    return "set xlabel 'CPU seconds'\nset ylabel 'MiB saved'\nset key top left\nset grid\nset xrange [0:*]\nset yrange [0:*]\n"


def targets(rows):
    """How far each figure is from its target: 1 is the target, less is better."""
    found = []
    for row, result in rows:
        for check in row.checks(medians(result["rounds"])):
            if check.value is None or check.limit <= 0:
                continue
            part = check.limit / max(check.value, 1e-9) if check.at_least else check.value / check.limit
            found.append((f"{row.name}: {check.what}", min(max(part, TARGET_LEAST), TARGET_MOST), check.verdict == "met"))
    found.reverse()
    text = terminal(900, 80 + 26 * len(found)) + "$data << EOD\n"
    text += "".join(f'{i} {part} {0x0b7a4b if met else 0xb5443c} "{label}"\n' for i, (label, part, met) in enumerate(found)) + "EOD\n"
    text += (f"set logscale x\nset xrange [{TARGET_LEAST}:{TARGET_MOST}]\nset yrange [-0.7:{len(found) - 0.3}]\nunset key\nset grid x\n"
             "set xlabel 'in parts of the target; left of the line: met'\nset ytics scale 0\n"
             "set arrow from 1,graph 0 to 1,graph 1 nohead lw 2 lc rgb '#333333'\nset style fill solid\n"
             f"plot $data using ({TARGET_LEAST}):1:({TARGET_LEAST}):2:($1-0.35):($1+0.35):3:ytic(4) with boxxyerror lc rgb variable\n")
    return text


def draw(rows, folder):
    if not shutil.which("gnuplot"):
        print("no pictures: gnuplot is not installed (package gnuplot-nox)", file=sys.stderr)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with_curves = [(row, result) for row, result in rows if result["curves"]]
    for row, result in with_curves:
        gnuplot(terminal(600, 380) + axes() + curve_plot(row.name, result["curves"]), folder / f"{row.name}.svg")
    if with_curves:
        lines = -(-len(with_curves) // COLUMNS)
        script = terminal(900, 330 * lines) + axes() + f"set multiplot layout {lines},{COLUMNS}\n"
        gnuplot(script + "".join(curve_plot(row.name, result["curves"]) for row, result in with_curves) + "unset multiplot\n",
                folder / "headline.svg")
    gnuplot(targets(rows), folder / "targets.svg")
