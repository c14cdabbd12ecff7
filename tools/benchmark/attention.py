"""Time attention, forward and with its gradient, and measure its memory, in float32.

    python tools/benchmark/attention.py
    python tools/benchmark/attention.py --shapes 10x4096x4096 --rounds 3 --pieces 22 24 26
    python tools/benchmark/attention.py --memory

Contestants: torch's ``scaled_dot_product_attention``; ``whole``, the definition with MindSpore's own gradient, which
holds the score matrix; and ``gm.models.math_attention`` in pieces of at most 2^n scores for each n of ``--pieces``.
All take turns in one process; printed are medians, and ratios to torch. ``--memory`` measures each in a process of its
own: the rise of its peak (VmHWM) over what it had with its inputs made, compilation included.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from turns import in_turn

import gm  # noqa: F401  (sets the environment that MindSpore reads)
from gm.config.flags import Parser, positive
from gm.errors import SuiteError, UsageError, run_door

WIDTH = 64  # of a head
# heads x queries x keys: SDXL's self- and cross-attention at 512 pixels, a tiny one, and self-attention at 1024 pixels
SHAPES = ["20x64x64", "10x1024x77", "20x256x256", "10x1024x1024", "20x1024x1024"]
LARGE = "10x4096x4096"
PIECES = [20, 22, 24]
KINDS = ("forward", "both")


def inputs(shape: tuple[int, int, int]) -> list:
    """Query, key, value and the slopes of the output, numpy float32."""
    import numpy as np

    heads, queries, keys = shape
    rng = np.random.default_rng(0)
    return [rng.normal(size=(heads, length, WIDTH)).astype(np.float32) for length in (queries, keys, keys, queries)]


def torch_attention(arrays: list) -> dict[str, Callable[[], None]]:
    import torch

    query, key, value, slopes = (torch.from_numpy(array)[None] for array in arrays)
    trained = [tensor.requires_grad_(True) for tensor in (query, key, value)]
    attend = torch.nn.functional.scaled_dot_product_attention

    def forward() -> None:
        with torch.no_grad():
            attend(*trained)

    def both() -> None:
        torch.autograd.grad(attend(*trained), trained, slopes)

    return {"forward": forward, "both": both}


def our_attention(arrays: list, most_scores: int | None) -> dict[str, Callable[[], None]]:
    """In pieces of ``most_scores``; None: whole."""
    import mindspore as ms
    from mindspore import Tensor, nn, ops

    from gm.models.math_attention import AttentionInPieces

    class Whole(nn.Cell):
        def __init__(self):
            super().__init__()
            self.scores = ops.BatchMatMul(transpose_b=True)
            self.mix = ops.BatchMatMul()
            self.softmax = ops.Softmax(-1)

        def construct(self, query, key, value):
            return self.mix(self.softmax(self.scores(query * WIDTH**-0.5, key)), value)

    class Gradients(nn.Cell):
        def __init__(self, attention):
            super().__init__(auto_prefix=False)
            self.attention = attention
            self.differentiate = ops.GradOperation(get_all=True, sens_param=True)

        def construct(self, query, key, value, slopes):
            return self.differentiate(self.attention)(query, key, value, slopes)

    ms.set_context(mode=ms.GRAPH_MODE)
    attention = Whole() if most_scores is None else AttentionInPieces(WIDTH, False, most_scores)
    gradients = Gradients(attention)
    tensors = [Tensor(array) for array in arrays]

    def forward() -> None:
        attention(*tensors[:3]).asnumpy()

    def both() -> None:
        [gradient.asnumpy() for gradient in gradients(*tensors)]

    return {"forward": forward, "both": both}


def contestant(name: str, arrays: list) -> dict[str, Callable[[], None]]:
    """What to call for ``forward`` and ``both``; ``name``: torch, whole, or 2^n."""
    if name == "torch":
        return torch_attention(arrays)
    return our_attention(arrays, None if name == "whole" else 2 ** int(name.removeprefix("2^")))


def compare(text: str, names: list[str], rounds: int) -> None:
    """Time all of one shape in turn and print medians."""
    arrays = inputs(parsed(text))
    runs = {(name, kind): run for name in names for kind, run in contestant(name, arrays).items()}
    compiled, medians = in_turn(runs, rounds)
    print(f"{text}: medians of {rounds} turns, milliseconds; in brackets the ratio to {names[0]}")
    for name in names:
        cells = [
            f"{kind} {1e3 * medians[name, kind]:9.2f} ({medians[name, kind] / medians[names[0], kind]:.2f})"
            for kind in KINDS
        ]
        print(f"  {name:6} {'  '.join(cells)}  first call {compiled[name, 'both']:.1f} s", flush=True)


def parsed(text: str) -> tuple[int, int, int]:
    try:
        heads, queries, keys = map(int, text.split("x"))
    except ValueError:
        raise UsageError(f"--shapes takes heads x queries x keys, such as {LARGE}, not {text!r}") from None
    return heads, queries, keys


def peak() -> int:
    """The most memory this process has had, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def rise(name: str, kind: str, text: str) -> int:
    """Of this process's peak by one call."""
    run = contestant(name, inputs(parsed(text)))[kind]
    before = peak()
    run()
    return peak() - before


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--shapes", nargs="+", help="heads x queries x keys")
    parser.add_argument("--rounds", type=positive, default=9, help="turns to take the median of")
    parser.add_argument("--pieces", type=int, nargs="+", default=PIECES, help="exponents n of the sizes 2^n")
    parser.add_argument("--memory", action="store_true", help="measure memory, not time")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse(arguments)
    if options.measure:
        print(rise(*options.measure))
        return
    names = ["torch", "whole", *(f"2^{exponent}" for exponent in options.pieces)]
    for text in options.shapes or ([LARGE] if options.memory else SHAPES):
        if not options.memory:
            compare(text, names, options.rounds)
            continue
        heads, queries, keys = parsed(text)
        print(f"{text}: a score matrix is {4e-6 * heads * queries * keys:.0f} MB; rise of the peak, MB")
        for name in names:
            cells = []
            for kind in KINDS:
                command = [sys.executable, __file__, "--measure", name, kind, text]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise SuiteError(f"{name} failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
                cells.append(f"{kind} {int(done.stdout.split()[-1]) / 1e6:6.0f}")
            print(f"  {name:6} {'  '.join(cells)}", flush=True)


if __name__ == "__main__":
    run_door(main)
