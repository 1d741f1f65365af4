"""`--profile N`: a `jax.profiler` trace of a few training steps in the run folder."""

import contextlib
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from segnet_jax.system import untrusted_files

logger = logging.getLogger(__name__)

FOLDER = "profile"
_SKIPPED = 2  # calls before the trace: the first one compiles


@contextlib.contextmanager
def profiled(train: Callable, folder: pathlib.Path, num_steps: int, is_writer: bool) -> Iterator[Callable]:
    """Yield the training step, wrapped so that some of its calls are traced; end an incomplete trace on exit.

    Args:
      train: function (state, inputs) -> (state, metrics [K] of K steps).
      folder: run folder.
      num_steps: number of steps to trace, rounded up to whole calls; 0 yields `train` itself.
      is_writer: whether this process writes; other processes trace nothing.
    """
    if not num_steps or not is_writer:
        yield train
        return
    trace = _Trace(train, folder, num_steps)
    try:
        yield trace
    finally:
        trace.end()


class _Trace:
    def __init__(self, train: Callable, folder: pathlib.Path, num_steps: int):
        self._train, self._folder, self._num_steps = train, folder, num_steps
        self._num_calls = self._num_traced = 0
        self._is_tracing = False

    def __call__(self, state: Any, inputs: Any) -> tuple[Any, dict[str, jax.Array]]:
        if self._num_calls == _SKIPPED:
            jax.block_until_ready(state)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # only devices are of interest, and the Python tracer may crash
            folder = untrusted_files.make_folder(self._folder, FOLDER)
            jax.profiler.start_trace(str(folder), profiler_options=options)
            self._is_tracing = True
        self._num_calls += 1
        state, metrics = self._train(state, inputs)
        if self._is_tracing:
            self._num_traced += len(metrics["loss"])
            if self._num_traced >= self._num_steps:
                jax.block_until_ready(metrics)
                self.end()
        return state, metrics

    def end(self) -> None:
        """End the trace and log its location; warn if nothing was traced."""
        if self._is_tracing:
            jax.profiler.stop_trace()
            self._is_tracing = False
            logger.info(
                f"profile  {self._num_traced} steps in {self._folder / FOLDER}: open it with xprof, or in "
                "TensorBoard with its profile plugin"
            )
        elif not self._num_traced:
            logger.warning(f"nothing was traced: --profile needs more than {_SKIPPED} calls of the training step")
