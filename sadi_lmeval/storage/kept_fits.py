"""The fits that a cache folder holds, and the settings that were chosen for them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from sadi_lmeval.errors import UserError
from sadi_lmeval.storage.atomic import read_checked

FITS, CHOICES = "*.safetensors", "*.tuning.json"


class KeptFit(NamedTuple):
    """A fit of a folder.

    Attributes:
        file: its file.
        card: where it comes from.
        arm: the method with its arguments that a setting was chosen for; empty: none was yet.
        setting: the chosen numbers by axis.
        of_choice: what the fit's card says of the choice.
    """

    file: Path
    card: Mapping[str, Any]
    arm: Mapping[str, Any]
    setting: Mapping[str, float]
    of_choice: Mapping[str, Any]

    @property
    def key(self) -> str:
        return self.file.stem

    @property
    def made(self) -> datetime:
        return datetime.fromtimestamp(self.file.stat().st_mtime)


def kept_fits(folder: Path) -> list[KeptFit]:
    """List the fits of a folder, the newest first; what is damaged is passed over.

    A fit that settings were chosen for under several methods or arguments is listed with each.
    """
    chosen: dict[str, dict[str, KeptFit]] = {}
    cards = {file: card for file in folder.glob(FITS) if (card := _card(file)) is not None}
    by_digest = {str(card.get("sha256")): file for file, card in cards.items()}
    for fit, arm, setting, of_choice in _choices(folder):
        if fit in by_digest:
            file = by_digest[fit]
            chosen.setdefault(fit, {})[json.dumps([arm, setting], sort_keys=True)] = KeptFit(
                file, cards[file], arm, setting, of_choice
            )
    found = []
    for digest, file in by_digest.items():
        found += list(chosen.get(digest, {}).values()) or [KeptFit(file, cards[file], {}, {}, {})]
    return sorted(found, key=lambda fit: (fit.made, fit.key), reverse=True)


def find_fits(folder: Path, key: str) -> list[KeptFit]:
    """Find a fit by the beginning of its key, with each setting that was chosen for it.

    Raises:
        UserError: there is none, or several begin so.
    """
    found = [fit for fit in kept_fits(folder) if fit.key.startswith(key)]
    keys = sorted({fit.key for fit in found})
    if not keys:
        raise UserError(f"{key}: no fit in {folder} begins so; sadi-lmeval fits lists them")
    if len(keys) > 1:
        raise UserError(f"{key}: {len(keys)} fits begin so ({keys[0]}, {keys[1]}); give more of it")
    return found


def _card(file: Path) -> dict[str, Any] | None:
    try:
        with safe_open(file, framework="numpy") as opened:
            card = json.loads((opened.metadata() or {})["card"])
    except (OSError, SafetensorError, ValueError, KeyError):
        return None
    return card if isinstance(card, dict) else None


def _choices(
    folder: Path,
) -> Iterator[tuple[str, dict[str, Any], dict[str, float], dict[str, Any]]]:
    """Yield of each choice the fit's digest, the method with its arguments, the setting, and what
    is said of it."""
    for file in folder.glob(CHOICES):
        try:
            value = read_checked(file)["value"]
            numbers = value["outcomes"][value["chosen"]][0]
            setting = dict(zip(value["axes"], numbers, strict=True))
            yield value["fit"], value["arm"], setting, dict(value.get("card", {}))
        except (OSError, ValueError, LookupError, TypeError):
            continue
