#!/bin/sh
# Which text IPython shows of an object whose base class says how.
#
# IPython 9.18.1.
#
# A base class, a mixin for results say, defines _repr_pretty_, IPython's hook for text. IPython looks through the classes from the
# nearest to the farthest for either _repr_pretty_ or __repr__, and takes what it meets first. So a class that inherits the hook and has
# a __repr__ of its own is shown by that, and every dataclass has one. The _repr_html_ of the same base is used, and so is a
# _repr_mimebundle_ with text/plain in it.
#
# Seen: "pretty" for a plain subclass, the __repr__ for a dataclass and for a class with __repr__; "bundle" with _repr_mimebundle_.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet ipython==9.18.1
"$folder/v/bin/python" - <<'PY'
from dataclasses import dataclass

import IPython
from IPython.core.formatters import DisplayFormatter


class Pretty:
    def _repr_pretty_(self, printer, cycle):
        printer.text("pretty")


class Plain(Pretty):
    pass


@dataclass
class Data(Pretty):
    x: int = 1


class Own(Pretty):
    def __repr__(self):
        return "Own()"


@dataclass
class Bundle:
    x: int = 1

    def _repr_mimebundle_(self, **options):
        return {"text/plain": "bundle"}


shown = {kind.__name__: DisplayFormatter().format(kind())[0]["text/plain"] for kind in (Plain, Data, Own, Bundle)}
print("IPython", IPython.__version__, shown)
assert shown == {"Plain": "pretty", "Data": "Data(x=1)", "Own": "Own()", "Bundle": "bundle"}
PY
