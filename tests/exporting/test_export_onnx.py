"""Test the ONNX export: onnxruntime gives PyTorch's logits at any size, with widely supported operators."""

import dataclasses
import json

import numpy as np
import pytest
from exported_networks import NETWORKS, ODD_NAMES, SHAPES, assert_is_network, expected_of, images_of, subject_of

WHY = "ONNX is not installed: pip install -e '.[onnx]' runs these tests"
onnx = pytest.importorskip("onnx", reason=WHY)
onnxruntime = pytest.importorskip("onnxruntime", reason=WHY)

from segnet_jax.exporting import onnx as ours  # noqa: E402

OPERATORS = {  # all of opset 13
    *("Conv", "Relu", "Greater", "Where", "SpaceToDepth", "DepthToSpace", "Split", "Slice", "Pad", "Concat"),
    *("Shape", "Gather", "Div", "Mul", "Mod", "Sub", "Cast", "Transpose", "ArgMax"),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    for name in NETWORKS:
        ours.write(subject_of(name), folder / name)
    return folder


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_onnxruntime_gives_pytorchs_logits_from_the_file(name, shape, written):
    session = onnxruntime.InferenceSession(written / name, providers=["CPUExecutionProvider"])
    prediction, logits = session.run(None, {"images": images_of(shape)})
    assert_is_network(prediction, logits, expected_of(name, subject_of(name), images_of(shape)))


@pytest.mark.parametrize("size", [None, SHAPES[0][1:]], ids=["any size", "fixed"])
@pytest.mark.parametrize("name", ["bilinear", "learnt-caffe", "unet", "unet-learnt", "channels"])
def test_onnxruntime_gives_the_networks_logits_without_indices_and_of_other_channels(name, size, tmp_path):
    subject = dataclasses.replace(subject_of(name), size=size)
    ours.write(subject, tmp_path / "network.onnx")
    used = {node.op_type for node in onnx.load(tmp_path / "network.onnx").graph.node}
    assert used <= OPERATORS | {"MaxPool", "Resize", "ConvTranspose", "Add"}
    predict = ours.read(subject, tmp_path / "network.onnx")
    for shape in SHAPES if size is None else [(1, *size)]:
        images = images_of(shape, pixels=subject.pixels)
        assert_is_network(*predict(images), expected_of(name, subject, images))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_is_valid_and_uses_only_widely_supported_operators(name, written):
    model = onnx.load(written / name)
    onnx.checker.check_model(model, full_check=True)
    used = {node.op_type for node in model.graph.node}
    assert used <= OPERATORS and not any("MaxPool" in each or "Unpool" in each for each in used)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 13)]
    assert {each.name for each in model.graph.input} == {"images"}
    assert [each.name for each in model.graph.output] == ["prediction", "logits"]


def test_the_first_of_a_tie_wins_everywhere_in_an_image_of_one_color(written):
    images = np.full((1, 48, 64, 3), 200, np.uint8)
    session = onnxruntime.InferenceSession(written / "default", providers=["CPUExecutionProvider"])
    prediction, logits = session.run(None, {"images": images})
    assert_is_network(prediction, logits, expected_of("default", subject_of("default"), images))


@pytest.mark.parametrize("size", [shape[1:3] for shape in SHAPES])
@pytest.mark.parametrize("name", NETWORKS)
def test_opencv_gives_pytorchs_logits_from_a_file_of_fixed_size(name, size, tmp_path):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'opencv-python-headless<5'")
    subject = subject_of(name)
    ours.write(dataclasses.replace(subject, size=size), tmp_path / "fixed.onnx")
    images = images_of((1, *size))
    network = cv2.dnn.readNetFromONNX(str(tmp_path / "fixed.onnx"))
    network.setInput(images)
    prediction, logits = network.forward(["prediction", "logits"])  # all of its outputs are float32
    assert_is_network(prediction.astype(np.uint8), logits, expected_of(name, subject, images))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_of_fixed_size_computes_no_shapes_and_takes_one_image_of_this_size(name, tmp_path):
    subject = dataclasses.replace(subject_of(name), size=(45, 61))
    ours.write(subject, tmp_path / "fixed.onnx")
    used = {node.op_type for node in onnx.load(tmp_path / "fixed.onnx").graph.node}
    assert not used & {"Shape", "Gather", "Mod", "Mul"}
    images = images_of((1, 45, 61))
    assert_is_network(*ours.read(subject, tmp_path / "fixed.onnx")(images), expected_of(name, subject, images))
    with pytest.raises(Exception, match="Got: 46 Expected: 45"):
        ours.read(subject, tmp_path / "fixed.onnx")(images_of((1, 46, 61)))


def test_class_names_with_any_characters_are_stored_in_the_file(written):
    properties = {each.key: each.value for each in onnx.load(written / "default").metadata_props}
    assert json.loads(properties["classes"]) == ODD_NAMES and properties["step"] == "7"
