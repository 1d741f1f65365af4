"""The names that `segnet_jax.__getattr__` imports when they are first used, for type checkers and editors."""

from segnet_jax.api import Callback as Callback
from segnet_jax.api import Config as Config
from segnet_jax.api import Curve as Curve
from segnet_jax.api import EvaluationResult as EvaluationResult
from segnet_jax.api import Loss as Loss
from segnet_jax.api import Run as Run
from segnet_jax.api import Scores as Scores
from segnet_jax.api import TrainedNetwork as TrainedNetwork
from segnet_jax.api import evaluate as evaluate
from segnet_jax.api import load as load
from segnet_jax.api import train as train

__all__ = ["Callback", "Config", "Curve", "EvaluationResult", "Loss"]
__all__ += ["Run", "Scores", "TrainedNetwork", "evaluate", "load", "train"]
__version__: str
