"""Time what an operator costs beside its arithmetic: a chain of additions of one number, in float32.

    python tools/benchmark/operators.py
    python tools/benchmark/operators.py --operators 500 2000 --rounds 9

MindSpore runs the chain as one compiled graph, torch eagerly; they take turns in one process. Printed are the time of
the graph's first call, in which it is compiled, and the median of a run, all divided by the number of operators.
"""

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from turns import in_turn

import gm  # noqa: F401  (sets the environment that MindSpore reads)
from gm.config.flags import Parser, positive
from gm.errors import run_door

PART = 50


def mindspore_chain(operators: int) -> Callable[[], None]:
    import mindspore as ms
    from mindspore import Parameter, Tensor, nn
    from mindspore.ops import operations as P

    class Part(nn.Cell):
        def __init__(self, length: int):
            super().__init__()
            self.length = length
            self.one = Parameter(Tensor([1.0], ms.float32))
            self.add = P.Add()

        def construct(self, x):
            for _ in range(self.length):
                x = self.add(x, self.one)
            return x

    class Chain(nn.Cell):
        """In parts, as MindSpore allows no more than 1000 turns of a loop."""

        def __init__(self):
            super().__init__()
            lengths = [PART] * (operators // PART) + [operators % PART]
            self.parts = nn.CellList([Part(length) for length in lengths if length])

        def construct(self, x):
            for part in self.parts:
                x = part(x)
            return x

    ms.set_context(mode=ms.GRAPH_MODE)
    chain, start = Chain(), Tensor([0.0], ms.float32)

    def run() -> None:
        assert chain(start).asnumpy()[0] == operators

    return run


def torch_chain(operators: int) -> Callable[[], None]:
    import torch

    one, start = torch.ones(1), torch.zeros(1)

    def run() -> None:
        x = start
        for _ in range(operators):
            x = x + one
        assert x[0] == operators

    return run


def main(arguments: list[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--operators", type=positive, nargs="+", default=[1000, 3000], help="lengths of the chain")
    parser.add_argument("--rounds", type=positive, default=15, help="turns to take the median of")
    options = parser.parse(arguments)
    for operators in options.operators:
        runs = {"MindSpore": mindspore_chain(operators), "torch": torch_chain(operators)}
        first, medians = in_turn(runs, options.rounds)
        print(f"{operators} operators, microseconds each; medians of {options.rounds} turns")
        for name in runs:
            each = 1e6 * medians[name] / operators
            print(f"  {name:10} run {each:8.1f}   first call {1e6 * first[name] / operators:10.1f}", flush=True)


if __name__ == "__main__":
    run_door(main)
