"""Soups against averages made by hand; the greedy one against its promise."""

from __future__ import annotations

import json
import shutil
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
from tests.conftest import DEMO, disturbed

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


def adapter(base: Path, folder: Path, **settings: Any) -> Path:
    """An adapter of the base, disturbed as by a training."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    lora = LoraConfig(**{"r": 2, "target_modules": "all-linear", **settings}, task_type="CAUSAL_LM")
    disturbed(get_peft_model(model, lora), 5).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["linear", "ties", "dare_linear", "dare_ties"])
def test_merges_that_peft_gets_wrong_are_refused(
    method: Any, tiny_model_dir: Path, adapter_dirs: list[Path], tmp_path: Path
) -> None:
    plain = adapter_dirs[0]
    dora = adapter(tiny_model_dir, tmp_path / "dora", use_dora=True)
    with pytest.raises(UserError, match="DoRA adapters cannot be merged; use uniform"):
        make_soup(listed([plain, dora]), tmp_path / "soup", method)
    some = adapter(tiny_model_dir, tmp_path / "some", target_modules=["q_proj"])
    with pytest.raises(UserError, match="some adapts other layers than"):
        make_soup(listed([plain, some]), tmp_path / "soup", method)


def test_merges_are_computed_in_fp32(adapter_dirs: list[Path], tmp_path: Path) -> None:
    found = []
    for precision in ("bf16", "none"):
        member = tmp_path / precision
        shutil.copytree(adapter_dirs[0], member)
        (member / "config.yaml").write_text(f"mixed_precision: {precision}\n")
        (tmp_path / f"{precision}-twin").symlink_to(member)
        folder = tmp_path / f"soup-{precision}"
        make_soup(listed([member, tmp_path / f"{precision}-twin"]), folder, "linear")
        found.append(weights(folder))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_another_vocabulary_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_model_dir, other)
    words = json.loads((other / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(UserError, match="other has another vocabulary than"):
        make_soup(listed([tiny_model_dir, other]), tmp_path / "soup")


def test_greedy_judges_by_the_template_that_the_soup_is_saved_with(
    tiny_model_dir: Path, other_model_dirs: list[Path], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    other = tmp_path / "other"
    shutil.copytree(other_model_dirs[0], other)
    (other / "config.yaml").write_text("chat_template: none\n")
    judged = []

    def judge(handle: Any) -> float:
        judged.append(handle.encoder.prompt_ids("Hi"))
        return 0.5 + 0.1 * len(judged)  # the later the better: the other comes first

    with caplog.at_level("WARNING"):
        make_soup(listed([tiny_model_dir, other]), tmp_path / "soup", "greedy", judge)
    saved = load(tmp_path / "soup").encoder.prompt_ids("Hi")
    assert all(ids == saved for ids in judged) and saved != load(other).encoder.prompt_ids("Hi")
    assert "other has another chat template" in caplog.text


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
