"""What the tests that run over every operator may be told of each: `quick/<operator>.toml`.

These settings stand above the preset's, as a user's would ("none" switches one off). An operator needs such a file only
where its preset takes long on a tiny random model, or does too little to it for the contract to see.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

FILES = sorted(Path(__file__).with_name("quick").glob("*.toml"))
QUICK: dict[str, dict[str, Any]] = {file.stem: tomllib.loads(file.read_text(encoding="utf-8")) for file in FILES}
