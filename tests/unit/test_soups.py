"""Soups against averages made by hand; the greedy one against its promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from orpo_dist import UserError, evaluate_model, load
from orpo_dist.cli import main
from orpo_dist.ensembles.listing import Listed
from orpo_dist.ensembles.soups import make_soup
from tests.conftest import DEMO

EVAL = str(DEMO / "eval.jsonl")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def merged(folder: Path) -> dict[str, torch.Tensor]:
    return load(folder).model.merge_and_unload().state_dict()


def listed(paths: list[Path], shares: list[float] | None = None) -> list[Listed]:
    return [Listed(str(p), w) for p, w in zip(paths, shares or [1.0] * len(paths), strict=True)]


def test_uniform_and_weighted_by_hand(
    tiny_model_dir: Path, other_model_dirs: list[Path], tmp_path: Path
) -> None:
    three = [tiny_model_dir, *other_model_dirs]
    make_soup(listed(three, [9, 1, 1]), tmp_path / "uniform")
    recipe = make_soup(listed(three, [2, 1, 1]), tmp_path / "weighted", "weighted")
    parts = [weights(path) for path in three]
    for name, tensor in weights(tmp_path / "uniform").items():
        torch.testing.assert_close(tensor, sum(p[name] for p in parts) / 3)
    for name, tensor in weights(tmp_path / "weighted").items():
        by_hand = (2 * parts[0][name] + parts[1][name] + parts[2][name]) / 4
        torch.testing.assert_close(tensor, by_hand)
    assert [member["weight"] for member in recipe["members"]] == [0.5, 0.25, 0.25]
    assert json.loads((tmp_path / "weighted" / "soup.json").read_text()) == recipe


def test_a_soup_is_an_ordinary_model_folder(
    tiny_model_dir: Path, other_model_dirs: list[Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "soup"
    words = ["ensemble", "soup", str(folder), str(tiny_model_dir), str(other_model_dirs[0])]
    assert main(words) == 0
    AutoModelForCausalLM.from_pretrained(folder)
    assert load(folder).generate("Hi", max_new_tokens=3)
    assert main(["evaluate", str(folder), "--data-path", EVAL]) == 0
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err


def test_soup_of_adapters_is_that_of_merged_models(
    adapter_dirs: list[Path], tmp_path: Path
) -> None:
    make_soup(listed(adapter_dirs), tmp_path / "soup")
    parts = [merged(path) for path in adapter_dirs]
    for name, tensor in weights(tmp_path / "soup").items():
        torch.testing.assert_close(tensor, (parts[0][name] + parts[1][name]) / 2, atol=1e-6, rtol=0)
    assert not list((tmp_path / "soup").glob("adapter*"))


@pytest.mark.parametrize("method", ["linear", "ties", "dare_linear", "dare_ties"])
def test_an_adapter_merged_with_itself_stays_what_it_is(
    method: Any, adapter_dirs: list[Path], tmp_path: Path
) -> None:
    twin = tmp_path / "twin"
    twin.symlink_to(adapter_dirs[0])
    make_soup(listed([adapter_dirs[0], twin]), tmp_path / "soup", method, density=1.0)
    alone = merged(adapter_dirs[0])
    base = AutoModelForCausalLM.from_pretrained(
        json.loads((adapter_dirs[0] / "adapter_config.json").read_text())["base_model_name_or_path"]
    ).state_dict()
    name = "model.layers.0.self_attn.q_proj.weight"
    assert (alone[name] - base[name]).abs().max() > 1e-2
    for name, tensor in weights(tmp_path / "soup").items():
        torch.testing.assert_close(tensor, alone[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties"])
def test_sparse_merges_repeat_and_differ_from_their_members(
    method: Any, adapter_dirs: list[Path], tmp_path: Path
) -> None:
    twin = tmp_path / "twin"
    twin.symlink_to(adapter_dirs[0])
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_soup(listed([adapter_dirs[0], twin]), tmp_path / name, method, density=0.5, seed=seed)
    a, b, c = (weights(tmp_path / name) for name in "abc")
    alone = merged(adapter_dirs[0])
    key = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(a[key], b[key])
    assert torch.equal(a[key], c[key]) == (method == "ties")  # only DARE draws lots
    assert not torch.allclose(a[key], alone[key], atol=1e-4)


def test_greedy_soup_is_never_below_the_best_member(
    tiny_model_dir: Path, other_model_dirs: list[Path], tmp_path: Path
) -> None:
    members = [tiny_model_dir, *other_model_dirs]
    words = ["ensemble", "soup", str(tmp_path / "soup"), *map(str, members), "--method", "greedy"]
    assert main([*words, "--data-path", EVAL]) == 0
    recipe = json.loads((tmp_path / "soup" / "soup.json").read_text())
    alone = {
        str(m): evaluate_model(m, EVAL, progress=False)["preference_accuracy"] for m in members
    }
    assert {entry["path"]: entry["alone"] for entry in recipe["members"]} == alone
    assert recipe["members"][0]["alone"] == max(alone.values())
    found = evaluate_model(tmp_path / "soup", EVAL, progress=False)["preference_accuracy"]
    assert found == recipe["score"] >= max(alone.values())


def test_greedy_keeps_and_leaves_out_as_it_is_told(
    tiny_model_dir: Path, other_model_dirs: list[Path], tmp_path: Path
) -> None:
    members = [tiny_model_dir, *other_model_dirs]
    parts = [weights(path) for path in members]
    name = "model.layers.1.mlp.up_proj.weight"
    # alone: .6 .8 .7; with the third beside the second: .75, worse; with the first: .8, as good
    verdicts = iter([0.6, 0.8, 0.7, 0.75, 0.8])
    seen = []

    def judge(handle: Any) -> float:
        seen.append(handle.model.state_dict()[name].clone())
        return next(verdicts)

    recipe = make_soup(listed(members), tmp_path / "soup", "greedy", judge)
    assert [entry["kept"] for entry in recipe["members"]] == [True, False, True]
    by_hand = (parts[1][name] + parts[0][name]) / 2
    torch.testing.assert_close(seen[3], (parts[1][name] + parts[2][name]) / 2)
    torch.testing.assert_close(seen[4], by_hand)
    assert torch.equal(weights(tmp_path / "soup")[name], seen[4])
    assert recipe["score"] == 0.8


def test_members_that_do_not_fit_are_refused(
    tiny_model_dir: Path, adapter_dirs: list[Path], tmp_path: Path
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(tiny_model_dir)
    config.intermediate_size = 96
    LlamaForCausalLM(config).save_pretrained(tmp_path / "narrow")
    load(tiny_model_dir).tokenizer.save_pretrained(tmp_path / "narrow")
    with pytest.raises(
        UserError, match=r"narrow is another architecture \(its model\.layers\.0\.mlp"
    ):
        make_soup(listed([tiny_model_dir, tmp_path / "narrow"]), tmp_path / "soup")
    with pytest.raises(UserError, match="merges adapters of one base"):
        make_soup(listed([tiny_model_dir, adapter_dirs[0]]), tmp_path / "soup", "ties")
    with pytest.raises(UserError, match="cannot be merged"):  # ranks 2 and 4
        make_soup(listed(adapter_dirs), tmp_path / "soup", "linear")
    assert not (tmp_path / "soup").exists()
