"""MLflow, for who has it: each run of a sweep becomes a run there. TensorBoard needs no asking: it is in every run folder."""

import os
from collections.abc import Mapping
from typing import Any

from csat.errors import ConfigError
from csat.runs.folder import RunFolder
from csat.runs.recorder import read_metrics

KEY = "csat.run_folder"  # tag by which a run is found again: nothing is logged twice


class MlflowTracker:
    """Copies finished run folders to an MLflow server.

    Args:
        uri: Tracking URI, such as http://host:5000 or a folder.
        experiment: Name that all runs stand under; made where there is none.

    Raises:
        ConfigError: MLflow is not installed, or does not answer.
    """

    def __init__(self, uri: str, experiment: str):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        try:
            import mlflow  # optional
        except ImportError as error:
            raise ConfigError(
                f"mlflow={uri} needs the package mlflow: pip install mlflow-skinny, or leave it out (every run folder has "
                "TensorBoard's files)"
            ) from error
        try:
            self._client = mlflow.MlflowClient(tracking_uri=uri)
            found = self._client.get_experiment_by_name(experiment)
            self._experiment = found.experiment_id if found else self._client.create_experiment(experiment)
        except Exception as error:  # requests, mlflow and its stores each have their own family
            raise ConfigError(f"mlflow={uri}: cannot be used: {type(error).__name__}: {error}") from error

    def log(self, run_folder: str, *, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Log one run: parameters, tags, the validation curve and the figures of the test part."""
        folder = RunFolder(run_folder)
        quote = '"' if "'" in folder.uri else "'"
        known = self._client.search_runs([self._experiment], filter_string=f"tags.`{KEY}` = {quote}{folder.uri}{quote}")
        for run in known:
            if run.info.status != "RUNNING":
                return
            self._client.delete_run(run.info.run_id)  # an attempt that was killed while it logged
        run_id = self._client.create_run(self._experiment, tags={KEY: folder.uri, **tags}).info.run_id
        for name, value in params.items():
            self._client.log_param(run_id, name, value)
        for line in read_metrics(folder.uri, "validation"):
            for name, value in line.items():
                if isinstance(value, int | float) and name != "step":
                    self._client.log_metric(run_id, _plain(f"val/{name}"), value, step=line["step"])
        for name, figure in ((folder.read_json("evaluation.json") or {}).get("test") or {}).items():
            if figure["value"] is not None:
                self._client.log_metric(run_id, _plain(f"test/{name}"), figure["value"])
        self._client.set_terminated(run_id, "FAILED" if tags.get("state") == "failed" else "FINISHED")


def _plain(name: str) -> str:
    """MLflow allows letters, digits and a few signs in a name."""
    return "".join(sign if sign.isalnum() or sign in "_-./ " else "_" for sign in name)
