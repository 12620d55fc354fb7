"""Fits on the Hugging Face hub: one safetensors file a repository, with a card for people."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from sadi_lmeval.arguments import is_repository
from sadi_lmeval.errors import UserError, first_line
from sadi_lmeval.storage.fit_file import Fit, save_fit

FILE = "fit.safetensors"
"""The name of a fit's file in a repository."""


def fit_path(source: str) -> Path:
    """Find the file of a fit: a path as it is, or downloaded from the hub into its cache.

    Args:
        source: a path, ``user/repository`` or ``user/repository@revision``.

    Raises:
        UserError: there is neither such a file nor such a repository.
    """
    if not is_repository(source):
        if not Path(source).is_file():
            raise UserError(f"fit {source}: no such file, and no user/repository of the hub")
        return Path(source)
    name, _, revision = source.partition("@")
    try:
        return Path(hf_hub_download(name, FILE, revision=revision or None))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"fit {source}: no such file here, and the hub does not give {FILE} of a repository of "
            f"that name ({first_line(error)})"
        ) from None


def push_fit(
    fit: Fit,
    repository: str,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload a fit with a model card; the repository is made if it is not there.

    Returns:
        the address of the commit.

    Raises:
        UserError: the hub refuses it.
    """
    if not is_repository(repository) or "@" in repository:
        raise UserError(f"repository {repository!r}: must be user/name")
    hub = HfApi(token=token)
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            save_fit(fit, Path(folder) / FILE)
            model_card(fit, repository).save(Path(folder) / "README.md")
            made = hub.upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message=commit_message or f"Upload {FILE}",
            )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"repository {repository}: not uploaded ({first_line(error)})") from None
    return str(made.commit_url)


def model_card(fit: Fit, repository: str) -> ModelCard:
    """Write the card of a repository: what the fit is of, and how it is used."""
    card = fit.card
    steering = fit.steering
    method = steering.get("method", "")
    model = str(card.get("model", ""))
    choice = card.get("choice") or {}
    data = ModelCardData(
        model_name=repository,
        eval_results=_results(choice) or None,
        base_model=model if is_repository(model) else None,
        library_name="sadi-lmeval",
        tags=["activation-steering", *([str(method)] if method else [])],
    )
    numbers = ", ".join(f"{k}={v}" for k, v in steering.items() if k not in ("method", "seed"))
    lines = [
        f"# {repository}",
        "",
        f"Steers {model} with {method or 'a steering method'}"
        + (f" ({numbers})" if numbers else "")
        + f". Made by sadi-lmeval from {card.get('n_pairs')} contrastive pairs: "
        f"{card.get('source')} of {card.get('task')}.",
        "",
        *([_said_of(choice), ""] if choice else []),
        "```python",
        "import sadi_lmeval as sadi",
        "",
        f'fit = sadi.load("{repository}")',
        "with fit.steering(model):",
        "    model.generate(**inputs)",
        "```",
        "",
        f"In lm-evaluation-harness: `lm_eval --model hf-{method} --model_args "
        f"pretrained={model},fit={repository}`",
        "",
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines))


def _results(choice: Mapping[str, Any]) -> list[EvalResult]:
    """Give the results on held-out documents, each under a name that says what it is."""
    if not choice.get("steers") or choice["difference"] is None:
        return []
    documents = f"{choice['n_documents']} held-out documents that the setting was chosen on"
    values = {
        f"steered, {documents}": choice["score"],
        f"unsteered, {documents}": choice["unsteered"],
        f"steered minus unsteered, {documents}": choice["difference"],
    }
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=choice["dataset"] or choice["task"],
            dataset_name=choice["task"],
            dataset_config=choice["dataset_config"],
            metric_type=choice["metric"],
            metric_name=f"{choice['metric']} ({name})",
            metric_value=value,
        )
        for name, value in values.items()
    ]


def _said_of(choice: Mapping[str, Any]) -> str:
    """Say how the setting was chosen, and what its figures are worth."""
    among = f"{choice['n_settings']} settings on {choice['n_documents']} held-out documents"
    rule = f"rule {choice['rule']}"
    if not choice["steers"]:
        return (
            f"Of {among} of {choice['task']} none was taken ({rule}): as it is, this fit steers "
            "nothing. Pass a setting of your own."
        )
    setting = ", ".join(f"{name}={value:g}" for name, value in choice["setting"].items())
    said = f"The setting {setting} was chosen among {among} of {choice['task']} ({rule})"
    if choice["difference"] is None:
        return f"{said}."
    p_max = "" if choice["p_max"] is None else f", p_max {choice['p_max']:.2g}"
    error = f"{choice['difference']:+.4f} ± {choice['difference_stderr']:.4f}{p_max}"
    return (
        f"{said}: {choice['metric']} {choice['score']:.4g} there, {choice['unsteered']:.4g} "
        f"unsteered ({error}). These documents are neither in the pairs nor a test set: as the "
        "best of many settings on them, the figure is optimistic."
    )
