"""What a run trains, one file per kind; the train main knows nothing else about it."""

from flowjax.tasks.adaptation import Adaptation
from flowjax.tasks.autoencoding import Autoencoding
from flowjax.tasks.base import Part, Task, make_task
from flowjax.tasks.classification import ClassifierTraining
from flowjax.tasks.distillation import Distillation
from flowjax.tasks.generation import Generation
from flowjax.tasks.program import Program, make_program
from flowjax.tasks.regression import RegressionTraining
