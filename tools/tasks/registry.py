"""The tasks that ``tools/train_task.py`` trains, by name."""

from tasks import copying_models, induction_models, plant_forecast
from tasks.task import Task

_ALL = (copying_models.TASK, induction_models.TASK, plant_forecast.TASK)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}
