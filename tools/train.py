#!/usr/bin/env python3
"""Train the tiny language model that the examples use, and inspect what came out.

Install (a virtual environment is a good idea; everything runs on a CPU):

    python3 -m venv .venv
    .venv/bin/pip install -r tools/requirements-train.txt

Run, from the repository root:

    .venv/bin/python tools/train.py train --text tinyshakespeare.txt
    .venv/bin/python tools/train.py sample --prompt "ROMEO:" --temperature 0.8 --top-p 0.9
    .venv/bin/python tools/train.py check --text tinyshakespeare.txt

`train` writes two files, in the formats that llama2.c made common:

  NAME.tok  tokenizer: int32 longest piece in bytes, then for each id float32 score,
            int32 length, bytes. Ids: 0 unknown, 1 begin, 2 end, 3..258 the raw bytes
            0..255 (written as "<0x00>".."<0xFF>"), then the learnt pieces.
  NAME.bin  checkpoint: seven int32 (dim, hidden_dim, layers, heads, kv_heads,
            vocab_size, seq_len), then float32 weights. A positive vocab_size means that
            the classifier is the transposed embedding. The two rotary tables at the end
            are part of the format; readers usually recompute them.

`sample` and `check` read only those files, with numpy, and share no model code with the
trainer. So what they show is a test of the exported files.

A newline is the byte token <0x0A>. Byte tokens never merge, so no piece spans two lines,
and the text can be tokenised line by line with the same result as in one go.
"""

import argparse
import io
import math
import os
import struct
import sys
import time
from functools import lru_cache

import numpy as np

UNK, BOS, EOS, FIRST_BYTE = 0, 1, 2, 3
NEWLINE = FIRST_BYTE + ord("\n")
HEADER = struct.Struct("<7i")
EPS = 1e-5
THETA = 10000.0


# ---------------------------------------------------------------- tokenizer


class Tokenizer:
    """Greedy best-score-first pair merging over a flat vocabulary of byte strings."""

    def __init__(self, pieces, scores):
        self.pieces = list(pieces)
        self.scores = [float(np.float32(s)) for s in scores]
        self.ids = {}
        for i, p in enumerate(self.pieces):
            self.ids.setdefault(p, i)
        self.line = lru_cache(maxsize=None)(lambda s: tuple(self.encode(s, prefix=False)))

    @classmethod
    def load(cls, path):
        with open(path, "rb") as f:
            data = f.read()
        pieces, scores, at = [], [], 4
        while at < len(data):
            score, n = struct.unpack_from("<fi", data, at)
            at += 8
            if n < 0 or at + n > len(data):
                raise ValueError(f"{path}: truncated at byte {at}")
            pieces.append(data[at : at + n])
            scores.append(score)
            at += n
        return cls(pieces, scores)

    def to_bytes(self):
        out = io.BytesIO()
        out.write(struct.pack("<i", max(map(len, self.pieces))))
        for p, s in zip(self.pieces, self.scores):
            out.write(struct.pack("<fi", s, len(p)))
            out.write(p)
        return out.getvalue()

    def encode(self, text, bos=False, prefix=True):
        """Ids of `text` (str or bytes). `prefix` puts a space before a nonempty text."""
        raw = text.encode() if isinstance(text, str) else bytes(text)
        out = []
        if prefix and raw:
            out.append(self.ids[b" "])
        at = 0
        while at < len(raw):
            end = at + 1
            while end < len(raw) and end - at < 4 and raw[end] & 0xC0 == 0x80:
                end += 1
            known = self.ids.get(raw[at:end])
            out += [known] if known is not None else [FIRST_BYTE + b for b in raw[at:end]]
            at = end
        while True:
            best = None
            for i in range(len(out) - 1):
                merged = self.ids.get(self.pieces[out[i]] + self.pieces[out[i + 1]])
                if merged is not None and (best is None or self.scores[merged] > best[0]):
                    best = (self.scores[merged], i, merged)
            if best is None:
                return [BOS] * bos + out
            out[best[1] : best[1] + 2] = [best[2]]

    def encode_lines(self, text, prefix=False):
        """The same ids as encode(), in time linear in the number of lines."""
        lines = text.split("\n")
        out = list(self.encode(lines[0]) if prefix else self.line(lines[0]))
        for s in lines[1:]:
            out.append(NEWLINE)
            out += self.line(s)
        return out

    def decode(self, ids, previous=BOS):
        """Bytes of `ids`; the space that starts a text is dropped after BOS."""
        out = bytearray()
        for i in ids:
            piece = self.pieces[i]
            if i in (BOS, EOS):
                piece = b""
            elif FIRST_BYTE <= i < FIRST_BYTE + 256:
                piece = bytes([i - FIRST_BYTE])
            elif previous == BOS and piece.startswith(b" "):
                piece = piece[1:]
            out += piece
            previous = i
        return bytes(out)


def learn_tokenizer(text, vocab_size):
    """A sentencepiece BPE model of `text`, and the same vocabulary as a Tokenizer."""
    import sentencepiece as spm

    blob = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(s for s in text.split("\n") if s),
        model_writer=blob,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        # A line of the text does not start with a space, so do not count one. The
        # encoder adds its own space, once, at the start of a prompt.
        add_dummy_prefix=False,
        unk_id=UNK,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    sp = spm.SentencePieceProcessor(model_proto=blob.getvalue())
    pieces, scores = [], []
    for i in range(sp.vocab_size()):
        p = {BOS: "\n<s>\n", EOS: "\n</s>\n"}.get(i, sp.id_to_piece(i))
        pieces.append(p.replace("\u2581", " ").encode())
        scores.append(sp.get_score(i))
    for b in range(256):
        assert pieces[FIRST_BYTE + b] == b"<0x%02X>" % b, "byte tokens are not where expected"
    tok = Tokenizer(pieces, scores)
    assert b" " in tok.ids, "the text holds no space"
    return sp, tok


def check_tokenizer(sp, tok, text, whole=8000):
    """Hold our encoder against sentencepiece; return the number of characters compared."""
    # In one go, without the line-by-line shortcut, on slices from all over the text. The
    # shortcut's time is linear; the plain algorithm's is quadratic, hence the slices.
    step = 1000
    for k in range(whole // step):
        at = k * max(len(text) - step, 0) // (whole // step)
        part = text[at : at + step]
        want = sp.encode(" " + part)
        assert tok.encode(part) == want, f"ids differ from sentencepiece at character {at}"
        assert tok.encode_lines(part, prefix=True) == want, f"line-wise ids differ at {at}"
        assert tok.decode(want).decode() == part, f"round trip differs at {at}"
    # All of the text, line by line.
    ids = tok.encode_lines(text, prefix=True)
    assert ids == sp.encode(" " + text), "ids of the whole text differ from sentencepiece"
    assert tok.decode(ids).decode() == text, "the whole text does not survive a round trip"
    # Text that the vocabulary has never seen.
    for odd in ("", "\n", " ", "a\n\n  b\n ", "caf\u00e9 \u4f60\u597d \U0001f600\t<s>[0]"):
        assert tok.encode(odd) == (sp.encode(" " + odd) if odd else []), repr(odd)
        assert tok.decode(tok.encode(odd, bos=True)).decode() == odd, repr(odd)
    return len(text)


def split_text(text, held_out):
    """Cut at the paragraph that starts nearest after the first 1 - held_out of the text."""
    cut = text.find("\n\n", int(len(text) * (1 - held_out)))
    if cut < 0:
        raise SystemExit("the held-out part of the text has no paragraph break")
    return text[: cut + 2], text[cut + 2 :]


# ---------------------------------------------------------------- checkpoint, in numpy


def weight_shapes(dim, hidden, layers, heads, kv_heads, vocab, seq):
    """Names and shapes of a checkpoint's float32 blocks, in file order."""
    head, kv_dim = dim // heads, dim // heads * kv_heads
    return [
        ("embedding", (vocab, dim)),
        ("attention_norm", (layers, dim)),
        ("wq", (layers, dim, dim)),
        ("wk", (layers, kv_dim, dim)),
        ("wv", (layers, kv_dim, dim)),
        ("wo", (layers, dim, dim)),
        ("ffn_norm", (layers, dim)),
        ("w1", (layers, hidden, dim)),
        ("w2", (layers, dim, hidden)),
        ("w3", (layers, hidden, dim)),
        ("final_norm", (dim,)),
        ("rope_cos", (seq, head // 2)),
        ("rope_sin", (seq, head // 2)),
    ]


def rope_tables(seq, head):
    rate = THETA ** (-np.arange(0, head, 2, dtype=np.float64) / head)
    angle = np.arange(seq)[:, None] * rate
    return np.cos(angle), np.sin(angle)


class NumpyModel:
    """Reads a checkpoint and runs it token by token with a key/value cache."""

    def __init__(self, path, dtype=np.float32):
        with open(path, "rb") as f:
            data = f.read()
        self.config = HEADER.unpack_from(data)
        self.dim, self.hidden, self.layers, self.heads, self.kv_heads, vocab, self.seq = self.config
        if vocab <= 0:
            raise ValueError(f"{path}: a separate classifier is not supported")
        self.vocab, self.head = vocab, self.dim // self.heads
        at = HEADER.size
        for name, shape in weight_shapes(*self.config):
            n = math.prod(shape)
            block = np.frombuffer(data, "<f4", n, at)
            setattr(self, name, block.reshape(shape).astype(dtype))
            at += 4 * n
        if at != len(data):
            raise ValueError(f"{path}: {len(data)} bytes, the header calls for {at}")
        self.cos, self.sin = (t.astype(dtype) for t in rope_tables(self.seq, self.head))
        self.dtype = dtype
        self.reset()

    def reset(self):
        shape = (self.layers, self.seq, self.kv_heads, self.head)
        self.keys, self.values = np.zeros(shape, self.dtype), np.zeros(shape, self.dtype)
        self.pos = 0

    @staticmethod
    def norm(x, gain):
        return x / np.sqrt(np.mean(x * x) + x.dtype.type(EPS)) * gain

    def rotate(self, x):
        c, s = self.cos[self.pos], self.sin[self.pos]
        even, odd = x[:, 0::2], x[:, 1::2]
        return np.stack((even * c - odd * s, even * s + odd * c), -1).reshape(x.shape)

    def step(self, token):
        """Feed one token at the next position; return the logits."""
        if self.pos >= self.seq:
            raise ValueError(f"the model holds {self.seq} positions")
        t, group = self.pos + 1, self.heads // self.kv_heads
        x = self.embedding[token]
        for n in range(self.layers):
            h = self.norm(x, self.attention_norm[n])
            q = self.rotate((self.wq[n] @ h).reshape(self.heads, self.head))
            self.keys[n, self.pos] = self.rotate((self.wk[n] @ h).reshape(self.kv_heads, self.head))
            self.values[n, self.pos] = (self.wv[n] @ h).reshape(self.kv_heads, self.head)
            q = q.reshape(self.kv_heads, group, self.head)
            a = np.einsum("kgd,tkd->kgt", q, self.keys[n, :t]) / self.dtype(math.sqrt(self.head))
            a = np.exp(a - a.max(-1, keepdims=True))
            a /= a.sum(-1, keepdims=True)
            o = np.einsum("kgt,tkd->kgd", a, self.values[n, :t]).reshape(self.dim)
            x = x + self.wo[n] @ o
            h = self.norm(x, self.ffn_norm[n])
            gate = self.w1[n] @ h
            x = x + self.w2[n] @ (gate / (1 + np.exp(-gate)) * (self.w3[n] @ h))
        self.pos += 1
        return self.embedding @ self.norm(x, self.final_norm)


def pick(logits, temperature, top_p, rng):
    """Greedy at temperature 0; else draw from the smallest set that holds top_p."""
    if temperature == 0:
        return int(np.argmax(logits))
    z = (logits - logits.max()).astype(np.float64) / temperature
    p = np.exp(z)
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    mass = np.cumsum(p[order])
    keep = order[: int(np.searchsorted(mass, min(top_p, mass[-1]))) + 1]
    return int(rng.choice(keep, p=p[keep] / p[keep].sum()))


def generate(model, tok, prompt, tokens, temperature, top_p, seed):
    """Yield the bytes of the prompt, then of each new token."""
    rng = np.random.default_rng(seed)
    model.reset()
    ids = tok.encode(prompt, bos=True)
    yield tok.decode(ids)
    for i in ids:
        logits = model.step(i)
    previous = ids[-1]
    for _ in range(min(tokens, model.seq - len(ids))):
        nxt = pick(logits, temperature, top_p, rng)
        if nxt in (BOS, EOS):
            return
        yield tok.decode([nxt], previous)
        previous = nxt
        logits = model.step(nxt)


# ---------------------------------------------------------------- training, in torch


def build_model(args):
    import torch
    import torch.nn.functional as F
    from torch import nn

    head = args.dim // args.heads
    kv_dim = head * args.kv_heads
    cos, sin = (torch.tensor(t, dtype=torch.float32) for t in rope_tables(args.seq, head))

    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(args.dim))

        def forward(self, x):
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * self.gain

    def linear(n_in, n_out, scale=1.0):
        m = nn.Linear(n_in, n_out, bias=False)
        nn.init.normal_(m.weight, std=scale / math.sqrt(n_in))
        return m

    def rotate(x):  # [batch, heads, time, head]
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        c, s = cos[: x.shape[-2]], sin[: x.shape[-2]]
        return torch.stack((even * c - odd * s, even * s + odd * c), -1).flatten(-2)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            quiet = 1 / math.sqrt(2 * args.layers)  # keeps the residual stream's size
            self.attention_norm, self.ffn_norm = Norm(), Norm()
            self.wq, self.wk = linear(args.dim, args.dim), linear(args.dim, kv_dim)
            self.wv, self.wo = linear(args.dim, kv_dim), linear(args.dim, args.dim, quiet)
            self.w1, self.w3 = linear(args.dim, args.hidden), linear(args.dim, args.hidden)
            self.w2 = linear(args.hidden, args.dim, quiet)
            self.drop = nn.Dropout(args.dropout)

        def forward(self, x):
            h = self.attention_norm(x)
            split = lambda t: t.unflatten(-1, (-1, head)).transpose(1, 2)
            q, k, v = rotate(split(self.wq(h))), rotate(split(self.wk(h))), split(self.wv(h))
            group = args.heads // args.kv_heads
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.drop(self.wo(o.transpose(1, 2).flatten(-2)))
            h = self.ffn_norm(x)
            return x + self.drop(self.w2(F.silu(self.w1(h)) * self.w3(h)))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(args.vocab, args.dim)
            nn.init.normal_(self.embedding.weight, std=1 / math.sqrt(args.dim))
            self.blocks = nn.ModuleList(Block() for _ in range(args.layers))
            self.final_norm = Norm()
            self.drop = nn.Dropout(args.dropout)

        def forward(self, ids):
            x = self.drop(self.embedding(ids))
            for b in self.blocks:
                x = b(x)
            return F.linear(self.final_norm(x), self.embedding.weight)

        def export(self):
            blocks = {"embedding": self.embedding.weight, "final_norm": self.final_norm.gain}
            blocks["rope_cos"], blocks["rope_sin"] = cos, sin
            for name in ("attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3"):
                parts = [getattr(b, name) for b in self.blocks]
                blocks[name] = torch.stack([p.gain if isinstance(p, Norm) else p.weight for p in parts])
            config = (args.dim, args.hidden, args.layers, args.heads, args.kv_heads, args.vocab, args.seq)
            out = [HEADER.pack(*config)]
            for name, shape in weight_shapes(*config):
                block = blocks[name].detach().numpy().astype("<f4")
                assert block.shape == shape, (name, block.shape, shape)
                out.append(np.ascontiguousarray(block).tobytes())
            return b"".join(out)

    return Model()


def write_file(path, data):
    """Replace the file in one step, so that a reader never sees half of it."""
    with open(path + ".part", "wb") as f:
        f.write(data)
    os.replace(path + ".part", path)


def train(args):
    import torch
    import torch.nn.functional as F
    from tqdm import tqdm

    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)

    with open(args.text, encoding="utf-8", newline="") as f:
        text = f.read()
    train_text, held_text = split_text(text, args.held_out)
    sp, tok = learn_tokenizer(train_text, args.vocab)
    n = check_tokenizer(sp, tok, text)
    print(f"tokenizer: {len(tok.pieces)} pieces; ids equal sentencepiece's on {n} characters")
    os.makedirs(os.path.dirname(args.out) or ".", exist_ok=True)
    write_file(args.out + ".tok", tok.to_bytes())

    # Two views of the training text. `plain` is the text as one stream. A window that opens
    # a paragraph may instead be fed as a prompt would be: BOS, and the space before its
    # first line, which changes that line's pieces.
    plain = np.array(tok.encode_lines(train_text), dtype=np.int64)
    openings, at = [], 0  # (index in plain after the paragraph's first line, BOS + first line)
    after_blank = True
    for line in train_text.split("\n"):
        end = at + len(tok.line(line))
        if after_blank and line:
            openings.append((end, np.array(tok.encode(line, bos=True), dtype=np.int64)))
        after_blank = not line
        at = end + 1
    openings = [o for o in openings if o[0] + args.seq + 1 < len(plain)]

    def window():
        if rng.random() < args.bos:
            end, first = openings[rng.integers(len(openings))]
            return np.concatenate((first, plain[end : end + args.seq + 1]))[: args.seq + 1]
        i = rng.integers(len(plain) - args.seq)
        return plain[i : i + args.seq + 1]

    # The held-out text is one stream after BOS, cut into windows: every token is predicted
    # exactly once, with at most seq - 1 tokens before it.
    held = np.array([BOS] + tok.encode_lines(held_text, prefix=True), dtype=np.int64)
    n_held, held_bytes = len(held) - 1, len(held_text.encode())
    pad = -n_held % args.seq
    x_held = torch.from_numpy(np.pad(held[:-1], (0, pad)).reshape(-1, args.seq))
    y_held = torch.from_numpy(np.pad(held[1:], (0, pad), constant_values=-100).reshape(-1, args.seq))
    print(
        f"text: {len(plain)} tokens to train on ({len(train_text.encode()) / len(plain):.2f} bytes each), "
        f"{n_held} held out; {len(openings)} paragraph openings"
    )

    model = build_model(args)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    gains = [p for p in model.parameters() if p.dim() == 1]
    print(f"model: {sum(p.numel() for p in model.parameters())} parameters")
    opt = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": args.weight_decay}, {"params": gains, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.98),
    )

    def rate(step, done):
        """Warm up over the first steps, and follow half a cosine from done = 0 to 1."""
        return args.lr * min(1, step / args.warmup) * (0.02 + 0.49 * (1 + math.cos(math.pi * done)))

    @torch.no_grad()
    def held_loss():
        model.eval()
        total = 0.0
        for i in range(0, len(x_held), 16):
            logits = model(x_held[i : i + 16]).flatten(0, 1)
            total += F.cross_entropy(logits, y_held[i : i + 16].flatten(), reduction="sum", ignore_index=-100).item()
        model.train()
        return total / n_held

    best, best_step, recent, start = math.inf, 0, [], time.time()
    bar = tqdm(range(1, args.steps + 1), unit="step", mininterval=args.progress_seconds)
    for step in bar:
        done = step / args.steps
        if args.minutes:
            done = min(1.0, max(done, (time.time() - start) / (60 * args.minutes)))
        for g in opt.param_groups:
            g["lr"] = rate(step, done)
        batch = torch.from_numpy(np.stack([window() for _ in range(args.batch)]))
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        recent.append(loss.item())
        if step % args.eval_every == 0 or done == 1:
            now = held_loss()
            tqdm.write(
                f"step {step}: train {np.mean(recent):.4f}, held out {now:.4f} nats per token, "
                f"{time.time() - start:.0f} s"
            )
            recent = []
            if now < best:
                best, best_step = now, step
                write_file(args.out + ".bin", model.export())
        if done == 1:
            break
    bar.close()

    print(
        f"best held-out loss: {best:.4f} nats per token, {best * n_held / held_bytes:.4f} nats per byte, "
        f"at step {best_step} of {step}; {time.time() - start:.0f} s"
    )
    if best < math.inf:
        check(args)


# ---------------------------------------------------------------- the other commands


def sample(args):
    model, tok = NumpyModel(args.out + ".bin"), Tokenizer.load(args.out + ".tok")
    for piece in generate(model, tok, args.prompt, args.tokens, args.temperature, args.top_p, args.seed):
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    print()


def check(args):
    """Judge the written files alone: tokenizer against a fresh one, model by its loss."""
    model, tok = NumpyModel(args.out + ".bin"), Tokenizer.load(args.out + ".tok")
    with open(args.text, encoding="utf-8", newline="") as f:
        text = f.read()
    train_text, held_text = split_text(text, args.held_out)
    sp, fresh = learn_tokenizer(train_text, model.vocab)
    with open(args.out + ".tok", "rb") as f:
        same = f.read() == fresh.to_bytes()
    print(f"tokenizer file equals one trained anew: {'yes' if same else 'NO'}")
    n = check_tokenizer(sp, tok, text)
    print(f"tokenizer ids equal sentencepiece's: yes, on {n} characters")
    expected = rope_tables(model.seq, model.head)
    gap = max(np.abs(model.rope_cos - expected[0]).max(), np.abs(model.rope_sin - expected[1]).max())
    print(f"rotary tables in the file: at most {gap:.1e} off")
    ids = [BOS] + tok.encode_lines(held_text, prefix=True)
    total = 0.0
    for i, token in enumerate(ids[:-1]):
        if i % model.seq == 0:
            model.reset()
        z = model.step(token).astype(np.float64)
        top = z.max()
        total += top + math.log(np.exp(z - top).sum()) - z[ids[i + 1]]
    print(
        f"held-out loss of the files, in numpy: {total / (len(ids) - 1):.4f} nats per token, "
        f"{total / len(held_text.encode()):.4f} nats per byte"
    )
    if not same:
        raise SystemExit("the tokenizer file is not the one that this text gives")


def main():
    class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        pass

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    commands = parser.add_subparsers(dest="command", required=True, metavar="train|sample|check")

    def command(name, run, text):
        p = commands.add_parser(name, help=text, description=text, formatter_class=Help)
        p.set_defaults(run=run)
        p.add_argument(
            "--out", default="examples/model/shakespeare", metavar="NAME",
            help="NAME.bin and NAME.tok are written or read",
        )
        return p

    t = command("train", train, "train a tokenizer and a model on one text file, and export both")
    c = command(
        "check", check, "test exported files: the tokenizer against sentencepiece, the model by its held-out loss"
    )
    for p in (t, c):
        p.add_argument("--text", required=True, metavar="FILE", help="UTF-8 text; blank lines part its paragraphs")
        p.add_argument(
            "--held-out", type=float, default=0.07, metavar="SHARE",
            help="share at the end of the text that is not trained on",
        )
    shape = t.add_argument_group("shape")
    shape.add_argument("--vocab", type=int, default=512, help="tokenizer pieces, of which 259 are fixed")
    shape.add_argument("--dim", type=int, default=128, help="width of the residual stream")
    shape.add_argument("--hidden", type=int, default=304, help="width inside the feed-forward part")
    shape.add_argument("--layers", type=int, default=4, help="decoder layers")
    shape.add_argument("--heads", type=int, default=8, help="query heads")
    shape.add_argument("--kv-heads", type=int, default=4, help="key/value heads")
    shape.add_argument("--seq", type=int, default=512, help="positions, in training and in the header")
    how = t.add_argument_group("training")
    how.add_argument("--steps", type=int, default=6000, help="optimizer steps; the cosine schedule ends at the last")
    how.add_argument(
        "--minutes", type=float, default=0,
        help="if set, hurry the schedule so as to end by then even on a slow machine",
    )
    how.add_argument("--batch", type=int, default=4, help="windows per step")
    how.add_argument("--lr", type=float, default=2e-3, help="highest learning rate")
    how.add_argument("--warmup", type=int, default=200, help="steps until the rate follows the cosine")
    how.add_argument("--weight-decay", type=float, default=0.1, help="on matrices; gains have none")
    how.add_argument("--dropout", type=float, default=0.05, help="on the embedding and on each residual branch")
    how.add_argument(
        "--bos", type=float, default=0.4, metavar="SHARE",
        help="share of windows that start with BOS and a paragraph",
    )
    how.add_argument(
        "--eval-every", type=int, default=250,
        help="steps between held-out losses; the best so far is exported each time",
    )
    how.add_argument("--seed", type=int, default=1, help="of weights, windows and dropout")
    how.add_argument("--threads", type=int, default=0, help="CPU threads; 0 lets torch choose")
    how.add_argument("--progress-seconds", type=float, default=0.5, help="least time between two updates of the bar")

    s = command("sample", sample, "write text with an exported model (numpy only)")
    s.add_argument("--prompt", default="", help="text to continue; empty starts from BOS alone")
    s.add_argument("--tokens", type=int, default=250, help="tokens to write, as far as the positions last")
    s.add_argument("--temperature", type=float, default=0.8, help="0 is greedy")
    s.add_argument("--top-p", type=float, default=0.9, help="draw from the likeliest tokens that hold this share")
    s.add_argument("--seed", type=int, default=1, help="of the draws")

    args = parser.parse_args()
    if args.command == "train" and (args.dim % (2 * args.heads) or args.heads % args.kv_heads):
        parser.error("dim must be a multiple of 2 * heads, and heads a multiple of kv_heads")
    args.run(args)


if __name__ == "__main__":
    main()
