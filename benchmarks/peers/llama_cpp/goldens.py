#!/usr/bin/env python3
"""How far llama.cpp is from log-probabilities that it gave before, by the passes that a prompt comes in.

llama.cpp is found as by compare.py, and runs with keys and values in f32. The file has, for each prompt, its tokens
(prompt_tokens), the tokens that followed (tokens), and at each of these the five best with their log-probabilities
(top5: [[token, log-probability], ...]), as those of tests/gguf. llama.cpp is forced onto these tokens: the golden token
goes on, whichever is the most likely.

  goldens.py --model M.gguf --goldens goldens.json

  server   as llama.cpp's server cuts a prompt: its last four tokens alone, the 512 before them, the rest before those
  512      passes of 512
  N        passes of N
"""
import argparse
import json
import math

import numpy

from compare import PASS_TOKENS
from texts import Steps


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="FILE", help="a GGUF file")
    parser.add_argument("--goldens", required=True, metavar="FILE", help="see above")
    parser.add_argument("--passes", action="append", metavar="PASSES",
                        help="see above; may be given again and again (default: server, 512 and 100)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--flash", default="off", choices=["auto", "on", "off"],
                        help="flash attention (default: %(default)s)")
    return parser.parse_args()


def cut(count, passes):
    """Sizes of the passes of a prompt."""
    ends = [count - PASS_TOKENS - 4, count - 4, count] if passes == "server" else [count]
    most = PASS_TOKENS if passes == "server" else int(passes)
    sizes = []
    for end in ends:
        while sum(sizes) < end:
            sizes.append(min(most, end - sum(sizes)))
    return sizes


def differences(llama, golden, passes):
    """Differences of the log-probabilities, and the number of steps at which another token is the most likely."""
    llama.forget(0, 0)
    position = 0
    for size in cut(len(golden["prompt_tokens"]), passes):
        llama.prefill(golden["prompt_tokens"][position:position + size], 0, position)
        position += size
    found, others = [], 0
    for token, top in zip(golden["tokens"], golden["top5"]):
        logits = llama.logits().astype(numpy.float64)
        best = int(logits.argmax())
        log_sum = logits[best] + math.log(numpy.exp(logits - logits[best]).sum())
        found += [abs(logits[t] - log_sum - expected) for t, expected in top]
        others += best != token
        llama.decode([(token, position, 0, True)])
        position += 1
    return found, others


def main():
    args = arguments()
    args.element = "f32"
    with open(args.goldens) as file:
        goldens = json.load(file)
    llama = Steps(args, 4096)
    for passes in args.passes or ["server", "512", "100"]:
        means, largest, others, steps = [], 0, 0, 0
        for golden in goldens.values():
            found, other = differences(llama, golden, passes)
            means.append(sum(found) / len(found))
            largest = max(largest, *found)
            others += other
            steps += len(golden["tokens"])
        print(f"passes {passes:7} {others} other tokens of {steps}; differences: means of the prompts "
              f"{' '.join(f'{m:.6f}' for m in means)}, largest {largest:.6f}", flush=True)


if __name__ == "__main__":
    main()
