"""What all commands share: exit codes, and errors in one line."""

import os
import sys
from collections.abc import Callable

from segnet_jax.system.download import cache_folder
from segnet_jax.system.errors import ExitError, UserError


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command and leaves the process: 0 after success, 2 after a user's mistake, else as `errors` tells.

    A user's mistake is printed without a traceback, in one line, or in one for each kind where there are several; a
    fault of our own keeps its traceback.

    Args:
      main: the command; what it returns is the exit code, None for 0.
    """
    # TensorFlow, which reads data for us and computes nothing, greets at length unless told otherwise.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))  # it would write to the home folder
    try:
        code = main()
    except UserError as error:
        for line in str(error).splitlines():  # one, or one for each kind of fault
            print(f"error: {line}", file=sys.stderr)
        code = 2
    except ExitError as ending:
        print(f"error: {' '.join(str(ending).split())}" if ending.exit_code < 128 else str(ending), file=sys.stderr)
        code = ending.exit_code
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)
