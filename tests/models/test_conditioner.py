"""What the UNet is told beside the text, against diffusers."""

import mindspore as ms
import numpy as np
import pytest

from gm.models.conditioner import conditioning_vector

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.reference


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
@pytest.mark.parametrize(
    "time_ids",
    [[[1024, 768, 0, 13, 512, 640], [31, 4000, 7, 0, 64, 64]], [[1024, 768, 0, 13, 6], [31, 4000, 7, 0, 2.5]]],
)
def test_the_vector_is_the_pooled_text_and_the_embedded_numbers(mode, time_ids):
    ms.set_context(mode=mode)
    pooled, numbers = np.random.default_rng(4).normal(size=(2, 64)).astype(np.float32), np.array(time_ids, np.float32)
    embed = diffusers.models.embeddings.Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
    embedded = embed(torch.tensor(numbers).flatten()).numpy()
    ours = conditioning_vector(ms.Tensor(pooled), ms.Tensor(numbers)).asnumpy()
    np.testing.assert_array_equal(ours[:, :64], pooled)
    error = np.abs(ours[:, 64:].reshape(embedded.shape) - embedded).max(axis=1)
    assert (error <= np.spacing(numbers.flatten()) + 1e-6).all()  # one rounding of the largest angle
