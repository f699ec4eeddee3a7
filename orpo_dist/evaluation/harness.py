"""Standard tasks through EleutherAI's lm-evaluation-harness, where that is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orpo_dist.base.outage import is_outage
from orpo_dist.base.types import TemporaryFailure, UserError
from orpo_dist.engines.runtime import ALONE, Runtime
from orpo_dist.models.trained import TrainedModel, load


def find_tasks(tasks: Sequence[str], tasks_path: str | None = None, here: Runtime = ALONE) -> Any:
    """The harness's ``TaskManager``. tasks_path: a folder of further task definitions.

    here: the process among others. Raises ``UserError`` without the harness, for unknown tasks, and
    in a launch of several processes, which the harness would have to share out itself.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(
            f"tasks: need lm-evaluation-harness ({error}): pip install 'orpo_dist[harness]'"
        ) from error
    if here.world_size > 1:
        raise UserError("tasks: run on one process; leave --tasks out of the launch")
    manager = TaskManager(include_path=tasks_path)
    for task in tasks:
        if not manager.match_tasks([task]):
            raise UserError(f"tasks {task}: lm-evaluation-harness has no such task")
    return manager


def run_tasks(
    model: TrainedModel | str,
    tasks: Sequence[str],
    tasks_path: str | None = None,
    limit: int | None = None,
    here: Runtime = ALONE,
) -> dict[str, dict[str, Any]]:
    """The harness's metrics by task; ``UserError`` as in ``find_tasks``."""
    manager = find_tasks(tasks, tasks_path, here)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    handle = model if isinstance(model, TrainedModel) else load(model)
    judged = HFLM(pretrained=handle.model, tokenizer=handle.tokenizer, batch_size=8)
    try:
        found = simple_evaluate(
            judged, tasks=list(tasks), task_manager=manager, limit=limit, log_samples=False
        )
    except (OSError, ConnectionError) as error:  # the data of most tasks come from the hub
        reason = str(error).strip().partition("\n")[0]
        if is_outage(error):
            raise TemporaryFailure(f"tasks {','.join(tasks)}: no data now ({reason})") from error
        raise UserError(f"tasks {','.join(tasks)}: cannot be run ({reason})") from error
    return {name: dict(metrics) for name, metrics in found["results"].items()}
