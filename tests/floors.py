"""The lowest versions that pyproject.toml allows, of all dependencies but torch and torchvision: pip's arguments.

Under a newer Python than the oldest that it allows, which may have no wheels of them, what pip finds.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

_EXTRAS = ("report", "demo", "hub")

if __name__ == "__main__":
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    oldest = project["requires-python"] == f">={sys.version_info.major}.{sys.version_info.minor}"
    asked = project["dependencies"] + [own for extra in _EXTRAS for own in project["optional-dependencies"][extra]]
    asked = [own.replace(">=", "==") if oldest else own for own in asked]
    print(*(own for own in asked if not own.startswith(("torch", "phasefast"))))
