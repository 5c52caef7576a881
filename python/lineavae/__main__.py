"""``python -m lineavae``, and the command ``lineavae``."""

from __future__ import annotations

from lineavae._loading import loading


def main() -> None:
    """Load the command line and run it."""
    with loading():
        from lineavae.cli import main as command

    command()


if __name__ == "__main__":
    main()
