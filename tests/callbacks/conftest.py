import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.fixture
def texts():
    """Reads the latest texts ``run/*`` in the event files of a log folder."""

    def read(folder):
        events = EventAccumulator(str(folder)).Reload()
        tags = [tag for tag in events.Tags()["tensors"] if tag.startswith("run/") and tag.endswith("/text_summary")]
        return {
            tag.removeprefix("run/").removesuffix("/text_summary"): events.Tensors(tag)[-1]
            .tensor_proto.string_val[0]
            .decode()
            for tag in tags
        }

    return read


@pytest.fixture
def settings():
    """What a card says of its settings: asked, live, whether they differ."""

    def read(card):
        found = card["settings"]
        return {setting["name"]: (setting["asked"], setting["live"], setting["differs"]) for setting in found}

    return read
