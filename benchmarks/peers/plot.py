#!/usr/bin/env python3
"""Draws the share of the machine's limit that each case reaches, kvc beside its peers, as an SVG. Needs gnuplot.

  build/release/benchmarks/attention --benchmark_out=kvc.json
  venv/bin/python benchmarks/peers/sdpa.py --limits kvc.json --out sdpa.json
  benchmarks/peers/plot.py kvc.json sdpa.json --out attention.svg

A bar is the counter `roofline` of a case, the median if the files have it several times. The limits in the title are
those in the context of the first file.
"""
import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys

# Series in the order in which they stand side by side, with their colours: kvc in blue, others warm and grey.
SERIES = {
    "kvc contiguous": "#08519c", "kvc paged16": "#3182bd", "kvc paged64": "#6baed6",
    "kvc prefix-shared16": "#9ecae1", "kvc prefix-shared64": "#c6dbef", "kvc unshared": "#bdbdbd",
    "ggml best layout": "#d94801", "ggml own layout": "#fdae6b",
    "PyTorch SDPA": "#7a0177", "Eigen per group": "#525252", "Eigen per head": "#a6a6a6",
}
PEERS = {("peer_ggml", "best"): "ggml best layout", ("peer_ggml", "own"): "ggml own layout",
         ("peer_eigen", "per-group"): "Eigen per group", ("peer_eigen", "per-head"): "Eigen per head",
         ("peer_sdpa", "contiguous"): "PyTorch SDPA"}
SAME_SIZE = {"q8_0": "int8", "q4_0": "int4"}  # what others call formats of about as many bits
ELEMENTS = ["f32", "f16", "bf16", "int8", "fp8", "int4"]
PANELS = ["decode", "prefill", "decode_shared"]
TITLES = {"decode": "Decode, one sequence", "prefill": "Prefill, causal",
          "decode_shared": "Decode, {seqs} sequences that share {shared} of {kv} positions"}


def fail(message):
    sys.exit(f"plot.py: {message}")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE.json", help="output of --benchmark_out, or of sdpa.py --out")
    parser.add_argument("--out", required=True, metavar="FILE.svg", help="the picture")
    parser.add_argument("--threads", type=int, help="of the cases (default: the most that there are)")
    parser.add_argument("--kv",
                        help="positions in decode, separated by commas, or 'all' (default: the most that there are)")
    parser.add_argument("--policies", default="contiguous,paged16,prefix-shared16",
                        help="of kvc, separated by commas, or 'all' (default: %(default)s)")
    parser.add_argument("--dims", action="store_true", help="also the cases of other dimensions than 128")
    parser.add_argument("--filter", default="", metavar="REGEX", help="only cases whose name matches")
    return parser.parse_args()


def read(path):
    try:
        with open(path) as file:
            content = json.load(file)
        return content["context"], content["benchmarks"]
    except OSError as error:
        fail(f"cannot read {path}: {error.strerror}")
    except (ValueError, KeyError, TypeError):
        fail(f"{path} is not JSON of Google Benchmark: make it with --benchmark_out=FILE.json")


def parse(name):
    """(operation, series, element, {argument: value}) of the name of a case; None for what is not drawn."""
    words = name.split("/")
    library = words.pop(0) if words[0].startswith("peer_") else "kvc"
    if len(words) < 4 or words[0] not in PANELS:
        return None
    operation, element, variant = words[:3]
    values = dict(word.split(":", 1) for word in words[3:] if ":" in word)
    series = f"kvc {variant}" if library == "kvc" else PEERS.get((library, variant))
    if series not in SERIES:
        return None
    return operation, series, SAME_SIZE.get(element, element), values


def select(options, benchmarks):
    """{operation: {group: {series: [roofline]}}}; a group is (element, label below it).

    Also the arguments of each operation, and the number of threads."""
    cases = []
    for row in benchmarks:
        name = row.get("run_name", row.get("name", ""))
        case = parse(name)
        wanted = row.get("run_type", "iteration") == "iteration" and "roofline" in row and not row.get("error_occurred")
        if case and wanted and re.search(options.filter, name) and (options.dims or "dim" not in case[3]):
            cases.append((*case, row["roofline"]))
    if not cases:
        matches = f" and matches '{options.filter}'" if options.filter else ""
        fail(f"no case of the files has a counter 'roofline'{matches}")

    threads = str(options.threads or max(int(values["threads"]) for *_, values, _ in cases))
    lengths = [int(values["kv"]) for operation, *_, values, _ in cases if operation == "decode"]
    if options.kv is None:
        kv = {str(max(lengths, default=0))}
    else:
        kv = {str(n) for n in lengths} if options.kv == "all" else set(options.kv.split(","))
    policies = None if options.policies == "all" else options.policies.split(",") + ["unshared"]

    panels, facts = {}, {}
    for operation, series, element, values, roofline in cases:
        library, variant = series.split(" ", 1)
        if values["threads"] != threads or (library == "kvc" and policies is not None and variant not in policies):
            continue
        if operation == "decode" and values["kv"] not in kv:
            continue
        label = f"{values['heads']} kv heads" if operation == "decode_shared" else f"kv {values['kv']}"
        if "dim" in values:
            label += f", dim {values['dim']}"
        groups = panels.setdefault(operation, {})
        groups.setdefault((element, label), {}).setdefault(series, []).append(roofline)
        facts[operation] = values
    if not panels:
        fail(f"no case has {threads} threads and kv {', '.join(sorted(kv))}")
    return panels, facts, threads


def order(group):
    element, label = group
    return ELEMENTS.index(element) if element in ELEMENTS else len(ELEMENTS), [
        int(word) if word.isdigit() else word for word in re.findall(r"\d+|\D+", label)]


def limits(context, threads):
    def value(key):
        return float(context.get(f"{key}/threads:{threads}", "nan"))

    parts = [f"read {value('read_GB/s'):.1f} GB/s", f"fp32 {value('fp32_GFLOP/s'):.0f} GFLOP/s"]
    for unit in ("bf16", "int8"):
        has_unit = not context.get(f"{unit}_unit", "none").startswith("none")
        parts.append(f"{unit} {value(unit + '_GFLOP/s'):.0f}" if has_unit else f"{unit} as fp32")
    return ", ".join(parts)


def script(out, panels, facts, threads, context):
    """The script for gnuplot. Bars are boxes at places of our own, so that a case without a series leaves no gap."""
    operations = [operation for operation in PANELS if operation in panels]
    bars = max(sum(len(series) + 1.2 for series in panels[operation].values()) for operation in operations)
    width, panel, top = max(860, int(30 * bars) + 130), 310, 84
    used = [s for s in SERIES if any(s in group for groups in panels.values() for group in groups.values())]
    places, x = [], 70  # of the legend: rows of coloured squares, as wide as the picture allows
    for series in used:
        extent = int(34 + 7.9 * len(series))
        if x + extent > width:
            x, top = 70, top + 20
        places.append((series, x, top - 18))
        x += extent
    height = top + panel * len(operations)
    plural = "s" if threads != "1" else ""
    lines = [
        f"set terminal svg size {width},{height} font 'Helvetica,13' background '#ffffff'",
        f"set output {quoted(out)}",
        "set multiplot",
        f"set label 1 {quoted(f'Attention on {threads} thread{plural}: share of the limit of the machine')} "
        f"at screen {70 / width},{1 - 22 / height} font ',17'",
        f"set label 2 {quoted('the limits at the start: ' + limits(context, threads))} "
        f"at screen {70 / width},{1 - 44 / height} font ',12' textcolor '#555555'",
    ]
    for tag, (series, x, y) in enumerate(places, 10):
        lines += [f"set object {tag} rectangle from screen {x / width},{1 - (y + 6) / height} "
                  f"to screen {(x + 12) / width},{1 - (y - 6) / height} "
                  f"fillcolor '{SERIES[series]}' fillstyle solid noborder",
                  f"set label {tag} {quoted(series)} at screen {(x + 18) / width},{1 - y / height}"]
    lines += ["set style fill solid noborder", "set grid ytics linecolor '#dddddd' linetype 1",
              "set border 3 linecolor '#888888'",
              "set ytics 0,0.2,1 nomirror textcolor '#333333'", "set format y '%.1f'", "set tics scale 0", "unset key",
              f"set lmargin at screen {60 / width}", f"set rmargin at screen {1 - 20 / width}"]
    for row, operation in enumerate(operations):
        groups = panels[operation]
        drawn, ticks, at = {}, [], 0.0
        for group in sorted(groups, key=order):
            start = at
            for series in (s for s in used if s in groups[group]):
                drawn.setdefault(series, []).append((at, statistics.median(groups[group][series])))
                at += 1
            ticks.append(f"{quoted(group[0] + chr(92) + 'n' + group[1])} {(start + at - 1) / 2}")
            at += 1.2
        highest = max(value for series in drawn.values() for _, value in series)
        title = TITLES[operation].format(**facts[operation]) if operation == "decode_shared" else TITLES[operation]
        lines += [
            f"set tmargin at screen {1 - (top + row * panel + 34) / height}",
            f"set bmargin at screen {1 - (top + (row + 1) * panel - 58) / height}",
            f"set xrange [-0.9:{bars - 1.3}]", f"set yrange [0:{max(1.0, highest * 1.08)}]",
            f"set label 3 {quoted(title)} at graph 0,1.07 font ',14'",
            f"set xtics ({', '.join(ticks)}) nomirror textcolor '#333333'",
        ]
        plots = []
        for number, series in enumerate(drawn):
            lines += [f"$bars{number} << EOD", *(f"{x} {value:.4f} {text(value)}" for x, value in drawn[series]), "EOD"]
            plots += [f"$bars{number} using 1:2:(0.92) with boxes linecolor '{SERIES[series]}'",
                      f"$bars{number} using 1:2:3 with labels font ',9' offset 0,0.5 textcolor '#333333'"]
        lines.append("plot " + ", ".join(plots))
        if row == 0:  # they belong to the page, and would be drawn again with each panel
            lines += ["unset label", "unset object"]
    return "\n".join(lines + ["unset multiplot", ""])


def text(value):
    return f"{value:.2f}" if value < 0.995 else f"{value:.1f}"


def quoted(string):
    return '"' + string.replace('"', '\\"') + '"'


def main():
    options = arguments()
    if shutil.which("gnuplot") is None:
        fail("gnuplot is not installed (Debian: gnuplot-nox)")
    try:
        re.compile(options.filter)
    except re.error as error:
        fail(f"--filter '{options.filter}': {error}")
    contexts, benchmarks = [], []
    for path in options.files:
        context, rows = read(path)
        contexts.append(context)
        benchmarks += rows
    panels, facts, threads = select(options, benchmarks)
    try:
        open(options.out, "a").close()
    except OSError as error:
        fail(f"cannot write {options.out}: {error.strerror}")
    run = subprocess.run(["gnuplot"], input=script(options.out, panels, facts, threads, contexts[0]), text=True,
                         capture_output=True, check=False)
    if run.returncode != 0 or run.stderr.strip():
        fail(f"gnuplot: {run.stderr.strip()}")


if __name__ == "__main__":
    main()
