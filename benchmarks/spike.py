"""Gradient-spike study: eigenbases of SOAP and REKLS around a gradient 1000 times too large, measured and reported.

    python benchmarks/spike.py

Runs configs/spike: SOAP and REKLS with TF32 products (emulated where the device has none) and in full fp32. Then the
response of four optimizers, all in full fp32, to spikes of several sizes at several steps, each against a twin that
had the same gradients without the spike. Logs, with figures, are below runs/.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from spike_response import SpikeResponse, replay, spike_response, spiked
from spike_tables import (
    angle_table,
    growth_table,
    read_angles,
    read_spectrum,
    response_table,
    spectrum_table,
)
from timing import machine
from torch import nn
from torch.optim import AdamW, Optimizer
from tqdm import tqdm

from eigenscope import cli
from eigenscope.datamodules import GradientSpikeDataModule
from eigenscope.optim import REKLS, SOAP, Muon
from eigenscope.text import duration

CONFIGS = Path(__file__).parents[1] / "configs" / "spike"
RUNS = ("soap_high", "soap_highest", "rekls_high", "rekls_highest")
SPIKES = [(step, scale) for step in (10, 50, 100) for scale in (1e2, 1e3, 1e4, 1e5)]
FOLLOWED = 500  # steps after a spike: second moments at β₂ = 0.95 take 410 to forget one of 1e5

ADAM: dict[str, Any] = {"lr": 1.0, "betas": (0.9, 0.95), "weight_decay": 0.0}
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "AdamW": lambda parameters: AdamW(parameters, **ADAM),
    "Muon": lambda parameters: Muon(parameters, lr=1.0, weight_decay=0.0, update_rms=1.0),
    "SOAP": lambda parameters: SOAP(parameters, **ADAM, shampoo_beta=0.95, use_kl_shampoo=True),
    "REKLS": lambda parameters: REKLS(parameters, **ADAM, shampoo_beta=0.95),
}


def run_configs() -> dict[str, Path]:
    """The log folders by experiment."""
    folders = {}
    for number, name in enumerate(RUNS):
        started = time.perf_counter()
        run = cli.main(["fit", "--config", str(CONFIGS / f"{name}.yaml"), "--trainer.enable_model_summary=false"])
        left = (len(RUNS) - 1 - number) * (time.perf_counter() - started)
        print(f"{name} is run {number + 1} of {len(RUNS)}; these have {duration(left)} left", flush=True)
        folders[f"spike_{name}"] = Path(run.trainer.log_dir)
    return folders


def sweep() -> list[tuple[str, int, float, SpikeResponse]]:
    """Every optimizer's response to every spike."""
    steps = max(step for step, _ in SPIKES) + FOLLOWED
    data = GradientSpikeDataModule(steps=steps, spike_scale=1.0)
    gradients = torch.cat(list(data.train_dataloader()))
    rows = []
    with tqdm(total=len(OPTIMIZERS) * (1 + len(SPIKES)), unit="run") as bar:
        for name, make_optimizer in OPTIMIZERS.items():
            bar.set_description(name)
            twin = replay(make_optimizer, gradients)
            bar.update()
            for step, scale in SPIKES:
                end = step + FOLLOWED
                updates = replay(make_optimizer, spiked(gradients[:end], step, scale))
                rows.append((name, step, scale, spike_response(updates, twin[:end], step)))
                bar.update()
    return rows


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.set_num_threads(1)  # on matrices this small threads wait for each other longer than they compute
    started = time.perf_counter()
    folders = run_configs()
    responses = sweep()
    angles = {name: read_angles(folder) for name, folder in folders.items()}
    spectra = {name: read_spectrum(folder) for name, folder in folders.items()}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: TF32 is emulated"
    print(f"\n{machine()}; {device}; {duration(time.perf_counter() - started)} in all; logs in runs/")
    print("\nAngles of Q_L to the reference of step 50, before the spike of step 51: top-1/top-8 in degrees")
    print("(GPU and emulated: as reported; below 0.06° those are the rounding of an arccos in float32)\n")
    print(angle_table(angles, "pre_spike"))
    print("\nAngles of Q_L to the reference of step 51, which has taken the spike\n")
    print(angle_table(angles, "post_spike"))
    for name in ("spike_rekls_high", "spike_rekls_highest"):
        print(f"\nEigenvalues of L, {name}\n")
        print(spectrum_table(name, spectra[name]))
    print("\nTop eigenvalue of L (the largest of diag(QᵀLQ), for SOAP a lower bound), beside those reported\n")
    print(growth_table(spectra))
    print("\nUpdates around a spike, on the CPU in full fp32: root mean square, and how many steps after the spike")
    print(
        "it is back within 10 % of that of a twin without the spike, and the update's cosine to the twin's above 0.9,"
    )
    print(f"to stay so for the {FOLLOWED} steps that were followed\n")
    print(response_table(responses))


if __name__ == "__main__":
    main()
