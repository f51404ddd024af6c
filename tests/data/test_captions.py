"""Pictures with texts: the texts are true of the pictures, and both are a function of the seed."""

import numpy as np
import pytest

from flowjax import data
from flowjax.data.captions import BODIES, COLOURS, RELATIONS, SIZES

PARTS = {"circle": np.pi, "square": 1.8**2, "triangle": 2.0, "cross": 4 * 0.7 - 0.7**2}
"""Areas of the bodies in squares of half their width."""


def read(phrase):
    """Size, colour and body of "a small red circle"; no size where none is named."""
    *size, colour, body = phrase.removeprefix("a ").split()
    return size, colour, body


def bodies(text):
    """The phrases of a text and the relation of the first to the second."""
    for relation in RELATIONS:
        if f" {relation} " in text:
            return text.split(f" {relation} "), relation
    return [text], None


@pytest.fixture(scope="module")
def source():
    return data.load("captions", size=400, resolution=32)


def test_texts_are_true(source):
    """Of each body: its colour is there, the area is that of the body, and the centres stand as the text says."""
    texts = source.fields["text"]
    assert (source.x.shape, source.x.dtype, source.low, source.high) == ((400, 32, 32, 3), np.uint8, 0.0, 255.0)
    assert texts.shape == (400,)
    grid = np.stack(np.meshgrid(np.arange(32), np.arange(32), indexing="xy"), -1)
    seen = set()
    for x, text in zip(source.x.astype(float), texts.tolist()):
        phrases, relation = bodies(text)
        centres = []
        for phrase in phrases:
            size, colour, body = read(phrase)
            seen |= {colour, body, relation, *size}
            others = [read(other)[1] for other in phrases if other is not phrase]
            if colour in others or len(set(phrases)) < len(phrases):
                continue  # two of a colour are not told apart by it
            # How much of each pixel the body covers, by least squares over the colours that are there.
            basis = np.array([COLOURS[name] for name in [colour, *others]], float).T
            cover = np.linalg.lstsq(basis, x.reshape(-1, 3).T, rcond=None)[0][0].reshape(32, 32)
            area = cover.sum() / 32**2
            expected = {name: PARTS[body] * SIZES[name] ** 2 for name in size or SIZES}
            assert min(abs(area / value - 1) for value in expected.values()) < 0.12, text
            centres.append((cover[..., None] * grid).sum((0, 1)) / cover.sum())
        if len(centres) == 2:
            columns, rows = RELATIONS[relation]
            assert (centres[0] - centres[1]) @ (columns, rows) > 8, text
    assert seen == {*COLOURS, *BODIES, *SIZES, *RELATIONS, None}


def test_is_a_function_of_the_seed(source):
    again, other = (data.load("captions", size=50, resolution=32, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(again.x, source.x[:50])
    np.testing.assert_array_equal(again.fields["text"], source.fields["text"][:50])
    assert (other.fields["text"] != again.fields["text"]).mean() > 0.9


def test_refuses():
    with pytest.raises(ValueError, match="resolution must be"):
        data.load("captions", resolution=4)
    with pytest.raises(ValueError, match="size must be"):
        data.load("captions", size=0)
    with pytest.raises(ValueError, match="more than half of the memory"):
        data.load("captions", size=10**12)


def test_relations_may_be_chosen():
    some = data.load("captions", size=200, relations=("above",))
    assert {name for text in some.fields["text"] for name in RELATIONS if f" {name} " in text} == {"above"}
    every = data.load("captions", size=200, relations=tuple(RELATIONS))
    np.testing.assert_array_equal(every.x, data.load("captions", size=200).x)
    for relations, message in (((), "got none"), (("over",), "unknown relation 'over'")):
        with pytest.raises(ValueError, match=message):
            data.load("captions", size=2, relations=relations)
