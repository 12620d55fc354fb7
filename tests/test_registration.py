"""Everything here asks real interpreters: what a user's `python` or `lm_eval` would meet."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.environments import (
    REPOSITORY,
    Environment,
    bare_environment,
    build,
    harness_environment,
    packages_of_this_environment,
    run,
)
from sadi_lmeval import registration

PTH = "sadi_lmeval_bridge.pth"
COMMANDS = ("lm_eval", "lm-eval", "python -m lm_eval")
OUR_TASKS = {
    *(
        "sadi_facts",
        "sadi_gsm8k",
        "sadi_svamp",
        "sadi_boolq",
        "sadi_copa",
        "sadi_customers",
        "sadi_sst2",
        "sadi_sst5",
    ),
    *("sadi_storycloze", "sadi_toxigen", "sadi_truthfulqa_mc3", "sadi_winogrande", "sadi_xnli"),
    *("sadi_mmlu", "sadi_mmlu_humanities", "sadi_mmlu_other", "sadi_mmlu_social_sciences"),
    *("sadi_mmlu_stem", "sadi_truthfulqa_gen"),
}
OUR_GROUPS = {"sadi_math", "sadi_multilingual", "sadi_paper"}
OUR_TAGS = {"sadi_mmlu_disciplines"}


def answer(python: str | Path, code: str, *options: str, **environment: Any) -> Any:
    """What the code prints as JSON; it must end well and print nothing to stderr."""
    done = run(python, *options, "-c", textwrap.dedent(code), **environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", REPOSITORY, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Environment:
    """The wheel in a fresh environment, beside the harness."""
    environment = harness_environment(tmp_path_factory.mktemp("installed"))
    environment.pip_install(wheel)
    return environment


@pytest.fixture(scope="module")
def editable(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """This checkout, installed with ``pip install --editable``, beside the harness."""
    environment = harness_environment(tmp_path_factory.mktemp("editable"))
    environment.pip_install("--no-build-isolation", "--editable", REPOSITORY)
    return environment


@pytest.fixture
def alone(tmp_path: Path, wheel: Path) -> Environment:
    """The wheel in an environment that has nothing else, not even the harness."""
    environment = bare_environment(tmp_path / "alone")
    environment.pip_install(wheel)
    return environment


# What importing costs and does


def test_importing_the_package_loads_neither_torch_nor_the_harness() -> None:
    loaded = "import sadi_lmeval, sys, json; print(json.dumps(sorted(sys.modules)))"
    modules = answer(sys.executable, loaded)
    assert "sadi_lmeval" in modules
    assert not {"torch", "transformers", "lm_eval", "numpy", "yaml"} & set(modules)


def in_the_state_of_the_pth_line(packages: Path, code: str) -> str:
    """Code that runs where ``site`` would run the .pth line: path set, hardly a module loaded."""
    line = (packages / PTH).read_text(encoding="utf-8")
    before = f"import os, sys, time; sys.path.append({str(packages)!r}); line = {line!r}"
    return f"{before}\n{code}"


def test_an_interpreter_start_imports_two_small_modules_and_no_more(installed: Environment) -> None:
    code = in_the_state_of_the_pth_line(
        installed.packages,
        "before = set(sys.modules); exec(line); new = set(sys.modules) - before\n"
        "import json; print(json.dumps(sorted(new)))",
    )
    modules = answer(installed.python, code, "-I", "-S")
    assert modules == ["__future__", "sadi_lmeval", "sadi_lmeval.registration"]


def test_an_interpreter_starts_hardly_later(installed: Environment) -> None:
    code = in_the_state_of_the_pth_line(
        installed.packages,
        "start = time.perf_counter(); exec(line); print(time.perf_counter() - start)",
    )
    ours, bare = [], []
    for _ in range(21):
        ours.append(answer(installed.python, code, "-I", "-S"))
        start = time.perf_counter()
        subprocess.run([installed.python, "-I", "-S", "-c", "pass"], check=True)
        bare.append(time.perf_counter() - start)
    assert statistics.median(ours) < statistics.median(bare) / 6, (ours, bare)


# What the harness knows


def test_the_harness_resolves_our_models_and_its_own() -> None:
    """Each name first in a process of its own would take as many imports; one has all of them."""
    expected = {"hf-sadi": "SADI", "hf-iti": "ITI", "hf-caa": "CAA", "hf-linear-act": "LinearAcT"}
    code = f"""
        import json, sys
        from lm_eval.api.registry import get_model
        found = []
        for name in {list(expected)!r}:
            ours, theirs = get_model(name), get_model("hf")
            mine = ours.__name__, ours.__module__, theirs.__name__, theirs in ours.mro()
            found.append(mine)
        print(json.dumps(found))
    """
    found = answer(sys.executable, code)
    assert found == [[name, "sadi_lmeval.model", "HFLM", True] for name in expected.values()]


def test_every_model_of_the_harness_is_still_registered() -> None:
    code = """
        import json, sys
        from lm_eval.api.registry import get_model, model_registry
        get_model("dummy")
        from lm_eval.models import MODEL_MAPPING
        print(json.dumps([sorted(MODEL_MAPPING), sorted(model_registry), "torch" in sys.modules]))
    """
    harness, registered, torch_is_loaded = answer(sys.executable, code)
    assert set(registered) == {*harness, *registration.model_targets()}
    assert "hf" in harness
    assert not torch_is_loaded


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_of_a_normal_install_knows_our_model_and_task(
    installed: Environment, name: str, tmp_path: Path
) -> None:
    assert_knows_our_names(installed, name, tmp_path)


def test_the_command_of_an_editable_install_knows_our_model_and_task(
    editable: Environment, tmp_path: Path
) -> None:
    assert_knows_our_names(editable, "lm_eval", tmp_path)


def assert_knows_our_names(environment: Environment, name: str, folder: Path) -> None:
    """Ask for an unknown model, as the harness then lists the models it has; tasks come first."""
    options = ["--model", "no-such-model", "--tasks", "sadi_facts"]
    done = run(*environment.command(name), *options, cwd=folder)
    assert "Selected Tasks: ['sadi_facts']" in done.stdout + done.stderr
    _, found, names = done.stderr.partition("Supported model names: ")
    assert found, done.stderr
    assert {"hf", "dummy", "vllm", *registration.model_targets()} <= set(names.strip().split(", "))


def test_our_task_runs_with_a_model_that_is_not_ours(
    installed: Environment, tmp_path: Path
) -> None:
    options = ["--model", "dummy", "--tasks", "sadi_facts", "--limit", "2"]
    done = run(*installed.command("lm_eval"), *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "|sadi_facts|" in done.stdout


def test_ls_shows_our_tasks_where_they_are_installed_and_no_pairing_files(
    installed: Environment, tmp_path: Path
) -> None:
    done = run(*installed.command("lm_eval"), "ls", "subtasks", cwd=tmp_path)
    rows = [line.split("|")[1:3] for line in done.stdout.splitlines() if ".yaml" in line]
    places = {name.strip(): place.strip() for name, place in rows}
    assert set(places) == {"of_the_harness", *OUR_TASKS}
    folder = installed.packages / "sadi_lmeval" / "task_configs"
    assert Path(places["sadi_facts"]).is_relative_to(folder)


LISTS = """
    import json
    from lm_eval.tasks import TaskManager
    manager = TaskManager({settings})
    names = [manager.all_tasks, manager.all_subtasks, manager.all_groups, manager.all_tags]
    places = {{name: str(entry.yaml_path) for name, entry in manager.task_index.items()}}
    print(json.dumps([names, places]))
"""


def test_the_lists_of_the_task_manager_gain_our_names_and_nothing_else(
    installed: Environment,
) -> None:
    code = LISTS.format(settings="")
    with_ours, _ = answer(installed.python, code)
    without, _ = answer(installed.python, code, **{registration.SWITCH: "1"})
    assert without == [["a_tag", "of_the_harness"], ["of_the_harness"], [], ["a_tag"]]
    ours = [OUR_TASKS | OUR_GROUPS | OUR_TAGS, OUR_TASKS, OUR_GROUPS, OUR_TAGS]
    expected = [[*names, *more] for names, more in zip(without, ours, strict=True)]
    assert with_ours == [sorted(names) for names in expected]


def test_a_task_manager_without_the_tasks_of_the_harness_has_none_of_ours(
    installed: Environment,
) -> None:
    names, _ = answer(installed.python, LISTS.format(settings="include_defaults=False"))
    assert names == [[], [], [], []]


def test_names_of_a_users_folder_or_of_the_harness_are_never_redefined(
    installed: Environment, tmp_path: Path
) -> None:
    of_the_user = tmp_path / "theirs.yaml"
    text = "task: sadi_facts\noutput_type: generate_until\n"
    of_the_user.write_text(text, encoding="utf-8")
    settings = f"include_path={str(tmp_path)!r}"
    _, places = answer(installed.python, LISTS.format(settings=settings))
    assert places["sadi_facts"] == str(of_the_user)

    copy = tmp_path / "harness"
    environment = harness_environment(copy)
    shutil.copytree(
        installed.packages / "sadi_lmeval", environment.packages / "sadi_lmeval", symlinks=True
    )
    shutil.copy(installed.packages / PTH, environment.packages)
    of_the_harness = environment.packages / "lm_eval" / "tasks" / "taken.yaml"
    of_the_harness.write_text(text, encoding="utf-8")
    _, places = answer(environment.python, LISTS.format(settings=""))
    assert places["sadi_facts"] == str(of_the_harness)


# When the bridge keeps out


def test_the_environment_variable_switches_the_bridge_off() -> None:
    code = """
        import json, sys
        finders = [type(finder).__name__ for finder in sys.meta_path]
        import sadi_lmeval, lm_eval.models
        from lm_eval.api.registry import model_registry
        print(json.dumps(["AfterImport" in finders, "hf-sadi" in model_registry]))
    """
    assert answer(sys.executable, code) == [True, True]
    assert answer(sys.executable, code, **{registration.SWITCH: "0"}) == [True, True]
    assert answer(sys.executable, code, **{registration.SWITCH: "1"}) == [False, False]


def test_an_interpreter_without_the_harness_notices_nothing(alone: Environment) -> None:
    code = """
        import json, sys
        try:
            import lm_eval.models
        except ModuleNotFoundError as error:
            message = str(error)
        print(json.dumps(["sadi_lmeval" in sys.modules, message]))
    """
    assert answer(alone.python, code) == [True, "No module named 'lm_eval'"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda package: shutil.rmtree(package),
        lambda package: (package / "registration.py").unlink(),
        lambda package: (package / "registration.py").write_text("def (", encoding="utf-8"),
        lambda package: (package / "registration.py").write_text("1 / 0", encoding="utf-8"),
    ],
    ids=["removed", "half removed", "cut off", "raising"],
)
def test_an_interpreter_survives_a_damaged_package_in_silence(
    alone: Environment, damage: Callable[[Path], object]
) -> None:
    damage(alone.packages / "sadi_lmeval")
    assert answer(alone.python, "print(1)") == 1


HARNESS = {
    "__init__.py": "",
    "api/__init__.py": "",
    "api/registry.py": """
        import importlib.metadata
        class Registry(dict):
            def register(self, name, target):
                assert name not in self
                self[name] = target
        model_registry = Registry()
    """,
    "models/__init__.py": """
        from lm_eval.api.registry import model_registry
        model_registry.register("hf", target="lm_eval.models.huggingface:HFLM")
    """,
    "tasks/__init__.py": "from lm_eval.tasks.manager import TaskManager",
    "tasks/manager.py": """
        import importlib.metadata, importlib.util
        from pathlib import Path
        class TaskIndex:
            @staticmethod
            def build(paths):
                files = [file for path in paths for file in path.glob("**/*.yaml")]
                return {file.stem: file for file in files if "\\ntask:" in "\\n" + file.read_text()}
        class TaskManager:
            def __init__(self):
                folders = [Path(__file__).parent]
                if "discover_plugin_task_paths" in globals():
                    folders += discover_plugin_task_paths()
                self.index = TaskIndex.build(folders)
    """,
}
MODEL_DISCOVERY = """
        def load_plugins(group, registry):
            for point in importlib.metadata.entry_points(group=group):
                if point.name not in registry:
                    registry.register(point.name, target=point)
"""
TASK_DISCOVERY = """
        def discover_plugin_task_paths():
            points = importlib.metadata.entry_points(group="lm_eval.tasks")
            specs = [importlib.util.find_spec(point.value) for point in points]
            return [Path(spec.origin).parent for spec in specs]
"""


def stand_in(folder: Path, models: bool = False, tasks: bool = False) -> Path:
    """A miniature of the harness that does or does not read entry points itself."""
    discovery = {
        "api/registry.py": MODEL_DISCOVERY if models else "",
        "tasks/manager.py": TASK_DISCOVERY if tasks else "",
    }
    for name, text in HARNESS.items():
        file = folder / "lm_eval" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text + discovery.get(name, "")), encoding="utf-8")
    return folder


@pytest.mark.parametrize("models", [False, True])
@pytest.mark.parametrize("tasks", [False, True])
def test_models_and_tasks_are_each_left_to_a_harness_that_discovers_them(
    tmp_path: Path, models: bool, tasks: bool
) -> None:
    code = """
        import json, sys
        import lm_eval.models, lm_eval.tasks
        from lm_eval.api import registry
        from lm_eval.tasks import manager
        bridged = list(registry.model_registry)
        if hasattr(registry, "load_plugins"):
            registry.load_plugins("lm_eval.models", registry.model_registry)
        print(json.dumps([
            bridged,
            list(registry.model_registry),
            hasattr(manager.TaskIndex.build, "__wrapped__"),
            list(manager.TaskManager().index),
        ]))
    """
    harness = stand_in(tmp_path, models=models, tasks=tasks)
    bridged, all_models, wrapped, all_tasks = answer(sys.executable, code, PYTHONPATH=str(harness))
    assert bridged == ["hf"] + ([] if models else list(registration.model_targets()))
    assert sorted(all_models) == sorted(["hf", *registration.model_targets()])
    assert wrapped is not tasks
    assert set(all_tasks) == OUR_TASKS | OUR_GROUPS


def test_a_model_name_that_the_harness_has_is_left_alone(tmp_path: Path) -> None:
    harness = stand_in(tmp_path)
    own = 'model_registry.register("hf-sadi", target="theirs:Model")\n'
    with (harness / "lm_eval" / "models" / "__init__.py").open("a", encoding="utf-8") as file:
        file.write(own)
    code = """
        import json, lm_eval.models
        from lm_eval.api.registry import model_registry
        print(json.dumps(model_registry))
    """
    names = answer(sys.executable, code, PYTHONPATH=str(harness))
    assert names["hf-sadi"] == "theirs:Model"


def test_a_harness_imported_before_the_package_is_told_at_once(tmp_path: Path) -> None:
    # The last ones hold our metadata, which says what methods there are.
    paths = [str(stand_in(tmp_path)), str(REPOSITORY), *packages_of_this_environment()]
    code = f"""
        import json, sys
        sys.path[:0] = {paths!r}
        import lm_eval.models, lm_eval.tasks
        from lm_eval.api.registry import model_registry
        before = sorted(model_registry), sorted(lm_eval.tasks.TaskManager().index)
        import sadi_lmeval
        after = sorted(model_registry), sorted(lm_eval.tasks.TaskManager().index)
        finders = [type(finder).__name__ for finder in sys.meta_path]
        print(json.dumps([before, after, finders]))
    """
    before, after, finders = answer(sys.executable, code, "-I", "-S")
    assert before == [["hf"], []]
    assert after == [sorted(["hf", *registration.model_targets()]), sorted(OUR_TASKS | OUR_GROUPS)]
    assert "AfterImport" not in finders


def test_a_harness_that_changed_beyond_us_still_imports_and_says_what_is_missing(
    tmp_path: Path,
) -> None:
    harness = stand_in(tmp_path)
    (harness / "lm_eval" / "api" / "registry.py").write_text(
        "class Registry:\n    def register(self, name, target): ...\nmodel_registry = Registry()\n",
        encoding="utf-8",
    )
    done = run(sys.executable, "-c", "import lm_eval.models", PYTHONPATH=str(harness))
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("sadi-lmeval could not add its names to lm_eval.models (TypeError: ")


# The finder itself


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of an importable module that takes a moment to run."""
    (tmp_path / "awaited.py").write_text("import time; time.sleep(0.05); value = 1\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield "awaited"
    sys.modules.pop("awaited", None)


def test_an_action_runs_once_after_the_module_however_many_threads_import_it(module: str) -> None:
    seen: list[int] = []
    finder = registration.AfterImport({module: lambda ran: seen.append(ran.value)})
    sys.meta_path.insert(0, finder)
    threads = [threading.Thread(target=importlib.import_module, args=[module]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1]
    assert finder not in sys.meta_path


def test_looking_for_a_module_without_importing_it_runs_no_action(module: str) -> None:
    seen: list[str] = []
    sys.meta_path.insert(0, registration.AfterImport({module: lambda ran: seen.append("ran")}))
    assert importlib.util.find_spec(module) is not None
    assert seen == []
    imported = importlib.import_module(module)
    assert seen == ["ran"]
    assert "exec_module" not in vars(imported.__loader__)


def test_a_module_that_fails_to_import_is_waited_for_again(module: str, tmp_path: Path) -> None:
    seen: list[str] = []
    sys.meta_path.insert(0, registration.AfterImport({module: lambda ran: seen.append("ran")}))
    source = tmp_path / "awaited.py"
    working = source.read_text(encoding="utf-8")
    source.write_text("1 / 0\n", encoding="utf-8")
    with pytest.raises(ZeroDivisionError):
        importlib.import_module(module)
    assert seen == []
    source.write_text(working, encoding="utf-8")
    importlib.import_module(module)
    assert seen == ["ran"]


def test_two_finders_that_ask_all_others_do_not_ask_each_other_for_ever(module: str) -> None:
    seen: list[str] = []
    for name in ("first", "second"):
        action = {module: lambda ran, name=name: seen.append(name)}
        sys.meta_path.insert(0, registration.AfterImport(action))
    importlib.import_module(module)
    assert sorted(seen) == ["first", "second"]


# What is packed


def test_the_entry_points_say_what_the_bridge_says() -> None:
    points = importlib.metadata.distribution("sadi-lmeval").entry_points
    assert {
        p.name: p.value for p in points.select(group="lm_eval.models")
    } == registration.model_targets()
    for point in points.select(group="lm_eval.models"):
        assert point.name.removeprefix("hf-") == point.load().METHOD
    (tasks,) = points.select(group="lm_eval.tasks")
    spec = importlib.util.find_spec(tasks.value)
    assert spec is not None
    assert spec.origin is not None
    assert (Path(spec.origin).parent / "sadi_facts" / "sadi_facts.yaml").is_file()


def data_files(root: Path) -> set[str]:
    """The recipes and task configs of the checkout, relative to its top."""
    return {
        str(file.relative_to(root))
        for folder in ("task_configs", "contrastive_sets")
        for file in (root / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def test_the_wheel_holds_the_pth_file_the_recipes_and_the_task_configs(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"sadi_lmeval/__init__.py", "sadi_lmeval/registration.py", PTH} <= names
    assert {f"sadi_lmeval/{file}" for file in data_files(REPOSITORY)} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"sadi_lmeval", PTH}
    assert not any("__pycache__" in name for name in names)
    (line,) = zipfile.ZipFile(wheel).read(PTH).decode().splitlines()
    assert line.startswith("import ")  # `site` runs only such lines


def test_the_source_distribution_builds_the_same_wheel(tmp_path: Path, wheel: Path) -> None:
    archive = build("sdist", REPOSITORY, tmp_path / "sdist")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert data_files(unpacked) == data_files(REPOSITORY)
    assert (unpacked / "tests" / "test_registration.py").is_file()
    assert (unpacked / "constraints.txt").is_file()
    rebuilt = build("wheel", unpacked, tmp_path / "rebuilt")
    assert zipfile.ZipFile(rebuilt).namelist() == zipfile.ZipFile(wheel).namelist()


FOLDERS = """
    import json, importlib.util
    from sadi_lmeval.folders import contrastive_sets, task_configs
    native = importlib.util.find_spec("sadi_lmeval.task_configs").origin
    print(json.dumps([str(task_configs()), str(contrastive_sets()), native]))
"""


def test_a_normal_install_finds_the_folders_in_the_package(installed: Environment) -> None:
    package = installed.packages / "sadi_lmeval"
    tasks, sets, native = answer(installed.python, FOLDERS)
    assert (Path(tasks), Path(sets)) == (package / "task_configs", package / "contrastive_sets")
    assert Path(native).parent == Path(tasks)
    assert (Path(sets) / "right_wrong.yaml").is_file()


def test_an_editable_install_finds_the_folders_of_the_checkout_and_copies_nothing(
    editable: Environment,
) -> None:
    tasks, sets, native = answer(editable.python, FOLDERS)
    folders = (REPOSITORY / "task_configs", REPOSITORY / "contrastive_sets")
    assert (Path(tasks), Path(sets)) == folders
    assert Path(native).parent == Path(tasks)
    assert not (editable.packages / "sadi_lmeval").exists()
    assert (editable.packages / PTH).is_file()
