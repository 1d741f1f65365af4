"""Writes random VGGs in the true formats of other programs, without those programs.

Nothing here uses the package's readers or tables: names, layouts and bytes are those of Keras, torch and Caffe.
"""

import collections
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
    """Convolution -> (kernel float32 [3,3,in,out] for RGB, bias float32 [out])."""
    random, inputs, convs = np.random.default_rng(seed), 3, {}
    for stage, (outputs, num_convolutions) in enumerate(stages, start=1):
        for i in range(1, num_convolutions + 1):
            kernel = random.random((3, 3, inputs, outputs), np.float32) - np.float32(0.5)
            convs[f"conv{stage}_{i}"] = kernel, random.random(outputs, np.float32)
            inputs = outputs
    return convs


def random_batch_norm(convs, seed=1):
    """Convolution -> scale, shift, mean and variance, float32 [out]."""
    random = np.random.default_rng(seed)
    return {conv: random.random((4, len(bias)), np.float32) + np.float32(0.1) for conv, (_, bias) in convs.items()}


def shrink(monkeypatch, encoders):
    """Tells the package that VGGs have a few channels, and returns such a VGG-16."""
    monkeypatch.setitem(encoders, "vgg16", SMALL16)
    monkeypatch.setitem(encoders, "vgg19", SMALL19)
    return random_vgg(SMALL16)


def bgr(conv, kernel):
    """The kernel that makes of a BGR image what `kernel` makes of the RGB one."""
    return kernel[:, :, ::-1] if conv == "conv1_1" else kernel


def oihw(kernel):
    return np.ascontiguousarray(np.moveaxis(kernel, (2, 3), (1, 0)))


# Keras


def write_keras(path, convs, spelling="{layer}_W_1:0 {layer}_b_1:0", classifier=False):
    """The file of `keras.applications`: a group a layer, the names listed in attributes."""
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
            group = file.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name, _ in tensors]
            for name, value in tensors:
                group.create_dataset(name, data=value)


# torch


def state_dict(convs, batch_norm=None, features=None):
    """torchvision's names -> arrays."""
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
    """A function or class of torch, of which only the name can be pickled."""

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
    """Python's pickler, made to write names of classes that are not there."""

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
    """What torch.save writes since 1.6."""
    keys = [str(index) for index in range(len(state))]
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("archive/data.pkl", "w") as file:
            _pickled_state(file, state, keys, REBUILD_V2, ())
        archive.writestr("archive/byteorder", "little")
        for key, array in zip(keys, state.values(), strict=True):
            archive.writestr(f"archive/data/{key}", array.tobytes())
        archive.writestr("archive/version", "3\n")


def write_torch_legacy(path, state, rebuild=REBUILD):
    """What torch.save wrote from 0.1.10 to 1.5."""
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
    """A BlobProto: of 2014, of today, or with each number under its own tag."""
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
    """A NetParameter: `form` is "layers" (of 2014), "layer" (of today) or "unpacked" (of today, no packed numbers)."""
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
    """The layers of Caffe's SegNet that have numbers: name -> blobs, BGR and [out,in,3,3], BatchNorm's [1,out,1,1]."""
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
    """As `random_caffe_segnet`, of SegNet-Basic; the training prototxts call its last layer conv_classifier."""
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
    """A NetParameter of those layers, between others without numbers; `dropout` names layers that one follows."""
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
