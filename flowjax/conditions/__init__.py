"""What a flow can be asked for: conditions by name, each with the shape and the null it has, read from command lines.

A condition with `mask` says which of the `entries` of a padded set there are; its null is None, and nothing drops it;
its `check_details` refuses data whose entries have another shape than the condition makes.

A recipe names them: {"label": {"name": "label", "options": {"classes": 10}}}. A network then gets the dict
{"label": (B,) int32}; recipes without names give a bare label, as `cond`. A task learns them from the data: the
condition "label" from the labels, others from the fields of their names.
"""

from flowjax.conditions.example import Example, Mask
from flowjax.conditions.label import Label
from flowjax.conditions.picture import Picture
from flowjax.conditions.text import EXAMPLES, Text
from flowjax.conditions.use import mask_of, of_data, resized, with_conditions
from flowjax.conditions.vector import Vector
