"""The tasks that ``tools/train_task.py`` trains, by name."""

from tasks import audio_tones, copying_models, dna_islands, induction_models, plant_forecast
from tasks.task import Task

_ALL = (
    copying_models.TASK,
    induction_models.TASK,
    plant_forecast.TASK,
    dna_islands.TASK,
    audio_tones.TASK,
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}
