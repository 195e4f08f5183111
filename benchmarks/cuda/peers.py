"""PyTorch's attention, and FlashInfer's where it is installed, on the cases of the benchmarks beside it.

Prints lines as bench.hpp says. Exits quietly where there is no torch or no GPU.
"""

import sys

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    sys.exit("PyTorch is not installed")
if not torch.cuda.is_available():
    sys.exit("PyTorch sees no GPU")

DEVICE, TYPE = "cuda", torch.bfloat16


def report(name, kind, amount, call, sets, repeats=20):
    """Median time of call(inputs), which takes another set of inputs each time."""
    for i in range(3):
        call(*sets[i % len(sets)])
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for i in range(repeats):
        call(*sets[i % len(sets)])
        events[i + 1].record()
    torch.cuda.synchronize()
    times = sorted(a.elapsed_time(b) for a, b in zip(events, events[1:]))
    middle = times[len(times) // 2]
    print(f"result\t{name}\t{kind}\t{amount:.0f}\t{middle:.6f}\t{times[0]:.6f}\t{times[-1]:.6f}", flush=True)


def random(*shape):
    return torch.randn(*shape, device=DEVICE, dtype=TYPE)


def decode_sdpa(batch, positions):
    sets = [(random(batch, 32, 1, 128), *(random(batch, 8, positions, 128) for _ in "kv")) for _ in range(2)]
    report(
        f"torch sdpa decode bf16, {batch} x {positions}", "bytes", 2 * 2 * batch * positions * 8 * 128,
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True), sets)


def prefill_sdpa(positions):
    sets = [(random(1, 32, positions, 128), *(random(1, 8, positions, 128) for _ in "kv")) for _ in range(2)]
    report(
        f"torch sdpa prefill bf16, {positions} causal", "flops", 2 * 2 * 32 * 128 * positions * (positions + 1) / 2,
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), sets)


def decode_flashinfer(batch, positions):
    import flashinfer

    pages = positions // 16
    cache = [torch.randn(batch * pages, 2, 8, 16, 128, device=DEVICE, dtype=TYPE) for _ in range(2)]
    order = torch.randperm(batch * pages, device=DEVICE, dtype=torch.int32)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        torch.empty(128 << 20, dtype=torch.uint8, device=DEVICE), "HND", use_tensor_cores=True)
    wrapper.plan(
        torch.arange(batch + 1, device=DEVICE, dtype=torch.int32) * pages, order,
        torch.full((batch,), 16, device=DEVICE, dtype=torch.int32), 32, 8, 128, 16, data_type=TYPE)
    q = random(batch, 32, 128)
    report(f"flashinfer decode bf16, {batch} x {positions}, paged 16", "bytes", 2 * 2 * batch * positions * 8 * 128,
           lambda kv: wrapper.run(q, kv), [(c,) for c in cache])


for case, arguments in [(decode_sdpa, (64, 8192)), (decode_sdpa, (1, 131072)), (prefill_sdpa, (16384,)),
                        (decode_flashinfer, (64, 8192)), (decode_flashinfer, (1, 131072))]:
    try:
        case(*arguments)
    except Exception as error:  # of a peer: say so and go on
        print(f"note\t{case.__name__}{arguments}: {type(error).__name__}: {str(error)[:200]!r}")
    torch.cuda.empty_cache()
