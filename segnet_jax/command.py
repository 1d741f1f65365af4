"""What all commands share: exit codes, and errors in one line."""

import os
import sys
from collections.abc import Callable

from segnet_jax.errors import UserError


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command and leaves the process: 0 after success, 2 after a user's mistake, 130 after Ctrl-C.

    A user's mistake is printed as one line without a traceback; a fault of our own keeps its traceback.

    Args:
      main: the command; what it returns is the exit code, None for 0.
    """
    # TensorFlow, which reads data for us and computes nothing, greets at length unless told otherwise.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        code = main()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)
