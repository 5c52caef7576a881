"""What all benchmarks share: timing, the machine, tables, and the steps of a run on a GPU."""
