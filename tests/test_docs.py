"""The examples in the documentation run as they are printed there."""

import doctest
import os
import re
import subprocess
from contextlib import ExitStack
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from eigenscope.data import ImageDataset, LabelledImages
from eigenscope.lightning_modules import ImageClassificationModule
from eigenscope.linalg import gram_svd
from eigenscope.nn import DeiT, PatchSVAE, SimplexVAE, TapConfig, hook_points, observe

DOCS = Path(__file__).parents[1] / "docs"


def example(name):
    (text,) = re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), flags=re.DOTALL)
    return text


def test_small_eigenvalues_in_tf32():
    found = doctest.testfile(str(DOCS / "eigenbasis.md"), module_relative=False)
    assert found.attempted >= 10
    assert found.failed == 0
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_codec_by_itself():
    names = {"keys": torch.randn(4, 256, 16) * torch.linspace(1, 0.1, 16)}
    _, _, by_itself = re.findall(r"```python\n(.*?)```", (DOCS / "kv-cache.md").read_text(), flags=re.DOTALL)
    exec(by_itself, names)
    assert names["keys_again"].shape == names["keys"].shape
    assert names["bits_per_element"](names["keys"].numel(), names["code"], names["state"]) <= 2.01


def test_a_cache_for_generation(tmp_path, monkeypatch):
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
    )
    ids = torch.randint(1, 32, (1, 600), generator=torch.Generator().manual_seed(0))
    names = {"model": LlamaForCausalLM(config), "prompt": {"input_ids": ids, "attention_mask": torch.ones_like(ids)}}
    generated, kept, _ = re.findall(r"```python\n(.*?)```", (DOCS / "kv-cache.md").read_text(), flags=re.DOTALL)
    exec(generated, names)
    assert names["tokens"].shape[1] > 600
    assert names["run"].report().codes > 0
    monkeypatch.chdir(tmp_path)
    names |= {"torch": torch, "document": ids, "question": ids[:, :5]}
    exec(kept, names)
    assert names["cache"].report().coded == 512


def test_a_callback_reaches_a_tensor(tmp_path):
    names = {"Callback": Callback, "ExitStack": ExitStack, "gram_svd": gram_svd, "observe": observe}
    exec(example("architecture.md"), names)
    net = DeiT(image_size=16, width=16, depth=2, num_heads=2, num_classes=5, taps=TapConfig(layers=(1, 2), rank=4))
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(ImageDataset(LabelledImages(images, torch.arange(6) % 5)), 6, collate_fn=lambda batch: batch)
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        callbacks=[names["TokenSpectra"]()],
    )
    trainer.validate(ImageClassificationModule(net, torch.optim.AdamW), loader, verbose=False)
    with torch.no_grad(), observe(net.eval(), "taps.projected") as seen:
        net(images.float() / 255)
    expected = torch.linalg.svdvals(seen["taps.projected"])[..., 0].mean()
    torch.testing.assert_close(trainer.callback_metrics["val/top_singular_value"], expected)
    assert all(point.hooks == () for point in hook_points(net).values())


def test_the_autoencoder_without_lightning():
    names = {"PatchSVAE": PatchSVAE, "images": torch.randn(2, 3, 16, 16), "photograph": torch.rand(1, 3, 520, 264)}
    exec(example("spectral-autoencoder.md"), names)
    assert names["same"].shape == (2, 3, 16, 16)
    assert names["large"].shape == (1, 3, 520, 264)


def test_the_successor_without_lightning():
    names = {"SimplexVAE": SimplexVAE, "images": torch.randn(2, 3, 16, 16)}
    exec(example("successor.md"), names)
    assert names["images_again"].shape == (2, 3, 16, 16)
    assert names["drawn"].shape == (4, 3, 32, 32)


def test_a_job_that_runs_out_of_time_goes_on(tmp_path):
    (script,) = re.findall(r"```bash\n(.*?)```", (DOCS / "distributed.md").read_text(), flags=re.DOTALL)
    (tmp_path / "bin").mkdir()
    checkpoint = "runs/deit_svd/version_0/checkpoints/last.ckpt"
    for name, does in (
        ("srun", f"mkdir -p {Path(checkpoint).parent}; touch {checkpoint}; [ $(wc -l < said) -gt 2 ] || exit 143"),
        ("scontrol", "exit 0"),
    ):
        file = tmp_path / "bin" / name
        file.write_text(f'#!/bin/bash\necho {name} "$@" >> said\n{does}\n')
        file.chmod(0o755)
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711"}
    for _ in range(2):
        subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, timeout=30)
    first, requeued, second = (tmp_path / "said").read_text().splitlines()
    assert first == "srun --kill-on-bad-exit=1 python cli.py fit --config configs/deit_svd.yaml " + (
        "--trainer.num_nodes 2 --trainer.devices 4 --trainer.strategy ddp"
    )
    assert requeued == "scontrol requeue 4711"
    assert second == f"{first} --ckpt_path runs/deit_svd/version_0"
