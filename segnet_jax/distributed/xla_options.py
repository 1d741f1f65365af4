"""The options that XLA is given for programs on GPUs, with the program or in `XLA_FLAGS`."""


def gpu_options(are_several: bool, deterministic: bool) -> dict[str, bool]:
    """What XLA is told of programs for GPUs.

    Args:
      are_several: of several GPUs the gradients of the last layers are summed while the first layers' are still
        computed.
      deterministic: only operations are taken that sum in a fixed order, and of the algorithms of an operation the
        first, not the one that a trial has found the fastest, which may be another at every start.
    """
    overlap = {"xla_gpu_enable_latency_hiding_scheduler": True} if are_several else {}
    return overlap | ({"xla_gpu_deterministic_ops": True} if deterministic else {})


def with_options(xla_flags: str, options: dict[str, bool]) -> str:
    """The text of `XLA_FLAGS` with further options, but those that it has; the name of a file of flags stays alone."""
    if xla_flags.strip() and not xla_flags.lstrip().startswith("-"):
        return xla_flags
    there = {flag.partition("=")[0] for flag in xla_flags.split()}
    added = (f"--{name}={str(value).lower()}" for name, value in options.items() if f"--{name}" not in there)
    return " ".join([*xla_flags.split(), *added])
