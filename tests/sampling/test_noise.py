import numpy as np

from gm.sampling.noise import PictureNoise


def test_noise_of_a_picture_depends_on_its_seed_only():
    alone, together = PictureNoise([7], (4, 8, 8)), PictureNoise([3, 7, 7], (4, 8, 8))
    for _ in range(3):
        one, three = alone(), together()
        np.testing.assert_array_equal(three[1], one[0])
        np.testing.assert_array_equal(three[2], one[0])
        assert not np.array_equal(three[0], one[0])


def test_noise_is_unit_normal_float32_and_never_repeats():
    noise = PictureNoise([0], (4, 64, 64))
    first, second = noise(), noise()
    assert first.dtype == np.float32
    assert not np.array_equal(first, second)
    np.testing.assert_allclose([first.mean(), first.std()], [0, 1], atol=0.03)


def test_the_stream_of_a_seed_is_numpys_philox():
    expected = np.random.Generator(np.random.Philox(42)).standard_normal((4, 8, 8), np.float32)
    np.testing.assert_array_equal(PictureNoise([42], (4, 8, 8))()[0], expected)
