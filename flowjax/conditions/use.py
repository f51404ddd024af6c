"""Conditions by name, together: learned from data, read for them, put in order."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from flowjax import _checks, specs
from flowjax.conditions.label import Label
from flowjax.data import Source


def of_data(source: Source, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Conditions by name, learned from the data.

    Args:
        source: The data.
        asked: Specs by name, such as {"label": "label", "text": "text(length=24)"}: names are entries of the catalogue,
            options those of the `learn` of their classes.

    Raises:
        ValueError: A condition that the data does not have, an unknown spec, or one that does not suit the data.
    """
    found = {}
    for name, spec in asked.items():
        rows, (kind, options) = _rows(source, name), specs.name_and_options(spec)
        make = specs.find("condition", kind).make
        if make is Label and name == "label" and "label" not in source.fields:
            options = {"classes": source.num_classes, "names": source.names} | options
        found[name] = _checks.call(f"condition {name}", make.learn, options, rows=rows)
    return found


def with_conditions(source: Source, conditions: Mapping[str, Any]) -> Source:
    """The data with its conditions as networks take them, by name; texts that are none are left out.

    Raises:
        ValueError: A condition that the data does not have or that does not suit it.
    """
    encoded = {name: condition.encode(_rows(source, name)) for name, condition in conditions.items()}
    fields = {name: rows for name, rows in source.fields.items() if rows.dtype.kind != "U"} | encoded
    if (mask := mask_of(conditions, encoded)) is not None:
        fields["mask"] = mask
    return dataclasses.replace(source, fields=fields, conditions=tuple(conditions))


def mask_of(conditions: Mapping[str, Any], encoded: Mapping[str, Any]) -> np.ndarray | None:
    """Which entries of padded sets are there, (N, entries), where one of the conditions says so."""
    masks = [condition.mask(encoded[name]) for name, condition in conditions.items() if hasattr(condition, "mask")]
    return masks[0] if masks else None


def _rows(source: Source, name: str) -> np.ndarray:
    if name == "label" and "label" not in source.fields and source.cond is not None:
        return source.cond
    if name not in source.fields:
        known = [*(["label"] if source.cond is not None else []), *source.fields]
        raise ValueError(f"the data has no condition {name!r}; it has {', '.join(known) or 'none'}")
    return np.asarray(source.fields[name])


def resized(cond: Any, first: int, batch: int) -> Any:
    """Conditions first, first + 1, ..., `batch` of them; a last block begins again with its own."""
    return jax.tree.map(lambda rows: np.resize(rows[first : first + batch], (batch, *rows.shape[1:])), cond)
