"""The commands of ``lineavae``, one module each."""
