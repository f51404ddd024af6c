"""Published weights of DINOv2: their names, transposes and refusals, and the numbers against another program."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file
from scipy.special import erf

from flowjax.models import ViT
from flowjax.weights import dinov2, read_dinov2

WIDTH, HEADS, DEPTH, PATCH, REGISTERS, TABLE, SIDE = 8, 2, 2, 2, 4, 5, 6
OPTIONS = dict(
    patch=PATCH, width=WIDTH, depth=DEPTH, heads=HEADS, table=TABLE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)
)


def shapes(**options):
    side = 7 * options["patch"] if "patch" in options else SIDE
    return nnx.eval_shape(lambda: ViT((side, side, 3), **(OPTIONS | options), rngs=nnx.Rngs(0)))


def published(seed=0):
    """Random weights under the names and shapes of transformers' Dinov2WithRegistersModel, of this size."""
    rng = np.random.default_rng(seed)
    hidden = 4 * WIDTH
    sizes = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.mask_token": (1, WIDTH),
        "embeddings.register_tokens": (1, REGISTERS, WIDTH),
        "embeddings.position_embeddings": (1, 1 + TABLE**2, WIDTH),
        "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, PATCH, PATCH),
        "embeddings.patch_embeddings.projection.bias": (WIDTH,),
        "layernorm.weight": (WIDTH,),
        "layernorm.bias": (WIDTH,),
    }
    for i in range(DEPTH):
        layer = {f"attention.attention.{name}": (WIDTH, WIDTH) for name in ("query", "key", "value")}
        layer |= {"attention.output.dense": (WIDTH, WIDTH), "mlp.fc1": (hidden, WIDTH), "mlp.fc2": (WIDTH, hidden)}
        for name, size in layer.items():
            sizes[f"encoder.layer.{i}.{name}.weight"] = size
            sizes[f"encoder.layer.{i}.{name}.bias"] = size[:1]
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            sizes[f"encoder.layer.{i}.{name}"] = (WIDTH,)
        for name in ("layer_scale1.lambda1", "layer_scale2.lambda1"):
            sizes[f"encoder.layer.{i}.{name}"] = (WIDTH,)
    return {name: rng.normal(size=size).astype(np.float32) * 0.5 for name, size in sizes.items()}


def other_program(weights, images):
    """The tokens, in the layout of the published program: NCHW, separate maps, kernels (out, in), float64."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    x = (images.astype(np.float64) - OPTIONS["mean"]) / OPTIONS["std"]
    x, n = x.transpose(0, 3, 1, 2), SIDE // PATCH

    def norm(h, scale=1.0, shift=0.0):
        h = h - h.mean(-1, keepdims=True)
        return h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-6) * scale + shift

    kernel = w["embeddings.patch_embeddings.projection.weight"]
    patches = np.zeros((len(x), n * n, WIDTH))
    for i in range(n):
        for j in range(n):
            window = x[:, :, i * PATCH : (i + 1) * PATCH, j * PATCH : (j + 1) * PATCH]
            patches[:, i * n + j] = np.tensordot(window, kernel, axes=([1, 2, 3], [1, 2, 3]))
    patches += w["embeddings.patch_embeddings.projection.bias"]
    table = weights["embeddings.position_embeddings"][0, 1:].reshape(TABLE, TABLE, WIDTH)
    # Pillow widens its kernel when it makes images smaller, as the published program does.
    small = [np.asarray(Image.fromarray(table[..., c]).resize((n, n), Image.Resampling.BICUBIC)) for c in range(WIDTH)]
    patches += np.stack(small, -1).reshape(1, -1, WIDTH)
    token = w["embeddings.cls_token"] + w["embeddings.position_embeddings"][:, :1]
    rows = [np.repeat(part, len(x), 0) for part in (token, w["embeddings.register_tokens"])]
    h = np.concatenate([*rows, patches], 1)
    for i in range(DEPTH):
        own = {name.removeprefix(f"encoder.layer.{i}."): value for name, value in w.items()}

        def linear(h, name, own=own):
            return h @ own[f"{name}.weight"].T + own[f"{name}.bias"]

        inside = norm(h, own["norm1.weight"], own["norm1.bias"])
        q, k, v = (
            linear(inside, f"attention.attention.{name}")
            .reshape(len(x), -1, HEADS, WIDTH // HEADS)
            .transpose(0, 2, 1, 3)
            for name in ("query", "key", "value")
        )
        scores = np.exp(q @ k.transpose(0, 1, 3, 2) / np.sqrt(WIDTH // HEADS))
        attended = (scores / scores.sum(-1, keepdims=True)) @ v
        attended = attended.transpose(0, 2, 1, 3).reshape(len(x), -1, WIDTH)
        h = h + own["layer_scale1.lambda1"] * linear(attended, "attention.output.dense")
        inside = linear(norm(h, own["norm2.weight"], own["norm2.bias"]), "mlp.fc1")
        h = h + own["layer_scale2.lambda1"] * linear(inside * (1 + erf(inside / np.sqrt(2))) / 2, "mlp.fc2")
    return norm(h)[:, 1 + REGISTERS :].reshape(len(x), n, n, WIDTH)


IMAGES = np.random.default_rng(1).uniform(size=(3, SIDE, SIDE, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same weights as an encoder's, and as a classifier's, with a prefix."""
    folder, weights = tmp_path_factory.mktemp("weights"), published()
    save_file(weights, folder / "model.safetensors")
    more = {f"dinov2_with_registers.{name}": value for name, value in weights.items()}
    save_file(more | {"classifier.bias": np.ones(5, np.float32)}, folder / "classifier.safetensors")
    return folder


def test_tokens_are_those_of_the_published_program(files):
    network = read_dinov2(files / "model.safetensors", shapes())
    found = jax.jit(ViT.encode)(network, jnp.asarray(IMAGES))
    np.testing.assert_allclose(found, other_program(published(), IMAGES), rtol=1e-4, atol=1e-4)
    again = read_dinov2(files / "classifier.safetensors", shapes())
    jax.tree.map(np.testing.assert_array_equal, network, again)


def test_types_are_those_of_the_network(files):
    network = read_dinov2(files / "model.safetensors", shapes(param_dtype=jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(network)} == {np.dtype(jnp.bfloat16)}


def changed(folder, **changes):
    weights = {**published(), **{name.replace("__", "."): value for name, value in changes.items()}}
    path = folder / "changed.safetensors"
    save_file({name: value for name, value in weights.items() if value is not None}, path)
    return path


def test_what_does_not_fit_is_refused_in_one_line(files, tmp_path):
    bias, right = "encoder.layer.1.norm1.bias", files / "model.safetensors"
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(right.read_bytes()[:-50])
    absent = {bias: None, "encoder.layer.0.mlp.fc1.bias": None}
    for path, options, message in (
        (changed(tmp_path, **absent), {}, r"encoder.layer.0.mlp.fc1.bias, encoder.layer.1.norm1.bias are missing"),
        (right, {"depth": 1}, r"encoder.layer.1.*, .* and 15 more are not known"),
        (right, {"depth": 3}, r"encoder.layer.2.*, .* and 15 more are missing"),
        (right, {"table": 6}, "position_embeddings cannot become positions"),
        (right, {"outputs": 3}, "build the ViT without outputs="),
        (damaged, {}, "is not a whole safetensors file"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            read_dinov2(path, shapes(**options))
        assert "\n" not in str(error.value)
    spoiled = changed(tmp_path, **{bias: np.full(WIDTH, np.nan, np.float32)})
    with pytest.raises(ValueError, match=r"blocks.1.norm1.bias has values that are NaN"):
        read_dinov2(spoiled, shapes())


def test_a_missing_or_other_file_is_named_with_its_hash(files, tmp_path):
    none = tmp_path / "none.safetensors"
    with pytest.raises(
        FileNotFoundError, match=r"the weights none.safetensors are not there: get the file and put it at"
    ):
        read_dinov2(none, shapes())
    for size, message in (("small", "no sha256 of {} is known here"), ("base", "{} has the sha256 7a6f[0-9a-f]*")):
        with pytest.raises(FileNotFoundError, match=f"; {message.format(f'facebook/dinov2-with-registers-{size}')}$"):
            read_dinov2(none, shapes(**ViT.size(size)))
    with pytest.raises(FileNotFoundError, match="with the sha256 00ff are not there"):
        read_dinov2(none, shapes(), sha256="00ff")
    path = files / "model.safetensors"
    with pytest.raises(ValueError, match=r"its sha256 is .*, not 00ff"):
        read_dinov2(path, shapes(), sha256="00ff")
    read_dinov2(path, shapes(), sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def test_another_file_than_the_published_one_of_its_size_is_named(files, monkeypatch):
    path, tiny = files / "model.safetensors", {"width": WIDTH, "depth": DEPTH}
    monkeypatch.setitem(dinov2.SIZES, "small", tiny)
    read_dinov2(path, shapes())  # no digest is known
    monkeypatch.setitem(dinov2.SIZES, "base", tiny)
    with pytest.warns(UserWarning, match="is not the published facebook/dinov2-with-registers-base") as told:
        read_dinov2(path, shapes())
    assert len(told) == 1
    assert "\n" not in str(told[0].message)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    read_dinov2(path, shapes(), sha256=digest)  # the one that is meant
    monkeypatch.setitem(dinov2.PUBLISHED, "facebook/dinov2-with-registers-base", digest)
    read_dinov2(path, shapes())


def test_the_published_base_has_the_known_number_of_weights():
    """DINOv2 base has 86,580,480 numbers; registers come in, mask token and the last scale and shift are left out."""
    network = shapes(**ViT.size("base"))
    assert sum(leaf.size for leaf in jax.tree.leaves(network)) == 86_580_480 + 4 * 768 - 768 - 2 * 768
