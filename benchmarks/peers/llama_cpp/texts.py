#!/usr/bin/env python3
"""The text that generate writes after prompts, beside llama.cpp's: greedy, with the same model file and threads.

llama.cpp is found as by compare.py. Where the texts part, it is shown at which token, and by how much llama.cpp prefers
its own token there: both round activations to 8 bits, so that a narrow lead can change sides (docs/engines.md). Ends
with 1 if they part where the lead is wider than --lead.

  texts.py --model M.gguf                          ten prompts
  texts.py --model M.gguf --prompt "Dear friend,"  a prompt of yours; may be given again and again
"""
import argparse
import ctypes
import math
import subprocess
import sys

import numpy

from compare import Llama

PROMPTS = [  # of different kinds and lengths; the last one has more tokens than two windows of Gemma 3
    "The three most important inventions of the nineteenth century were",
    "Question: Why is the sky blue?\nAnswer:",
    "Shopping list:\n- eggs\n- milk\n-",
    "def fibonacci(n):\n    \"\"\"Returns the n-th Fibonacci number.\"\"\"\n",
    "Es war einmal ein kleiner Junge, der",
    "Однажды утром, когда солнце",
    "日本の首都は",
    "كان يا ما كان في قديم الزمان",
    "Price: 5 € \u2013 “50 % off” <b>&amp;</b>\t{x_1, x_2}  \\n \U0001f642\U0001f643 ≠ 4.50 £;",
    "".join(f"{i} times 7 is {7 * i}.\n" for i in range(1, 121)),
]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="FILE", help="a GGUF file")
    parser.add_argument("--generate", default="build/gguf/examples/generate", metavar="FILE",
                        help="our program (default: %(default)s)")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="(default: ten prompts)")
    parser.add_argument("--prompt-file", action="append", metavar="FILE", help="prompts from files")
    parser.add_argument("--new-tokens", type=int, default=48, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--policy", default="paged", metavar="NAME", help="of our cache (default: %(default)s)")
    parser.add_argument("--element", default="f32", choices=["f16", "f32"], help="of the caches (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--flash", default="off", choices=["auto", "on", "off"],
                        help="llama.cpp's flash attention (default: %(default)s)")
    parser.add_argument("--lead", type=float, default=0.5, metavar="L",
                        help="widest lead at which the texts may part, in log-probability (default: %(default)s)")
    return parser.parse_args()


class Steps(Llama):
    """llama.cpp, token by token."""

    def __init__(self, args, cells):
        args.swa_full = args.split_kv = args.processor_time = False
        super().__init__(args, cells, 1)
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        self.vocab_size = self.lib.llama_vocab_n_tokens(self.vocab)

    def piece(self, token):
        """The text of a token, without the control characters that generate leaves out."""
        buffer = ctypes.create_string_buffer(256)
        size = self.lib.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)
        return bytes(b for b in buffer.raw[:size] if b in b"\n\t" or (b >= 0x20 and b != 0x7f))

    def logits(self):
        """Those behind the last token."""
        return numpy.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.ctx, -1), (self.vocab_size,)).copy()

    def greedy(self, prompt, count):
        """[(text, lead over the second in log-probability)] of at most `count` tokens; fewer if the text ends."""
        self.forget(0, 0)
        tokens = self.tokenize(prompt)
        self.prefill(tokens)
        steps = []
        position = len(tokens)
        while True:
            logits = self.logits()
            best = int(logits.argmax())
            highest = float(logits[best])
            logits[best] = -math.inf
            lead = highest - float(logits.max())
            if self.lib.llama_vocab_is_eog(self.vocab, best):
                return steps
            steps.append((self.piece(best), lead))
            if len(steps) == count:
                return steps
            self.decode([(best, position, 0, True)])
            position += 1


def ours(args, prompt):
    command = [args.generate, "--model", args.model, "--prompt", prompt, "--new-tokens", str(args.new_tokens),
               "--policy", args.policy, "--element", args.element, "--threads", str(args.threads), "--quiet"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr.decode(errors='replace')[-1000:]}")
    return done.stdout[:-1]  # the newline behind the text


def main():
    args = arguments()
    llama = Steps(args, 4096)
    widest = 0
    prompts = list(args.prompt or [])
    for name in args.prompt_file or []:
        with open(name, encoding="utf-8", newline="") as file:
            prompts.append(file.read())
    for prompt in prompts or PROMPTS:
        text = ours(args, prompt)
        steps = llama.greedy(prompt.encode(), args.new_tokens)
        theirs = b"".join(piece for piece, _ in steps)
        shown = repr(prompt) if len(prompt) <= 100 else f"{prompt[:50]!r} ... {prompt[-50:]!r}"
        print(f"--- {len(llama.tokenize(prompt.encode()))} tokens: {shown}")
        if text == theirs:
            print(f"the same {len(steps)} tokens: {text.decode(errors='replace')!r}")
            continue
        equal = next((i for i, (a, b) in enumerate(zip(text, theirs)) if a != b), min(len(text), len(theirs)))
        token, end = 0, 0
        while token < len(steps) - 1 and end + len(steps[token][0]) <= equal:
            end += len(steps[token][0])
            token += 1
        lead = steps[token][1] if steps else math.inf
        widest = max(widest, lead)
        print(f"part at token {token + 1} of {len(steps)}, where llama.cpp's has a lead of {lead:.3f}\n"
              f"  kvc       {text.decode(errors='replace')!r}\n  llama.cpp {theirs.decode(errors='replace')!r}")
    sys.exit(1 if widest > args.lead else 0)


if __name__ == "__main__":
    main()
