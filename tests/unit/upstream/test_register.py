"""Every private name that is reached for is looked for at start, and missed in one sentence."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

import orpo_dist
from orpo_dist.base.types import UserError
from orpo_dist.upstream import check, register
from orpo_dist.upstream.register import NAME, TESTED, Group, shims

GROUPS: tuple[Group, ...] = get_args(Group)
PACKAGE = Path(orpo_dist.__file__).parent
ENTRIES = sorted(
    {(group, name) for group in GROUPS for shim in shims(group) for name in shim.names}
)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    register._check.cache_clear()
    yield
    register._check.cache_clear()


@pytest.mark.parametrize("group", GROUPS)
def test_all_is_there_in_the_versions_that_are_installed(group: Group) -> None:
    check(group)


@pytest.mark.parametrize(("group", "name"), ENTRIES)
def test_what_is_renamed_upstream_is_missed_at_start(
    group: Group, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename(name, monkeypatch)
    with pytest.raises(UserError) as caught:
        check(group)
    said, library = str(caught.value), name.partition(":")[0].partition(".")[0]
    assert name in said
    assert said.startswith(f"{library} ")
    assert f"pip install '{library}=={TESTED[library]}'" in said


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group, name in ENTRIES if name.endswith(")")]
)
def test_a_method_that_takes_something_else_is_missed(
    group: Group, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, last = holder_of(name)
    monkeypatch.setattr(holder, last, lambda self, something_new: None)
    with pytest.raises(UserError, match=re.escape(name)):
        check(group)


def holder_of(name: str) -> tuple[Any, str]:
    """Where a name of the register is an attribute, and which."""
    found = NAME.fullmatch(name)
    assert found is not None
    *way, last = found["path"].split(".")
    holder: Any = importlib.import_module(found["module"])
    for part in way:
        holder = getattr(holder, part)
    return holder, last


def rename(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the library one in which a name is another, or has another value."""
    found, (holder, last) = NAME.fullmatch(name), holder_of(name)
    assert found is not None
    if found["word"]:  # its code speaks of something else
        monkeypatch.setattr(holder, last, type("Renamed", (), {}))
    elif found["value"]:
        monkeypatch.setattr(holder, last, "renamed")
    else:
        owners = [kind for kind in getattr(holder, "__mro__", [holder]) if last in vars(kind)]
        try:
            for owner in owners:
                monkeypatch.delattr(owner, last)
        except TypeError:  # of a class written in C
            module = importlib.import_module(found["module"])
            monkeypatch.setattr(module, found["path"].split(".")[0], type("Renamed", (), {}))


def test_a_run_ends_in_the_sentence_before_it_looks_at_anything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from transformers import Trainer

    from orpo_dist import ORPOConfig, ORPOTrainer
    from orpo_dist.cli import main

    monkeypatch.delattr(Trainer, "_get_grad_norm")
    project = tmp_path / "run"
    words = ["--model", "no-folder", "--data-path", "none.jsonl", "--project-name", str(project)]
    assert main(["train", *words]) == 2
    said = capsys.readouterr().err
    assert "without transformers.trainer:Trainer._get_grad_norm(model, grad_norm) as" in said
    assert not project.exists()
    with pytest.raises(UserError, match="_get_grad_norm"):
        ORPOTrainer(model=None, args=ORPOConfig(model="no-folder"))


def test_the_versions_are_those_of_the_constraints() -> None:
    lines = (PACKAGE.parent / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    assert {name: pinned[name] for name in TESTED} == TESTED


def test_every_shim_says_why_where_and_until_when() -> None:
    for group in GROUPS:
        for shim in shims(group):
            assert shim.because and shim.until, shim
            assert re.search(r"/\w+\.py.*\(\d+\.\d+\)", shim.upstream), shim


def test_the_documentation_has_the_whole_register() -> None:
    page = (PACKAGE.parent / "docs" / "upstream.md").read_text("utf-8")
    assert "\n".join(register.table()) in page  # python -m orpo_dist.upstream


def test_the_sentence_of_a_library_without_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(register, "is_there", lambda name: not name.endswith("_last_lr"))
    monkeypatch.setattr(
        register.importlib.metadata,
        "version",
        lambda name: (_ for _ in ()).throw(register.importlib.metadata.PackageNotFoundError),
    )
    with pytest.raises(UserError, match=r"^torch \(version unknown\): is without .*_last_lr as"):
        check("torch")


# --- nobody else reaches for them


def test_every_private_method_of_trainer_that_is_overridden_is_in_the_register() -> None:
    from transformers import Trainer

    from orpo_dist import ORPOTrainer
    from orpo_dist.upstream.hf_trainer import OpenTrainer

    registered = {holder_of(name)[1] for group, name in ENTRIES if group == "hf_trainer"}
    for kind in ORPOTrainer.__mro__:
        if kind.__module__.startswith("orpo_dist."):
            overridden = {n for n in vars(kind) if n.startswith("_") and n in vars(Trainer)}
            overridden = {n for n in overridden if not n.startswith("__")}
            assert overridden == (registered if kind is OpenTrainer else set()), kind


def test_the_public_names_are_free_upstream() -> None:
    from transformers import Trainer

    from orpo_dist.upstream.hf_trainer import OpenTrainer

    ours = {name for name in vars(OpenTrainer) if not name.startswith("_")}
    assert len(ours) == len(shims("hf_trainer"))
    assert not ours & set(dir(Trainer))


def test_no_other_room_reaches_for_a_private_name() -> None:
    trees = {path: ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}
    own = {name for tree in trees.values() for name in defined(tree)}
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {what}"
        for path, tree in trees.items()
        if path.parent.name != "upstream"
        for line, what in reached(tree, own)
    ]
    assert found == []


def defined(tree: ast.AST) -> Iterator[str]:
    """What a module calls its own functions, classes and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            name, _, attribute = ast.unparse(node).partition(".")
            yield attribute if name == "self" else name


def reached(tree: ast.AST, own: set[str]) -> Iterator[tuple[int, str]]:
    """Private names of others that a module speaks of: attributes, imports, names as strings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in own:
            said = ast.unparse(node)
            if said not in ("os._exit", "atexit._run_exitfuncs"):  # Python's own
                yield node.lineno, said
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("orpo_dist"):
            parts = [*(node.module or "").split("."), *(name.name for name in node.names)]
            if any(map(private, parts)):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and private(name.value):
                yield node.lineno, ast.unparse(node)


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_the_register_is_light() -> None:
    code = (
        "import sys, orpo_dist.upstream.ray, orpo_dist.upstream.accelerate, "
        "orpo_dist.upstream.hf_models, orpo_dist.upstream.torch; "
        "sys.exit(str(sorted({'torch', 'transformers', 'ray', 'accelerate'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stderr.strip() == "[]"


def test_shims_stand_beside_what_they_are_registered_for() -> None:
    for group in GROUPS:
        module = importlib.import_module(f"orpo_dist.upstream.{group}")
        source = inspect.getsource(module)
        for shim in shims(group):
            assert f" {shim.what.rpartition('.')[2]}" in source
