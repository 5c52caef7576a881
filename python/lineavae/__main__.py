"""``python -m lineavae``, and the command ``lineavae``."""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Load the command line and run it; Ctrl-C in the second that loading takes is no error either."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # nobody's, and not ignored
        # an exception would be raised in the midst of an import, of which some make another one
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from lineavae.cli import main as command

    signal.signal(signal.SIGINT, handler)
    command()


if __name__ == "__main__":
    main()
