"""What every optimizer promises: exact resume, no decay of vectors, float32 masters, one compile."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from gm.training.adafactor import Adafactor
from gm.training.adamw import AdamW
from gm.training.lion import Lion
from tests.training.optimizing import SHAPES, STEPS, history, parameters, run

KINDS = {"adamw": AdamW, "adafactor": Adafactor, "lion": Lion}
STATES = {
    "adamw": {"adam_step", *(f"{moment}.{name}" for moment in ("adam_m", "adam_v") for name in SHAPES)},
    "adafactor": {
        "adafactor_step",
        *(f"adafactor_{side}.{name}" for side in ("row", "column") for name in SHAPES),
    },
    "lion": {"lion_step", *(f"lion_m.{name}" for name in SHAPES)},
}

every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@pytest.mark.parametrize("dtype", [ms.float32, ms.float16])
def test_state_is_named_and_enough_to_go_on(kind, dtype):
    whole, first = parameters(dtype), parameters(dtype)
    assert len(run(KINDS[kind](whole), dtype=dtype).compile_cache) == 1  # whatever the learning rates
    optimizer = KINDS[kind](first)
    run(optimizer, slice(STEPS // 2), dtype)
    saved = {parameter.name: parameter.asnumpy().copy() for parameter in optimizer.state}
    masters = {f"master.{name}" for name in SHAPES} if dtype == ms.float16 else set()
    assert set(saved) == STATES[kind] | masters
    assert saved[optimizer.updates.name] == STEPS // 2
    assert {value.dtype for value in saved.values()} == {np.dtype(np.float32)}

    second = [Parameter(Tensor(p.asnumpy().copy()), name=p.name) for p in first]
    resumed = KINDS[kind](second)
    for parameter in resumed.state:
        parameter.set_data(Tensor(saved[parameter.name]))
    run(resumed, slice(STEPS // 2, None), dtype)
    for one, other in zip(whole, second):
        np.testing.assert_array_equal(one.asnumpy(), other.asnumpy())


@every_kind
def test_weight_decay_is_decoupled_and_spares_norms_and_biases(kind):
    free, decayed = parameters(), parameters()
    start = [parameter.asnumpy().copy() for parameter in free]
    lr = history()[0][0]
    run(KINDS[kind](free, weight_decay=0.0), slice(1))
    run(KINDS[kind](decayed, weight_decay=0.5), slice(1))
    for one, other, value in zip(free, decayed, start):
        taken = lr * 0.5 * value if value.ndim > 1 else 0.0
        np.testing.assert_allclose(one.asnumpy() - other.asnumpy(), taken, atol=3e-7)


@every_kind
def test_half_precision_weights_are_the_rounding_of_float32_masters(kind):
    narrow, wide = parameters(ms.float16), parameters(ms.float16)
    wide = [Parameter(p.astype(ms.float32), name=p.name) for p in wide]
    optimizer = KINDS[kind](narrow)
    run(optimizer)
    run(KINDS[kind](wide))
    for parameter, master, reference in zip(narrow, optimizer.masters, wide):
        assert (parameter.dtype, master.dtype) == (ms.float16, ms.float32)
        np.testing.assert_array_equal(master.asnumpy(), reference.asnumpy())
        np.testing.assert_array_equal(parameter.asnumpy(), master.asnumpy().astype(np.float16))


def test_weights_of_both_types_keep_their_order():
    mixed = [Parameter(p.astype(ms.float16 if len(p.shape) > 1 else ms.float32), name=p.name) for p in parameters()]
    optimizer = AdamW(mixed)
    names = [f"master.{p.name}" if p.dtype == ms.float16 else p.name for p in mixed]
    assert [master.name for master in optimizer.masters] == names
    run(optimizer)
    for parameter, master in zip(mixed, optimizer.masters):
        np.testing.assert_array_equal(parameter.asnumpy(), master.asnumpy().astype(parameter.asnumpy().dtype))
