"""Log to MLflow (`--logger mlflow`), which needs the package mlflow.

MLflow's environment variables apply: MLFLOW_TRACKING_URI is the address of a server or, by default, a local database.
"""

import os
import pathlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

_MOST_AT_ONCE = 100  # parameters that MLflow accepts in one call
_LONGEST = 500  # characters of a parameter that every version of MLflow accepts


class MlflowLogger:
    """A run of MLflow.

    Args:
      folder: run folder, which gives the MLflow run its name.
      run_id: id of the MLflow run to continue; if it does not exist, a new run is created.

    Attributes:
      run_id: id of the MLflow run.
    """

    def __init__(self, folder: pathlib.Path, run_id: str):
        from mlflow import entities
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self._entities, self._client = entities, MlflowClient()
        try:
            self._client.update_run(run_id, status="RUNNING")
            self.run_id = run_id
        except MlflowException:  # no run has this id
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "segnet_jax")
            known = self._client.get_experiment_by_name(name)
            experiment = known.experiment_id if known else self._client.create_experiment(name)
            self.run_id = self._client.create_run(experiment, run_name=folder.resolve().name).info.run_id

    def describe(self, hyperparameters: Mapping[str, Any], classes: Sequence[str]) -> None:
        """See `Logger`."""
        known = self._client.get_run(self.run_id).data.params  # MLflow does not allow changing them
        values = {**hyperparameters, "classes": ", ".join(classes)}
        new = [(name, str(value)[:_LONGEST]) for name, value in values.items() if name not in known]
        for first in range(0, len(new), _MOST_AT_ONCE):
            batch = [self._entities.Param(*each) for each in new[first : first + _MOST_AT_ONCE]]
            self._client.log_batch(self.run_id, params=batch)

    def numbers(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """See `Logger`."""
        now = int(time.time() * 1000)
        names = {re.sub(r"[^\w./ -]", "_", f"{kind}/{name}", flags=re.ASCII): value for name, value in values.items()}
        metrics = [self._entities.Metric(name, value, now, step) for name, value in names.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def picture(self, name: str, step: int, path: pathlib.Path) -> None:
        """See `Logger`; the file name contains the step."""
        self._client.log_artifact(self.run_id, str(path), name)

    def close(self) -> None:
        """See `Logger`."""
        self._client.set_terminated(self.run_id)
