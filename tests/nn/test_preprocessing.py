"""Compare normalization with the formulas published with the weights."""

import jax.numpy as jnp
import numpy as np
import pytest

from segnet_jax.nn.preprocessing import CAFFE, PREPROCESSINGS, RAW, TORCH, Preprocessing, normalize

IMAGE = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), np.uint8)


def test_torch_is_torchvisions_mean_and_deviation_of_zero_to_one():
    expected = (IMAGE / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(normalize(IMAGE, TORCH), expected, rtol=1e-5, atol=1e-6)


def test_caffe_subtracts_the_vgg_authors_mean_which_is_bgr_in_their_files():
    expected = IMAGE[..., ::-1] - np.array([103.939, 116.779, 123.68])
    np.testing.assert_allclose(normalize(IMAGE, CAFFE)[..., ::-1], expected, rtol=1e-5, atol=1e-5)


def test_raw_leaves_the_pixels_as_they_are():
    np.testing.assert_array_equal(normalize(IMAGE, RAW), IMAGE)


def test_the_names_of_the_settings_lead_to_them():
    assert PREPROCESSINGS == {"torch": TORCH, "caffe": CAFFE, "raw": RAW}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_only_the_result_is_rounded_to_the_requested_dtype(dtype):
    preprocessing = Preprocessing(mean=(1.0, 2.0, 300.0), std=(2.0, 4.0, 0.5))
    expected = ((IMAGE.astype(np.float32) - np.float32([1, 2, 300])) / np.float32([2, 4, 0.5])).astype(dtype)
    result = normalize(IMAGE, preprocessing, jnp.dtype(dtype))
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, expected)


def test_a_float_image_is_treated_as_the_same_bytes():
    np.testing.assert_array_equal(normalize(IMAGE.astype(np.float32), TORCH), normalize(IMAGE, TORCH))
