"""Words: tokens and back. TextEncoder: padding, order, types."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowjax import specs
from flowjax.models import TextEncoder, Words
from flowjax.models.attention import attend

TEXTS = ["a small red circle left of a blue square", "a big blue circle", "a red square, twice"]


def test_known_words_are_one_token_each_and_come_back():
    words = Words.learn(TEXTS)
    assert words.words[:4] == ("a", "blue", "circle", "red")  # by frequency, then by alphabet
    assert words.length == 9
    tokens = words.encode(TEXTS)
    assert (tokens.shape, tokens.dtype) == ((3, 9), np.int32)
    np.testing.assert_array_equal((tokens > 0).sum(1), [9, 4, 5])
    assert words.decode(tokens) == [*TEXTS[:2], "a red square , twice"]
    np.testing.assert_array_equal(words.encode(["A  Big\tblue CIRCLE"]), tokens[1:2])
    assert not words.encode(["", "  "]).any()
    assert words.decode(words.encode([""])) == [""]
    assert Words.learn(np.array(TEXTS)) == words  # as sources hold them
    np.testing.assert_array_equal(words.encode(np.array(TEXTS)), tokens)


def test_unknown_words_are_spelled():
    words = Words.learn(TEXTS, size=260, length=40)
    assert (words.size, words.words) == (260, ("a", "blue", "circle"))
    for text in ("a blue", "große blue π circle", "foo bar", "foobar", "a foo a bar", "日本"):
        assert words.decode(words.encode([text])) == [text]
    tokens = words.encode(["foo bar", "foobar"])
    assert not np.array_equal(*tokens)
    assert tokens.max() < 257
    assert Words(words=(), length=7).decode(Words(words=(), length=7).encode(["foo bar"])) == ["foo bar"]
    cut = words.encode(["x" * 50], cut=True)
    np.testing.assert_array_equal(cut, np.full((1, 40), 1 + ord("x")))


def test_is_json():
    words = Words.learn(TEXTS)
    stored = json.loads(json.dumps(specs.spec_of("tokenizer", words)))
    assert specs.build("tokenizer", stored) == words
    assert specs.build("tokenizer", specs.text(stored)) == words


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Words.learn([]), "a list of texts is expected"),
        (lambda: Words.learn(["", " "]), "no word in these texts"),
        (lambda: Words.learn(np.array(["a", 3], object)), "text 1 is no text: 3"),
        (lambda: Words.learn(["a"], size=100), "size must be"),
        (lambda: Words(words=("a", "a"), length=3), "'a' twice"),
        (lambda: Words(words=("A",), length=3), "single words in lower case, got 'A'"),
        (lambda: Words(words=("a b",), length=3), "single words"),
        (lambda: Words(words=(), length=0), "length must be at least 1"),
        (lambda: Words(words=("a",), length=3).encode("a"), "a list of texts is expected, got 'a'"),
        (lambda: Words(words=("a",), length=3).encode(["a", "a xyz"]), "text 1 has 4 tokens, at most 3"),
        (lambda: Words(words=("a",), length=3).decode(np.array([[258]])), r"tokens must be 0\.\.257, got 258\.\.258"),
    ],
)
def test_words_refuse(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def encoder():
    shapes = jax.eval_shape(lambda: TextEncoder(300, 5, dim=6, width=8, depth=2, heads=2, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) / 2, a.dtype), shapes)


@jax.jit
def both(encoder, tokens):
    return encoder(tokens), encoder.features(tokens)


def test_encoder_sees_words_and_their_order_but_no_padding(encoder):
    tokens = jnp.array([[7, 9, 4, 0, 0], [9, 7, 4, 0, 0], [7, 9, 4, 4, 0], [0, 0, 0, 0, 0]], jnp.int32)
    vectors, features = both(encoder, tokens)
    assert (vectors.shape, features.shape) == ((4, 6), (4, 5, 8))
    apart = jnp.abs(vectors[:, None] - vectors[None]).max(-1)
    assert float(jnp.min(apart[~np.eye(4, dtype=bool)])) > 1e-3
    assert not np.any(features[:, 4])
    assert np.any(features[0, :3], axis=-1).all()
    np.testing.assert_array_equal(vectors[3], encoder.project.bias[...])
    # Padding has no part in the result: not through its own embedding, nor through its places.
    changed = jax.tree.map(lambda a: a, encoder)
    changed.tokens = nnx.Param(encoder.tokens[...].at[0].set(5.0), **encoder.tokens.get_metadata())
    changed.places = nnx.Param(encoder.places[...].at[4].set(-5.0), **encoder.places.get_metadata())
    np.testing.assert_allclose(both(changed, tokens)[0], vectors, atol=1e-6)


def test_encoder_flags_tokens_that_do_not_exist(encoder):
    vectors, _ = both(encoder, jnp.array([[7, 9, 4, 0, 0], [7, 300, 0, 0, 0], [7, -1, 0, 0, 0], [0] * 5], jnp.int32))
    np.testing.assert_array_equal(np.isnan(vectors).any(1), [False, True, True, False])
    with pytest.raises(ValueError, match=r"expected tokens \(B, 5\), got \(2, 4\)"):
        encoder(jnp.zeros((2, 4), jnp.int32))
    with pytest.raises(ValueError, match="multiple of heads"):
        TextEncoder(300, 5, width=9, heads=2, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("implementation", ["xla", "dot_product"])
def test_masked_attention_is_attention_to_the_tokens_that_are_there(implementation):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(a, jnp.float32) for a in rng.normal(size=(3, 2, 5, 3, 4)))
    mask = jnp.arange(5)[None] < jnp.array([[3], [0]])
    found = attend(q, k, v, implementation, mask)
    np.testing.assert_allclose(found[:1, :3], attend(q[:1, :3], k[:1, :3], v[:1, :3]), atol=1e-5)
    assert np.isfinite(found).all()


def test_every_parameter_names_its_axes(encoder):
    for path, variable in nnx.to_flat_state(nnx.state(encoder, nnx.Param)):
        assert len(variable.get_metadata()["out_sharding"]) == variable.ndim, path
