import numpy as np
import pytest

from gm.diffusion.guidance import classifier_free, embedded, rescale

UNCONDITIONAL, CONDITIONAL = np.random.default_rng(0).standard_normal((2, 3, 4, 8, 8)).astype(np.float32)


def test_scale_one_is_the_conditional_prediction_and_zero_the_other():
    np.testing.assert_allclose(classifier_free(UNCONDITIONAL, CONDITIONAL, 1.0), CONDITIONAL, atol=1e-6)
    np.testing.assert_array_equal(classifier_free(UNCONDITIONAL, CONDITIONAL, 0.0), UNCONDITIONAL)


def test_guidance_goes_on_beyond_the_conditional_prediction():
    np.testing.assert_allclose(
        classifier_free(UNCONDITIONAL, CONDITIONAL, 9.2), UNCONDITIONAL + 9.2 * (CONDITIONAL - UNCONDITIONAL), rtol=1e-6
    )


def test_rescale_gives_each_sample_the_spread_of_its_conditional_prediction():
    guided = classifier_free(UNCONDITIONAL, CONDITIONAL, 9.2)
    spread = rescale(guided, CONDITIONAL, 1.0).std(axis=(1, 2, 3))
    np.testing.assert_allclose(spread, CONDITIONAL.std(axis=(1, 2, 3)), rtol=1e-5)
    np.testing.assert_array_equal(rescale(guided, CONDITIONAL, 0.0), guided)


def test_rescale_of_a_sample_does_not_depend_on_its_batch():
    guided = classifier_free(UNCONDITIONAL, CONDITIONAL, 5.0)
    np.testing.assert_array_equal(rescale(guided, CONDITIONAL, 0.7)[1:2], rescale(guided[1:2], CONDITIONAL[1:2], 0.7))


def test_a_constant_prediction_stays():
    constant = np.full((1, 4, 8, 8), 0.5, np.float32)
    np.testing.assert_allclose(rescale(constant, constant, 0.0), constant)
    assert np.isfinite(rescale(constant, CONDITIONAL[:1], 0.7)).all()


@pytest.mark.reference
@pytest.mark.parametrize("phi", [0.3, 0.7, 1.0])
def test_rescale_equals_diffusers(phi):
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import rescale_noise_cfg

    guided = classifier_free(UNCONDITIONAL, CONDITIONAL, 9.2)
    expected = rescale_noise_cfg(torch.from_numpy(guided), torch.from_numpy(CONDITIONAL), phi).numpy()
    np.testing.assert_allclose(rescale(guided, CONDITIONAL, phi), expected, atol=1e-5)


@pytest.mark.reference
@pytest.mark.parametrize(("scale", "width"), [(1.0, 256), (8.5, 256), (4.0, 25)])
def test_the_embedded_scale_equals_diffusers(scale, width):
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from diffusers import LatentConsistencyModelPipeline

    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding
    expected = theirs(None, torch.tensor([scale - 1]), embedding_dim=width)[0].numpy()
    # the angles reach thousands, of which float32 keeps three decimals
    np.testing.assert_allclose(embedded(scale, width), expected, atol=2e-3)
