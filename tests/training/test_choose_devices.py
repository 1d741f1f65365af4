"""Test the start-up check: which cuDNN supports which GPU, and a one-line error for a failing convolution."""

import sys
from dataclasses import dataclass
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from segnet_jax.config.fields import Config
from segnet_jax.system.errors import UserError
from segnet_jax.training import choose_devices as training_devices
from segnet_jax.training.choose_devices import (
    check_convolution,
    check_cudnn,
    check_device,
    convolve,
    cudnn_version,
    first_line,
    steps_per_dispatch,
)
from segnet_jax.training.precision import DTYPES
from segnet_jax.training.step_inputs import split_into_dispatches

V100 = "Tesla V100-SXM2-16GB"


@dataclass(frozen=True)
class FakeDevice:
    """The attributes of a device, not present here, that the check reads."""

    platform: str = "gpu"
    device_kind: str = V100
    compute_capability: str | float = "7.0"


def dispatched(*lengths, platform="gpu", **settings):
    devices = SimpleNamespace(local=[FakeDevice(platform=platform)])
    return steps_per_dispatch(Config(**settings), devices, *lengths)


@pytest.mark.parametrize(
    "lengths, chosen",
    [
        ((22, 2200, 0), 11),  # 367 images in batches of 16, 100 epochs
        ((91, 9100, 0), 13),  # in batches of 4
        ((22, 1000, 0), 2),  # the last epoch is shorter
        ((91, 9100, 7), 7),  # --max-steps 7
        ((23, 2300, 0), 1),
        ((32, 3200, 0), 16),
        ((1, 100, 0), 1),
    ],
)
def test_the_steps_of_a_dispatch_divide_the_epoch_and_the_run_so_that_one_program_runs_all(lengths, chosen):
    assert dispatched(*lengths) == dispatched(*lengths, platform="tpu") == chosen
    assert dispatched(*lengths, platform="cpu") == 1
    epoch, total, _ = lengths
    assert {len(steps) for steps in split_into_dispatches(range(total), chosen, epoch)} == {chosen}


def test_a_given_number_of_steps_per_dispatch_is_kept_but_on_a_cpu():
    assert dispatched(22, 2200, steps_per_dispatch=4) == 4
    assert dispatched(22, 2200, steps_per_dispatch=4, platform="cpu") == 1


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Set up an environment without CUDA plugin and cuDNN; return its package folder."""
    for plugin in training_devices.PLUGINS:
        monkeypatch.setitem(sys.modules, f"{plugin}._versions", None)  # to import it is an ImportError
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def install(packages, name, version):
    folder = packages / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def no_library():
    raise RuntimeError("cuDNN not found.")


@pytest.mark.parametrize("plugin", training_devices.PLUGINS)
@pytest.mark.parametrize("number, version", [(90800, (9, 8, 0)), (91002, (9, 10, 2)), (92800, (9, 28, 0))])
def test_the_cudnn_that_jax_has_loaded_counts_more_than_the_installed_one(
    packages, monkeypatch, plugin, number, version
):
    monkeypatch.setitem(sys.modules, f"{plugin}._versions", SimpleNamespace(cudnn_get_version=lambda: number))
    install(packages, "nvidia-cudnn-cu12", "9.12.0.46")
    assert cudnn_version() == version


@pytest.mark.parametrize("name", training_devices.CUDNN_PACKAGES)
def test_without_a_plugin_the_installed_package_gives_the_version(packages, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "jax_cuda12_plugin._versions", SimpleNamespace(cudnn_get_version=no_library))
    install(packages, name, "9.10.2.21")
    assert cudnn_version() == (9, 10, 2)


def test_without_plugin_and_package_there_is_no_cudnn(packages):
    assert cudnn_version() is None


@pytest.mark.parametrize(
    "device, version",
    [
        (FakeDevice(), (9, 11, 0)),
        (FakeDevice(), (9, 28, 0)),
        (FakeDevice(), (10, 0, 0)),
        (FakeDevice(compute_capability=6.1), (9, 11, 0)),
        (FakeDevice(compute_capability="7.2"), (9, 12, 0)),
    ],
)
def test_a_gpu_older_than_its_cudnn_is_refused_with_the_pin(device, version):
    with pytest.raises(UserError) as error:
        check_cudnn(device, version)
    found = ".".join(map(str, version))
    for part in (V100, f"capability {device.compute_capability})", f"cuDNN {found},", '".[v100]"', "cu12==9.10.2.21"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("capability", ["7.0", "9.0"])
def test_cudnn_9_10_0_is_refused_on_every_nvidia_gpu(capability):
    with pytest.raises(UserError, match=r"cuDNN 9\.10\.0.* is broken: .*nvidia-cudnn-cu12==9\.10\.2\.21"):
        check_cudnn(FakeDevice(compute_capability=capability), (9, 10, 0))


@pytest.mark.parametrize(
    "device, version",
    [
        (FakeDevice(), (9, 10, 2)),
        (FakeDevice(), (9, 8, 0)),
        (FakeDevice(), None),
        (FakeDevice(compute_capability="7.5"), (9, 28, 0)),
        (FakeDevice(compute_capability="9.0"), (9, 28, 0)),
        (FakeDevice(compute_capability="10.0"), (9, 28, 0)),  # compared as text it would come before "7.5"
        (FakeDevice(compute_capability="gfx90a"), (9, 28, 0)),
        (FakeDevice(compute_capability=None), (9, 28, 0)),
        (FakeDevice(platform="tpu"), (9, 28, 0)),
    ],
)
def test_every_other_device_passes(device, version):
    check_cudnn(device, version)


def test_a_cpu_passes_with_any_installed_cudnn():
    check_cudnn(jax.devices("cpu")[0], (9, 10, 0))


@pytest.mark.parametrize("precision", DTYPES)
def test_a_convolution_of_this_machine_is_right_in_every_precision(precision):
    check_convolution(jax.devices("cpu")[1], precision)


def test_an_exception_of_xla_becomes_one_line_that_says_what_to_do(monkeypatch):
    def fail(*_):
        raise jax.errors.JaxRuntimeError(f"INTERNAL: {'no algorithm ' * 100}\nand its stack\n")

    monkeypatch.setattr(training_devices, "convolve", fail)
    with pytest.raises(UserError) as error:
        check_convolution(jax.devices("cpu")[0], "bfloat16")
    text = str(error.value)
    for part in ("a bfloat16 convolution fails on cpu (INTERNAL: no alg", "--precision float32 or float16", "cuDNN"):
        assert part in text
    assert "\n" not in text and "stack" not in text and len(text) < 400


@pytest.mark.parametrize("fault", [TypeError, KeyboardInterrupt])
def test_a_bug_and_ctrl_c_are_not_converted(monkeypatch, fault):
    def fail(*_):
        raise fault

    monkeypatch.setattr(training_devices, "convolve", fail)
    with pytest.raises(fault):
        check_convolution(jax.devices("cpu")[0], "float32")


@pytest.mark.parametrize(
    "spoil, name",
    [
        (lambda result, image, kernel: (result.at[0, 7, 7, 63].add(1), image, kernel), "output"),
        (lambda result, image, kernel: (result.at[0, 0, 0, 0].set(np.nan), image, kernel), "output"),
        (lambda result, image, kernel: (result, image[:, ::-1], kernel), "image gradient"),
        (lambda result, image, kernel: (result, image, kernel[::-1, ::-1]), "kernel gradient"),
    ],
)
@pytest.mark.parametrize("precision", DTYPES)
def test_wrong_numbers_are_refused_and_named(monkeypatch, spoil, name, precision):
    monkeypatch.setattr(training_devices, "convolve", lambda *arrays: spoil(*convolve(*arrays)))
    with pytest.raises(UserError, match=rf"a {precision} convolution fails on cpu \(its {name} is off by"):
        check_convolution(jax.devices("cpu")[0], precision)


@pytest.mark.parametrize("error, line", [(RuntimeError(), "RuntimeError"), (RuntimeError("\n a\nb"), "a")])
def test_an_exception_without_text_is_named_by_its_class(error, line):
    assert first_line(error) == line


def test_the_cpu_is_not_tried_and_every_other_device_is(monkeypatch):
    tried = []
    monkeypatch.setattr(training_devices, "check_convolution", lambda *given: tried.append(given))
    devices = [jax.devices("cpu")[0], FakeDevice(platform="tpu"), FakeDevice(compute_capability="9.0")]
    for device in devices:
        check_device(device, "bfloat16")
    assert tried == [(device, "bfloat16") for device in devices[1:]]


def test_a_gpu_that_its_cudnn_does_not_serve_is_refused_before_anything_runs_on_it(monkeypatch):
    monkeypatch.setattr(training_devices, "cudnn_version", lambda: (9, 11, 0))
    with pytest.raises(UserError, match="too old for cuDNN 9.11.0"):
        check_device(FakeDevice(), "float16")  # a convolution on this device would be a TypeError
