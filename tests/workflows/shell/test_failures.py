"""A stream that stood still is told in our words, also where the error came through a worker and a controller."""

import pytest
from ray import cloudpickle
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayTaskError
from ray.train import TrainingFailedError
from ray.train.v2.api.exceptions import WorkerGroupError

from workflows.shell.failures import reason

RAYS = """Dataset execution made no progress for at least 10s of scheduling time (timeout: 10s). No output was taken.
Operators still running:
  - MapBatches(PlannedReader): 0 active task(s), 9 finished, 9 outputs taken
  - MapBatches(TeacherStage): {} active task(s), 2 finished, 2 outputs taken
If this is expected, raise the timeout for this Dataset with `ds.context.execution_no_progress_timeout_s = <seconds>`."""


def through_ray(error: Exception) -> TrainingFailedError:
    """As a driver gets it: raised in the coordinator, met by a worker, told by the controller."""
    met = RayTaskError("next", f"Traceback …\n{type(error).__name__}: {error}", error).as_instanceof_cause()
    return cloudpickle.loads(cloudpickle.dumps(WorkerGroupError(f"[Rank 0 Error Snippet]:\n{met}", {0: met})))


@pytest.mark.parametrize(
    ("at_work", "told"), [(1, "waited for TeacherStage (1 at work)"), (0, "waited for a free CPU or GPU")]
)
def test_a_stream_that_stood_still(at_work, told):
    said = reason(through_ray(ExecutionTimeoutError(RAYS.format(at_work))))
    assert told in said and "Raise ray.stall_timeout_s" in said and "execution_no_progress" not in said


def test_any_other_error_has_its_own_last_line():
    assert reason(through_ray(ValueError("broken"))) == "ValueError: broken"
    assert reason(RuntimeError("first\nValueError: second")) == "ValueError: second"


def test_what_a_stage_raised_is_told_and_not_rays_word_for_it():
    text = """ray::MapBatches(AnswerStage)() (pid=7, ip=127.0.0.1)
ValueError: cannot bear this tile

The above exception was the direct cause of the following exception:

ray::MapBatches(AnswerStage)() (pid=7, ip=127.0.0.1)
csat.errors.TeacherError: model 'a' failed on a whole batch

The above exception was the direct cause of the following exception:

ray::MapBatches(AnswerStage)() (pid=7, ip=127.0.0.1)
ray.exceptions.UserCodeException: UDF failed to process a data block."""
    assert reason(RuntimeError(text)) == "model 'a' failed on a whole batch"
