#!/bin/sh
# A function that has the name of its module is missing from its package's page of an API reference, and a strict build passes.
#
# mkdocs 1.6.1, mkdocs-material 9.8.2, mkdocstrings 1.0.8, mkdocstrings-python 2.0.11, griffelib 2.4.1.
#
# A package that keeps one function in each module of the same name, shapes/area.py with area(), and exports them by
# `from shapes.area import area` in its __init__.py and in __all__, has in Python the function as its attribute. griffe, which reads
# the source, keeps the submodule under that name. As a submodule it is left out of the page by default, so of two functions in
# __all__ the page of `::: shapes` has the one whose module is called otherwise. `mkdocs build --strict` ends with 0 and says nothing.
#
# Seen: the page has shapes.perimeter and not shapes.area; a page that names shapes.area.area by its module has it.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet mkdocs==1.6.1 mkdocs-material==9.8.2 mkdocstrings==1.0.8 mkdocstrings-python==2.0.11 griffelib==2.4.1
cd "$folder"
mkdir -p shapes docs
cat > shapes/__init__.py <<'PY'
"""Shapes."""
from shapes.area import area
from shapes.lengths import perimeter

__all__ = ["area", "perimeter"]
PY
printf 'def area(a, b):\n    """Area of a rectangle."""\n    return a * b\n' > shapes/area.py
printf 'def perimeter(a, b):\n    """Perimeter of a rectangle."""\n    return 2 * (a + b)\n' > shapes/lengths.py
printf 'site_name: x\nplugins:\n  - mkdocstrings:\n      handlers: {python: {paths: [.]}}\n' > mkdocs.yml
printf '# Package\n\n::: shapes\n' > docs/index.md
printf '# Module\n\n::: shapes.area.area\n' > docs/module.md
v/bin/python -c "import shapes; assert callable(shapes.area)"
NO_MKDOCS_2_WARNING=1 v/bin/mkdocs build --strict --quiet
v/bin/pip list 2>/dev/null | grep -E 'mkdocs|griffe'
v/bin/python - <<'PY'
from pathlib import Path

package, module = (Path("site", name).read_text() for name in ("index.html", "module/index.html"))
for function, page in (("perimeter", package), ("area", package), ("area", module)):
    print(function, "documented:", f"{function.capitalize()} of a rectangle" in page)
assert "Perimeter of a rectangle" in package
assert "Area of a rectangle" not in package
assert "Area of a rectangle" in module
PY
