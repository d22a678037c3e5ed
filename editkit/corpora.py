"""Texts to measure on: a local file, a text a line, or a data set of the Hugging Face hub, streamed.

    corpus = "notes.txt"
    corpus = "hub:Salesforce/wikitext?name=wikitext-103-raw-v1&split=train&field=text"

Of a data set no more is read than is asked for. Whatever `datasets.load_dataset` takes for a path may stand after
"hub:", a local folder too; `name`, `split` (train), `revision` and `field` (text) follow as in an address.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from editkit.errors import InputError, UnableError

HUB = "hub:"
OPTIONS = ("name", "split", "revision", "field")


def texts_of(corpus: str) -> Iterator[str]:
    """The texts of a corpus, one after the other, empty ones left out.

    Raises InputError for a corpus that is written wrong or has no such field, UnableError where it cannot be had.
    """
    texts = _of_the_hub(corpus.removeprefix(HUB)) if corpus.startswith(HUB) else _of_a_file(Path(corpus))
    return (text for text in texts if text.strip())


def _of_a_file(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8") as stream:
            yield from (line.strip() for line in stream)
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 ({error}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"cannot read the corpus {file}: {error.strerror}") from None


def _of_the_hub(address: str) -> Iterator[str]:
    path, _, query = address.partition("?")
    given = {"split": "train", "field": "text"} | dict(parse_qsl(query, keep_blank_values=True))
    unknown = [key for key in given if key not in OPTIONS]
    if unknown or not path:
        what = f"no option {unknown[0]!r} of a corpus" if unknown else "no data set is named"
        raise InputError(f"{HUB}{address}: {what}; write {HUB}OWNER/NAME?{'=…&'.join(OPTIONS)}=…")
    field = given.pop("field")
    for row in _rows(path, given):
        if field not in row:
            raise InputError(f"{HUB}{address}: no field {field!r}; there is {', '.join(row)}")
        yield str(row[field])


def _rows(path: str, options: dict[str, str]) -> Iterator[dict[str, Any]]:
    import datasets  # takes a second to import, and few runs need it

    try:
        yield from datasets.load_dataset(path, **options, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:  # no such data set, split or name; no network
        raise UnableError(f"cannot read the data set {path!r}: {error}") from None
