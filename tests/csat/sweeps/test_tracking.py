import json
import sys

import pytest

from csat.errors import ConfigError
from csat.sweeps.tracking import MlflowTracker
from tests.support.made_up_sweeps import write_trial

TAGS = {"data_set": "lung", "start": "rckd", "state": "finished"}


def test_without_mlflow_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match="pip install mlflow-skinny"):
        MlflowTracker("http://localhost:1", "sweep")


@pytest.mark.slow
class TestWithMlflow:
    @pytest.fixture(scope="class")
    def uri(self, tmp_path_factory):
        pytest.importorskip("mlflow")
        return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"

    @pytest.fixture(scope="class")
    def tracker(self, uri):
        return MlflowTracker(uri, "sweep")

    def runs(self, tracker):
        return tracker._client.search_runs([tracker._experiment])

    def test_a_run_is_logged_once_with_its_curve(self, uri, tracker, tmp_path):
        place = write_trial(tmp_path / "it's", [0.2, 0.4])
        (tmp_path / "it's" / "evaluation.json").write_text(
            json.dumps({"test": {"dice": {"value": 0.7}, "recall/a (b)": {"value": None}, "f1/a (b)": {"value": 0.5}}})
        )
        for again in (tracker, MlflowTracker(uri, "sweep")):
            again.log(place, params={"train.optim.lr": 0.01}, tags=TAGS)
        (run,) = self.runs(tracker)
        assert run.data.params == {"train.optim.lr": "0.01"}
        assert run.data.tags["data_set"] == "lung"
        assert run.data.metrics["val/metric"] == 0.4
        assert run.data.metrics["test/dice"] == 0.7
        assert run.data.metrics["test/f1/a _b_"] == 0.5
        assert [each.value for each in tracker._client.get_metric_history(run.info.run_id, "val/metric")] == [0.2, 0.4]
        assert run.info.status == "FINISHED"

    def test_a_log_that_was_cut_off_is_made_anew(self, tracker, tmp_path):
        place = write_trial(tmp_path / "cut", [0.3], state="failed", error="nan")
        tracker._client.create_run(tracker._experiment, tags={"csat.run_folder": place})
        tracker.log(place, params={}, tags={**TAGS, "state": "failed"})
        (run,) = [run for run in self.runs(tracker) if run.data.tags["csat.run_folder"] == place]
        assert run.info.status == "FAILED"
        assert run.data.metrics["val/metric"] == 0.3

    def test_a_place_that_cannot_be_used(self):
        with pytest.raises(ConfigError, match="cannot be used"):
            MlflowTracker("nonsense://here", "sweep")
