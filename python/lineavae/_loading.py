"""Ctrl-C in the second that loading the command line, or a command, takes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

# Exit code of what Ctrl-C ended.
INTERRUPTED = 130


@contextmanager
def loading() -> Iterator[None]:
    """End the process at Ctrl-C, with 130 and without a word, while modules are imported.

    An exception would be raised in the midst of an import, of which some make another one.
    """
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.default_int_handler:  # somebody's, or ignored
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
