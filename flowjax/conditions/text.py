"""A text as a condition."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from flowjax.data.records import check_memory
from flowjax.data.texts import lines_of
from flowjax.facts import fact
from flowjax.models.text import PAD, Words

EXAMPLES = 64
"""At most so many texts of the data are kept as examples."""


@fact("condition", "text", "a text", example=lambda: {"words": ("a", "circle", "red"), "length": 4})
@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """A text, as tokens; the null is the empty text.

    Attributes:
        words: Known words in the order of their tokens, see `flowjax.models.Words`; others are spelled in bytes.
        length: Tokens of a text, at least 1.
        examples: Texts of the data, which are asked for where nothing else is; may be empty.

    Raises:
        ValueError: Words that are none, a length below 1, or too many examples.

    Example:
        >>> import flowjax as fj, numpy as np
        >>> text = fj.conditions.Text.learn(np.array(["a red cross", "a blue cross"]))
        >>> text.length, text.tokenizer.decode(text.encode(np.array(["a red cross"])))
        (3, ['a red cross'])
    """

    words: tuple[str, ...]
    length: int
    examples: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.examples) > EXAMPLES:
            raise ValueError(f"at most {EXAMPLES} examples, got {len(self.examples)}")
        self.tokenizer  # noqa: B018 - checks the words

    @classmethod
    def learn(cls, rows: np.ndarray, *, length: int | None = None, vocabulary: int = 4096) -> "Text":
        """The condition that the texts of the data are, with the words that they have.

        Args:
            rows: Texts, (N,).
            length: Tokens of a text; by default those of the longest. Longer texts of the data then lose their end.
            vocabulary: Most tokens in all, at least 257: more frequent words are known first.

        Raises:
            ValueError: No texts, or a number outside its range.
        """
        if rows.dtype.kind != "U":
            raise ValueError(f"texts are expected, got {rows.dtype} {rows.shape}")
        words = Words.learn(rows, size=vocabulary, length=length)
        spread = rows[np.unique(np.linspace(0, len(rows) - 1, EXAMPLES).astype(int))]
        examples = dict.fromkeys(words.decode(words.encode(spread, cut=True)))
        return cls(words=words.words, length=words.length, examples=tuple(filter(None, examples)))

    @property
    def tokenizer(self) -> Words:
        """What makes tokens of texts."""
        return Words(words=self.words, length=self.length)

    @property
    def null(self) -> np.ndarray:
        """The condition that stands for none, without batch axis."""
        return np.full(self.length, PAD, np.int32)

    @property
    def struct(self) -> jax.ShapeDtypeStruct:
        """Shape and type of one condition."""
        return jax.ShapeDtypeStruct((self.length,), jnp.int32)

    @property
    def encoder(self) -> dict[str, int]:
        """Options that an encoder of it must have."""
        return {"vocabulary": self.tokenizer.size, "length": self.length}

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Texts of the data as networks take them, (N, length); those that are too long lose their end.

        Raises:
            ValueError: No texts (N,).
        """
        if rows.dtype.kind != "U":
            raise ValueError(f"texts are expected, got {rows.dtype} {rows.shape}")
        check_memory("the tokens of all texts", 4 * len(rows) * self.length)
        return self.tokenizer.encode(rows, cut=True)

    def decode(self, rows: np.ndarray) -> np.ndarray:
        """The texts of tokens as they are shown, (N,)."""
        return np.array(self.tokenizer.decode(rows))

    def default(self, num: int) -> np.ndarray:
        """The examples in turn, (num, length); empty texts where there are none."""
        return np.resize(self.tokenizer.encode(self.examples or ("",), cut=True), (num, self.length))

    def read(self, text: str, num: int) -> np.ndarray:
        """One text, or with @FILE those of the lines of a file, in turn: (num, length).

        Raises:
            ValueError: A file that cannot be read, or a text with too many tokens.
        """
        texts = lines_of(text[1:]) if text.startswith("@") else [text]
        return np.resize(self.tokenizer.encode(texts), (num, self.length))
