"""Solids: bodies, blocks, details, networks on padded sets, what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trimesh
from flax import nnx

import flowjax as fj
from flowjax.geometry import solids
from flowjax.geometry.solids import bodies, meshes, structure
from flowjax.training import make_mesh
from flowjax.training.mesh import batch_sharding, shardings

SMALL = {"size": 9, "resolution": 8, "voxels": 64, "view": 8}
PICTURE = {"image_shape": (8, 8, 3), "image_patch": 4, "width": 24, "depth": 2, "heads": 2}


@pytest.fixture(scope="module")
def details():
    return solids.solids(part="details", **SMALL)


def network(**options):
    """A small one whose answer is not zero."""
    made = solids.VoxelSetDiT(8, **PICTURE, **options, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.2, a.shape), a.dtype), made)


# -------------------------------------------------------------------------------------------------------------- bodies


@pytest.mark.parametrize("kind", bodies.NAMES)
def test_distances_of_bodies(kind):
    """Negative inside, of slope 1 near the surface at most, and the body lies within the cube."""
    rng = np.random.default_rng(3)
    for _ in range(5):
        body = bodies.draw(rng, kind)
        points = rng.uniform(-1, 1, (4000, 3))
        there = body.distance(points)
        assert 0.01 < (there < 0).mean() < 0.5
        assert (body.distance(np.sign(points) * 0.96 + 0 * points)[np.abs(points).max(1) > 0] > 0).all()
        steps = rng.normal(size=points.shape)
        steps *= 1e-4 / np.linalg.norm(steps, axis=1, keepdims=True)
        near = np.abs(there) < 0.05
        slope = np.abs(body.distance(points + steps) - there)[near] / 1e-4
        assert slope.max() < 1.6  # an ellipsoid's is exact on its surface
        assert np.linalg.norm(points[there < 0], axis=1).max() < 1.4
        assert np.abs(points[there < 0]).max() < 0.95


def test_volumes_in_closed_form():
    points = np.random.default_rng(0).uniform(-1, 1, (200_000, 3))
    size = np.array([0.6, 0.4, 0.3])
    exact = {
        "ellipsoid": 4 / 3 * np.pi * 0.6 * 0.4 * 0.3,
        "box": 8 * 0.6 * 0.4 * 0.3,
        "cylinder": np.pi * 0.36 * 0.8,
        "cone": np.pi * 0.36 * 0.8 / 3,
        "torus": 2 * np.pi**2 * 0.5 * 0.09,
    }
    for kind, volume in exact.items():
        own = np.array([0.5, 0.3, 0.0]) if kind == "torus" else size
        body = bodies.Body(kind=kind, size=own, turn=0.7, colour=np.ones(3))
        np.testing.assert_allclose(8 * (body.distance(points) < 0).mean(), volume, rtol=0.03)


# -------------------------------------------------------------------------------------------------------------- blocks


@pytest.mark.slow
def test_blocks_that_hold_the_surface():
    """A cube of 4 voxels in a grid of 8: its inner 2^3 are no surface."""
    grid = np.zeros((8, 8, 8, 1), np.float32)
    grid[2:6, 2:6, 2:6] = 1
    (numbers,) = structure.numbers_of(grid[None], 1)
    assert len(numbers) == 4**3 - 2**3
    places, there = structure.active(jnp.asarray(grid), 70, 1)
    assert int(there.sum()) == 56
    np.testing.assert_array_equal(np.asarray(places)[:56], numbers)
    (coarse,) = structure.numbers_of(grid[None], 2)
    np.testing.assert_array_equal(coarse, np.argwhere(np.ones((2, 2, 2))) + 1)
    assert not structure.active(jnp.zeros((8, 8, 8, 1)), 5, 2)[1].any()
    edge = np.ones((4, 4, 4, 1), np.float32)  # what the grid cuts off is a surface
    assert len(structure.numbers_of(edge[None], 1)[0]) == 4**3 - 2**3


def test_details_bring_the_surface_back(details):
    """Meshes of what is decoded are within a fifth of a voxel of the body."""
    rng = np.random.default_rng(0)
    for row in range(8):
        body = bodies.draw(rng, bodies.NAMES[row])
        full = (body.distance(structure.centres(16)) < 0)[..., None].astype(np.float32)
        (numbers,) = structure.numbers_of(full[None], 2)
        found = structure.encode(body, numbers, 16, 2).astype(np.float32)
        padded = np.concatenate([found, np.full((5, 30), 9.0, np.float32)])
        distance, colour = structure.decode(full, padded, 2)
        mesh = meshes.surface(distance, colour)
        assert mesh.is_watertight
        off = np.abs(body.distance(np.asarray(mesh.vertices)))
        assert off.mean() < 0.2 * 2 / 16
        np.testing.assert_allclose(
            mesh.visual.vertex_colors[:, :3] / 255, body.colour[None].repeat(len(off), 0), atol=0.01
        )


def test_nothing_full_is_empty():
    distance, _ = structure.decode(np.zeros((4, 4, 4, 1)), np.ones((3, 30)), 2)
    assert meshes.surface(distance, np.ones((*distance.shape, 3))) is None
    assert meshes.apart(None, None) == 0
    assert meshes.apart(None, trimesh.creation.box()) == 1


# ---------------------------------------------------------------------------------------------------------------- data


def test_sources(details):
    occupied = solids.solids(**SMALL)
    assert occupied.x.shape == (9, 8, 8, 8, 1)
    np.testing.assert_array_equal(occupied.x, details.fields["structure"])
    np.testing.assert_array_equal(occupied.fields["image"], details.fields["image"])
    assert (occupied.form, details.form, details.x.shape) == ("voxels", "solids", (9, 64, 30))
    assert occupied.cond.tolist() == [*range(8), 0]
    counts = [len(n) for n in structure.numbers_of(occupied.x, 2)]
    assert ((details.x != 0).any(-1).sum(1) == counts).all()
    assert not np.array_equal(occupied.x[0], occupied.x[8])
    # A view sees what is full: its colour stands on white.
    views = occupied.fields["image"].astype(int)
    assert (views.min(axis=(1, 2, 3)) < 200).all()
    assert (views[:, 0, 0] == 255).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": "surface"}, "part"),
        ({"resolution": 9}, "does not divide"),
        ({"resolution": 1}, "resolution"),
        ({"view": 1}, "view"),
        ({"size": 0}, "size"),
        ({"part": "details", "voxels": 2}, r"body 0 has \d+ active blocks, and voxels=2: give voxels=\d+ or more"),
        ({"size": 10**9}, "memory"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        solids.solids(**{**SMALL, **options})


# ------------------------------------------------------------------------------------------------------------ networks


def asked(source, rows=4):
    """Conditions of the network for examples of a source."""
    full = source.fields["structure"][:rows].astype(np.float32)
    image = source.fields["image"][:rows].astype(np.float32) / 127.5 - 1
    return {"image": jnp.asarray(image), "structure": jnp.asarray(full)}


@pytest.mark.slow
def test_padding_changes_no_answer(details):
    """More entries, and whatever stands in them, change nothing of those that are there; the others are 0."""
    net, cond, t = network(), asked(details), jnp.array([0.1, 0.4, 0.6, 0.9])
    x = jnp.asarray(details.x[:4])
    there = np.asarray((details.x[:4] != 0).any(-1))
    assert (there.sum(1) < 64).all()
    answer = net(x, t, cond)
    assert (np.asarray(answer)[~there] == 0).all()
    assert (np.abs(np.asarray(answer)[there]).max(-1) > 0).all()
    filled = jnp.where(there[..., None], x, 100.0)
    wider = jnp.pad(filled, ((0, 0), (0, 32), (0, 0)), constant_values=-50.0)
    np.testing.assert_allclose(net(wider, t, cond)[:, :64], answer, atol=2e-5)


@pytest.mark.slow
def test_padding_changes_no_gradient(details):
    net, cond, x = network(), asked(details), details.x[:4]
    objective = fj.objectives.FlowMatching(path=fj.paths.Linear())

    def gradient(size):
        mask = np.pad((x != 0).any(-1), ((0, 0), (0, size - 64)))
        x1 = np.pad(x, ((0, 0), (0, size - 64), (0, 0)))
        draws = objective.draw(jax.random.key(0), {"x1": jnp.asarray(x1), "mask": jnp.asarray(mask), "cond": cond})
        return jax.grad(lambda net: jnp.mean(objective.loss(net, draws)[0]))(net)

    for a, b in zip(*map(jax.tree.leaves, (gradient(64), gradient(80))), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1, float(jnp.abs(a).max())))


@pytest.mark.slow
def test_the_picture_and_the_places_are_heard(details):
    net, cond, t = network(), asked(details), jnp.full(4, 0.5)
    x = jnp.asarray(details.x[:4])
    plain = net(x, t, cond)
    assert not np.allclose(net(x, t, cond | {"image": -cond["image"]}), plain)
    assert not np.allclose(net(x, t, cond | {"structure": jnp.flip(cond["structure"], 3)}), plain)
    assert not np.allclose(net(x, t / 2, cond), plain)


@pytest.mark.slow
def test_eight_devices_learn_the_same(details):
    """Batch and parameters spread over data, fsdp and tensor: loss and gradient are those of one device."""
    student, flow = network(), fj.Flow(network(attention="dot_product"), path=fj.paths.Linear())
    objective = fj.objectives.VelocityDistillation(path=flow.path, teacher=flow)
    batch = {"x1": jnp.asarray(details.x[:8]), "cond": asked(details, 8)}
    batch["mask"] = jnp.asarray((details.x[:8] != 0).any(-1))
    draws, mesh = objective.draw(jax.random.key(0), batch), make_mesh(data=2, fsdp=2, tensor=2)

    def both(student, objective, draws):
        loss = lambda student: jnp.mean(objective.loss(student, draws)[0])  # noqa: E731
        return jax.value_and_grad(loss)(student)

    value, gradient = jax.jit(both)(student, objective, draws)
    spread = [jax.device_put(net, shardings(net, mesh)) for net in (student, flow.network)]
    rows = jax.device_put(draws, batch_sharding(mesh))
    kernel = spread[0].blocks[0].inner.kernel[...]
    assert len(kernel.addressable_shards[0].data) < len(kernel)
    taught = dataclasses.replace(objective, teacher=dataclasses.replace(flow, network=spread[1]))
    other, found = jax.jit(both)(spread[0], taught, rows)
    np.testing.assert_allclose(other, value, rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (found, gradient)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * max(1.0, float(jnp.abs(b).max())))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"scan": True}, {"remat": True}, {"attention": "dot_product"}])
def test_layouts_answer_the_same(details, options):
    plain = solids.VoxelSetDiT(8, **PICTURE, rngs=nnx.Rngs(0))
    other = solids.VoxelSetDiT(8, **PICTURE, **options, rngs=nnx.Rngs(0))
    for made in (plain, other):  # zero at the start
        made.unembed.kernel[...] = jnp.ones_like(made.unembed.kernel[...])
    cond, x = asked(details), jnp.asarray(details.x[:4])
    np.testing.assert_allclose(other(x, jnp.full(4, 0.5), cond), plain(x, jnp.full(4, 0.5), cond), atol=1e-4)


def test_networks_refuse_what_does_not_fit(details):
    net, cond = network(), asked(details)
    with pytest.raises(ValueError, match="conditions are a dict with the names image, structure, got image"):
        net(jnp.zeros((4, 64, 30)), jnp.zeros(4), {"image": cond["image"]})
    with pytest.raises(ValueError, match=r"expected pictures \(B, 8, 8, 3\)"):
        net(jnp.zeros((4, 64, 30)), jnp.zeros(4), cond | {"image": jnp.zeros((4, 9, 8, 3))})
    with pytest.raises(ValueError, match=r"expected structures \(B, 8, 8, 8, 1\)"):
        net(jnp.zeros((4, 64, 30)), jnp.zeros(4), cond | {"structure": jnp.zeros((4, 4, 4, 4, 1))})
    with pytest.raises(ValueError, match="does not divide a grid"):
        solids.VoxelDiT((4, 4, 3, 1), patch=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="must be a multiple of heads"):
        solids.VoxelDiT((4, 4, 4, 1), width=30, heads=4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="cannot be halved 2 times"):
        solids.VoxelAutoencoder(6, rngs=nnx.Rngs(0))


@pytest.mark.slow
def test_the_autoencoder_learns_grids():
    """A few steps on a few bodies: reconstructions get nearer."""
    source = solids.solids(**SMALL)
    x = jnp.asarray(source.normalize(source.x), jnp.float32)
    net = solids.VoxelAutoencoder(8, widths=(16, 16), latent=4, groups=4, rngs=nnx.Rngs(0))
    loss = lambda net: jnp.mean((net.decode(net.encode(x)[0]) - x) ** 2)  # noqa: E731
    step = jax.jit(lambda net: (loss(net), jax.tree.map(lambda p, g: p - 0.3 * g, net, jax.grad(loss)(net))))
    values = []
    for _ in range(30):
        value, net = step(net)
        values.append(float(value))
    assert values[-1] < 0.6 * values[0]
