"""What named things say of themselves: `fact` stands above a class or function, the catalogue collects the entries."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

Thing = TypeVar("Thing", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Reference:
    """Where a method was published: an entry of `flowjax/references.bib`.

    Attributes:
        key: its key.
        authors: "Last, F. and Last, F.".
        title: the title.
        year: the year.
        url: an address that stays, of arXiv or a DOI.
        text: the entry as the file has it.

    Example:
        >>> import flowjax as fj
        >>> reference = fj.catalogue.solvers["unipc"].reference
        >>> reference.year, reference.url
        (2023, 'https://arxiv.org/abs/2302.04867')
    """

    key: str
    authors: str
    title: str
    year: int
    url: str
    text: str

    def bibtex(self) -> str:
        """The reference as a BibTeX entry."""
        return self.text


def parse_references(text: str) -> dict[str, Reference]:
    """The references of a BibTeX file by key; entries of few kinds, one field per line, empty lines between them.

    Raises:
        ValueError: an entry in another form, without author, title, year and url, or with a key that is taken.
    """
    found: dict[str, Reference] = {}
    for entry in text.strip().split("\n\n"):
        match = re.fullmatch(r"@(?:article|book|misc)\{(\w+),\n((?:  \w+ = \{.+\},\n)+)\}", entry)
        fields = dict(re.findall(r"^  (\w+) = \{(.+)\},$", match[2], flags=re.MULTILINE)) if match else {}
        complete = {"author", "title", "year", "url"} <= set(fields) and fields["year"].isdecimal()
        balanced = all(value.count("{") == value.count("}") for value in fields.values())
        if match is None or match[1] in found or not complete or not balanced:
            raise ValueError(
                "not a reference with a key of its own, author, title, year and url (@article, @book or @misc, one "
                f"field per line): {entry[:200]}"
            )
        found[match[1]] = Reference(
            match[1], fields["author"], fields["title"], int(fields["year"]), fields["url"], entry
        )
    return found


@functools.cache
def references() -> dict[str, Reference]:
    """All references by key, read when they are first asked for."""
    return parse_references(Path(__file__).with_name("references.bib").read_text(encoding="utf-8"))


@dataclasses.dataclass(frozen=True)
class Entry:
    """One named thing.

    Attributes:
        make: the class; the main function of a system.
        summary: what it is, in one line.
        cite: key of its reference in `flowjax/references.bib`.
        order: order of convergence of a whole run with default settings; None where the notion does not apply.
        couples_batch: whether a sample depends on its batch mates.
        example: keyword arguments of a typical instance, for those that cannot be made without any.
        parts: kinds of the arguments that are specs themselves, for functions and modules; a dataclass says it of its
            own fields (`flowjax._pytree.part`).
        more: whatever else takes the options that `make` passes on.
        fixed: options that this name stands for.
        tasks: of an objective, the tasks (`flowjax.tasks`) in which it makes sense.

    Example:
        >>> import flowjax as fj
        >>> heun = fj.catalogue.solvers["heun"]
        >>> heun.order, heun.stochastic, heun.evaluations(10)
        (2, False, 20)
    """

    make: Callable[..., Any]
    summary: str
    cite: str | None = None
    order: int | None = None
    couples_batch: bool = False
    example: Callable[[], dict[str, Any]] = dict
    parts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    more: tuple[Callable[..., Any], ...] = ()
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tasks: tuple[str, ...] = ()

    @property
    def reference(self) -> Reference | None:
        """Where it was published.

        Raises:
            ValueError: no such key.
        """
        if self.cite is not None and self.cite not in references():
            raise ValueError(f"no reference {self.cite!r} in flowjax/references.bib: put it there")
        return None if self.cite is None else references()[self.cite]

    @functools.cached_property
    def stochastic(self) -> bool | None:
        """Whether a solver draws noise with default settings: as its rows do, or as its class says on its own grid.

        None for what is no solver on a grid.
        """
        bound = self._bound(4, 0.1, 0.9)
        return getattr(self.make, "stochastic", None) if bound is None else bool(bound.pattern.noises)

    @functools.cached_property
    def evaluations(self) -> Callable[[int], int] | None:
        """Evaluations of a solver for n steps on a path with finite velocity.

        None where they are no function of n: with steps of its own, on a schedule, or when an end of the path changes
        the count.
        """
        inside, whole = self._bound(4, 0.1, 0.9), self._bound(4, 0.0, 1.0)
        if inside is None or (whole is not None and whole.pattern.rows != inside.pattern.rows):
            return None
        return lambda n: self._bound(n, 0.1, 0.9).pattern.rows

    def _bound(self, n: int, start: float, end: float) -> Any:
        """The typical solver on n equal steps of the linear path; None if it is none, or refuses them."""
        from flowjax import paths, times  # above them, for what they say of themselves

        if not hasattr(self.make, "bind"):
            return None
        typical: Any = self.make(**self.example(), **self.fixed)
        try:
            return typical.bind(paths.Linear(), times.uniform(n, start, end))
        except ValueError:
            return None


_ENTRIES: dict[str, dict[str, Entry]] = {}


def fact(kind: str, name: str, summary: str, **facts: Any) -> Callable[[Thing], Thing]:
    """Gives a class or function a name, under which specs, the command line, the docs and `cite` find it.

    Args:
        kind: what it is: "solver", "rule", "field", "objective", ...
        name: its name within the kind.
        summary: what it is, in one line without a full stop.
        **facts: other attributes of an `Entry`.

    Returns:
        A decorator; for things of other libraries and names of options it is called: `fact(...)(diffrax.Tsit5)`.

    Raises:
        ValueError: another thing has this name.

    Example:
        >>> @fact("colour", "red", "the colour of ripe tomatoes")
        ... def red(): ...
        >>> entries("colour")["red"].summary
        'the colour of ripe tomatoes'
    """

    def record(make: Thing) -> Thing:
        known = _ENTRIES.setdefault(kind, {})
        if name in known and _place(known[name].make) != _place(make):
            raise ValueError(f"the {kind} {name!r} is {known[name].make!r} already: give {make!r} another name")
        known[name] = Entry(make, summary, **facts)
        return make

    return record


def _place(make: Any) -> Any:
    """Where a thing is defined: a cell or module that runs again defines the same thing."""
    return (make.__module__, make.__qualname__) if hasattr(make, "__qualname__") else make


def entries(kind: str) -> Mapping[str, Entry]:
    """What has a name of this kind in the modules that have been imported."""
    return dict(_ENTRIES.get(kind, {}))
