#!/usr/bin/env python3
"""The engine on ggml beside llama.cpp: the same model file, tokens, threads and element type, by turns.

Builds nothing. It runs the program `engine` (the preset gguf builds it) and llama.cpp's library by the bindings of
llama-cpp-python (pip install llama-cpp-python==0.3.36, which compiles llama.cpp for this processor; the environment
variable LLAMA_CPP_LIB_PATH names the folder of another libllama). Every run is a process of its own, and loads the
model before it measures.

  compare.py --model M.gguf --text FILE                                all cases
  compare.py --model M.gguf --text FILE --case context:8192:32         one case; may be given again and again

  context:N:M       a prompt of N tokens (prefill), then M tokens one by one (decode)
  together:S:N:P:M  S sequences of N tokens of which the first P are the same, then M tokens of each, in the same passes
  seen:N:P          a prompt of N tokens, then one with the same first P tokens: the time to its first logits (TTFT)
  bytes:S:N         keys and values of S sequences of N tokens: bytes allocated

llama.cpp's passes have up to 512 tokens (n_ubatch), as the engine's. Its cache is as its programs make it: layers with
a window in a cache of their own (swa_full off). In `together`, the sequences share the cells of their prefix
(kv_unified, llama_memory_seq_cp); --split-kv gives each a part of the cache instead. Figures are the best of the
rounds, and the second ratio is that of their medians. What each round gave goes to stderr.
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time

DEFAULT_CASES = ["context:128:64", "context:512:64", "context:2048:64", "context:8192:32", "together:8:2048:1536:16",
                 "seen:2050:2000", "bytes:16:4096"]
PASS_TOKENS = 512
SMALLER_IS_BETTER = {"ttft", "ttft_seen", "allocated", "held"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="FILE", help="a GGUF file")
    parser.add_argument("--text", required=True, metavar="FILE", help="a text, from which the tokens come")
    parser.add_argument("--engine", default="build/gguf/benchmarks/engine", metavar="FILE",
                        help="our program (default: %(default)s)")
    parser.add_argument("--case", action="append", metavar="CASE", help="see above (default: all of the table)")
    parser.add_argument("--element", default="f16", choices=["f16", "f32"], help="of the cache (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of either program (default: %(default)s)")
    parser.add_argument("--processor-time", action="store_true",
                        help="measure the time that processors spent in the process: for one thread, on a machine that "
                             "others use as well")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="runs of each (default: %(default)s)")
    parser.add_argument("--flash", default="auto", choices=["auto", "on", "off"],
                        help="llama.cpp's flash attention (default: %(default)s)")
    parser.add_argument("--split-kv", action="store_true", help="llama.cpp: kv_unified off")
    parser.add_argument("--swa-full", action="store_true", help="llama.cpp: swa_full on")
    parser.add_argument("--tokens", default="tokens.txt", metavar="FILE",
                        help="where the tokens of the text are written (default: %(default)s)")
    parser.add_argument("--llama-only", metavar="CASE", help=argparse.SUPPRESS)  # a run of llama.cpp, in its process
    return parser.parse_args()


class Llama:
    """llama.cpp through its C interface."""

    def __init__(self, args, cells, sequences):
        from llama_cpp import llama_cpp as lib
        self.lib = lib
        self.log = ""
        self.now = time.process_time if args.processor_time else time.perf_counter

        @lib.llama_log_callback
        def keep(level, text, user_data):
            self.log += text.decode(errors="replace")

        self.keep = keep
        lib.llama_log_set(keep, None)
        lib.llama_backend_init()
        self.model = lib.llama_model_load_from_file(os.fsencode(args.model), lib.llama_model_default_params())
        if not self.model:
            sys.exit(f"llama.cpp cannot load {args.model}:\n{self.log[-500:]}")
        params = lib.llama_context_default_params()
        params.n_ctx = cells
        params.n_batch = 4 * PASS_TOKENS
        params.n_ubatch = PASS_TOKENS
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = args.threads
        params.type_k = params.type_v = lib.GGML_TYPE_F16 if args.element == "f16" else lib.GGML_TYPE_F32
        params.flash_attn_type = {"auto": -1, "off": 0, "on": 1}[args.flash]
        params.swa_full = args.swa_full
        params.kv_unified = not args.split_kv
        self.ctx = lib.llama_init_from_model(self.model, params)
        if not self.ctx:
            sys.exit(f"llama.cpp cannot make a context:\n{self.log[-500:]}")
        self.memory = lib.llama_get_memory(self.ctx)
        self.batch = lib.llama_batch_init(4 * PASS_TOKENS, 0, 1)

    def tokenize(self, text):
        vocab = self.lib.llama_model_get_vocab(self.model)
        tokens = (self.lib.llama_token * (len(text) + 8))()
        count = self.lib.llama_tokenize(vocab, text, len(text), tokens, len(tokens), True, False)
        return list(tokens[:count])

    def decode(self, entries):
        """One call for (token, position, sequence, wants logits) of each."""
        batch = self.batch
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, wants) in enumerate(entries):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wants
        if self.lib.llama_decode(self.ctx, batch) != 0:
            sys.exit("llama_decode failed")

    def prefill(self, tokens, sequence=0, first=0):
        size = 4 * PASS_TOKENS
        for begin in range(0, len(tokens), size):
            part = tokens[begin:begin + size]
            self.decode([(t, first + begin + i, sequence, begin + i + 1 == len(tokens)) for i, t in enumerate(part)])
        self.lib.llama_synchronize(self.ctx)

    def decode_rate(self, sequences, first, tokens):
        """Tokens per second of `sequences`, which have `first` tokens each."""
        start = self.now()
        for i, token in enumerate(tokens):
            self.decode([(token, first + i, s, True) for s in range(sequences)])
            self.lib.llama_synchronize(self.ctx)
        return sequences * len(tokens) / (self.now() - start)

    def forget(self, sequence, first):
        if not self.lib.llama_memory_seq_rm(self.memory, sequence, first, -1):
            sys.exit(f"llama.cpp cannot drop the positions from {first} on")


def llama_case(args, case):
    kind, *numbers = case.split(":")
    numbers = [int(n) for n in numbers]
    with open(args.tokens) as file:
        tokens = [int(t) for t in file.read().split()]
    if kind == "context":
        n, m = numbers
        llama = Llama(args, n + m, 1)
        llama.prefill(tokens[:16])
        llama.forget(0, 0)
        start = llama.now()
        llama.prefill(tokens[:n])
        prefill = n / (llama.now() - start)
        return {"prefill": prefill, "decode": llama.decode_rate(1, n, tokens[:m])}
    if kind == "together":
        s, n, p, m = numbers
        llama = Llama(args, s * (n + m), s)
        llama.prefill(tokens[:p])
        for i in range(1, s):
            llama.lib.llama_memory_seq_cp(llama.memory, 0, i, -1, -1)
        for i in range(s):
            llama.prefill(tokens[p + i * (n - p):p + (i + 1) * (n - p)], i, p)
        return {"decode": llama.decode_rate(s, n, tokens[:m])}
    if kind == "seen":
        n, p = numbers
        llama = Llama(args, n, 1)
        llama.prefill(tokens[:16])
        llama.forget(0, 0)
        start = llama.now()
        llama.prefill(tokens[:n])
        ttft = llama.now() - start
        start = llama.now()
        llama.forget(0, p)
        llama.prefill(tokens[p + n:p + n + n - p], 0, p)
        return {"ttft": ttft, "ttft_seen": llama.now() - start}
    if kind == "bytes":
        s, n = numbers
        llama = Llama(args, s * n, s)
        sizes = re.findall(r"KV buffer size = *([0-9.]+) MiB", llama.log)
        return {"allocated": sum(float(size) for size in sizes) * 1024 * 1024}
    sys.exit(f"no case {case}")


def run(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-1000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    args = arguments()
    if args.processor_time and args.threads != 1:
        sys.exit("--processor-time: only with --threads 1, since threads that wait for each other take time as well")
    if args.llama_only == "tokens":
        with open(args.text, "rb") as file:
            tokens = Llama(args, 64, 1).tokenize(file.read(120000))
        with open(args.tokens, "w") as file:
            file.write(" ".join(map(str, tokens)) + "\n")
        print(json.dumps(len(tokens)))
        return
    if args.llama_only:
        print(json.dumps(llama_case(args, args.llama_only)))
        return

    itself = [sys.executable, os.path.abspath(__file__), *sys.argv[1:]]
    run([*itself, "--llama-only", "tokens"])
    print(f"{args.element}, {args.threads} thread{'s' if args.threads > 1 else ''}, best of {args.rounds}")
    print(f"{'case':26} {'figure':16} {'kvc':>10} {'llama.cpp':>10}  ratio  of medians")
    for case in args.case or DEFAULT_CASES:
        kind, *numbers = case.split(":")
        ours, theirs = [], []
        for _ in range(args.rounds):
            ours_now = [args.engine, *(["--processor-time"] if args.processor_time else []), args.model, args.tokens,
                        args.element, str(args.threads), kind, *numbers]
            theirs_now = [*itself, "--llama-only", case]
            for name, figures, command in (("kvc", ours, ours_now), ("llama.cpp", theirs, theirs_now)):
                figures.append(run(command))
                print(f"# {case} {name}: {figures[-1]}", file=sys.stderr, flush=True)
        for figure in ours[0]:
            best = min if figure in SMALLER_IS_BETTER else max
            own, other = ([r[figure] for r in runs if figure in r] for runs in (ours, theirs))
            line = f"{case:26} {figure:16} {best(own):10.4g}"
            if other:
                line += (f" {best(other):10.4g}  {best(own) / best(other):5.2f}"
                         f"  {statistics.median(own) / statistics.median(other):5.2f}")
            print(line, flush=True)


if __name__ == "__main__":
    main()
