#!/usr/bin/env python3
"""Attention by ONNX Runtime's GroupQueryAttention on the CPU: the cases of benchmarks/attention that it can do.

Prints a table, and with --out writes JSON in the form of Google Benchmark, for benchmarks/peers/plot.py and
tools/performance:

  peer_onnx/decode/<element>/contiguous/kv:<n>/threads:<t>
  peer_onnx/prefill/<element>/contiguous/q:<n>/kv:<n>/threads:<t>

Keys and values are [kv_heads, n, dim], bound as past and present at the same time, so that nothing is copied but the
row that a call appends; the calls of decode go through as many layers as come to 1 GiB, or twice the last-level cache.
Times are medians.
"""
import argparse
import json
import statistics
import sys
import time

from sdpa import last_level_cache

QUERY_HEADS, KV_HEADS, DIM = 32, 8, 128
ELEMENTS = {"f32": ("float32", 1, 4), "f16": ("float16", 10, 2)}  # of numpy, of ONNX, bytes


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", default="f32,f16", help="which, separated by commas (default: %(default)s)")
    parser.add_argument("--kv", default="16384", help="positions in decode (default: %(default)s)")
    parser.add_argument("--prefill", default="2048",
                        help="tokens of a causal prefill; empty: none (default: %(default)s)")
    parser.add_argument("--threads", default="1,2", help="thread counts (default: %(default)s)")
    parser.add_argument("--min-time", type=float, default=0.5, metavar="S",
                        help="seconds per case (default: %(default)s)")
    parser.add_argument("--out", metavar="FILE", help="write JSON there")
    options = parser.parse_args()
    for name in ("kv", "prefill", "threads"):
        try:
            setattr(options, name, [int(word) for word in getattr(options, name).split(",") if word])
        except ValueError:
            parser.error(f"--{name} is '{getattr(options, name)}', must be whole numbers separated by commas")
    options.elements = [word for word in options.elements.split(",") if word]
    for element in options.elements:
        if element not in ELEMENTS:
            parser.error(f"--elements has '{element}', must be of {', '.join(ELEMENTS)}")
    return options


class Bench:
    def __init__(self, options, np, onnx, ort):
        self.options, self.np, self.onnx, self.ort = options, np, onnx, ort
        self.rows = []

    def session(self, element, threads):
        helper, kind = self.onnx.helper, ELEMENTS[element][1]
        integer = self.onnx.TensorProto.INT32
        rows = [("query", QUERY_HEADS), ("key", KV_HEADS), ("value", KV_HEADS)]
        inputs = [helper.make_tensor_value_info(name, kind, [1, None, heads * DIM]) for name, heads in rows]
        inputs += [helper.make_tensor_value_info(name, kind, [1, KV_HEADS, None, DIM])
                   for name in ("past_key", "past_value")]
        inputs += [helper.make_tensor_value_info("seqlens_k", integer, [1]),
                   helper.make_tensor_value_info("total_sequence_length", integer, [1])]
        outputs = [helper.make_tensor_value_info("output", kind, [1, None, QUERY_HEADS * DIM])]
        outputs += [helper.make_tensor_value_info(name, kind, [1, KV_HEADS, None, DIM])
                    for name in ("present_key", "present_value")]
        node = helper.make_node("GroupQueryAttention", [i.name for i in inputs], [o.name for o in outputs],
                                domain="com.microsoft", num_heads=QUERY_HEADS, kv_num_heads=KV_HEADS)
        model = helper.make_model(helper.make_graph([node], "attention", inputs, outputs), ir_version=8, opset_imports=[
            helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)])
        options = self.ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        return self.ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def binding(self, session, element, new, past, total, share):
        """A call with `new` rows over `total`; past and present are the same memory if `share`."""
        np, ort = self.np, self.ort
        dtype = ELEMENTS[element][0]
        value = lambda array: ort.OrtValue.ortvalue_from_numpy(array)
        random = np.random.default_rng(1)
        bind = session.io_binding()
        for name, heads in (("query", QUERY_HEADS), ("key", KV_HEADS), ("value", KV_HEADS)):
            bind.bind_ortvalue_input(name, value(random.standard_normal((1, new, heads * DIM)).astype(dtype)))
        for name, tensor in zip(("key", "value"), past):
            bind.bind_ortvalue_input(f"past_{name}", tensor)
            if share:
                bind.bind_ortvalue_output(f"present_{name}", tensor)
            else:
                bind.bind_output(f"present_{name}", "cpu")
        bind.bind_ortvalue_input("seqlens_k", value(np.array([total - 1], np.int32)))
        bind.bind_ortvalue_input("total_sequence_length", value(np.array([total], np.int32)))
        bind.bind_ortvalue_output("output", value(np.zeros((1, new, QUERY_HEADS * DIM), dtype)))
        return bind

    def time(self, name, size, pairs, session, bindings):
        session.run_with_iobinding(bindings[0])
        times = []
        while not times or sum(times) < self.options.min_time:
            bind = bindings[(len(times) + 1) % len(bindings)]
            start = time.perf_counter()
            session.run_with_iobinding(bind)
            times.append(time.perf_counter() - start)
        seconds = statistics.median(times)
        row = {"name": "peer_onnx/" + name, "run_type": "iteration", "iterations": len(times),
               "real_time": seconds * 1e3, "cpu_time": seconds * 1e3, "time_unit": "ms",
               "GFLOP/s": 4 * DIM * pairs / seconds / 1e9, "KV_GB/s": size / seconds / 1e9}
        self.rows.append(row)
        print(f"{row['name']:58} {row['real_time']:10.3f} ms {row['GFLOP/s']:8.1f} GFLOP/s "
              f"{row['KV_GB/s']:7.2f} KV_GB/s", flush=True)

    def tensors(self, element, n):
        np = self.np
        rows = np.random.default_rng(2).standard_normal((1, KV_HEADS, n, DIM), np.float32).astype(ELEMENTS[element][0])
        return [self.ort.OrtValue.ortvalue_from_numpy(rows.copy()) for _ in range(2)]

    def decode(self, element, n):
        size = 2 * KV_HEADS * n * DIM * ELEMENTS[element][2]
        layers = max(1, -(-max(2 * last_level_cache(), 1 << 30) // size))
        pool = [self.tensors(element, n) for _ in range(layers)]
        for threads in self.options.threads:
            session = self.session(element, threads)
            bindings = [self.binding(session, element, 1, past, n, True) for past in pool]
            self.time(f"decode/{element}/contiguous/kv:{n}/threads:{threads}", size, QUERY_HEADS * n, session, bindings)

    def prefill(self, element, n):
        size = 2 * KV_HEADS * n * DIM * ELEMENTS[element][2]
        past = self.tensors(element, n)
        for threads in self.options.threads:
            session = self.session(element, threads)
            self.time(f"prefill/{element}/contiguous/q:{n}/kv:{n}/threads:{threads}", size,
                      QUERY_HEADS * n * (n + 1) // 2, session, [self.binding(session, element, n, past, n, True)])


def main():
    options = arguments()
    try:
        import numpy as np
        import onnx
        import onnxruntime as ort
    except ImportError as error:
        sys.exit(f"ort.py: this Python has no {error.name}. To get it:\n"
                 "  python3 -m venv venv\n"
                 "  venv/bin/pip install numpy onnx onnxruntime\n"
                 "  venv/bin/python benchmarks/peers/ort.py")
    ort.set_default_logger_severity(3)
    print(f"ONNX Runtime {ort.__version__}")
    bench = Bench(options, np, onnx, ort)
    for element in options.elements:
        for n in options.kv:
            bench.decode(element, n)
        for n in options.prefill:
            bench.prefill(element, n)
    if options.out:
        with open(options.out, "w") as file:
            json.dump({"context": {"executable": "benchmarks/peers/ort.py", "onnxruntime": ort.__version__},
                       "benchmarks": bench.rows}, file, indent=1)


if __name__ == "__main__":
    main()
