"""Pairs of noise and sample that a trained flow draws, in a folder from which others learn."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from flowjax.calibration.store import model_hash
from flowjax.data import Pairs
from flowjax.keys import noise
from flowjax.launch import check_shared, everywhere
from flowjax.recipe import edits
from flowjax.recipe.flow import Recipe
from flowjax.recipe.request import Request
from flowjax.training.mesh import fill, make_mesh


def draw_pairs(
    recipe: Recipe, networks: Mapping[str, Any], request: Request, folder: str | Path, mesh: Mesh | None = None
) -> Iterator[tuple[int, int]]:
    """Draws noise and what a solver makes of it, in the scale of the network, into a folder (`data.Pairs`).

    Pair i depends on (seed, i, its conditions) only. Shards that are there are kept, so that a run that was
    stopped goes on.

    Args:
        recipe: From `load_run`.
        networks: Likewise.
        request: What is asked for.
        folder: A new one, or one with some of the same pairs.
        mesh: Splits each block over its devices; all devices by default.

    Yields:
        How many pairs are drawn, and how many there will be, after each shard.

    Raises:
        ValueError: See `Recipe.check`; a flow between two laws, a solver with noise of its own, whose samples are no
            function of their noise; a folder of something else; samples that are not finite.
    """
    recipe.check(request)
    if request.search is not None:
        raise ValueError("pairs are drawn by a solver, and this request has a search")
    flow = recipe.flow(networks["network"])
    field = edits.asked_field(recipe, flow, request, networks)
    solver = recipe.build_solver(request.solver, recipe.flows(networks, request.guidance))
    if request.edit is not None:
        raise ValueError("pairs are noise and what a solver makes of it: leave edit out")
    if recipe.padded is not None:
        raise ValueError("pairs are of samples of one size, and those of this run are padded sets")
    if recipe.starts_from_data or solver.stochastic:
        what = "this flow starts from data" if recipe.starts_from_data else f"{type(solver).__name__} adds noise"
        raise ValueError(f"pairs are noise and what a solver makes of it alone, but {what}")
    if request.calibration is not None:
        raise ValueError("pairs are drawn by a solver of the catalogue: leave calibration out")
    mesh, grid = make_mesh() if mesh is None else mesh, recipe.build_times(request.times, request.steps, solver)
    cond = recipe.read_conditions(request.conditions, request.num)
    keys = (*jax.random.split(jax.random.key(request.seed)),)
    record = {
        "num": request.num,
        "seed": request.seed,
        "model": model_hash(networks["network"]),
        **{name: getattr(recipe, name) for name in ("shape", "shift", "scale", "num_classes", "codec", "conditions")},
        "codec_model": recipe.runs["codec"]["model"] if recipe.codec is not None else None,
        "asked_for": dict(request.conditions),
        **recipe.way(request),
    }
    pairs, first = Pairs(folder), jax.process_index() == 0
    known = bool(pairs.record)
    check_shared(folder, known)
    row = 2 * 4 * math.prod(recipe.state_shape)
    batch = fill(request.batch, mesh)
    if first or known:
        pairs.begin(record, row=row, multiple=batch)
    everywhere(True)  # nobody looks for shards before the record is there
    pairs = Pairs(folder)
    missing = pairs.missing()
    everywhere(True)  # and nobody writes before all have looked
    done = request.num - sum(map(len, missing))
    yield done, request.num
    for rows in missing:
        given = jax.tree.map(lambda c, rows=rows: c[rows.start : rows.stop], cond)
        x1, _ = recipe.states(field, rows, keys, given, solver, grid, None, batch, mesh)
        bad = len(x1) - int(np.isfinite(x1.reshape(len(x1), -1)).all(1).sum())
        if bad:
            raise ValueError(
                f"{bad} of the samples {rows.start}..{rows.stop - 1} have NaN or infinite values; try more steps, "
                "a smaller guidance or another solver"
            )
        if first:
            x0 = np.asarray(noise(jax.random.clone(keys[0]), x1.shape, rows.start))
            named = given if isinstance(given, dict) else {} if given is None else {"": given}
            columns = {f"cond.{name}".removesuffix("."): np.asarray(c) for name, c in named.items()}
            pairs.write(rows, {"x0": x0, "x1": x1, **columns})
        done += len(rows)
        yield done, request.num
