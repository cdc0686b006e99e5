import os
import runpy
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.transforms.v2.functional import to_pil_image

# The same examples in every run, and nothing written. PROPERTY_EXAMPLES=1000 searches further.
settings.register_profile(
    "suite",
    max_examples=int(os.environ.get("PROPERTY_EXAMPLES", "50")),
    derandomize=True,
    deadline=None,
    database=None,
)
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also what repeats a kind of test at greater breadth")


def pytest_configure() -> None:
    """Gives SIGINT its usual effect back, which a background job of a shell and ``nohup`` start with it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begins with the tests that one process of pytest runs one after another: the others fill its neighbours.

    Those marked ``long`` are deselected without ``--long``.
    """
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)
    if not config.getoption("--long"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("long")])
        items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.fixture(autouse=True)
def _threads() -> None:
    """One thread of torch a test, or as many as TEST_THREADS says."""
    torch.set_num_threads(int(os.environ.get("TEST_THREADS", "1")))


@pytest.fixture
def make_tree(tmp_path: Path):
    """Writes a small tree {train,test}/<class>/*.png of random images; returns its root."""

    def make(classes: int = 3, train: int = 6, test: int = 2, size: int = 32, seed: int = 0) -> Path:
        generator = torch.Generator().manual_seed(seed)
        root = tmp_path / "tree"
        for split, count in (("train", train), ("test", test)):
            for label in range(classes):
                folder = root / split / f"class{label:02d}"
                folder.mkdir(parents=True)
                for number in range(count):
                    image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator)
                    to_pil_image(image).save(folder / f"{number:03d}.png")
        return root

    return make


@pytest.fixture(scope="session")
def two_ranks():
    """Two gloo processes, see ddp_pool.py: ``two_ranks.run(function, *arguments)``."""
    pool = runpy.run_path(str(Path(__file__).with_name("ddp_pool.py")))["Pool"](ranks=2)
    yield pool
    pool.close()


class OperationRecorder(TorchDispatchMode):
    """Notes every operation and the types of the tensors that go in and come out."""

    forbidden = ("svd", "eig", "qr", "cholesky", "lu_factor", "lu_solve", "linalg_det", "slogdet", "inv")

    def __init__(self):
        super().__init__()
        self.operations, self.dtypes = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operations.add(func.name())
        self.dtypes |= {x.dtype for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)}
        return out

    @property
    def decompositions(self):
        return {name for name in self.operations if any(word in name for word in self.forbidden)}


@pytest.fixture
def operation_recorder():
    return OperationRecorder


@pytest.fixture
def hparams_page():
    """Reads TensorBoard's HPARAMS page of a folder."""
    return read_hparams_page


def read_hparams_page(folder):
    """What the HPARAMS page shows: parameters and figures of each row, and the names of the columns in their order."""
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import api_pb2
    from tensorboard.plugins.hparams.backend_context import Context
    from tensorboard.plugins.hparams.list_session_groups import Handler

    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(folder))))
    request = RequestContext()
    metadata = context.hparams_metadata(request, "")
    experiment = context.experiment_from_metadata(
        request, "", True, metadata, context.hparams_from_data_provider(request, "", 0)
    )
    columns = [info.name for info in experiment.hparam_infos], [info.name.tag for info in experiment.metric_infos]
    asked = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=100,
        allowed_statuses=[api_pb2.STATUS_SUCCESS],
        col_params=[api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos],
        include_metrics=True,
    )
    groups = Handler(request, context, "", asked).run().session_groups
    found = [
        (
            {name: value.string_value or value.number_value for name, value in group.hparams.items()},
            {metric.name.tag: metric.value for metric in group.metric_values},
        )
        for group in groups
    ]
    return found, columns
