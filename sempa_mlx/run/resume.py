"""Continue a run from the newest sound checkpoint in its folder."""

import time

from sempa_mlx.errors import Problem, RunError, UsageError
from sempa_mlx.run.folder import CHECKPOINTS
from sempa_mlx.run.training_run import TrainingRun
from sempa_mlx.training.checkpoint import differences, latest_checkpoint
from sempa_mlx.training.trainer import Progress


def resume(run: TrainingRun) -> tuple[Problem, ...]:
    """Put a prepared run where its newest sound checkpoint left off.

    Returns:
        Newer checkpoints that had to be passed over, and why.

    Raises:
        RunError: there is no sound checkpoint.
        UsageError: the checkpoint belongs to other settings, data or weights; all differences. Or
            the run would end before it.
    """
    folder = run.folder / CHECKPOINTS
    found = latest_checkpoint(folder)
    if found.checkpoint is None:
        none = Problem("no checkpoint to resume from", str(folder), fix="start again with --force")
        raise RunError([none, *found.skipped], state="nothing was started")
    checkpoint = found.checkpoint
    others = differences(checkpoint.identity, run.identity)
    if others:
        raise UsageError(
            [
                Problem(f"{name}: {found_value} in the checkpoint, {wanted} now", str(folder))
                for name, found_value, wanted in others
            ],
            state=f"the run of step {checkpoint.step} is as it was; --force starts another",
        )
    if checkpoint.step > run.trainer.num_steps:
        what = f"step {checkpoint.step} is done, and the run now has {run.trainer.num_steps}"
        fix = f"ask for {checkpoint.step} or more: --iters"
        raise UsageError(Problem(what, str(folder), fix=fix), state="the run is as it was")
    state = checkpoint.state
    run.trainer.restore(Progress(**state["progress"]), checkpoint.adapter, checkpoint.optimizer)
    undefined = float("nan")
    run.scores = {
        step: undefined if score is None else score for step, score in state["scores"].items()
    }
    run.started = time.perf_counter() - state["seconds"]
    run.num_lines = state["num_lines"]
    run.best_weights = checkpoint.best or checkpoint.adapter
    return found.skipped
