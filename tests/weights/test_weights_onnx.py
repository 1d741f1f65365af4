"""Test VGGs in ONNX graphs: found for any tensor names, with their preprocessing, or rejected in one line."""

import caffe_layers
import numpy as np
import pytest
import weight_files as files
from weight_files import OnnxVGG, onnx_model, onnx_node, onnx_tensor

from segnet_jax.nn.preprocessing import CAFFE, RAW, TORCH
from segnet_jax.nn.segnet import ENCODERS
from segnet_jax.system.errors import UserError
from segnet_jax.weights.formats import published_sums
from segnet_jax.weights.load import read_vgg

RGB_MEAN, BGR_MEAN = np.float32([123.68, 116.779, 103.939]), np.float32([103.939, 116.779, 123.68])
TORCH_MEAN, TORCH_STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
REVERSAL = {  # starts, ends, axes and steps of a Slice
    "last": [np.int64([-1]), np.int64([-(1 << 63)]), np.int64([-1]), np.int64([-1])],
    "first": [np.int64([2]), np.int64([-5]), np.int64([1]), np.int64([-1])],
}


@pytest.fixture
def small(monkeypatch):
    return files.shrink(monkeypatch, ENCODERS)


def planes(values):
    return np.float32(values).reshape(3, 1, 1)


def written(path, net, **options):
    path.write_bytes(net if isinstance(net, bytes) else net.model(**options))
    return path


def complaint(path, encoder="vgg16", preprocessing=None):
    with pytest.raises(UserError) as caught:
        read_vgg(path, encoder, preprocessing)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


# preprocessing


def keras(net, reversal):
    """Add the nodes of `keras.applications.vgg16.preprocess_input` to a graph of channels-last images."""
    match reversal:
        case "slice":
            net.add("Slice", *REVERSAL["last"])
        case "gather":
            net.add("Gather", np.int64([2, 1, 0]), axis=3)
    net.add("Sub", BGR_MEAN)
    net.add("Transpose", perm=[0, 3, 1, 2])


def unit_images(net):
    net.add("Sub", planes(TORCH_MEAN))
    net.add("Div", planes(TORCH_STD))


def byte_images(net):
    net.add("Cast", to=1)
    net.add("Mul", np.float32(1 / 255))
    net.add("Add", planes(-TORCH_MEAN))
    net.add("Mul", planes(1 / TORCH_STD)[None])


def by_batch_norm(net):
    ones = np.ones(3, np.float32)
    net.add("BatchNormalization", ones / 255, -TORCH_MEAN / TORCH_STD * 0, 0 * ones, ones, epsilon=0.0)
    net.add("BatchNormalization", ones, 0 * ones, TORCH_MEAN, TORCH_STD**2, epsilon=0.0)


def reversed_after(net):
    net.add("Sub", planes(RGB_MEAN))
    net.add("Slice", *REVERSAL["first"])


SAID = {  # nodes before the first convolution -> channel order of its kernel, preprocessing
    "Keras": (lambda net: keras(net, ""), "BGR", CAFFE),
    "Keras, reversed by a slice": (lambda net: keras(net, "slice"), "BGR", CAFFE),
    "Keras, reversed by indices": (lambda net: keras(net, "gather"), "BGR", CAFFE),
    "reversed after the mean": (reversed_after, "BGR", CAFFE),
    "Oxford's in RGB": (lambda net: net.add("Add", planes(-RGB_MEAN)), "RGB", CAFFE),
    "images of 0 to 1": (unit_images, "RGB", TORCH),
    "images of 0 to 255": (byte_images, "RGB", TORCH),
    "BatchNorm": (by_batch_norm, "RGB", TORCH),
}  # fmt: skip


@pytest.mark.parametrize("case", SAID)
def test_preprocessing_and_channel_order_follow_from_the_graph(case, small, tmp_path):
    add, order, preprocessing = SAID[case]
    net = OnnxVGG()
    add(net)
    vgg = read_vgg(written(tmp_path / "w", net.vgg(small, first_for=order)), "vgg16")
    for found, expected in ((vgg.preprocessing.mean, preprocessing.mean), (vgg.preprocessing.std, preprocessing.std)):
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    for conv, (kernel, _) in small.items():
        np.testing.assert_array_equal(vgg.convs[conv].kernel, kernel)


@pytest.mark.parametrize(
    "add",
    [
        lambda net: None,
        lambda net: net.add("Transpose", perm=[0, 3, 1, 2]),
        lambda net: net.add("Div", np.float32(255)),
        lambda net: (net.add("Div", np.float32(127.5)), net.add("Sub", np.float32(1))),
        lambda net: net.add("Slice", *REVERSAL["first"]),
    ],
)
def test_preprocessing_that_the_graph_does_not_determine_is_requested_not_guessed(add, small, tmp_path):
    net = OnnxVGG()
    add(net)
    path = written(tmp_path / "w", net.vgg(small))
    assert "add --preprocessing caffe" in complaint(path)
    for preprocessing, kernel in (
        (CAFFE, small["conv1_1"][0][:, :, ::-1]),
        (TORCH, small["conv1_1"][0]),
        (RAW, small["conv1_1"][0]),
    ):
        vgg = read_vgg(path, "vgg16", preprocessing)
        assert vgg.preprocessing == preprocessing
        np.testing.assert_array_equal(vgg.convs["conv1_1"].kernel, kernel)


def test_published_weights_need_no_preprocessing_in_the_graph(small, tmp_path, monkeypatch):
    files.write_keras(tmp_path / "w.h5", small)
    by_keras = read_vgg(tmp_path / "w.h5", "vgg16")
    path = written(tmp_path / "w.onnx", OnnxVGG().vgg(small, first_for="BGR"))
    assert "--preprocessing" in complaint(path)
    monkeypatch.setitem(published_sums._IMAGENET, "vgg16", published_sums.checksum(by_keras.convs))
    vgg = read_vgg(path, "vgg16")
    assert vgg.preprocessing == CAFFE
    np.testing.assert_array_equal(vgg.convs["conv1_1"].kernel, small["conv1_1"][0])
    described = published_sums.describe(vgg)
    assert described.startswith("ImageNet VGG-16, verified; expects RGB images normalized by mean 123.68")


@pytest.mark.parametrize("style", ["plain", "constants", "unfused"])
def test_the_loaded_weights_compute_what_the_graph_computes(style, small, tmp_path):
    """Compare the graph in onnxruntime with numpy convolutions of the loaded weights."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    files.write_onnx(tmp_path / "w.onnx", small, style=style)
    image = np.random.default_rng(1).integers(0, 256, (32, 64, 3)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(tmp_path / "w.onnx"), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"image": image.transpose(2, 0, 1)[None]})

    vgg = read_vgg(tmp_path / "w.onnx", "vgg16")
    x = ((image - vgg.preprocessing.mean) / vgg.preprocessing.std).transpose(2, 0, 1)
    names = list(vgg.convs)
    for conv, following in zip(names, [*names[1:], "conv6_1"], strict=True):
        weights = vgg.convs[conv]
        x = np.maximum(caffe_layers.convolution(x, weights.kernel.transpose(3, 2, 0, 1), weights.bias), 0)
        if following[:5] != conv[:5]:
            x, _ = caffe_layers.max_pool(x)
    np.testing.assert_allclose(x.mean((1, 2)), expected.ravel(), rtol=1e-4, atol=1e-5)


# refused


def resnet(small):
    net = OnnxVGG()
    kernel, bias = small["conv1_1"]
    net.convolution(kernel, bias)
    shortcut = net.last
    net.convolution(*small["conv1_2"])
    net.add("Add", shortcut)
    return net


def with_node_after(conv, *node, **attributes):
    """Return a function that writes a VGG with one more node after a convolution's ReLU."""

    def make(small):
        net, vgg = OnnxVGG(), OnnxVGG.convolution

        def convolution(kernel, bias, *more):
            vgg(net, kernel, bias, *more)
            if np.shares_memory(kernel, small[conv][0]):
                net.add(*node, **attributes)

        net.convolution = convolution
        return net.vgg(small)

    return make


def with_first(**attributes):
    def make(small):
        net = OnnxVGG()
        net.convolution(*small["conv1_1"], **attributes)
        return net

    return make


def without(op):
    def make(small):
        net = OnnxVGG()
        net.add, add = (lambda kind, *rest, **more: None if kind == op else add(kind, *rest, **more)), net.add
        return net.vgg(small)

    return make


def changed(**convs):
    return lambda small: OnnxVGG().vgg(small | {name: change(*small[name]) for name, change in convs.items()})


def in_a_loop(small):
    return onnx_model([onnx_node("Cast", ["a"], "b"), onnx_node("Cast", ["b"], "a")], inputs=["a"])


POOL = {"kernel_shape": [2, 2], "strides": [2, 2]}
NO_VGG = {
    "a residual branch": (resnet, "after 1 of its 13 convolutions comes a branch into 2 nodes: Conv"),
    "a sum with computed maps": (with_node_after("conv2_1", "Add", "other"), "comes Add 'the maps"),
    "another activation": (without("Relu"), "without a ReLU before it"),
    "no pooling": (without("MaxPool"), "is not followed by 2x2 max pooling, unlike conv1_2"),
    "more pooling": (with_node_after("conv1_1", "MaxPool", **POOL), "is followed by 2x2 max pooling, unlike conv1_1"),
    "other pooling": (with_node_after("conv1_1", "AveragePool", **POOL), "after 1 of its 13 convolutions comes Aver"),
    "an own operation": (with_node_after("conv3_1", "Spice", domain="com.example"), "comes com.example.Spice"),
    "a normalization alone": (with_node_after("conv3_1", "LRN", size=5), "after 5 of its 13 convolutions comes LRN"),
    "strides": (with_first(strides=[2, 2]), "which is not 3x3 of stride 1 with padding 1"),
    "no padding": (with_first(pads=[0, 0, 0, 0]), "which is not 3x3 of stride 1 with padding 1"),
    "dilations": (with_first(dilations=[2, 2]), "which is not 3x3 of stride 1 with padding 1"),
    "groups": (with_first(group=3), "which is not 3x3 of stride 1 with padding 1"),
    "one convolution": (with_first(), "after 1 of its 13 convolutions comes"),
    "other channels": (changed(conv2_1=lambda k, b: (k[..., :2], b[:2])), "2x3x3x3 where conv2_1 has 4x3x3x3"),
    "another bias": (changed(conv2_1=lambda k, b: (k, b[:2])), "conv2_1/bias 2 instead of 4"),
    "NaN": (changed(conv2_1=lambda k, b: (k, b * np.nan)), "conv2_1/bias has 4 numbers that are not finite"),
    "another network": (lambda small: onnx_model([onnx_node("Gemm", ["image"], "features")]), "comes Gemm"),
    "no nodes": (lambda small: onnx_model([]), "after 0 of its 13 convolutions comes the end of the graph"),
    "no inputs": (lambda small: onnx_model([], inputs=[]), "has 0 inputs"),
    "no graph": (lambda small: b"\x08\x08", "has 0 inputs"),
    "a loop": (in_a_loop, "comes a loop"),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_VGG)
def test_a_network_that_is_not_a_vgg_is_refused_with_the_first_difference(case, small, tmp_path):
    make, words = NO_VGG[case]
    assert words in complaint(written(tmp_path / "w.onnx", make(small)), preprocessing=TORCH)


def test_a_vgg19_in_place_of_a_vgg16_is_called_that(small, tmp_path):
    files.write_onnx(tmp_path / "w.onnx", files.random_vgg(files.SMALL19))
    assert "contains the weights of vgg19, but the encoder is vgg16" in complaint(tmp_path / "w.onnx")
    files.write_onnx(tmp_path / "w.onnx", small)
    assert "contains the weights of vgg16, but the encoder is vgg19" in complaint(tmp_path / "w.onnx", "vgg19")


def test_batch_norm_after_some_convolutions_only_is_refused(small, tmp_path):
    batch_norm = files.random_batch_norm(small) | {"conv4_2": None}
    files.write_onnx(tmp_path / "w.onnx", small, batch_norm)
    assert "BatchNorm after only some of the convolutions" in complaint(tmp_path / "w.onnx")


@pytest.mark.parametrize("more", [files.integer(14, 1), files.message(13, files.message(1, b"location"))])
def test_weights_in_another_file_are_not_followed(more, small, tmp_path):
    (tmp_path / "weights.bin").write_bytes(bytes(1000))
    net = OnnxVGG().vgg(small)
    net.initializers[0] = onnx_tensor(np.zeros((0,), np.float32), "tensor0", more=more)
    message = complaint(written(tmp_path / "w.onnx", net), preprocessing=TORCH)
    assert "stores tensor0 in another file; save it as one file" in message


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (onnx_tensor(np.zeros((4, 4), np.float32), "tensor0")[:-4] + b"", "beyond its message"),
        (files.integer(1, 1 << 40) + files.integer(2, 1) + files.message(9, bytes(8)), "has 8 bytes instead of"),
        (files.integer(1, (1 << 64) - 1) + files.integer(2, 1), "invalid shape"),
        (files.integer(1, 2) * 9 + files.integer(2, 1), "invalid shape"),
    ],
)
def test_damaged_tensors_are_refused(tensor, words, small, tmp_path):
    net = OnnxVGG().vgg(small)
    net.initializers.append(tensor)
    assert words in complaint(written(tmp_path / "w.onnx", net), preprocessing=TORCH)


def test_weights_of_other_types_are_refused_where_they_are_needed(small, tmp_path):
    net = OnnxVGG().vgg(small)
    quantized = files.integer(1, 2) + files.integer(2, 3) + files.message(9, b"ab")
    net.initializers.append(quantized + files.message(8, b"unused"))
    read_vgg(written(tmp_path / "w.onnx", net), "vgg16", TORCH)
    shape = b"".join(files.integer(1, size) for size in (3, 3, 3, 3))
    net.initializers[0] = shape + files.integer(2, 3) + files.message(8, b"tensor0") + files.message(9, bytes(81))
    assert "tensor0 is of ONNX type 3" in complaint(written(tmp_path / "w.onnx", net), preprocessing=TORCH)
