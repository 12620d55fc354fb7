"""A read-only folder, a full disk, no home: a warning and a right result."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from faults.commands import Commands
from faults.counts import Count
from faults.results import results_of
from helpers import quick_host

MODEL_ARGS: dict[str, Any] = {"n_pairs": 12, "n_tune": 12, "grid": "1/2x4/9", "rule": "best"}


class Outcome:
    """What a run of the command in a process of its own has said and found."""

    def __init__(self, done: subprocess.CompletedProcess[str], output: Path) -> None:
        assert done.returncode == 0, done.stderr[-3000:]
        metrics, steering = results_of(output)
        fits = [fit for task in steering.values() for fit in task["fits"]]
        self.files = [fit.pop("file") for fit in fits]
        self.results = metrics, fits
        self.warnings = [line for line in done.stderr.splitlines() if "WARNING" in line]


def run(
    commands: Commands,
    output: Path,
    *before: str,
    cache: Path | None,
    **environment: str,
) -> Outcome:
    given = MODEL_ARGS if cache is None else {**MODEL_ARGS, "cache_dir": cache}
    options = ("--model", "hf-sadi", "--limit", "4", "--output_path", str(output))
    arguments = commands.arguments("lm_eval", "tiny_choice", *options, **given)
    done = subprocess.run(
        [*before, sys.executable, quick_host.__file__, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **commands.environment, **environment},
    )
    return Outcome(done, output)


@pytest.fixture(scope="module")
def undisturbed(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("undisturbed")
    return run(commands, folder / "out", cache=folder / "cache")


def told(found: Outcome, *words: str) -> bool:
    """Whether a warning has all of the words."""
    return any(all(word in line for word in words) for line in found.warnings)


def without_override() -> list[str]:
    """What takes from root the right to write where nobody may."""
    if os.geteuid():
        return []
    if not shutil.which("setpriv"):
        pytest.skip("runs as root, and setpriv is not there to make it anybody")
    rights = "-dac_override,-dac_read_search,-fowner"
    return ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}"]


def run_read_only(commands: Commands, output: Path, cache: Path) -> Outcome:
    """A run that may not write to its cache folder."""
    cache.chmod(0o555)
    try:
        return run(commands, output, *without_override(), cache=cache)
    finally:
        cache.chmod(0o755)


def test_a_read_only_folder(
    commands: Commands, undisturbed: Outcome, tmp_path: Path, count: Count
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    found = run_read_only(commands, tmp_path / "out", cache)
    assert found.results == undisturbed.results
    assert found.files == [None]
    assert told(found, str(cache), "cannot be written", "cache_dir=")
    assert not list(cache.iterdir())
    count("read-only folder", right_with_a_warning=1)


def test_a_read_only_folder_that_has_all(
    commands: Commands, undisturbed: Outcome, tmp_path: Path, count: Count
) -> None:
    cache = tmp_path / "cache"
    run(commands, tmp_path / "filling", cache=cache)
    before = {path.name: path.read_bytes() for path in cache.iterdir()}
    found = run_read_only(commands, tmp_path / "out", cache)
    assert found.results == undisturbed.results
    assert found.files != [None]
    assert not told(found, "cannot be written")
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == before
    count("read-only folder that has all", right_and_not_a_word=1)


@pytest.mark.parametrize("size", ["4k", "8k", "1m"])
def test_a_full_disk(
    commands: Commands, undisturbed: Outcome, tmp_path: Path, count: Count, size: str
) -> None:
    """A tmpfs that holds next to nothing, a part, or all."""
    cache = tmp_path / "cache"
    cache.mkdir()
    mount = f'mount -t tmpfs -o size={size} none {cache} && exec "$@"'
    within = ["unshare", "-m", *(["-r"] if os.geteuid() else []), "sh", "-c", mount, "sh"]
    tried = subprocess.run([*within, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {tried.stderr.strip()}")
    found = run(commands, tmp_path / "out", *within, cache=cache)
    assert found.results == undisturbed.results
    full = told(found, "cannot be written", "No space left on device")
    assert full == (size != "1m")
    count(f"disk of {size}", right_with_a_warning=int(full), right_and_not_a_word=int(not full))


def test_no_home(commands: Commands, undisturbed: Outcome, tmp_path: Path, count: Count) -> None:
    nowhere = {"HOME": "/dev/null/home", "XDG_CACHE_HOME": "", "HF_HOME": str(tmp_path / "hf")}
    found = run(commands, tmp_path / "out", cache=None, **nowhere)
    assert found.results == undisturbed.results
    assert told(found, "/dev/null/home", "cannot be written", "cache_dir=")
    count("no home", right_with_a_warning=1)
