"""Runs as TensorBoard shows them: every tag has its row in the documentation, and every page has something on it."""

import io
import re
import shutil
import subprocess
import sys
import threading
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from eigenscope import cli
from eigenscope.nn import BatteryArray, BatteryEntry, save_batteries

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "tensorboard.md"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
IMAGES = ["data.init_args.train_size=200", "data.init_args.test_size=100"]
NOISE = [f"data.init_args.{size}" for size in ("image_size=8", "samples_per_epoch=64", "val_samples_per_type=1")]
SMALL = [f"model.init_args.net.init_args.{size}" for size in ("width=16", "num_heads=2")]
RUNS = {  # configurations, and what makes them tiny
    "demo": (
        ["demo", "callbacks/kv_check"],
        [*IMAGES, *SMALL, "data.init_args.protocol=holdout", "data.init_args.holdout_fraction=0.5"],
        50,
    ),
    "demo_rekls": (["demo_rekls"], [*IMAGES, *SMALL], 20),
    "svae_noise_small": (
        ["svae_noise_small", "cv/align_hand"],
        [*NOISE, "data.init_args.curriculum={epochs: [1, 2, 3, 4]}"],
        16,
    ),
    "vae_noise": (["vae_noise"], [*NOISE, "model.init_args.net.init_args.hidden=80"], 16),
    "vae_implanted": (["vae_implanted"], [*NOISE, "model.init_args.net.init_args.container=some.safetensors"], 16),
    "batteries_small": (["batteries_small"], [*NOISE, "model.init_args.net.init_args.num_batteries=8"], 16),
    "recall": (
        ["recall"],
        [f"data.init_args.{size}" for size in ("samples_per_epoch=4", "val_samples=2", "shorter=[]")]
        + ["finite_guard.policy=skip"],
        2,
    ),
    "spike": (["spike/soap_high"], ["data.init_args.steps=60"], None),
}


def fit(folder, configs, options, batch_size, epochs=1):
    """A tiny run of configurations below ``configs``, with its logs below ``folder``."""
    args = ["fit", *(part for name in configs for part in ("--config", str(ROOT / "configs" / f"{name}.yaml")))]
    if batch_size is not None:
        options = [*options, f"data.init_args.batch_size={batch_size}", "data.init_args.num_workers=0"]
    options = [*options, f"trainer.logger.init_args.save_dir={folder}", f"trainer.max_epochs={epochs}"]
    options += ["trainer.accelerator=cpu", "trainer.log_every_n_steps=1"]
    options += ["trainer.enable_progress_bar=false", "trainer.enable_model_summary=false"]
    return cli.main([*args, *(f"--{option}" for option in options)])


def logged(folder):
    """The values in the event files of a log folder, by tag, in their order."""
    found = {}
    for path in sorted(folder.glob("events.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(value)
    return found


def tiny_runs(folder):
    """What each of RUNS has logged, after reading the test set too."""
    entries = [BatteryEntry((kind,), 5, {}) for kind in range(2)]
    save_batteries(folder / "some.safetensors", BatteryArray(2, hidden=8), entries)
    found = {}
    for name, (configs, options, batch_size) in RUNS.items():
        run = fit(folder / "logs", configs, options, batch_size)
        if name not in ("demo", "spike"):  # the one has, by itself, and the other has none
            run.trainer.test(run.model, datamodule=run.datamodule, verbose=False)
        found[name] = logged(Path(run.trainer.log_dir))
    return found


def documented():
    """The tags in the table, with alternatives spelt out, as regular expressions."""
    rows = [line.split(" | ")[0] for line in TABLE.read_text().splitlines() if line.startswith("| `")]
    written = [tag for row in rows for tag in re.findall(r"`([^`]+)`", row)]
    spelt = []
    for tag in written:
        parts = [part.split(",") for part in re.split(r"[{}]", tag)]
        spelt += ["".join(choice) for choice in product(*parts)]
    return {tag: re.compile(re.sub(r"<\w+>", "[^/]+", re.sub(r"[.]", r"\\.", tag))) for tag in spelt}


def shown(run):
    """The tags on a run's dashboard, each of which it has logged."""
    scalars = {tag for tag, values in run.items() if values[-1].metadata.plugin_data.plugin_name == "scalars"}
    found = set()
    for category in dashboard_of(run).category:
        for chart in category.chart:
            bands = [tag for series in chart.margin.series for tag in (series.value, series.lower, series.upper)]
            curves = [tag for tag in scalars if any(re.match(regex, tag) for regex in chart.multiline.tag)]
            assert len(curves) == len(chart.multiline.tag), chart
            assert set(bands) <= scalars
            assert curves or bands
            found |= {*curves, *bands}
    return found


def dashboard_of(run):
    return Layout.FromString(run["custom_scalars__config__"][-1].tensor.string_val[0])


def test_the_example_of_a_chart():
    (code,) = re.findall(r"```python\n(.*?)```", TABLE.read_text(), flags=re.DOTALL)
    names = {}
    exec(code, names)
    (chart,) = names["charts"](None, {"temperature/mean", "temperature/low", "temperature/high"})
    assert chart.band == ("temperature/low", "temperature/high")
    assert names["charts"](None, set()) == []


def test_what_runs_write_is_in_the_table_and_on_their_dashboards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs, table = tiny_runs(tmp_path), documented()
    tags = {tag for run in runs.values() for tag in run}
    assert not {tag for tag in tags if not any(pattern.fullmatch(tag) for pattern in table.values())}
    assert not [tag for tag, pattern in table.items() if not any(pattern.fullmatch(found) for found in tags)]
    for name, expected in {
        "demo": {"train/acc", "val/acc", "val/gap", "lr-AdamW", "kv/int4/error_keys", "kv/transform/bits_values"},
        "demo_rekls": {"rotation/grad_norm", "lr-SplitOptimizer/matrix", "lr-SplitOptimizer/other"},
        "svae_noise_small": {
            "val_mse/gaussian",
            "cv_M/lower",
            "geometry_M/cv_upper",
            "cv_M/target",
            "curriculum/types",
        },
        "vae_noise": {"val_fvu/pink", "train/kl", "cv_H/upper", "geometry_z/cv_lower", "val/active_dimensions"},
        "vae_implanted": {"val/fvu", "geometry_M/effective_rank"},
        "batteries_small": {"train/mse", "val/mse", "val_mse/brown"},
        "recall": {"val/recall", "train/recall", "lr-AdamW"},
        "spike": {"rotation/weight/L/lag_10/topk_deg", "rotation/weight/R/pre_spike/topk_deg", "update/rms"},
    }.items():
        assert expected <= shown(runs[name]), name


# ------------------------------------------------------------------------------------------------- in a browser


class Server:
    """TensorBoard on a free port of this machine, once it has read a folder's runs."""

    def __init__(self, folder):
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", "127.0.0.1"]
        self.process = subprocess.Popen(
            [*command, "--port", "0"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.address, said = None, []
        for line in self.process.stderr:
            said.append(line)
            if match := re.search(r"http://127\.0\.0\.1:\d+", line):
                self.address = match[0]
                break
        else:
            raise RuntimeError("".join(said))
        threading.Thread(target=self.process.stderr.read, daemon=True).start()  # or it would stop at a full pipe

    def stop(self):
        self.process.terminate()
        self.process.wait(10)
        self.process.stderr.close()


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """The log folder of a tiny run that has scalars, images, texts, a dashboard and a row of hyperparameters."""
    monkeypatch.chdir(tmp_path)
    run = fit(tmp_path / "logs", ["svae_noise_small", "cv/align_hand", "optimizer/muon"], NOISE, 16, epochs=3)
    return Path(run.trainer.log_dir)


@pytest.fixture
def page(finished, tmp_path):
    """Opens one of TensorBoard's pages in a browser of its own, and gives a way to wait for what is on it."""
    server = Server(finished.parents[1])
    options = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync"]
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch_persistent_context(
                tmp_path / "profile",
                executable_path=CHROMIUM,
                headless=True,
                args=options,
                viewport={"width": 1400, "height": 1000},
            )
            browser.route(lambda url: not url.startswith(server.address), lambda route: route.abort())
            opened = browser.pages[0]

            def show(name, ready, timeout=60.0):
                """Opens a page and reads it until ``ready(page)`` is true; what it gave then."""
                end = time.monotonic() + timeout
                while True:
                    opened.goto(f"{server.address}/?page={name}#{name}", wait_until="domcontentloaded")
                    turn = time.monotonic() + 10  # and again, for TensorBoard may not have read the run yet
                    while time.monotonic() < turn:
                        if seen := ready(opened):
                            return seen
                        opened.wait_for_timeout(100)
                    assert time.monotonic() < end, f"nothing to see on {name}: {opened.title()}"

            yield show
            browser.close()
    finally:
        server.stop()


def lines(cards):
    """For each chart whether a line runs through at least two points."""
    # "M x,y L x,y": an empty chart has a path without d, and one point has no L
    return cards.evaluate_all(
        """cards => cards.map(card => {
            const walk = root => [...root.querySelectorAll('*')].flatMap(
                x => [x, ...(x.shadowRoot ? walk(x.shadowRoot) : [])]);
            return walk(card.shadowRoot || card).some(
                x => x.matches('path.line') && /^M.*L/.test(x.getAttribute('d') || ''));
        })"""
    )


def coloured(png):
    """How many pixels of a picture are neither white, black nor grey."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    return int(((pixels.max(-1) - pixels.min(-1)) > 16).sum())


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on this machine")
def test_every_page_shows_data_in_a_browser(page, finished):
    found = logged(finished)

    def charts(opened):
        card = opened.locator("scalar-card").first
        if not card.count() or not card.locator("canvas").count():
            return None
        return coloured(card.locator("canvas").first.screenshot()) > 20 and card.text_content()

    assert "cv_M/degenerate" in page("timeseries", charts)

    def scalars(opened):
        drawn = lines(opened.locator("tf-scalar-card"))
        return len(drawn) >= 11 and all(drawn[:11])  # the first category, cv_M, which is open

    assert page("scalars", scalars)

    layout = dashboard_of(found)
    curves = sum(not chart.margin.series for category in layout.category for chart in category.chart)
    bands = sum(len(category.chart) for category in layout.category) - curves
    assert (curves, bands) == (3 + 16 + 8, 2)

    def dashboard(opened):
        kinds = [lines(opened.locator(f"tf-custom-scalar-{kind}-chart-card")) for kind in ("multi-line", "margin")]
        return [len(drawn) for drawn in kinds] == [curves, bands] and all(map(all, kinds))

    assert page("custom_scalars", dashboard)

    def images(opened):
        sizes = opened.locator("tf-image-loader img").evaluate_all("all => all.map(x => x.naturalWidth)")
        return len(sizes) >= 2 and all(size > 100 for size in sizes)  # two sections of three are open

    assert page("images", images)

    def texts(opened):
        said = " ".join(opened.locator("tf-text-loader tf-markdown-view div").all_text_contents())
        return said if "Muon" in said and "PatchSVAE" in said else None

    assert "encoder" in page("text", texts)

    def row(opened):
        cells = [text.strip() for text in opened.locator("vaadin-grid-cell-content").all_text_contents()]
        return cells if "PatchSVAE" in cells and "run/best_score" in cells else None

    cells = page("hparams", row)
    score = found["run/best_score"][-1].tensor.float_val[0]
    assert f"{score:#.5g}" in cells
    assert {"batch_size", "lr", "net", "optimizer", "seed", "run/last_score", "val/mse"} <= set(cells)
    assert {"16.000", "0.0010000", "Muon + AdamW", "0.0000"} <= set(cells)  # the last is the seed
    assert cells.count("PatchSVAE") == 1
