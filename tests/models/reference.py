"""How a network of ours is held to its counterpart in torch: the same random weights, every layer, every gradient.

The weights begin in the reference and come to us as a user's do: saved by the reference's own ``save_pretrained``,
converted to a ``.ckpt``, read back by shape. So the rules of conversion are under test with the networks.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import mindspore as ms
import numpy as np
import torch
from mindspore import nn, ops

from gm.weights.files import WeightFile, open_weights
from gm.weights.folder import diffusers_to_ckpt

TOLERANCE = 1e-4  # largest error, relative to the largest value
GRADIENT_TOLERANCE = 1e-3  # norm of the error of a parameter's gradient, relative to the gradient's

Seen = list[tuple[str, np.ndarray]]  # layers in the order of computation, each with what it gave


def tensor(array: np.ndarray, dtype: type = np.float32) -> ms.Tensor:
    return ms.Tensor(np.asarray(array, dtype))


def randomize(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights that hide nothing: norms and biases have values of their own, and what runs through the network is small.

    Beside values of about 1 the epsilon of a norm would be lost below the tolerance. What goes into softmax and GELU
    stays large, where one formula differs from another.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
            if not any(part in name for part in ("norm", "to_q", "to_k", "to_v", "ff.net.0", "embedding")):
                parameter *= 0.05
    return network.eval()


@contextmanager
def converted(parts: dict[str, torch.nn.Module], folder: Path) -> Iterator[WeightFile]:
    """The open ``.ckpt`` made from the diffusers folder that these parts save themselves to."""
    for part, network in parts.items():
        network.save_pretrained(folder / "diffusers" / part)
    diffusers_to_ckpt(folder / "diffusers", folder / "model.ckpt")
    with open_weights(folder / "model.ckpt") as weights:
        yield weights


@contextmanager
def watch(modules: dict[str, torch.nn.Module]) -> Iterator[Seen]:
    """Fills the list with the outputs of ``modules`` as torch computes them."""
    seen: Seen = []

    def note(name: str) -> Callable:
        def hook(_: torch.nn.Module, __: tuple, output: object) -> None:
            while not isinstance(output, torch.Tensor):  # a tuple, or an output class of diffusers
                output = output[0]
            seen.append((name, output.detach().numpy().copy()))

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class Recorder(nn.Cell):
    """A layer that also keeps what it gave, which a compiled graph shows in no other way."""

    def __init__(self, layer: nn.Cell, shape: tuple[int, ...]):
        super().__init__()
        self.layer = layer
        self.seen = ms.Parameter(tensor(np.full(shape, np.nan)), requires_grad=False)

    def construct(self, *inputs: ms.Tensor) -> ms.Tensor:
        output = self.layer(*inputs)
        return ops.depend(output, ops.assign(self.seen, ops.stop_gradient(output)))


def record(network: nn.Cell, places: list[str], like: Seen) -> Callable[[], Seen]:
    """Put a recorder around the layer at each dotted place; what is returned reads them after a run.

    ``like``: what the reference computed in these places, for the shapes.
    """
    names = {parameter: parameter.name for parameter in network.get_parameters()}
    assert len(places) == len(like), f"{len(places)} layers in our network, {len(like)} in the reference"
    recorders = []
    for place, (_, values) in zip(places, like):
        above, _, name = place.rpartition(".")
        owner = network
        for step in above.split(".") if above else ():
            owner = owner[int(step)] if step.isdigit() else getattr(owner, step)
        recorders.append(Recorder(owner[int(name)] if name.isdigit() else getattr(owner, name), values.shape))
        if name.isdigit():
            owner._cells[name] = recorders[-1]  # setting an item insists on names it has given itself
        else:
            setattr(owner, name, recorders[-1])
    for index, recorder in enumerate(recorders):
        recorder.seen.name = f"recorder.{index}"
    for parameter, own in names.items():  # a Cell renames what is put into it
        parameter.name = own
    return lambda: [(place, recorder.seen.asnumpy()) for place, recorder in zip(places, recorders)]


def error_of(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest error, relative to the largest value."""
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def assert_close(ours: ms.Tensor, theirs: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    error = error_of(ours.asnumpy().astype(np.float32), theirs.detach().numpy())
    assert error <= tolerance  # NaN is not


def assert_same_course(ours: Seen, theirs: Seen) -> None:
    """Layer by layer; the message names the first that deviates, and by how much."""
    for number, ((place, got), (name, expected)) in enumerate(zip(ours, theirs)):
        where = f"layer {number} of {len(theirs)}, {place} ({name} in the reference)"
        assert got.shape == expected.shape, f"the first to deviate is {where}: {got.shape}, not {expected.shape}"
        error = error_of(got, expected)
        assert error <= TOLERANCE, f"the first to deviate is {where}: relative error {error:.1e}"


class Probe(nn.Cell):
    """The output, and a scalar with a different slope for each of its values, so every gradient has to be right."""

    def __init__(self, network: nn.Cell):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, slopes: ms.Tensor, *inputs: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        output = self.network(*inputs)
        return (output * slopes).sum(), output


class Differentiated(nn.Cell):
    """``(slopes, *inputs)`` -> output, and gradients of all parameters trained: one compile for both."""

    def __init__(self, network: nn.Cell, trained: list[ms.Parameter]):
        super().__init__(auto_prefix=False)
        self.trained = ms.ParameterTuple(trained)
        self.differentiate = ops.value_and_grad(Probe(network), None, self.trained, has_aux=True)

    def construct(self, slopes: ms.Tensor, *inputs: ms.Tensor) -> tuple[ms.Tensor, tuple[ms.Tensor, ...]]:
        (_, output), gradients = self.differentiate(slopes, *inputs)
        return output, gradients


def differentiate(
    network: nn.Cell, owner: nn.Cell, slopes: np.ndarray, inputs: list[ms.Tensor]
) -> tuple[ms.Tensor, dict[str, torch.Tensor]]:
    """Output of ``network``, and the gradients of the parameters of ``owner`` under their names."""
    trained = owner.trainable_params()
    output, gradients = Differentiated(network, trained)(tensor(slopes), *inputs)
    return output, {p.name: torch.from_numpy(value.asnumpy().copy()) for p, value in zip(trained, gradients)}


def assert_gradients_close(ours: dict[str, torch.Tensor], theirs: torch.nn.Module) -> None:
    """``ours`` under the reference's names. A parameter its output does not depend on has no gradient there."""
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.grad is not None}
    assert len(expected) > 20
    wrong = []
    for name, gradient in expected.items():
        # A key's bias has no gradient (softmax ignores it): what is computed there is the rounding of the key's others.
        scale = expected[name.replace("to_k.bias", "to_k.weight")].norm()
        error = (ours[name].reshape(gradient.shape) - gradient).norm() / scale
        if not error <= GRADIENT_TOLERANCE:
            wrong.append(f"{name} {error:.1e}")
    assert not wrong, f"gradients of {len(wrong)} of {len(expected)} parameters deviate: {', '.join(wrong[:5])}"
