"""Count the kernels of a compiled program by kind and part, its convolutions, copies and collectives."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from segnet_jax.benchmarks.portability.compiled.hlo import Instruction, arrays

PARTS = (
    *("convolution", "batch_norm_sums", "batch_norm_apply", "pool", "unpool", "loss"),
    *("gradient_sum", "optimizer", "guard", "input"),
)
"""The scopes (`jax.named_scope`) of the steps. Kernels outside these scopes count as "layout" (copies and transposes
that the compiler adds) or "other"."""
SMALL_BYTES = 4_000_000
"""On a large GPU, a kernel that reads and writes fewer bytes takes longer to launch than to run."""
EFFICIENCIES = ((0.6, 0.8), (0.5, 0.75))  # assumed fractions of the peak rates for (convolutions, other kernels)

_PART = re.compile(rf"\b({'|'.join(PARTS)})\b")
_CONVOLUTION = re.compile(r"^__cudnn\$conv|^convolution$")
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def part_of(kernel: Instruction) -> str:
    """Return the part of the step that a kernel belongs to.

    A fusion belongs to the part of its result, or to the optimizer if it computes an update.
    """
    if is_convolution(kernel):
        return "convolution"
    if any("optimizer" in _PART.findall(name) for name in kernel.fused):
        return "optimizer"
    if named := _PART.findall(kernel.op_name):
        return named[-1]
    return "layout" if is_copy(kernel) else "other"


def is_convolution(kernel: Instruction) -> bool:
    """Return whether a kernel is a convolution, with or without a fused epilogue."""
    if kernel.operation == "fusion":  # on TPUs, a convolution is always in a fusion
        return kernel.name.startswith("convolution") or "convolution" in kernel.attribute(r"calls=%?([\w.\-]+)")
    return bool(_CONVOLUTION.match(kernel.custom_call or kernel.operation))


def is_copy(kernel: Instruction) -> bool:
    """Return whether a kernel only moves data or changes its layout."""
    return kernel.operation in ("copy", "copy-start", "transpose") or bool(
        re.match(r"(input_transpose|wrapped_transpose|wrapped_copy|loop_transpose|copy|transpose)", kernel.name)
    )


def kind_of(kernel: Instruction) -> str:
    """Return the kind of a kernel: "convolution", a collective, "reduction", "elementwise" and so on."""
    if is_convolution(kernel):
        return "convolution"
    if kernel.operation.startswith(_COLLECTIVES):
        return "collective"
    if is_copy(kernel):
        return "copy or transpose"
    if kernel.custom_call:
        return f"custom call {kernel.custom_call}"
    if kernel.operation != "fusion":
        return kernel.operation
    for word, kind in (("reduce", "reduction"), ("concatenate", "concatenation"), ("gather", "gather")):
        if word in kernel.name:
            return kind
    return "elementwise"


def count_program(kernels: Sequence[Instruction], num_images: int) -> dict[str, Any]:
    """Return the counts of a program for one device and one call, which processes `num_images`, JSON-serializable."""
    kinds, parts, small = Counter(), defaultdict(Counter), 0
    for each in (each for each in kernels if not each.operation.endswith("-done")):
        kinds[kind_of(each)] += each.count
        moved = {"kernels": 1, "bytes_read": each.bytes_read, "bytes_written": each.bytes_written}
        parts[part_of(each)].update({name: value * each.count for name, value in moved.items()})
        small += each.count * (each.bytes_read + each.bytes_written < SMALL_BYTES)
    return {
        "num_kernels": sum(kinds.values()),
        "small_kernels": small,
        "kernels": dict(kinds.most_common()),
        "mb_per_image": sum(part["bytes_read"] + part["bytes_written"] for part in parts.values()) / num_images / 1e6,
        "parts": {
            name: {
                "kernels": part["kernels"],
                "mb_read_per_image": part["bytes_read"] / num_images / 1e6,
                "mb_written_per_image": part["bytes_written"] / num_images / 1e6,
            }
            for name, part in sorted(parts.items(), key=lambda item: -item[1]["bytes_read"])
        },
        "convolutions": count_convolutions(kernels),
        "copies": count_copies(kernels, num_images),
        "collectives": count_collectives(kernels),
    }


# --- convolutions ---


def count_convolutions(kernels: Sequence[Instruction]) -> dict[str, Any]:
    """Count the convolutions by kind, window and layout, and their fused epilogues and FLOPs."""
    chosen = [each for each in kernels if is_convolution(each)]
    counted = Counter((_role(each), _window(each), _layout(each)) for each in chosen for _ in range(each.count))
    return {
        "count": sum(counted.values()),
        "windows": dict(Counter(_window(each) for each in chosen for _ in range(each.count)).most_common()),
        "by_kind": [
            {"kind": kind, "window": window, "layout": layout, "count": count}
            for (kind, window, layout), count in counted.most_common()
        ],
        "fused_epilogues": dict(Counter(filter(None, map(_epilogue, chosen)))),
        "gflop": sum(each.count * flop(each) for each in chosen) / 1e9,
    }


def _role(kernel: Instruction) -> str:
    return kernel.custom_call.removeprefix("__cudnn$") or "convolution"


def _window(kernel: Instruction) -> str:
    return kernel.attribute(r"window=\{size=([\dx]+)") or ("1x1" if kernel.custom_call else "unknown")


def _layout(kernel: Instruction) -> str:
    return kernel.attribute(r"dim_labels=([\w>\-]+)") or "unknown"


def _epilogue(kernel: Instruction) -> str:
    """Return the operations that are fused into the end of a convolution's kernel, or ""."""
    if kernel.custom_call != "__cudnn$convBiasActivationForward":
        return ""
    activation = kernel.attribute(r'"activation_mode":"k(\w+)"')
    side = " + addition" if len(kernel.operands) > 3 else ""
    return f"bias{side}" + (f" + {activation}" if activation not in ("", "None") else "")


def flop(kernel: Instruction) -> float:
    """Return the floating-point operations of a cuDNN convolution, padding included; 0 for other kernels."""
    role, layout = _role(kernel), kernel.attribute(r"dim_labels=\w+_(\w+)->")
    if not kernel.custom_call or not layout:
        return 0.0
    result = arrays(kernel.shape)[0][1]
    second = arrays(kernel.operand_shapes[1])[0][1]
    if role == "convBackwardInput":  # operands: gradient of the result, filter
        output, kernel_shape = arrays(kernel.operand_shapes[0])[0][1], second
    elif role == "convBackwardFilter":  # operands: image, gradient of the result
        output, kernel_shape = second, result
    else:
        output, kernel_shape = result, second
    return 2.0 * math.prod(output) * math.prod(kernel_shape) / kernel_shape[layout.index("o")]


def count_copies(kernels: Sequence[Instruction], num_images: int) -> dict[str, Any]:
    """Count the copies and transposes, and the megabytes that they move per image."""
    chosen = [each for each in kernels if is_copy(each)]
    moved = sum(each.count * (each.bytes_read + each.bytes_written) for each in chosen)
    return {"count": sum(each.count for each in chosen), "mb_per_image": moved / num_images / 1e6}


# --- collectives ---


def count_collectives(kernels: Sequence[Instruction]) -> list[dict[str, Any]]:
    """Return part and size of each collective, whether it is asynchronous, and the work between its start and end."""
    ends = {each.operands[0]: i for i, each in enumerate(kernels) if _is_end(each)}
    found = []
    for i, each in enumerate(kernels):
        if not each.operation.startswith(_COLLECTIVES) or _is_end(each):
            continue
        end = ends.get(each.name, i)
        between = [other for other in kernels[i + 1 : end] if not other.operation.startswith(_COLLECTIVES)]
        found.append(
            {
                "kind": each.operation.removesuffix("-start"),
                "part": part_of(each),
                "bytes": each.bytes_read,
                "arrays": len(each.operands),
                "is_async": end > i + 1 and '"is_sync":true' not in each.attributes,
                "between": {
                    "kernels": len(between),
                    "convolutions": sum(map(is_convolution, between)),
                    "bytes": sum(other.bytes_read + other.bytes_written for other in between),
                    "gflop": sum(map(flop, between)) / 1e9,
                },
            }
        )
    return found


def _is_end(kernel: Instruction) -> bool:
    return kernel.operation.startswith(_COLLECTIVES) and kernel.operation.endswith("-done")


# --- limits ---


def limits(kernels: Sequence[Instruction], num_images: int, peaks: tuple[float, float] | None) -> dict[str, Any] | None:
    """Return the time of a call if every kernel ran at the chip's peak rates, and the throughputs to expect.

    A kernel takes the time of its FLOPs or of its bytes, whichever is longer. Collectives and launches are ignored.

    Args:
      kernels: from `hlo.kernels`.
      num_images: images that one device processes in a call.
      peaks: FLOP/s and bytes/s; None if they are unknown.
    """
    if peaks is None or not any(map(flop, kernels)):
        return None
    times = {"convolutions": 0.0, "others": 0.0}
    for each in kernels:
        if not each.operation.startswith(_COLLECTIVES):
            seconds = max(flop(each) / peaks[0], (each.bytes_read + each.bytes_written) / peaks[1])
            times["convolutions" if is_convolution(each) else "others"] += each.count * seconds
    return {
        "milliseconds": {name: 1e3 * seconds for name, seconds in times.items()},
        "images_per_second": num_images / sum(times.values()),
        "at_efficiencies": [
            {
                "convolutions": of_convolutions,
                "others": of_others,
                "images_per_second": num_images
                / (times["convolutions"] / of_convolutions + times["others"] / of_others),
            }
            for of_convolutions, of_others in EFFICIENCIES
        ],
    }
