"""Export of the network as an ONNX graph, built node by node.

Hardly any runtime implements MaxUnpool, so unpooling is built from other operators: SpaceToDepth moves the four cells
of a window into channels, Greater and Where select the first maximum, and Where and DepthToSpace put values back there.

A graph takes images of any size, or of one size for runtimes without dynamic shapes, such as OpenCV's dnn module.
"""

import pathlib
from typing import Any

import numpy as np

from segnet_jax.constants import RGB
from segnet_jax.exporting.exported_network import ExportedNetwork
from segnet_jax.exporting.parity import PredictFn
from segnet_jax.nn.preprocessing import Preprocessing
from segnet_jax.nn.segnet import SegNet
from segnet_jax.nn.unet import UNet

OPSET = 13
"""The oldest opset (2021) with all operators used here in their current form; runtimes reject newer opsets."""
_IR_VERSION = 7  # file format version released with that opset
_Size = str | tuple[int, int]  # height and width: the name of a value computed at run time, or numbers
_BELOW_RELU = -1.0  # less than any output of a ReLU; unlike infinity, every runtime supports it


def write(subject: ExportedNetwork, path: pathlib.Path) -> None:
    """Write a graph from "images" [B,H,W,C] to "prediction" uint8 [B,H,W] and "logits" float32 [B,H,W,C]."""
    import onnx

    graph = _Graph(subject.size)
    x = _normalize(graph, "images", subject.preprocessing)
    logits = _network(graph, x, subject.model, subject.variables["params"])
    graph.add("Transpose", [logits], "logits", perm=[0, 2, 3, 1])
    if subject.multi_label:
        class_ids = _bits_above_zero(graph, logits, subject.model.num_classes)
    else:
        class_ids = graph.add("ArgMax", [logits], "class_ids", axis=1, keepdims=0)
    graph.add("Cast", [class_ids], "prediction", to=_UINT8)
    kind = _UINT8 if subject.pixels.bits == 8 else _UINT16
    size = ["batch", "height", "width"] if subject.size is None else [1, *subject.size]
    made = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "SegNet",
            [onnx.helper.make_tensor_value_info("images", kind, [*size, subject.pixels.channels])],
            [
                onnx.helper.make_tensor_value_info("prediction", _UINT8, size),
                onnx.helper.make_tensor_value_info("logits", _FLOAT, [*size, subject.model.num_classes]),
            ],
            graph.used_constants(),
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="segnet_jax",
    )
    onnx.helper.set_model_props(made, subject.metadata)
    onnx.checker.check_model(made, full_check=True)
    path.write_bytes(made.SerializeToString())


def read(subject: ExportedNetwork, path: pathlib.Path) -> PredictFn:
    """Load a file into onnxruntime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: tuple(session.run(["prediction", "logits"], {"images": images}))


def use(subject: ExportedNetwork, path: pathlib.Path) -> str:
    """Return Python code that runs the file."""
    if subject.size is not None:
        height, width = subject.size
        image = f"{subject.pixels.dtype} [{height},{width},{subject.pixels.channels}]"
        image += ", RGB: cv2.cvtColor(image, cv2.COLOR_BGR2RGB)" if subject.pixels == RGB else ""
        return f"""import cv2  # 4.x; or onnxruntime, as for files of any size
network = cv2.dnn.readNetFromONNX({str(path)!r})
network.setInput(image[None])  # {image}
prediction, logits = network.forward(["prediction", "logits"])  # float32 [1,H,W] and [1,H,W,C]"""
    return f"""import onnxruntime
network = onnxruntime.InferenceSession({str(path)!r})
prediction, logits = network.run(None, {{"images": images}})  # {subject.images}, {subject.smallest} pixels or more\
 each way"""


# --- the network; feature maps are [B,C,H,W] ---


def _normalize(graph: "_Graph", images: str, preprocessing: Preprocessing) -> str:
    x = graph.add("Cast", [images], "images_float", to=_FLOAT)
    x = graph.add("Sub", [x, graph.constant("mean", np.float32(preprocessing.mean))], "images_centered")
    x = graph.add("Div", [x, graph.constant("std", np.float32(preprocessing.std))], "images_normal")
    return graph.add("Transpose", [x], "images_channels_first", perm=[0, 3, 1, 2])


def _network(graph: "_Graph", x: str, model: SegNet, params: dict[str, Any]) -> str:
    """Add the layers in the order of `SegNet` or `UNet`; return the logits, [B,C,H,W]."""

    def block(x: str, name: str) -> str:
        return graph.add("Relu", [_convolve(graph, x, params[name], name)], f"{name}_relu")

    def up(x: str, stage: int) -> str:
        name, (_, cells, size) = f"upsample{stage}", pooled[stage - 1]
        if model.unpools:
            return _unpool(graph, x, cells, size, model.pooling, name)
        return _upsample(graph, x, params.get(name), size, model.pooling, name)

    stages = list(enumerate(model.stages, start=1))
    pooled, fixed = [], graph.size
    for stage, (_, num_convolutions) in stages:
        for i in range(1, num_convolutions + 1):
            x = block(x, f"conv{stage}_{i}")
        maps, size, cells = x, fixed or graph.size_of(x), []
        if model.unpools:
            x, cells = _pool(graph, x, size, model.pooling, f"pool{stage}")
        else:
            ceil_mode = int(model.pooling == "ceil")
            x = graph.add("MaxPool", [x], f"pool{stage}", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=ceil_mode)
        pooled.append((maps, cells, size))
        fixed = fixed and tuple((side + (model.pooling == "ceil")) // 2 for side in fixed)
    if isinstance(model, UNet):
        x = block(block(x, "middle_1"), "middle_2")
        for stage, _ in reversed(stages):
            x = graph.add("Concat", [pooled[stage - 1][0], up(x, stage)], f"skip{stage}", axis=1)
            x = block(block(x, f"up{stage}_1"), f"up{stage}_2")
    else:
        for stage, (_, num_convolutions) in reversed(stages):
            x = up(x, stage)
            for i in range(num_convolutions, 1 if stage == 1 else 0, -1):
                x = block(x, f"conv{stage}_{i}_D")
                if model.encoder_addition and i == num_convolutions:
                    x = graph.add("Add", [x, pooled[stage - 1][0]], f"addition{stage}")
    last = model.head
    if model.output == "sigmoid":  # as in `class_logits`: a first class whose logit is 0
        before = {part: [(0, 0)] * (each.ndim - 1) + [(1, 0)] for part, each in params[last].items()}
        params = params | {last: {part: np.pad(each, before[part]) for part, each in params[last].items()}}
    logits = _convolve(graph, x, params[last], last)
    return graph.add("Relu", [logits], f"{last}_relu") if model.final_batch_norm else logits


def _bits_above_zero(graph: "_Graph", logits: str, num_classes: int) -> str:
    """Return the sum of 2^c over the classes c whose logit is above 0, as `label_bits.classes_above_half`."""
    is_above = graph.add("Greater", [logits, graph.zero], "is_above")
    bits = graph.constant("bits", np.float32(2.0 ** np.arange(num_classes)).reshape(1, -1, 1, 1))
    each = graph.add("Mul", [graph.add("Cast", [is_above], "above", to=_FLOAT), bits], "above_bits")
    return graph.add(
        "ReduceSum", [each, graph.constant("class_axis", np.array([1], np.int64))], "class_ids", keepdims=0
    )


def _convolve(graph: "_Graph", x: str, layer: dict[str, Any], name: str) -> str:
    kernel = graph.constant(f"{name}.weight", np.transpose(layer["kernel"], (3, 2, 0, 1)))
    bias = graph.constant(f"{name}.bias", layer["bias"])
    size = layer["kernel"].shape[0]
    return graph.add("Conv", [x, kernel, bias], name, kernel_shape=[size, size], pads=[size // 2] * 4)


def _pool(graph: "_Graph", x: str, size: _Size, pooling: str, name: str) -> tuple[str, list[str]]:
    """Return the maxima of 2x2 windows and the comparisons that locate them; ties go to the first cell."""
    if pooling == "floor":
        x = graph.crop_to_even(x, size, f"{name}_cropped")
    else:
        x = graph.pad_odd(x, size, _BELOW_RELU, f"{name}_padded")
    cells = graph.add("SpaceToDepth", [x], f"{name}_cells", blocksize=2)
    a, b, c, d = graph.split(cells, f"{name}_cell", 4)  # row-major in the window

    def larger(first: str, second: str, where: str) -> tuple[str, str]:
        is_second = graph.add("Greater", [second, first], f"{name}_is_{where}")
        return graph.add("Where", [is_second, second, first], f"{name}_of_{where}"), is_second

    top, is_right_of_top = larger(a, b, "right_of_top")
    bottom, is_right_of_bottom = larger(c, d, "right_of_bottom")
    maximum, is_bottom = larger(top, bottom, "bottom")
    return maximum, [is_bottom, is_right_of_top, is_right_of_bottom]


def _unpool(graph: "_Graph", x: str, choices: list[str], size: _Size, pooling: str, name: str) -> str:
    """Put each value back where its maximum came from, zeros elsewhere, at the size before pooling."""
    is_bottom, is_right_of_top, is_right_of_bottom = choices
    top = graph.add("Where", [is_bottom, graph.zero, x], f"{name}_top")
    bottom = graph.add("Where", [is_bottom, x, graph.zero], f"{name}_bottom")
    cells = [
        graph.add("Where", [is_right, *values], f"{name}_cell{number}")
        for number, (is_right, values) in enumerate(
            [
                (is_right_of_top, (graph.zero, top)),
                (is_right_of_top, (top, graph.zero)),
                (is_right_of_bottom, (graph.zero, bottom)),
                (is_right_of_bottom, (bottom, graph.zero)),
            ]
        )
    ]
    side_by_side = graph.add("Concat", cells, f"{name}_cells", axis=1)
    x = graph.add("DepthToSpace", [side_by_side], name, blocksize=2, mode="DCR")
    if pooling == "floor":
        return graph.pad_odd(x, size, 0.0, f"{name}_padded")
    return graph.crop(x, size, f"{name}_cropped")


def _upsample(graph: "_Graph", x: str, layer: dict[str, Any] | None, size: _Size, pooling: str, name: str) -> str:
    """Upsample as in `nn.upsampling`, bilinearly or with the kernel of `layer`, to the size before pooling."""
    if layer is None:
        scales = graph.constant(f"{name}_scales", np.float32([1, 1, 2, 2]))
        x = graph.add("Resize", [x, "", scales], name, mode="linear", coordinate_transformation_mode="half_pixel")
    else:
        by_one = graph.constant(f"{name}_by_one", np.int64([0, 0, 1, 1] * 2))
        x = graph.add("Pad", [x, by_one], f"{name}_with_edge", mode="edge")
        kernel = graph.constant(f"{name}.weight", np.transpose(layer["kernel"], (3, 2, 0, 1)))
        group = layer["kernel"].shape[-1]
        x = graph.add("ConvTranspose", [x, kernel], name, strides=[2, 2], pads=[3] * 4, group=group)
    if pooling == "floor":
        return graph.pad_odd(x, size, None, f"{name}_padded")
    return graph.crop(x, size, f"{name}_cropped")


# --- the graph ---

_FLOAT, _UINT8, _UINT16 = 1, 2, 4  # onnx.TensorProto.FLOAT, UINT8 and UINT16


class _Graph:
    """Nodes and constants in insertion order; values are identified by name.

    Args:
      size: height and width of the images; None for any.
    """

    def __init__(self, size: tuple[int, int] | None):
        self.nodes, self.constants, self.size = [], [], size
        self.zero = self.constant("zero", np.float32(0))
        self.two = self.constant("two", np.int64([2, 2]))
        self.zeros = self.constant("zeros", np.int64([0, 0]))
        self.six_zeros = self.constant("six_zeros", np.int64([0] * 6))
        self.rows_and_columns = self.constant("rows_and_columns", np.int64([2, 3]))

    def constant(self, name: str, value: np.ndarray) -> str:
        import onnx

        self.constants.append(onnx.numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def add(self, kind: str, inputs: list[str], output: str, **attributes) -> str:
        import onnx

        self.nodes.append(onnx.helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def split(self, x: str, name: str, count: int) -> list[str]:
        """Split the channels into equal parts."""
        import onnx

        parts = [f"{name}{number}" for number in range(count)]
        self.nodes.append(onnx.helper.make_node("Split", [x], parts, name=name, axis=1))
        return parts

    def used_constants(self) -> list:
        """Return the constants that a node uses."""
        used = {name for node in self.nodes for name in node.input}
        return [constant for constant in self.constants if constant.name in used]

    def size_of(self, x: str) -> str:
        """Return height and width, int64 [2]."""
        shape = self.add("Shape", [x], f"{x}_shape")
        return self.add("Gather", [shape, self.rows_and_columns], f"{x}_size", axis=0)

    def crop(self, x: str, size: _Size, name: str) -> str:
        """Keep the first rows and columns."""
        end = size if isinstance(size, str) else self.constant(f"{name}_to", np.int64(size))
        return self.add("Slice", [x, self.zeros, end, self.rows_and_columns], name)

    def crop_to_even(self, x: str, size: _Size, name: str) -> str:
        """Remove the last row and column of maps of an odd size."""
        if isinstance(size, str):
            halves = self.add("Div", [size, self.two], f"{name}_halves")
            return self.crop(x, self.add("Mul", [halves, self.two], f"{name}_even"), name)
        even = tuple(side // 2 * 2 for side in size)
        return x if even == size else self.crop(x, even, name)

    def pad_odd(self, x: str, size: _Size, value: float | None, name: str) -> str:
        """Append a row or column where `size` is odd, filled with `value`; None repeats the last one."""
        if isinstance(size, str):
            odd = self.add("Mod", [size, self.two], f"{name}_odd")
            by = self.add("Concat", [self.six_zeros, odd], f"{name}_by", axis=0)  # starts, and ends of B, C
        elif all(side % 2 == 0 for side in size):
            return x
        else:
            by = self.constant(f"{name}_by", np.int64([0] * 6 + [side % 2 for side in size]))
        if value is None:
            return self.add("Pad", [x, by], name, mode="edge")
        return self.add("Pad", [x, by, self.constant(f"{name}_with", np.float32(value))], name)
