"""What safetensors says of a disk, as the errors that Python has for it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

_NUMBER = re.compile(r"\(os error (\d+)\)")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Within the block a SafetensorError of the system (disk full, no rights) is an OSError that names `path`."""
    try:
        yield
    except SafetensorError as error:
        number = _NUMBER.search(str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(path)) from None
