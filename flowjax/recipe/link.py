"""Links trained runs to a chain: what one samples, the next one starts from or is conditioned on.

    python -m flowjax.recipe.link --runs=a=runs/structure,b=runs/details --into=structure --out=runs/solids
    python -m flowjax.sample --workdir=runs/solids

--into has an entry for each run but the first: the name of one of its conditions, or start. The runs stay where they
are; the folder that is written names them, and the mains read it like a workdir.
"""

from absl import flags

from flowjax import _cli
from flowjax.recipe import make_chain


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The flags of this main."""
    flags.DEFINE_list("runs", [], "NAME=FOLDER of each run, in order, two or more.", flag_values=values)
    flags.DEFINE_list("into", [], "Where samples go: a condition of the next run, or start.", flag_values=values)
    flags.DEFINE_string("out", None, "New folder for the chain.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Checks the runs and writes the chain."""
    if values.out is None:
        raise _cli.UsageError("--out=FOLDER is required")
    runs = {}
    for text in values.runs:
        name, is_given, folder = text.partition("=")
        if not (is_given and name and folder) or name in runs:
            raise _cli.UsageError(f"--runs has NAME=FOLDER of each run, each name once, got {text!r}")
        runs[name] = folder
    if len(runs) < 2 or len(values.into) != len(runs) - 1:
        raise _cli.UsageError(
            f"a chain has two runs or more and an entry of --into for each but the first, got {len(runs)} and "
            f"{len(values.into)}"
        )
    with _cli.usage_errors():
        chain = make_chain(values.out, runs, values.into)
    print(f"{values.out}: {' > '.join(chain.stages)}, samples of shape {chain.shape}")


def cli() -> None:
    """Entry point."""
    _cli.run(main, define)


if __name__ == "__main__":
    cli()
