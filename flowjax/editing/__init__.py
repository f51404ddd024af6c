"""Editing of pictures (or of any examples) by a flow from noise, with any field, solver and guidance.

Each edit is one function with a name in the catalogue, kind "edit": what it is given by a recipe (field, solver, times,
noise, pictures, masks, conditions) are arguments of fixed names, its own settings all others.
"""

from flowjax.editing._given import GIVEN
from flowjax.editing.inpaint import inpaint
from flowjax.editing.interpolate import interpolate, slerp
from flowjax.editing.invert import invert
from flowjax.editing.restore import restore
from flowjax.editing.sdedit import sdedit
from flowjax.editing.translate import translate
