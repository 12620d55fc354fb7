"""Virtual environments and built packages, for what a real interpreter would meet."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import NamedTuple

from sadi_lmeval import registration

REPOSITORY = Path(__file__).parents[2]


def run(
    *command: str | Path, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in an environment free of what this one sets for Python."""
    own = ("PYTHON", "PIP_", registration.SWITCH)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    settings = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**clean, **settings},
        timeout=120,
    )


def packages_of_this_environment() -> list[str]:
    return [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]


class Environment(NamedTuple):
    """A fresh virtual environment."""

    python: Path
    packages: Path

    def command(self, name: str) -> list[str | Path]:
        """The words of a harness command, with the console script that pip would have made."""
        if name == "python -m lm_eval":
            return [self.python, "-m", "lm_eval"]
        script = self.python.parent / name
        script.write_text(
            f"#!{self.python}\n"
            "import sys\n"
            "from lm_eval.__main__ import cli_evaluate\n"
            "sys.exit(cli_evaluate())\n",
            encoding="utf-8",
        )
        script.chmod(0o755)
        return [script]

    def pip_install(self, *what: str | Path) -> None:
        options = ["--isolated", "--python", str(self.python), "install", "--no-deps", "--no-index"]
        done = run(sys.executable, "-m", "pip", *options, "--ignore-installed", *what)
        assert done.returncode == 0, done.stdout + done.stderr


def bare_environment(folder: Path) -> Environment:
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    return Environment(folder / "bin" / "python", packages)


def harness_environment(folder: Path) -> Environment:
    """One with all dependencies, and with a harness whose only own task is a made-up one.

    The harness's code is the installed one, by symbolic links; indexing its thousands of task files
    would take most of a test's time.
    """
    environment = bare_environment(folder)
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    installed, lean = Path(spec.origin).parent, environment.packages / "lm_eval"
    (lean / "tasks").mkdir(parents=True)
    for source in [*installed.iterdir(), *(installed / "tasks").glob("*.py")]:
        target = lean / source.relative_to(installed)
        if not target.exists():
            target.symlink_to(source)
    task = "task: of_the_harness\ntag: a_tag\noutput_type: generate_until\ndataset_path: json\n"
    (lean / "tasks" / "of_the_harness.yaml").write_text(task, encoding="utf-8")
    rest = "\n".join(packages_of_this_environment())
    (environment.packages / "zz_dependencies.pth").write_text(rest + "\n", encoding="utf-8")
    return environment


def build(target: str, project: Path, folder: Path) -> Path:
    done = run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", folder, cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.iterdir()
    return built
