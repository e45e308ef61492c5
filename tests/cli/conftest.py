from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
from PIL import Image

from face import draw_face
from personalive_core.pipeline import Pipeline
from tiny import TINY
from weights_folder import write_weights


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "pretrained_weights"
    write_weights(
        folder,
        TINY,
        vae=dict(block_out_channels=(32,) * 4),
        image_encoder=dict(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, patch_size=14
        ),
    )
    return folder


@pytest.fixture
def portrait(tmp_path: Path) -> Path:
    Image.fromarray(draw_face()).save(tmp_path / "portrait.png")
    return tmp_path / "portrait.png"


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Iterator[None]:
    """Weights are loaded when first asked for, as always, and then shared: a run leaves a pipeline as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pipeline, "load", lru_cache(Pipeline.load))
        yield
