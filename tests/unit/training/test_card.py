"""The model card: what it says, what it must not say, and whose README.md it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from orpo_dist import ORPOConfig, train
from orpo_dist.config import dump_config
from orpo_dist.ensembles.listing import Listed
from orpo_dist.ensembles.soups import make_soup
from orpo_dist.runs.folder import write_json
from orpo_dist.training.card import public_name, write_card
from tests.conftest import DEMO


def settings(model: Path, folder: Path, **changes: Any) -> ORPOConfig:
    values = {
        "model": str(model), "data_path": str(DEMO / "train.jsonl"), "project_name": str(folder),
        "max_steps": 1, "batch_size": 4, "gradient_accumulation": 1, "log": "none",
        "attention": "padded", "logging_steps": 1,
    }  # fmt: skip
    return ORPOConfig(**{**values, **changes})


KINDS: list[tuple[dict[str, Any], str, set[str]]] = [
    ({}, "transformers", {"orpo"}),
    ({"peft": True, "lora_r": 4}, "peft", {"orpo", "lora"}),
    ({"peft": True, "use_dora": True, "save_strategy": "epoch"}, "peft", {"orpo", "lora"}),
    ({"peft": True, "merge_adapter": True}, "transformers", {"orpo"}),
    ({"peft": True, "stages": [{"max_steps": 1}, {"max_steps": 2}]}, "peft", {"orpo", "lora"}),
]


@pytest.mark.parametrize(("changes", "library", "tags"), KINDS)
def test_every_run_has_a_card_without_a_path_of_the_machine(
    tiny_model_dir: Path, tmp_path: Path, changes: dict[str, Any], library: str, tags: set[str]
) -> None:
    rows = (DEMO / "train.jsonl").read_text("utf-8").splitlines()[:9]
    data = tmp_path / "mine.jsonl"
    data.write_text("\n".join([*rows, "not json"]))
    held_out = str(DEMO / "eval.jsonl")
    run = tmp_path / "run"
    train(settings(tiny_model_dir, run, data_path=str(data), valid_data_path=held_out, **changes))
    card = ModelCard.load(run / "README.md")
    assert card.data.base_model == tiny_model_dir.name
    assert card.data.library_name == library
    assert card.data.pipeline_tag == "text-generation"
    assert tags <= set(card.data.tags)
    assert {"license", "datasets"}.isdisjoint(card.data.to_dict())
    assert "| 10 | 9 | 1 not_json |" in card.text
    for words in ("mine.jsonl", "eval.jsonl", "`orpo_alpha` | `1.0`", "rewards/accuracies",
                  "the tokenizer's own", "transformers 5."):  # fmt: skip
        assert words in card.text
    for readme in tmp_path.rglob("README.md"):  # PEFT writes one into every folder it saves to
        assert readme.parent == run
    text = (run / "README.md").read_text("utf-8")
    assert not any(path in text for path in (str(tmp_path), str(tiny_model_dir.parent), "/tmp"))  # noqa: S108


def test_the_card_of_a_soup_names_what_is_in_it(
    other_model_dirs: list[Path], tmp_path: Path
) -> None:
    for folder in other_model_dirs:
        (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    make_soup([Listed(str(folder)) for folder in other_model_dirs], tmp_path / "soup")
    card = ModelCard.load(tmp_path / "soup" / "README.md")
    assert card.data.base_model == [folder.name for folder in other_model_dirs]
    assert card.data.license == "mit"
    assert "method uniform" in card.text
    assert "## Settings" not in card.text
    for folder in other_model_dirs:
        (folder / "README.md").unlink()


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """What a finished run has left for the card, without its weights."""
    folder = tmp_path / "finished"
    folder.mkdir()
    return folder


def write_config(folder: Path, **settings: Any) -> None:
    (folder / "config.yaml").write_text(dump_config(ORPOConfig(**settings)))


@pytest.mark.parametrize(
    ("front", "license_"),
    [
        ("license: apache-2.0", {"license": "apache-2.0"}),
        ("license: other\nlicense_name: mine\nlicense_link: LICENSE",
         {"license": "other", "license_name": "mine", "license_link": "LICENSE"}),
        ("tags: [a]", {}),
        ("license: [broken", {}),
    ],
)  # fmt: skip
def test_the_licence_is_the_base_s(
    finished: Path, tmp_path: Path, front: str, license_: dict[str, str]
) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "README.md").write_text(f"---\n{front}\n---\n# Base")
    write_config(finished, model=str(tmp_path / "base"), data_path=["org/pairs", "a/b.jsonl"])
    write_card(finished)
    data = ModelCard.load(finished / "README.md").data.to_dict()
    assert {k: v for k, v in data.items() if k.startswith("license")} == license_
    assert data["datasets"] == ["org/pairs"]


def test_settings_that_differ_are_told_and_templates_are_not_pasted(finished: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    write_config(finished, model="org/base", lr=2e-4, weight_decay=0.3, chat_template=template,
                 trainer_args={"logging_dir": "/secret/place"})  # fmt: skip
    write_json(finished / "run.json", {"metrics": {"loss": 1.5, "eval/loss": 2.25}})
    write_card(finished)
    text = (finished / "README.md").read_text("utf-8")
    assert "| `lr` | `0.0002` |" in text
    assert "| `weight_decay` | `0.3` |" in text
    assert "| `chat_template` | one that was given |" in text
    assert "| loss | 1.5000 | 2.2500 |" in text
    assert template not in text
    assert "secret" not in text
    assert "`warmup_ratio`" not in text


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("org/model", "org/model"), ("org/name-v1.1", "org/name-v1.1"), ("gpt2", "gpt2"),
        ("/data/models/base", "base"), ("~/pairs.jsonl", "pairs.jsonl"),
        ("../pairs/train.jsonl", "train.jsonl"), ("data/train.jsonl", "train.jsonl"),
        ("/x/hub/models--org--base/snapshots/0123abc", "org/base"),
    ],
)  # fmt: skip
def test_names_as_others_know_them(source: str, name: str) -> None:
    assert public_name(source) == name


@pytest.mark.parametrize("readme", ["# mine", "---\nlicense: [broken\n---\n"])
def test_a_foreign_readme_is_left_alone(tiny_model_dir: Path, tmp_path: Path, readme: str) -> None:
    (tmp_path / "README.md").write_text(readme)
    for lora in ({"peft": True}, {"overwrite": True}, {"overwrite": True, "peft": True}):
        train(settings(tiny_model_dir, tmp_path, **lora))
        assert (tmp_path / "README.md").read_text() == readme


def test_overwrite_clears_our_card(tiny_model_dir: Path, tmp_path: Path) -> None:
    from orpo_dist.runs.folder import RunFolder

    config = settings(tiny_model_dir, tmp_path, peft=True)
    train(config)
    assert "lora" in (tmp_path / "README.md").read_text()
    RunFolder(tmp_path).open(config.replace(overwrite=True))
    assert not (tmp_path / "README.md").exists()
