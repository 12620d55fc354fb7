"""The picture of the report in README: a comparison with the real small model, in a browser.

    python bench/picture.py --output FOLDER [--model FOLDER] [--data FOLDER]

Runs ``sadi-lmeval compare`` (or goes on where it was interrupted) and writes ``docs/report.png``,
the beginning of ``FOLDER/report.html`` at 1280 pixels. Needs Chromium. ``--data`` is a folder to
run in, in which the harness finds the data sets when there is no hub. The model is
SmolLM2-135M-Instruct in float32 unless ``--model`` names another.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from browser import browser
from PIL import Image
from smollm2 import default_folder, smollm2

PICTURE = Path(__file__).parents[1] / "docs" / "report.png"
METHODS = ("none", "sadi-head", "sadi-neuron", "iti", "caa")
ARGUMENTS = "n_pairs=60,n_tune=40,rule=best"
WIDTH = 1280
MOST = 300_000
"""Bytes, at most."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model")
    parser.add_argument("--data", type=Path)
    given = parser.parse_args()
    output = given.output.absolute()
    model = given.model or str(smollm2(default_folder()))
    command = [sys.executable, "-m", "sadi_lmeval", "compare", "--tasks", "boolq,copa"]
    command += ["--model_args", f"pretrained={model},{ARGUMENTS}", "--methods", ",".join(METHODS)]
    command += ["--limit", "60", "--device", "cpu", "--batch_size", "8", "--html"]
    environment = {**os.environ, **({"HF_HUB_OFFLINE": "1"} if given.data else {})}
    subprocess.run(
        [*command, "--output_path", str(output)], check=True, cwd=given.data, env=environment
    )
    with tempfile.TemporaryDirectory() as folder, browser(Path(folder)) as page:
        page.open(output / "report.html", WIDTH, 900)
        end = page.evaluate("document.querySelector('[id^=settings]').getBoundingClientRect().top")
        shot = Image.open(io.BytesIO(page.picture(int(end) - 24)))
    # Few colours are on a page, and each letter's edge needs but some more.
    shot.convert("RGB").quantize(96).save(PICTURE, optimize=True)
    size = PICTURE.stat().st_size
    print(f"{PICTURE.name}: {shot.width} x {shot.height} pixels, {size} bytes (at most {MOST})")
    return int(size > MOST)


if __name__ == "__main__":
    sys.exit(main())
