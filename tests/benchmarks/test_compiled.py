"""Test how `portability compile` reads and counts an optimized program, and reports missing compilers."""

import json
import sys

import pytest

from segnet_jax import portability
from segnet_jax.benchmarks.portability.compiled import chips, command
from segnet_jax.benchmarks.portability.compiled.counts import count_program, flop, limits
from segnet_jax.benchmarks.portability.compiled.hlo import kernels, num_bytes
from segnet_jax.benchmarks.portability.compiled.report import compare_programs
from segnet_jax.benchmarks.roofline import PEAKS
from segnet_jax.system.command import run_command
from segnet_jax.system.errors import UserError

# As XLA writes it: a convolution with bias, a reduction in a loop of three iterations, an optimizer's update fused with
# the guard's selection, an asynchronous all-reduce around the convolution's gradient, and a synchronous one.
PROGRAM = """HloModule jit_step, is_scheduled=true, entry_computation_layout={()->f32[]}

%fused_reduce (param_0: bf16[2,4,4,8]) -> f32[8] {
  %param_0 = bf16[2,4,4,8]{3,2,1,0} parameter(0)
  ROOT %reduce.1 = f32[8]{0} reduce(%param_0), metadata={op_name="jit(step)/batch_norm_sums/reduce_sum"}
}

%fused_update (param_0.1: f32[3,3,8,8], param_1.1: f32[3,3,8,8]) -> f32[3,3,8,8] {
  %param_0.1 = f32[3,3,8,8]{3,2,1,0} parameter(0)
  %param_1.1 = f32[3,3,8,8]{3,2,1,0} parameter(1)
  %add.1 = f32[3,3,8,8]{3,2,1,0} add(%param_0.1, %param_1.1), metadata={op_name="jit(step)/optimizer/add"}
  ROOT %select.1 = f32[3,3,8,8]{3,2,1,0} copy(%add.1), metadata={op_name="jit(step)/guard/select_n"}
}

%body (carry: (s32[], bf16[2,4,4,8])) -> (s32[], bf16[2,4,4,8]) {
  %carry = (s32[], bf16[2,4,4,8]{3,2,1,0}) parameter(0)
  %x = bf16[2,4,4,8]{3,2,1,0} get-tuple-element(%carry), index=1
  %i = s32[] get-tuple-element(%carry), index=0
  %input_reduce_fusion.1 = f32[8]{0} fusion(%x), kind=kInput, calls=%fused_reduce, metadata={op_name="jit(step)/batch_norm_sums/reduce_sum"}
  ROOT %next = (s32[], bf16[2,4,4,8]{3,2,1,0}) tuple(%i, %x)
}

%condition (carry.1: (s32[], bf16[2,4,4,8])) -> pred[] {
  %carry.1 = (s32[], bf16[2,4,4,8]{3,2,1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (image: bf16[2,4,4,8], kernel: bf16[8,3,3,8], momentum: f32[3,3,8,8], params: f32[3,3,8,8], /*index=4*/bias: f32[8]) -> f32[] {
  %image = bf16[2,4,4,8]{3,2,1,0} parameter(0)
  %kernel = bf16[8,3,3,8]{3,2,1,0} parameter(1)
  %momentum = f32[3,3,8,8]{3,2,1,0} parameter(2)
  %params = f32[3,3,8,8]{3,2,1,0} parameter(3)
  %bias = f32[8]{0} parameter(4)
  %conv.1 = (bf16[2,4,4,8]{3,2,1,0}, u8[0]{0}) custom-call(%image, %kernel, %bias), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBiasActivationForward", metadata={op_name="jit(step)/convolution/conv"}, backend_config={"cudnn_conv_backend_config":{"activation_mode":"kRelu"}}
  %y = bf16[2,4,4,8]{3,2,1,0} get-tuple-element(%conv.1), index=0
  %zero = s32[] constant(0)
  %start = (s32[], bf16[2,4,4,8]{3,2,1,0}) tuple(%zero, /*index=1*/%y)
  %while.1 = (s32[], bf16[2,4,4,8]{3,2,1,0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %all-reduce-start = f32[3,3,8,8]{3,2,1,0} all-reduce-start(%momentum), replica_groups={{0,1}}, to_apply=%add, metadata={op_name="jit(step)/gradient_sum/psum"}
  %conv.2 = (bf16[8,3,3,8]{3,2,1,0}, u8[0]{0}) custom-call(%image, %y), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %all-reduce-done = f32[3,3,8,8]{3,2,1,0} all-reduce-done(%all-reduce-start)
  %all-reduce-start.1 = f32[8]{0} all-reduce-start(%bias), replica_groups={{0,1}}, to_apply=%add, metadata={op_name="jit(step)/batch_norm_sums/psum"}, backend_config={"collective_backend_config":{"is_sync":true}}
  %all-reduce-done.1 = f32[8]{0} all-reduce-done(%all-reduce-start.1)
  %copy.1 = f32[3,3,8,8]{3,2,1,0} copy(%params)
  ROOT %loop_select_fusion = f32[3,3,8,8]{3,2,1,0} fusion(%copy.1, %all-reduce-done), kind=kLoop, calls=%fused_update, metadata={op_name="jit(step)/guard/select_n"}
}
"""  # noqa: E501
MAP, KERNEL = 2 * 4 * 4 * 8 * 2, 8 * 3 * 3 * 8  # bytes of a feature map; elements of a kernel


def test_bytes_of_shapes_are_those_of_their_arrays():
    assert num_bytes("(bf16[16,360,480,64]{3,2,1,0}, u8[0]{0})") == 16 * 360 * 480 * 64 * 2
    assert num_bytes("(f32[], pred[3]{0}, s32[2,2])") == 4 + 3 + 16
    assert num_bytes("token[]") == 0


def test_kernels_are_listed_with_their_operands_and_trip_counts():
    listed = {each.name: each for each in kernels(PROGRAM)}
    assert list(listed) == [
        *("conv.1", "input_reduce_fusion.1", "all-reduce-start", "conv.2", "all-reduce-done"),
        *("all-reduce-start.1", "all-reduce-done.1", "copy.1", "loop_select_fusion"),
    ]
    assert listed["input_reduce_fusion.1"].count == 3
    assert (listed["conv.1"].bytes_read, listed["conv.1"].bytes_written) == (MAP + 2 * KERNEL + 4 * 8, MAP)


SLICING = """%fused_slice (param_0: f32[100], param_1: s32[], param_2: f32[8]) -> f32[8] {
  %param_0 = f32[100]{0} parameter(0)
  %param_1 = s32[] parameter(1)
  %dynamic-slice.1 = f32[8]{0} dynamic-slice(%param_0, %param_1), dynamic_slice_sizes={8}
  %slice.1 = f32[4]{0} slice(%param_0), slice={[0:4]}
  %param_2 = f32[8]{0} parameter(2)
  ROOT %add.1 = f32[8]{0} add(%dynamic-slice.1, %param_2)
}

ENTRY %main (all: f32[100], start: s32[], other: f32[8]) -> f32[8] {
  %all = f32[100]{0} parameter(0)
  %start = s32[] parameter(1)
  %other = f32[8]{0} parameter(2)
  %slice.2 = f32[8]{0} slice(%all), slice={[0:8]}
  ROOT %fusion.1 = f32[8]{0} fusion(%all, %start, %other), kind=kLoop, calls=%fused_slice
}
"""


def test_of_an_array_that_is_only_sliced_the_slices_are_read():
    plain, fused = kernels(SLICING)
    assert (plain.bytes_read, fused.bytes_read) == (4 * 8, 4 * (8 + 4) + 4 + 4 * 8)


def test_a_program_is_counted_by_kind_and_part():
    counted = count_program(kernels(PROGRAM), num_images=2)
    assert counted["kernels"] == {
        **{"reduction": 3, "convolution": 2, "collective": 2, "copy or transpose": 1, "elementwise": 1}
    }
    assert counted["num_kernels"] == counted["small_kernels"] == 9
    parts = counted["parts"]
    assert {name: part["kernels"] for name, part in parts.items()} == {
        **{"convolution": 2, "batch_norm_sums": 4, "gradient_sum": 1, "layout": 1, "optimizer": 1}
    }
    assert parts["batch_norm_sums"]["mb_read_per_image"] == pytest.approx((3 * MAP + 32) / 2 / 1e6)
    assert parts["optimizer"]["mb_written_per_image"] == pytest.approx(4 * KERNEL / 2 / 1e6)
    assert counted["copies"] == {"count": 1, "mb_per_image": pytest.approx(8 * KERNEL / 2 / 1e6)}


def test_convolutions_are_counted_with_window_layout_epilogue_and_flops():
    listed = kernels(PROGRAM)
    counted = count_program(listed, num_images=2)["convolutions"]
    assert counted["windows"] == {"3x3": 2} and counted["fused_epilogues"] == {"bias + Relu": 1}
    assert {(each["kind"], each["layout"]) for each in counted["by_kind"]} == {
        ("convBiasActivationForward", "b01f_o01i->b01f"),
        ("convBackwardFilter", "b01f_o01i->b01f"),
    }
    of_one = 2 * (2 * 4 * 4) * 9 * 8 * 8  # two per multiply-add
    assert [flop(each) for each in listed if each.custom_call] == [of_one, of_one]
    assert counted["gflop"] == pytest.approx(2 * of_one / 1e9)


def test_collectives_are_asynchronous_only_if_something_may_run_meanwhile():
    gradient, statistics = count_program(kernels(PROGRAM), num_images=2)["collectives"]
    assert gradient["is_async"] and gradient["part"] == "gradient_sum" and gradient["bytes"] == 4 * KERNEL
    assert gradient["between"]["kernels"] == gradient["between"]["convolutions"] == 1
    assert not statistics["is_async"] and statistics["part"] == "batch_norm_sums"


def test_the_limit_takes_the_slower_of_compute_and_memory_for_each_kernel():
    listed = kernels(PROGRAM)
    slow_memory = limits(listed, 2, (1e30, 1e6))
    moved = sum(
        each.count * (each.bytes_read + each.bytes_written) for each in listed if "all-reduce" not in each.operation
    )
    assert sum(slow_memory["milliseconds"].values()) == pytest.approx(moved / 1e3)
    slow_compute = limits(listed, 2, (1e6, 1e30))
    assert slow_compute["milliseconds"]["convolutions"] == pytest.approx(2 * 2 * 32 * 9 * 64 / 1e3)
    half = limits(listed, 2, (1e6, 1e30))["at_efficiencies"][1]
    assert half["images_per_second"] == pytest.approx(slow_compute["images_per_second"] / 2)
    assert limits(listed, 2, None) is None


def test_a_loop_without_a_trip_count_is_refused():
    with pytest.raises(ValueError, match="trip_count"):
        kernels(PROGRAM.replace("known_trip_count", "unknown"))


# --- chips ---


@pytest.mark.parametrize("name", chips.chip_names())
def test_every_chip_has_sources_and_peak_rates(name):
    chip = chips.read_chip(name)
    assert chip.sources and chip.precision in PEAKS[chip.device_kind][0]
    if chip.platform == "cuda":
        assert chip.device["memory_bandwidth"] == pytest.approx(PEAKS[chip.device_kind][1] * 1e9, rel=0.01)
        assert f'name: "{chip.device["name"]}"' in chip.target_config
    else:
        assert all(f"{chip.name}:" in topology for topology in chip.topologies.values())


def test_text_protos_are_nested():
    assert chips.proto_text({"a": {"b": 1, "c": "x"}, "d": 2.5}) == 'a { b: 1\nc: "x" }\nd: 2.5'


def run(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["portability", *map(str, flags)])
    with pytest.raises(SystemExit) as left:
        run_command(portability.main)
    return left.value.code


@pytest.mark.parametrize("target, what", [("h200", "CUDA plugin"), ("v5e", "libtpu")])
def test_a_missing_compiler_is_reported_in_one_line(monkeypatch, capsys, tmp_path, target, what):
    monkeypatch.setattr(chips, "_is_importable", lambda module: False)
    assert run(monkeypatch, "compile", "--target", target, "--json", tmp_path / "x.json") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert what in line and 'pip install "segnet_jax[aot]"' in line
    assert not (tmp_path / "x.json").exists()


def fake_ptxas(folder, known):
    folder.mkdir()
    path = folder / "ptxas"
    path.write_text(f'#!/bin/sh\necho "Cuda compilation tools, release 13.0, V13.0.88"; echo "{known}"\n')
    path.chmod(0o755)
    return path


def test_a_missing_or_too_new_ptxas_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(chips, "_ptxas_candidates", lambda: [])
    with pytest.raises(UserError, match="ptxas, NVIDIA's assembler, was not found"):
        chips.find_ptxas("sm_90")
    new = fake_ptxas(tmp_path / "new", "'sm_75', 'sm_90'; sm_70 or higher")
    monkeypatch.setattr(chips, "_ptxas_candidates", lambda: [new])
    assert chips.find_ptxas("sm_90") == (new, "13.0.88")
    with pytest.raises(UserError, match=r"ptxas 13\.0\.88 does not support sm_70; install"):
        chips.find_ptxas("sm_70")
    old = fake_ptxas(tmp_path / "old", "'sm_70', 'sm_90'")
    monkeypatch.setattr(chips, "_ptxas_candidates", lambda: [new, old])
    assert chips.find_ptxas("sm_70")[0] == old


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "add --target NAME --json FILE"),
        (["--target", "h300", "--json", "x.json"], "--target must be one of a100, h100, h200"),
        (["--target", "h200", "--json", "x.json", "--programs", "trian"], "--programs must be from train"),
        (["--target", "h200", "--json", "no/x.json"], "there is no folder no"),
        (["--target", "h200", "--json", "x.json", "--devces", "8"], "--devces"),
    ],
)
def test_wrong_flags_are_reported_in_one_line(monkeypatch, capsys, tmp_path, flags, message):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "compile", *flags) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_programs_are_added_to_a_file_of_the_same_settings(tmp_path):
    file = written(tmp_path, "now.json")
    content = json.loads(file.read_text()) | {"commit": None, "experiment": {"optimizer": "lion"}}
    file.write_text(json.dumps(content))
    assert command._earlier_programs(str(file), content) == content["programs"]
    for change in ({"precision": "float16"}, {"commit": "another"}, {"config": {}}, {"experiment": {}}):
        assert command._earlier_programs(str(file), content | change) == {}
    assert command._earlier_programs(str(tmp_path / "none.json"), content) == {}


# --- the report ---


def written(tmp_path, name, kernels_=500, **changes):
    counted = count_program(kernels(PROGRAM), num_images=2)
    program = {**counted, "num_kernels": kernels_, "compile_seconds": 1.0, "limit": limits(kernels(PROGRAM), 2, (1, 1))}
    program |= {"memory": {"temporary": 2e6, "peak": 3e6}, "compiler_analysis": {}}
    content = {
        **{"compiled": 1, "date": "2026-01-01", "versions": {"jax": "1"}, "precision": "bfloat16", "num_devices": 1},
        "target": {"name": "h200", "device_kind": "H200", "sources": []},
        "config": {"image_size": [8, 8], "batch_size_per_device": 2},
        "programs": {"train": program},
        **changes,
    }
    (tmp_path / name).write_text(json.dumps(content))
    return tmp_path / name


def test_the_report_sets_targets_side_by_side_and_lists_what_changed(monkeypatch, capsys, tmp_path):
    now, old = written(tmp_path, "now.json"), written(tmp_path, "old.json", kernels_=625)
    more = written(tmp_path, "more.json", num_devices=8)
    assert run(monkeypatch, "report", now, more, "--against", old, "--out", tmp_path / "r.md") == 0
    page = (tmp_path / "r.md").read_text()
    assert "| kernels | 500 | 500 |" in page
    assert "| kernels | 625 -> 500 (-20.0 %) | - |" in page
    assert "no earlier file has the same target and settings as 8 x h200, batch 2" in page
    comparison = compare_programs([json.loads(now.read_text())], [json.loads(now.read_text())])
    assert [title for title, _ in comparison.sections] == ["Target", "Step: train"]  # nothing changed


def test_files_of_compile_and_of_measure_are_not_mixed(monkeypatch, capsys, tmp_path):
    measured = tmp_path / "measured.json"
    measured.write_text('{"portability": 1, "precisions": {}}')
    for flags in ([written(tmp_path, "now.json"), measured], [measured, "--against", measured]):
        assert run(monkeypatch, "report", *flags) == 2
        assert "report compares files of measure or of compile" in capsys.readouterr().err
