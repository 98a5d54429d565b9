"""The tasks that ``tools/train_task.py`` trains, by name."""

from tasks import copying_models, induction_models
from tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (copying_models.TASK, induction_models.TASK)}
