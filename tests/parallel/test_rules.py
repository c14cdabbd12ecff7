"""What axis tensor divides comes together again, and layers stay what they were."""

import numpy as np
import pytest

from gm.models.architecture import ModelArchitecture
from gm.parallel.rules import cut, join, part_shape, rule, whole_shape
from gm.weights.keys import UNET, expected_shapes


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("kind", ["rows", "columns", "halves"])
def test_parts_make_the_whole(kind, count):
    for shape in ((16, 8), (24, 4)) + (((16,),) if kind != "columns" else ()):
        whole = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        parts = [cut(kind, whole, index, count) for index in range(count)]
        assert {part.shape for part in parts} == {part_shape(kind, shape, count)}
        assert whole_shape(kind, parts[0].shape, count) == shape
        np.testing.assert_array_equal(join(kind, parts), whole)


def test_the_rows_and_columns_of_a_feed_forward_belong_together():
    """A device's hidden features are the same ones in value, gate and the way back."""
    rng = np.random.default_rng(0)
    inward, back, x = rng.standard_normal((16, 4)), rng.standard_normal((4, 8)), rng.standard_normal(4)

    def pass_through(inward, back):
        value, gate = np.split(inward @ x, 2)
        return back @ (value * np.tanh(gate))

    parts = [pass_through(cut("halves", inward, i, 4), cut("columns", back, i, 4)) for i in range(4)]
    np.testing.assert_allclose(np.sum(parts, axis=0), pass_through(inward, back), rtol=1e-12)


def test_most_of_sdxl_is_in_the_tables():
    shapes = {name: shape for name, shape in expected_shapes(ModelArchitecture()).items() if name.startswith(UNET)}
    total = sum(np.prod(shape) for shape in shapes.values())
    flat = sum(np.prod(shape) for name, shape in shapes.items() if len(shape) > 1 and rule(name, "fsdp"))
    assert flat > 0.999 * total
    divided = [name for name in shapes if rule(name, "tensor")]
    assert len(divided) == 70 * (2 * 4 + 3)  # transformer blocks; q, k, v, out twice; proj with its bias, and out
    assert sum(np.prod(shapes[name]) for name in divided) > 0.7 * total
