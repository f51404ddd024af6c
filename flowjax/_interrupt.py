"""Ctrl-C while a main is still imported: one line and exit code 130, as `_cli.run` has it afterwards.

The imports take seconds, and an interrupt there would print the whole chain of modules. Only the standard library is
imported here, before anything else, and only a process that runs a main of this package is touched.
"""

import os
import signal
import sys
import threading
from typing import Any


def _stop(number: int, frame: Any) -> None:
    """Nothing has been made yet that would have to be saved."""
    sys.stderr.write("interrupted\n")
    sys.stderr.flush()
    os._exit(130)


def _is_main() -> bool:
    """Whether this is `python -m flowjax.X` (while Python looks for it, argv[0] is "-m") or a script of this name."""
    words = sys.orig_argv
    module = words[words.index("-m") + 1] if sys.argv[:1] == ["-m"] and "-m" in words[:-1] else ""
    return module.startswith("flowjax.") or os.path.basename("".join(sys.argv[:1])).startswith("flowjax-")


def install() -> None:
    """Takes Ctrl-C until `release`; a handler of somebody else, or none (nohup), stays."""
    on_main_thread = threading.current_thread() is threading.main_thread()
    if on_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler and _is_main():
        signal.signal(signal.SIGINT, _stop)


def release() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


install()
