#!/usr/bin/env python3
"""Attention by PyTorch's scaled_dot_product_attention on the CPU: the cases of benchmarks/attention that it can do.

Prints a table, and with --out writes JSON in the form of Google Benchmark, for benchmarks/peers/plot.py:

  peer_sdpa/decode/<element>/contiguous/kv:<n>/threads:<t>
  peer_sdpa/prefill/<element>/contiguous/q:<n>/kv:<n>/threads:<t>

Keys and values are [kv_heads, n, dim], the best layout for it, in large pages, and the calls of decode go through as
many layers as come to 1 GiB, or twice the last-level cache. Grouped queries go in as they are (enable_gqa), or, where
PyTorch is older than 2.5, with keys and values expanded to all query heads. Times are medians.

PyTorch cannot measure the limits of the machine as benchmarks/attention does. Give it their output of the same hour,
--limits FILE.json, and each case also has its roofline.
"""
import argparse
import glob
import json
import os
import statistics
import sys
import time

QUERY_HEADS, KV_HEADS, DIM = 32, 8, 128


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", default="f32,bf16,f16", help="which, separated by commas (default: %(default)s)")
    parser.add_argument("--kv", default="4096,65536", help="positions in decode (default: %(default)s)")
    parser.add_argument("--prefill", default="2048",
                        help="tokens of a causal prefill; empty for none (default: %(default)s)")
    parser.add_argument("--threads", default="1,2", help="thread counts (default: %(default)s)")
    parser.add_argument("--min-time", type=float, default=0.5, metavar="S",
                        help="seconds per case (default: %(default)s)")
    parser.add_argument("--limits", metavar="FILE", help="JSON of benchmarks/attention, whose context has the limits")
    parser.add_argument("--out", metavar="FILE", help="write JSON there")
    return parser.parse_args()


def numbers(text):
    try:
        values = [int(word) for word in text.split(",") if word]
    except ValueError:
        sys.exit(f"sdpa.py: '{text}' is not a list of whole numbers separated by commas")
    if any(value < 1 for value in values):
        sys.exit(f"sdpa.py: '{text}': every number must be at least 1")
    return values


def last_level_cache():
    """Bytes of the largest cache of processor 0, as Linux gives them; 64 MiB where it gives none."""
    sizes = []
    for path in glob.glob("/sys/devices/system/cpu/cpu0/cache/index*/size"):
        with open(path) as file:
            text = file.read().strip()
        sizes.append(int(text.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(text[-1], 0))
    return max(sizes, default=64 << 20)


def read_limits(path):
    try:
        with open(path) as file:
            return json.load(file)["context"]
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"sdpa.py: {path} is no output of benchmarks/attention --benchmark_out: {error}")


class Bench:
    def __init__(self, torch, options):
        self.torch = torch
        self.options = options
        self.limits = read_limits(options.limits) if options.limits else None
        self.rows = []
        self.gqa = "enable_gqa" in (torch.nn.functional.scaled_dot_product_attention.__doc__ or "")

    def attend(self, q, k, v, causal=False):
        call = self.torch.nn.functional.scaled_dot_product_attention
        if self.gqa:
            return call(q, k, v, is_causal=causal, enable_gqa=True)
        heads, n, dim = k.shape[1:]
        group = q.shape[1] // heads
        k, v = (x.unsqueeze(2).expand(1, heads, group, n, dim).reshape(1, heads * group, n, dim) for x in (k, v))
        return call(q, k, v, is_causal=causal)

    def time(self, name, threads, element, size, pairs, call):
        """call(i) -> None; size: bytes of keys and values; pairs: of a query head's row and a key that it sees."""
        self.torch.set_num_threads(threads)
        call(0)
        times = []
        while not times or sum(times) < self.options.min_time:
            start = time.perf_counter()
            call(len(times) + 1)
            times.append(time.perf_counter() - start)
        seconds = statistics.median(times)
        operations = 4 * DIM * pairs
        row = {"name": f"peer_sdpa/{name}/threads:{threads}", "run_type": "iteration", "iterations": len(times),
               "real_time": seconds * 1e3, "cpu_time": seconds * 1e3, "time_unit": "ms",
               "GFLOP/s": operations / seconds / 1e9, "KV_GB/s": size / seconds / 1e9}
        if self.limits is not None:
            unit = "bf16" if element == "bf16" else "fp32"
            try:
                read = float(self.limits[f"read_GB/s/threads:{threads}"]) * 1e9
                peak = float(self.limits[f"{unit}_GFLOP/s/threads:{threads}"]) * 1e9
            except KeyError as missing:
                sys.exit(f"sdpa.py: {self.options.limits} has no limit {missing}")
            limit = max(size / read, operations / peak)
            row |= {"limit_ms": limit * 1e3, "roofline": limit / seconds}
        self.rows.append(row)
        print(f"{row['name']:58} {row['real_time']:10.3f} ms "
              f"{row['GFLOP/s']:8.1f} GFLOP/s {row['KV_GB/s']:7.2f} KV_GB/s"
              + (f"  roofline={row['roofline']:.3f}" if "roofline" in row else ""), flush=True)

    def decode(self, element, dtype, n):
        size = 2 * KV_HEADS * n * DIM * dtype.itemsize
        layers = max(1, -(-max(2 * last_level_cache(), 1 << 30) // size))
        pool = self.torch.empty(layers, 2, 1, KV_HEADS, n, DIM, dtype=dtype)
        pool[:] = self.torch.randn(1, 2, 1, KV_HEADS, n, DIM).to(dtype)
        q = self.torch.randn(1, QUERY_HEADS, 1, DIM).to(dtype)
        for threads in numbers(self.options.threads):
            self.time(f"decode/{element}/contiguous/kv:{n}", threads, element, size, QUERY_HEADS * n,
                      lambda i: self.attend(q, pool[i % layers, 0], pool[i % layers, 1]))

    def prefill(self, element, dtype, n):
        k, v = (self.torch.randn(1, KV_HEADS, n, DIM).to(dtype) for _ in range(2))
        q = self.torch.randn(1, QUERY_HEADS, n, DIM).to(dtype)
        for threads in numbers(self.options.threads):
            self.time(f"prefill/{element}/contiguous/q:{n}/kv:{n}", threads, element, 2 * k.nbytes,
                      QUERY_HEADS * n * (n + 1) // 2, lambda i: self.attend(q, k, v, causal=True))


def main():
    options = arguments()
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch then asks for large pages, as kvc does
    try:
        import torch
    except ImportError:
        sys.exit("sdpa.py: this Python has no PyTorch. To get the one for the CPU:\n"
                 "  python3 -m venv venv\n"
                 "  venv/bin/pip install torch --index-url https://download.pytorch.org/whl/cpu\n"
                 "  venv/bin/python benchmarks/peers/sdpa.py")
    dtypes = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
    elements = [word for word in options.elements.split(",") if word]
    for element in elements:
        if element not in dtypes:
            sys.exit(f"sdpa.py: element '{element}': PyTorch has f32, bf16 and f16")
    bench = Bench(torch, options)
    print(f"PyTorch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, "
          f"{'enable_gqa' if bench.gqa else 'keys and values expanded'}")
    with torch.inference_mode():
        for element in elements:
            for n in numbers(options.kv):
                bench.decode(element, dtypes[element], n)
            for n in numbers(options.prefill):
                bench.prefill(element, dtypes[element], n)
    if options.out:
        context = {"executable": "benchmarks/peers/sdpa.py", "pytorch": torch.__version__}
        try:
            with open(options.out, "w") as file:
                json.dump({"context": context | (bench.limits or {}), "benchmarks": bench.rows}, file, indent=1)
        except OSError as error:
            sys.exit(f"sdpa.py: cannot write {options.out}: {error.strerror}")


if __name__ == "__main__":
    main()
