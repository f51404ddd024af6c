"""Texts as conditions: a tokenizer that is learned from the texts, and an encoder that trains with the model."""

import collections
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from flowjax._checks import COUNT, sizes, whole
from flowjax._pytree import pytree, static
from flowjax.facts import fact
from flowjax.models.attention import attend
from flowjax.models.embeddings import look_up
from flowjax.models.layers import DEPTH, dense, named, normalize, per_token

PAD = 0
_FIRST_WORD = 257  # behind the padding and the 256 bytes
_PIECES = re.compile(r"\w+|[^\w\s]")


def _split(text: Any, place: int) -> list[str]:
    """Words and marks of a text, in lower case."""
    if not isinstance(text, str):
        raise ValueError(f"text {place} is no text: {text!r}")
    return _PIECES.findall(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower()))


@fact(
    "tokenizer",
    "words",
    "known words; others are spelled in bytes",
    example=lambda: {"words": ("a", "circle", "red"), "length": 4},
)
@pytree
class Words:
    """A tokenizer of words, learned from texts; words that it does not know are spelled in bytes.

    Token 0 is padding, 1 to 256 are bytes, the known words follow. Texts are taken in lower case, words and marks
    apart, whatever the spaces between them. The empty text is padding alone.

    Args:
        words: Known words, in the order of their tokens.
        length: Tokens of a text, at least 1; shorter ones are padded.

    Raises:
        ValueError: A word that no text contains as one, a word given twice, or a length below 1.

    Example:
        >>> words = Words.learn(["a red circle", "a blue circle"])
        >>> words.encode(["a blue circle", "a"])
        array([[257, 259, 258],
               [257,   0,   0]], dtype=int32)
        >>> words.decode(words.encode(["A  red circle"]))
        ['a red circle']
    """

    words: tuple[str, ...] = static()
    length: int = static()

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", tuple(self.words))
        whole(COUNT, length=self.length)
        for place, word in enumerate(self.words):
            if _split(word, place) != [word]:
                raise ValueError(f"words must be single words in lower case, got {word!r}")
        twice = [word for word, count in collections.Counter(self.words).items() if count > 1]
        if twice:
            raise ValueError(f"words must differ, got {twice[0]!r} twice")

    @classmethod
    def learn(cls, texts: Sequence[str] | np.ndarray, *, size: int = 4096, length: int | None = None) -> "Words":
        """The tokenizer that knows the most frequent words of these texts, equally frequent ones in alphabetical order.

        Args:
            texts: What it will be used for.
            size: Most tokens in all, at least 257.
            length: Tokens of a text; by default those of the longest.

        Raises:
            ValueError: No texts, or a number outside its range.
        """
        whole("[257, 1048576]", size=size)
        _check_list(texts)
        pieces = [_split(text, place) for place, text in enumerate(texts)]
        counts = collections.Counter(piece for text in pieces for piece in text)
        if not counts:
            raise ValueError("there is no word in these texts")
        words = sorted(counts, key=lambda word: (-counts[word], word))[: size - _FIRST_WORD]
        longest = max(len(_tokens(text, {word: 0 for word in words})) for text in pieces)
        return cls(words=tuple(words), length=longest if length is None else length)

    @property
    def size(self) -> int:
        """Number of tokens."""
        return _FIRST_WORD + len(self.words)

    def encode(self, texts: Sequence[str] | np.ndarray, *, cut: bool = False) -> Int[np.ndarray, "N length"]:
        """Tokens of texts.

        Args:
            texts: A list, also of one text.
            cut: Whether texts with more than `length` tokens lose their end; otherwise they are refused.

        Raises:
            ValueError: Something else than a list of texts, or one that is too long.
        """
        _check_list(texts)
        known = {word: _FIRST_WORD + i for i, word in enumerate(self.words)}
        found = np.full((len(texts), self.length), PAD, np.int32)
        for place, text in enumerate(texts):
            tokens = _tokens(_split(text, place), known)
            if len(tokens) > self.length and not cut:
                raise ValueError(
                    f"text {place} has {len(tokens)} tokens, at most {self.length} are allowed; shorten {text[:60]!r} "
                    f"(words that were never seen take a token for each byte)"
                )
            found[place, : len(tokens)] = tokens[: self.length]
        return found

    def decode(self, tokens: Int[np.ndarray, "N L"]) -> list[str]:
        """Texts of tokens, words and marks separated by spaces.

        Raises:
            ValueError: A token that does not exist.
        """
        tokens = np.asarray(tokens)
        if tokens.size and not (tokens.min() >= 0 and tokens.max() < self.size):
            raise ValueError(f"tokens must be 0..{self.size - 1}, got {tokens.min()}..{tokens.max()}")
        texts = []
        for row in tokens.tolist():
            text = b""
            for before, token in zip([PAD, *row], row):
                spelled = 0 < token < _FIRST_WORD
                if token and text and not (spelled and 0 < before < _FIRST_WORD):
                    text += b" "
                text += bytes([token - 1]) if spelled else self.words[token - _FIRST_WORD].encode() if token else b""
            texts.append(text.decode(errors="replace"))
        return texts


def _check_list(texts: Any) -> None:
    if isinstance(texts, str) or not hasattr(texts, "__len__") or len(texts) == 0:
        raise ValueError(f"a list of texts is expected, got {texts!r}")


def _tokens(pieces: list[str], known: dict[str, int]) -> list[int]:
    """Known words by their tokens, others by their bytes, with a space between two that are spelled."""
    tokens: list[int] = []
    spelled = False
    for piece in pieces:
        if piece in known:
            tokens.append(known[piece])
        else:
            tokens += [1 + byte for byte in (b" " if spelled else b"") + piece.encode()]
        spelled = piece not in known
    return tokens


class _Block(nnx.Module):
    """One block of the encoder; see `TextEncoder` for its formulas."""

    def __init__(self, width: int, heads: int, **options: Any):
        head = width // heads
        self.qkv = dense(width, (3, heads, head), ("embed", None, "heads", None), **options)
        self.project = dense((heads, head), width, ("heads", None, "embed"), **options)
        self.inner = dense(width, 4 * width, ("embed", "mlp"), **options)
        self.outer = dense(4 * width, width, ("mlp", "embed"), **options)

    def __call__(self, h: Float[Array, "B N width"], mask: Bool[Array, "B N"]) -> Float[Array, "B N width"]:
        q, k, v = jnp.moveaxis(per_token(self.qkv, normalize(h)), 2, 0)
        h = h + per_token(self.project, attend(q, k, v, mask=mask))
        return h + per_token(self.outer, jax.nn.gelu(per_token(self.inner, normalize(h))))


@fact(
    "encoder",
    "text",
    "a small transformer on tokens",
    example=lambda: {"vocabulary": 260, "length": 3, "dim": 4, "width": 8, "heads": 2},
)
class TextEncoder(nnx.Module):
    """Tokens (B, length) to one vector per text, and to features of each token.

    The encoder is a small transformer without causal mask, h <- h + attention(norm(h)), h <- h + mlp(norm(h)), on
    embedded tokens and learned positions; padding is not attended. Its features are norm(h), their mean over the tokens
    that are there goes through a dense layer: the vector. The empty text, padding alone, is the null condition.

    Computes in `dtype`, stores parameters in `param_dtype`. Dense layers start Glorot-uniform with zero bias, tokens
    and positions as N(0, 0.02^2). A token that does not exist gives NaN.

    References:
        Vaswani et al. (2017), Attention Is All You Need, arXiv:1706.03762.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> words = Words.learn(["a red circle", "a blue circle"])
        >>> sizes = {"dim": 16, "width": 8, "heads": 2}
        >>> encoder = nnx.eval_shape(lambda: TextEncoder(words.size, words.length, **sizes, rngs=nnx.Rngs(0)))
        >>> tokens = words.encode(["a red circle", "a circle"])
        >>> [jax.eval_shape(f, encoder, tokens).shape for f in (TextEncoder.__call__, TextEncoder.features)]
        [(2, 16), (2, 3, 8)]
    """

    null = PAD

    def __init__(
        self,
        vocabulary: int,
        length: int,
        dim: int = 128,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        *,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the encoder.

        Args:
            vocabulary: Number of tokens, `Words.size`.
            length: Tokens of a text.
            dim: Size of the vector.
            width: Size of a token's features.
            depth: Number of blocks.
            heads: Number of attention heads; divides `width`.
            dtype: Type of the computation.
            param_dtype: Type of the stored parameters.
            rngs: Source of the initial values.

        Raises:
            ValueError: A number is outside its range, or `heads` does not divide `width`.
        """
        whole(COUNT, vocabulary=vocabulary, dim=dim, width=width, heads=heads)
        sizes(1, length=(length,))
        whole(DEPTH, depth=depth)
        if width % heads:
            raise ValueError(f"width={width} must be a multiple of heads={heads}")
        self.shape, self.dim, self.dtype = (length,), dim, dtype
        start, options = nnx.initializers.normal(0.02), {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.tokens = nnx.Param(start(rngs.params(), (vocabulary, width), param_dtype), **named("classes", "embed"))
        self.places = nnx.Param(start(rngs.params(), (length, width), param_dtype), **named(None, "embed"))
        self.blocks = nnx.data([_Block(width, heads, **options) for _ in range(depth)])
        self.project = dense(width, dim, ("embed", None), **options)

    def features(self, tokens: Int[Array, "B length"]) -> Float[Array, "B length width"]:
        """Features of each token, zero for padding.

        Raises:
            ValueError: Texts of another length.
        """
        if tokens.shape[1:] != self.shape:
            raise ValueError(f"expected tokens (B, {self.shape[0]}), got {tokens.shape}")
        mask = tokens != PAD
        h = (look_up(self.tokens[...], tokens) + self.places[...][None]).astype(self.dtype)
        for index, block in enumerate(self.blocks):
            with jax.named_scope(f"text{index}"):
                h = block(h, mask)
        return normalize(h) * mask[..., None].astype(h.dtype)

    def __call__(self, tokens: Int[Array, "B length"]) -> Float[Array, "B dim"]:
        """The vector of each text; that of the empty text is the bias of the last layer."""
        count = jnp.sum(tokens != PAD, axis=1, keepdims=True)
        return self.project(jnp.sum(self.features(tokens), axis=1) / jnp.maximum(count, 1).astype(self.dtype))
