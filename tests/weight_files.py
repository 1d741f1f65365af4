"""Write random VGGs in the formats of other programs, without those programs.

Nothing here uses the package's readers or tables: names, layouts and bytes are those of Keras, torch and Caffe.
"""

import collections
import io
import pickle
import struct
import zipfile

import numpy as np

VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
VGG19 = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
SMALL16 = ((3, 2), (4, 2), (2, 3), (3, 3), (4, 3))
SMALL19 = ((3, 2), (4, 2), (2, 4), (3, 4), (4, 4))

FEATURES = {  # torchvision's positions, as published for vgg16 and vgg16_bn
    "conv1_1": (0, 0), "conv1_2": (2, 3),
    "conv2_1": (5, 7), "conv2_2": (7, 10),
    "conv3_1": (10, 14), "conv3_2": (12, 17), "conv3_3": (14, 20),
    "conv4_1": (17, 24), "conv4_2": (19, 27), "conv4_3": (21, 30),
    "conv5_1": (24, 34), "conv5_2": (26, 37), "conv5_3": (28, 40),
}  # fmt: skip
FEATURES_19 = {
    "conv1_1": 0, "conv1_2": 2, "conv2_1": 5, "conv2_2": 7,
    "conv3_1": 10, "conv3_2": 12, "conv3_3": 14, "conv3_4": 16,
    "conv4_1": 19, "conv4_2": 21, "conv4_3": 23, "conv4_4": 25,
    "conv5_1": 28, "conv5_2": 30, "conv5_3": 32, "conv5_4": 34,
}  # fmt: skip


def random_vgg(stages, seed=0):
    """Return convolution -> (kernel float32 [3,3,in,out] for RGB, bias float32 [out])."""
    random, inputs, convs = np.random.default_rng(seed), 3, {}
    for stage, (outputs, num_convolutions) in enumerate(stages, start=1):
        for i in range(1, num_convolutions + 1):
            kernel = random.random((3, 3, inputs, outputs), np.float32) - np.float32(0.5)
            convs[f"conv{stage}_{i}"] = kernel, random.random(outputs, np.float32)
            inputs = outputs
    return convs


def random_batch_norm(convs, seed=1):
    """Return convolution -> scale, shift, mean and variance, float32 [out]."""
    random = np.random.default_rng(seed)
    return {conv: random.random((4, len(bias)), np.float32) + np.float32(0.1) for conv, (_, bias) in convs.items()}


def shrink(monkeypatch, encoders):
    """Shrink the package's VGGs to a few channels, and return such a VGG-16."""
    monkeypatch.setitem(encoders, "vgg16", SMALL16)
    monkeypatch.setitem(encoders, "vgg19", SMALL19)
    return random_vgg(SMALL16)


def bgr(conv, kernel):
    """Return the kernel for BGR images: the first convolution's with its input channels reversed."""
    return kernel[:, :, ::-1] if conv == "conv1_1" else kernel


def oihw(kernel):
    return np.ascontiguousarray(np.moveaxis(kernel, (2, 3), (1, 0)))


# Keras


def write_keras(path, convs, spelling="{layer}_W_1:0 {layer}_b_1:0", root="/", classifier=False):
    """Write the file of `keras.applications`: a group per layer, with the names listed in attributes."""
    import h5py

    layers = {"input_1": []}
    for conv, (kernel, bias) in convs.items():
        layer = f"block{conv[4]}_conv{conv[6]}"
        kernel_name, bias_name = spelling.format(layer=layer).split()
        layers[layer] = [(kernel_name, bgr(conv, kernel)), (bias_name, bias)]
        layers[f"block{conv[4]}_pool"] = []
    if classifier:
        for layer in ("fc1", "fc2", "predictions"):
            kernel_name, bias_name = spelling.format(layer=layer).split()
            layers[layer] = [(kernel_name, np.zeros((2, 2), np.float32)), (bias_name, np.zeros(2, np.float32))]
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.encode() for layer in layers]
        for layer, tensors in layers.items():
            group = file.create_group(root + layer)
            group.attrs["weight_names"] = [name.encode() for name, _ in tensors]
            for name, value in tensors:
                group.create_dataset(name, data=value)


def write_keras3(path, convs, model="layers/", more=0):
    """Write the `.weights.h5` of Keras 3: layers numbered by class, in the group of their model."""
    import h5py

    with h5py.File(path, "w") as file:
        file.create_group("vars")
        for index, (conv, (kernel, bias)) in enumerate(convs.items()):
            variables = file.create_group(f"{model}conv2d{f'_{index}' if index else ''}/vars")
            variables.attrs["name"] = f"block{conv[4]}_conv{conv[6]}"
            variables["0"], variables["1"] = bgr(conv, kernel), bias
            file.require_group(f"{model}max_pooling2d/vars")
        for index in range(len(convs), len(convs) + more):  # layers after the VGG in a larger network
            variables = file.create_group(f"{model}conv2d_{index}/vars")
            variables["0"], variables["1"] = np.ones((1, 1, 4, 2), np.float32), np.ones(2, np.float32)
        file["layers/dense/vars/0"] = np.ones((4, 2), np.float32)
        file["optimizer/vars/0"] = np.int64(7)


def write_keras3_archive(path, convs, method=zipfile.ZIP_STORED, **options):
    """Write the `.keras` archive of Keras 3."""
    write_keras3(file := io.BytesIO(), convs, **options)
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.15.1"}')
        archive.writestr("config.json", '{"module": "keras", "class_name": "Functional"}')
        archive.writestr("model.weights.h5", file.getvalue())


# torch


def state_dict(convs, batch_norm=None, features=None):
    """Return torchvision's names -> arrays."""
    state = collections.OrderedDict()
    for conv, (kernel, bias) in convs.items():
        index = features[conv] if features else FEATURES[conv][1 if batch_norm else 0]
        state[f"features.{index}.weight"], state[f"features.{index}.bias"] = oihw(kernel), bias
        if batch_norm:
            scale, shift, mean, var = batch_norm[conv]
            state[f"features.{index + 1}.weight"], state[f"features.{index + 1}.bias"] = scale, shift
            state[f"features.{index + 1}.running_mean"], state[f"features.{index + 1}.running_var"] = mean, var
            state[f"features.{index + 1}.num_batches_tracked"] = np.int64(7)
    return state


class Foreign:
    """A function or class of torch that is pickled by name only."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __call__(self):
        raise AssertionError("only for the pickler, which asks whether it is callable")


STORAGES = {"float32": Foreign("torch", "FloatStorage"), "int64": Foreign("torch", "LongStorage")}
REBUILD_V2 = Foreign("torch._utils", "_rebuild_tensor_v2")
REBUILD = Foreign("torch._utils", "_rebuild_tensor")  # before torch 0.4, as in the published vgg16-397923af.pth


class StoragePointer:
    def __init__(self, description):
        self.description = description


class TensorStub:
    def __init__(self, array, description, rebuild):
        strides = tuple(stride // array.itemsize for stride in array.strides)
        self.reduced = rebuild, (StoragePointer(description), 0, tuple(array.shape), strides)
        if rebuild is REBUILD_V2:
            self.reduced = rebuild, (*self.reduced[1], False, collections.OrderedDict())

    def __reduce_ex__(self, protocol):
        return self.reduced


class Pickler(pickle._Pickler):
    """Python's pickler, extended to write names of classes that do not exist."""

    dispatch = dict(pickle._Pickler.dispatch)

    def persistent_id(self, value):
        return value.description if isinstance(value, StoragePointer) else None

    def save_foreign(self, value):
        self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())
        self.memoize(value)

    dispatch[Foreign] = save_foreign


def _pickled_state(file, state, keys, rebuild, view):
    stubs = collections.OrderedDict()
    for (name, array), key in zip(state.items(), keys, strict=True):
        description = ("storage", STORAGES[str(array.dtype)], key, "cpu", array.size) + view
        stubs[name] = TensorStub(array, description, rebuild)
    stubs._metadata = collections.OrderedDict({"": {"version": 1}})
    Pickler(file, protocol=2).dump(stubs)


def write_torch_zip(path, state):
    """Write a file as torch.save has done since 1.6."""
    keys = [str(index) for index in range(len(state))]
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("archive/data.pkl", "w") as file:
            _pickled_state(file, state, keys, REBUILD_V2, ())
        archive.writestr("archive/byteorder", "little")
        for key, array in zip(keys, state.values(), strict=True):
            archive.writestr(f"archive/data/{key}", array.tobytes())
        archive.writestr("archive/version", "3\n")


def write_torch_legacy(path, state, rebuild=REBUILD):
    """Write a file as torch.save did from 0.1.10 to 1.5."""
    keys = [str(94000000000000 + 64 * index) for index in range(len(state))]
    sizes = {"short": 2, "int": 4, "long": 4}
    with open(path, "wb") as file:
        pickle.dump(0x1950A86A20F9469CFC6C, file, protocol=2)
        pickle.dump(1001, file, protocol=2)
        pickle.dump({"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}, file, protocol=2)
        _pickled_state(file, state, keys, rebuild, (None,))
        pickle.dump(keys, file, protocol=2)
        for array in state.values():
            file.write(struct.pack("<q", array.size) + array.tobytes())


# Caffe


def varint(value):
    encoded = b""
    while value > 127:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])


def message(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def integer(number, value):
    return varint(number << 3) + varint(value)


def blob(array, form):
    """Return an array as a Caffe BlobProto; `form` as in `write_caffe`."""
    data = array.astype("<f4").tobytes()
    if form == "layers":  # four axes always, a vector's numbers in the last
        shape = (1,) * (4 - array.ndim) + array.shape
        return b"".join(integer(axis, size) for axis, size in enumerate(shape, start=1)) + message(5, data)
    dims = message(7, message(1, b"".join(map(varint, array.shape))))
    if form == "layer":
        return message(5, data) + dims
    tagged = np.full((array.size, 5), 5 << 3 | 5, np.uint8)
    tagged[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 4)
    return tagged.tobytes() + dims


def write_caffe(path, convs, form="layers", classifier=False):
    """Write VGG convolutions as a Caffe NetParameter.

    `form` is the encoding: "layers" (V1LayerParameter, used until 2014), "layer" (LayerParameter) or "unpacked"
    (LayerParameter with unpacked repeated floats). With `classifier`, small fully connected layers follow.
    """
    layer_field, name_field, blobs_field = (2, 4, 6) if form == "layers" else (100, 1, 7)
    with open(path, "wb") as file:
        file.write(message(1, b"VGG_ILSVRC_16_layers"))

        def write(name, *arrays):
            blobs = b"".join(message(blobs_field, blob(array, form)) for array in arrays)
            kind = integer(5, 4) if form == "layers" else message(2, b"Convolution")
            file.write(message(layer_field, message(name_field, name.encode()) + kind + blobs))

        for conv, (kernel, bias) in convs.items():
            write(conv, oihw(bgr(conv, kernel)), bias)
            write(f"relu{conv[4:]}")
        if classifier:
            for name in ("fc6", "fc7", "fc8"):
                write(name, np.zeros((2, 2), np.float32), np.zeros(2, np.float32))


def random_caffe_segnet(stages, num_classes=11, seed=0):
    """Return layer -> blobs of Caffe's SegNet: BGR and [out,in,3,3] for convolutions, [1,out,1,1] for BatchNorm."""
    convs, inputs = [], 3
    for stage, (outputs, num_convolutions) in enumerate(stages, start=1):
        for i in range(1, num_convolutions + 1):
            convs.append((f"conv{stage}_{i}", inputs, outputs))
            inputs = outputs
    convs += [(f"{name}_D", outputs, inputs) for name, inputs, outputs in reversed(convs[1:])]
    random, layers = np.random.default_rng(seed), {}
    for name, inputs, outputs in convs:
        layers |= _random_caffe_conv(random, name, inputs, outputs, 3)
        layers[f"{name}_bn"] = _random_caffe_norm(random, outputs)
    return layers | _random_caffe_conv(random, "conv1_1_D", stages[0][0], num_classes, 3)


def random_caffe_basic(num_classes=11, channels=64, classifier="dense_softmax_inner_prod", seed=0):
    """Return layer -> blobs of SegNet-Basic; the training prototxts call its last layer conv_classifier."""
    random, layers, inputs = np.random.default_rng(seed), {}, 3
    for name in ("conv1", "conv2", "conv3", "conv4", *(f"conv_decode{i}" for i in (4, 3, 2, 1))):
        layers |= _random_caffe_conv(random, name, inputs, channels, 7)
        layers[f"{name}_bn"] = _random_caffe_norm(random, channels)
        inputs = channels
    return layers | _random_caffe_conv(random, classifier, channels, num_classes, 1)


def _random_caffe_conv(random, name, inputs, outputs, side):
    kernel = random.normal(0, np.sqrt(2 / (inputs * side * side)), (outputs, inputs, side, side))
    return {name: [kernel.astype(np.float32), random.normal(0, 0.1, outputs).astype(np.float32)]}


def _random_caffe_norm(random, channels):
    shape = (1, channels, 1, 1)
    return [random.uniform(0.5, 1.5, shape).astype(np.float32), random.normal(0, 0.1, shape).astype(np.float32)]


def write_caffe_segnet(path, layers, form="layer", dropout=()):
    """Write a NetParameter of those layers between others without blobs.

    `dropout` names the layers followed by a dropout layer.
    """
    layer_field, name_field, kind_field, blobs_field = (2, 4, 5, 6) if form == "layers" else (100, 1, 2, 7)
    kinds = {"Convolution": 4, "BN": 0, "ReLU": 18, "Dropout": 6}  # the numbers of 2014, which had no BN
    with open(path, "wb") as file:
        file.write(message(1, b"segnet"))

        def write(name, kind, *arrays):
            of_kind = integer(kind_field, kinds[kind]) if form == "layers" else message(kind_field, kind.encode())
            blobs = b"".join(message(blobs_field, blob(array, form)) for array in arrays)
            file.write(message(layer_field, message(name_field, name.encode()) + of_kind + blobs))

        for name, arrays in layers.items():
            write(name, "BN" if name.endswith("_bn") else "Convolution", *arrays)
            if name.endswith("_bn"):
                write(f"relu_{name}", "ReLU")
            if name in dropout:
                write(f"drop_{name}", "Dropout")


# ONNX

ONNX_TYPES = {"float32": 1, "int64": 7, "float16": 10, "float64": 11}


def onnx_tensor(array, name="", form="raw", more=b""):
    """Return a TensorProto; with `form` "typed", the numbers are in the field of their type."""
    array = np.asarray(array)
    head = b"".join(integer(1, size) for size in array.shape) + integer(2, ONNX_TYPES[str(array.dtype)])
    if form == "raw":
        data = message(9, array.tobytes())
    elif array.dtype == np.int64:
        data = message(7, b"".join(varint(value % (1 << 64)) for value in array.ravel().tolist()))
    else:
        data = message({4: 4, 8: 10}[array.itemsize], array.tobytes())
    return head + message(8, name.encode()) + data + more


def onnx_node(op, inputs, output, domain="", **attributes):
    """Return a NodeProto; attributes are integers, floats, text, lists of integers, or arrays."""
    content = b"".join(message(1, name.encode()) for name in inputs) + message(2, output.encode())
    content += message(3, f"the {output}".encode()) + message(4, op.encode())
    for name, value in attributes.items():
        match value:
            case int():
                kind, data = 2, integer(3, value % (1 << 64))
            case float():
                kind, data = 1, varint(2 << 3 | 5) + struct.pack("<f", value)
            case str():
                kind, data = 3, message(4, value.encode())
            case list():
                kind, data = 7, b"".join(integer(8, each % (1 << 64)) for each in value)
            case _:
                kind, data = 4, message(5, onnx_tensor(value))
        content += message(5, message(1, name.encode()) + data + integer(20, kind))
    return content + message(7, domain.encode())


def onnx_model(nodes, initializers=(), inputs=("image",), more=b""):
    """Return a ModelProto of encoded nodes and tensors."""
    graph = b"".join(message(1, node) for node in nodes) + message(2, b"graph")
    graph += b"".join(message(5, tensor) for tensor in initializers)
    graph += b"".join(message(11, message(1, name.encode()) + message(2, _ONNX_FLOATS)) for name in inputs)
    graph += message(12, message(1, b"features") + message(2, _ONNX_FLOATS))
    return (
        integer(1, 8) + message(2, b"a test") + message(8, message(1, b"") + integer(2, 13)) + message(7, graph) + more
    )


_ONNX_FLOATS = message(1, integer(1, 1) + message(2, message(1, message(2, b"n")) * 4))  # tensor(float), n x n x n x n


class OnnxVGG:
    """A builder of a VGG's graph, node by node, as some exporter would write it.

    Args:
      style: "plain", as torch and tf2onnx write it; "constants", with every weight passed through Constant, Identity,
        Transpose and Cast; "unfused", with biases as Add, some of them on channels-last maps, and Clip for ReLU.
    """

    def __init__(self, style="plain", form="raw", dtype=np.float32):
        self.style, self.form, self.dtype = style, form, dtype
        self.nodes, self.initializers, self.last = [], [], "image"

    def constant(self, array):
        name = f"tensor{len(self.initializers) + len(self.nodes)}"
        if self.style != "constants":
            self.initializers.append(onnx_tensor(array, name, self.form))
            return name
        array = np.asarray(array)
        self.nodes.append(onnx_node("Constant", [], f"{name}a", value=np.ascontiguousarray(array.T)))
        self.nodes.append(onnx_node("Identity", [f"{name}a"], f"{name}b"))
        self.nodes.append(onnx_node("Transpose", [f"{name}b"], f"{name}c"))
        self.nodes.append(onnx_node("Cast", [f"{name}c"], name, to=1))
        return name

    def add(self, op, *arrays, first=False, **attributes):
        """Add a node whose other operands are constants; `first` puts the constants before the maps."""
        constants = [array if isinstance(array, str) else self.constant(array) for array in arrays]
        inputs = [*constants, self.last] if first else [self.last, *constants]
        self.last, before = f"maps{len(self.nodes)}", self.last
        self.nodes.append(onnx_node(op, inputs, self.last, **attributes))
        return before

    def convolution(self, kernel, bias, batch_norm=None, epsilon=1e-3, **attributes):
        form = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1]} | attributes
        kernel, bias = oihw(kernel).astype(self.dtype), bias.astype(self.dtype)
        if self.style == "unfused":
            self.add("Conv", kernel, **form)
            self.add("Transpose", perm=[0, 2, 3, 1])
            self.add("Add", bias, first=True)
            self.add("Transpose", perm=[0, 3, 1, 2])
        else:
            self.add("Conv", kernel, bias, **form)
        if batch_norm is not None:
            self.add("BatchNormalization", *batch_norm, epsilon=epsilon)
        if self.style == "unfused":
            self.add("Clip", np.float32(0), np.float32(np.inf))
        else:
            self.add("Relu")

    def vgg(self, convs, batch_norm=None, first_for="RGB"):
        stages = {}
        for conv in convs:
            stages.setdefault(conv[:5], []).append(conv)
        for stage in stages.values():
            for conv in stage:
                kernel, bias = convs[conv]
                kernel = bgr(conv, kernel) if first_for == "BGR" else kernel
                self.convolution(kernel, bias, batch_norm and batch_norm[conv])
            self.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
        return self

    def model(self, **options):
        nodes = [*self.nodes, onnx_node("GlobalAveragePool", [self.last], "features")]
        return onnx_model(nodes, self.initializers, **options)


def write_onnx(path, convs, batch_norm=None, **options):
    """Write a network with torchvision's preprocessing in its graph."""
    net = OnnxVGG(**options)
    net.add("Sub", np.float32([123.675, 116.28, 103.53]).reshape(3, 1, 1))
    net.add("Div", np.float32([58.395, 57.12, 57.375]).reshape(1, 3, 1, 1))
    with open(path, "wb") as file:
        file.write(net.vgg(convs, batch_norm).model())


# our own names


def own_names(convs, batch_norm=None):
    arrays = {"preprocessing/mean": np.array([1.0, 2.0, 3.0]), "preprocessing/std": np.array([4.0, 5.0, 6.0])}
    for conv, (kernel, bias) in convs.items():
        arrays[f"{conv}/kernel"], arrays[f"{conv}/bias"] = kernel, bias
        if batch_norm:
            for part, values in zip(("scale", "bias", "mean", "var"), batch_norm[conv], strict=True):
                arrays[f"{conv}_bn/{part}"] = values
    if batch_norm:
        arrays["batch_norm_epsilon"] = np.float64(1e-3)
    return arrays


def write_npz(path, arrays, save=np.savez):
    with open(path, "wb") as file:
        save(file, **arrays)
