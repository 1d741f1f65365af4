"""Compare pooling, unpooling and the whole network with PyTorch, given the same weights."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables

from segnet_jax.nn import SegNet, max_pool_with_code, unpool

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[peers]' runs the parity tests")

from torch.nn import functional  # noqa: E402
from torch_segnet import TorchSegNet, load_flax, to_flax  # noqa: E402

WIDTH, BATCH, HEIGHT, CLASSES = 0.125, 2, 45, 11
IMAGE_SHAPE = (BATCH, HEIGHT, 61, 3)  # odd at several stages: 45-22-11-5-2-1 with floor, 45-23-12-6-3-2 with ceil


@pytest.fixture(autouse=True)
def one_torch_thread():
    """Limit PyTorch's threads, which would compete with JAX's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def channels_first(array):
    """Convert a numpy NHWC array, which may be bfloat16, to a PyTorch NCHW tensor."""
    dtype = getattr(torch, array.dtype.name)
    return torch.tensor(np.moveaxis(array, -1, 1).astype(np.float64)).to(dtype)


def channels_last(tensor):
    return np.moveaxis(tensor.detach().double().numpy(), 1, -1)


# -- pooling: bit-identical, because values are only moved, not computed


@partial(jax.jit, static_argnames="pooling")
def ours(x, factor, cotangent_of_maxima, cotangent_of_unpooled, pooling):
    def chain(x, factor):
        maxima, code = max_pool_with_code(x, pooling)
        return unpool(maxima * factor, code, *x.shape[1:3])

    maxima, pool_vjp, code = jax.vjp(partial(max_pool_with_code, pooling=pooling), x, has_aux=True)
    unpooled, chain_vjp = jax.vjp(chain, x, factor)
    return maxima, code, unpooled, *pool_vjp(cotangent_of_maxima), *chain_vjp(cotangent_of_unpooled)


def theirs(x, factor, cotangent_of_maxima, cotangent_of_unpooled, pooling):
    x, factor = (channels_first(array).requires_grad_() for array in (x, factor))
    maxima, index = functional.max_pool2d(x, 2, 2, ceil_mode=pooling == "ceil", return_indices=True)
    (pool_gradient,) = torch.autograd.grad(maxima, x, channels_first(cotangent_of_maxima), retain_graph=True)
    unpooled = functional.max_unpool2d(maxima * factor, index, 2, 2, output_size=x.shape[2:])
    unpooled.backward(channels_first(cotangent_of_unpooled))
    width = x.shape[3]
    code = 2 * (index // width % 2) + index % width % 2  # their index counts cells of the whole plane
    return [channels_last(array) for array in (maxima, code, unpooled, pool_gradient, x.grad, factor.grad)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "height, width, pooling",
    [(1, 1, "ceil"), *((*size, pooling) for size in ((2, 3), (45, 60), (360, 480)) for pooling in ("floor", "ceil"))],
)
def test_pool_and_unpool_equal_pytorch_in_values_and_gradients_ties_included(height, width, pooling, dtype):
    rng = np.random.default_rng(height)
    x = (rng.integers(-4, 5, (1, height, width, 3)) / 4).astype(dtype)  # nine values: ties in most windows
    h, w = (-(-size // 2) if pooling == "ceil" else size // 2 for size in (height, width))
    factor, cotangent_of_maxima = rng.normal(size=(2, 1, h, w, 3)).astype(dtype)
    arrays = x, factor, cotangent_of_maxima, rng.normal(size=x.shape).astype(dtype)
    names = "maxima", "code", "unpooled", "gradient of pool", "gradient of chain", "gradient of factor"
    for name, our, their in zip(names, ours(*arrays, pooling), theirs(*arrays, pooling), strict=True):
        np.testing.assert_array_equal(np.asarray(our, np.float64), their, err_msg=name)


def test_floor_keeps_one_pixel_where_pytorch_refuses_and_ceil_agrees_with_it():
    x = np.full((1, 1, 1, 3), -2.5, np.float32)
    with pytest.raises(RuntimeError, match="too small"):
        functional.max_pool2d(channels_first(x), 2, 2)
    ones = np.ones_like(x)
    for our, their in zip(ours(x, ones, ones, ones, "floor"), theirs(x, ones, ones, ones, "ceil"), strict=True):
        np.testing.assert_array_equal(our, their)


def test_a_nan_travels_as_in_pytorch():
    x = np.random.default_rng(0).normal(size=(1, 8, 6, 4)).astype(np.float32)
    x[np.random.default_rng(1).random(x.shape) < 0.3] = np.nan
    ones = np.ones((1, 4, 3, 4), np.float32)
    arrays = x, ones, ones, np.ones_like(x)
    for our, their in zip(ours(*arrays, "floor"), theirs(*arrays, "floor"), strict=True):
        np.testing.assert_array_equal(our, their)


# -- the network
#
# ReLU and max-pooling are continuous; their gradients and the position of a maximum are not. If rounding lifts one
# value above another, unpooling puts the maximum elsewhere. With enough pixels this always happens in float32, and
# PyTorch's float32 logits differ from its float64 ones by a tenth. The strict comparisons therefore run in float64,
# where it does not happen and only our logits are rounded to float32; float32 is compared on several draws, most of
# them unaffected.


def network_and_twin(seed=0, pooling="floor", **settings):
    """Return a network, random variables, and its PyTorch twin with the same variables."""
    model = SegNet(CLASSES, pooling=pooling, **settings)
    variables = random_variables(model, seed)
    twin = TorchSegNet(CLASSES, ceil_mode=pooling == "ceil", **settings)
    load_flax(twin, variables)
    return model, variables, twin


def random_image(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def flat(tree):
    """Return (collection, module, name) -> array, as `to_flax` does."""
    return {tuple(key.key for key in path): array for path, array in jax.tree_util.tree_leaves_with_path(tree)}


def error(ours, theirs):
    """Return the largest difference relative to the largest value."""
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def train(model):
    """Return a jitted function of variables and image: logits with batch statistics, updated running statistics."""
    return jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))


def evaluate(model):
    """Return a jitted function of variables and image: logits with the running statistics."""
    return jax.jit(partial(model.apply, train=False))


def as_flax_would_have_it(twin, old, pooling):
    """Return the twin's running statistics with biased variances, as in flax.

    Args:
      twin: PyTorch twin after one step in training mode on an image of IMAGE_SHAPE.
      old: statistics before that step, as `flat` returns them.
      pooling: "floor" or "ceil".
    """
    statistics = {key: array for key, array in to_flax(twin).items() if key[0] == "batch_stats"}
    for key in statistics:
        batch, height, width, _ = IMAGE_SHAPE
        for _ in range(int(key[1][len("conv")]) - 1):  # conv3_1_bn follows two poolings
            height, width = ((size + (pooling == "ceil")) // 2 for size in (height, width))
        n = batch * height * width
        if key[2] == "var":
            kept = 0.9 * old[key]
            statistics[key] = kept + (statistics[key] - kept) * (n - 1) / n
    return statistics


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"pooling": "floor"},
        pytest.param({"pooling": "ceil", "conv_bias": True}, marks=pytest.mark.slow),  # as published
        pytest.param(  # as in MATLAB's example
            {"pooling": "floor", "depth": 4, "final_batch_norm": True}, marks=pytest.mark.slow
        ),
    ],
    ids=["default", "caffe", "matlab"],
)
def test_logits_and_statistics_equal_the_twins_in_float32(settings):
    model = SegNet(CLASSES, width=WIDTH, **settings)
    evaluate_ours, train_ours = evaluate(model), train(model)
    errors = []
    for seed in range(5):
        _, variables, twin = network_and_twin(seed, width=WIDTH, **settings)
        image = random_image(IMAGE_SHAPE, seed)
        evaluated = evaluate_ours(variables, image)
        trained, updated = train_ours(variables, image)
        with torch.no_grad():
            their_evaluated = channels_last(twin.eval()(channels_first(image)))
            their_trained = channels_last(twin.train()(channels_first(image)))
        statistics = flat(updated)
        expected = as_flax_would_have_it(twin, flat(variables), settings["pooling"])
        assert statistics.keys() == expected.keys()
        errors.append(
            max(
                error(evaluated, their_evaluated),
                error(trained, their_trained),
                *(error(statistics[key], expected[key]) for key in expected),
            )
        )
    assert np.median(errors) < 1e-4, errors


@pytest.mark.parametrize("pooling", [pytest.param("floor", marks=pytest.mark.slow), "ceil"])
def test_logits_and_every_parameters_gradient_equal_the_twins(pooling):
    model, variables, twin = network_and_twin(pooling=pooling, width=WIDTH)
    model, twin = model.clone(dtype=jnp.float64), twin.double()
    image, label = random_image(IMAGE_SHAPE), np.random.default_rng(3).integers(0, CLASSES, IMAGE_SHAPE[:3])

    def loss(parameters, variables):
        variables = {**variables, "params": parameters}
        logits, _ = model.apply(variables, np.float64(image), train=True, mutable=["batch_stats"])
        known = jax.nn.one_hot(label, CLASSES, dtype=logits.dtype)
        return -(jax.nn.log_softmax(logits) * known).sum() / label.size, logits

    with jax.enable_x64(True):
        variables = jax.tree.map(np.float64, variables)
        step = jax.jit(jax.grad(loss, has_aux=True))
        gradients, trained = jax.device_get(step(variables["params"], variables))
        evaluated = jax.device_get(evaluate(model)(variables, np.float64(image)))

    x = channels_first(np.float64(image))
    assert error(evaluated, channels_last(twin.eval()(x))) < 1e-6
    logits = twin.train()(x)
    assert error(trained, channels_last(logits)) < 1e-6
    functional.cross_entropy(logits, torch.tensor(label)).backward()
    expected = to_flax(twin, lambda tensor: tensor.grad)
    gradients = flat({"params": gradients})
    assert gradients.keys() == expected.keys()
    for key, their in expected.items():
        off = np.linalg.norm(gradients[key] - their) / np.linalg.norm(their)
        assert off < 1e-5, f"the gradient of {'/'.join(key[1:])} is off by {off:.2g} of its length"


@pytest.mark.slow
def test_the_published_network_equals_its_twin_at_full_size():
    model, variables, twin = network_and_twin(pooling="ceil", conv_bias=True)
    image = random_image((1, 360, 480, 3))
    evaluated, (trained, _) = evaluate(model)(variables, image), train(model)(variables, image)
    with jax.enable_x64(True):
        model, arrays = model.clone(dtype=jnp.float64), (jax.tree.map(np.float64, variables), np.float64(image))
        exactly_evaluated, (exactly_trained, _) = jax.device_get((evaluate(model)(*arrays), train(model)(*arrays)))
    with torch.no_grad():
        x, twin = channels_first(np.float64(image)), twin.double()
        their_evaluated, their_trained = (channels_last(logits) for logits in (twin.eval()(x), twin.train()(x)))
    assert error(exactly_evaluated, their_evaluated) < 1e-6
    assert error(exactly_trained, their_trained) < 1e-6
    for ours, theirs in ((evaluated, their_evaluated), (trained, their_trained)):
        assert (ours.argmax(-1) == theirs.argmax(-1)).mean() > 0.98  # float32: see above
