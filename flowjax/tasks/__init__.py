"""What a run trains, one file per kind; the train main knows nothing else about it."""

from flowjax.tasks.autoencoding import Autoencoding
from flowjax.tasks.base import Part, Task, make_task
from flowjax.tasks.generation import Generation
