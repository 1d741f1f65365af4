"""XLA compiler options for programs on GPUs, passed with the program or in `XLA_FLAGS`."""


def gpu_options(are_several: bool, deterministic: bool) -> dict[str, bool]:
    """Return the XLA options for programs on GPUs.

    Args:
      are_several: whether there are several GPUs, so that the all-reduce of gradients should overlap with the backward
        pass of earlier layers.
      deterministic: whether to use only operations with a fixed order of summation, and the first algorithm of each
        instead of the autotuned one, which may differ from run to run.
    """
    overlap = {"xla_gpu_enable_latency_hiding_scheduler": True} if are_several else {}
    return overlap | ({"xla_gpu_deterministic_ops": True} if deterministic else {})


def with_options(xla_flags: str, options: dict[str, bool]) -> str:
    """Add the options that `xla_flags` does not set, or return it unchanged if it names a file of flags."""
    if xla_flags.strip() and not xla_flags.lstrip().startswith("-"):
        return xla_flags
    existing = {flag.partition("=")[0] for flag in xla_flags.split()}
    added = (f"--{name}={str(value).lower()}" for name, value in options.items() if f"--{name}" not in existing)
    return " ".join([*xla_flags.split(), *added])
