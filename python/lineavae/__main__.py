"""``python -m lineavae`` is the command ``lineavae``."""

from lineavae.cli import main

main()
