"""Take pictures and numbers of finished runs into docs/.

    python docs/update.py runs/latent-dimensions-quick forecast=other/deep-mnist-quick

results.json has what the pages state, by experiment or by the name given; a test compares it with them and
with the pictures. A run with a name leaves only the picture whose name it begins with, under its own.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from lineavae._io import write_text
from lineavae.experiments import load_results

DOCS = Path(__file__).parent
path = DOCS / "results.json"
documented = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
for argument in sys.argv[1:]:
    name, _, path_of_run = argument.rpartition("=")
    directory = Path(path_of_run)
    results = load_results(directory)
    document = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    taken = {
        f"{name}.png" if name else picture.name: picture
        for picture in sorted(directory.glob("*.png"))
        if name.startswith(picture.stem) or not name
    }
    for picture, source in taken.items():
        shutil.copyfile(source, DOCS / picture)
    documented[name or document["experiment"]] = {
        "experiment": document["experiment"],
        "checksum": document["checksum"],
        "data": results["data"],
        "config": results["config"],
        "pictures": list(taken),
        "quantities": {
            name: [entry["measured"], entry["spread"]] for name, entry in results["quantities"].items()
        },
    }
write_text(path, json.dumps(documented, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
