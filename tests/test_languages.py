"""Every language has the same keys, and a text for each. tests/host compares the keys with the nodes, and shows one of
the dialogs in Japanese."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LANGUAGES = ("de", "es", "fr", "ja", "ko", "pt-BR", "ru", "zh", "zh-TW")
SPECIAL = set("{}@|")  # of the page's message format

every_language = pytest.mark.parametrize("language", LANGUAGES)


def texts(language: str, name: str = "nodeDefs") -> dict[str, str]:
    """Key, with dots -> text, of one file."""

    def flat(value: dict | str, key: str) -> dict[str, str]:
        if isinstance(value, str):
            return {key: value}
        return {k: v for name, part in value.items() for k, v in flat(part, f"{key}.{name}").items()}

    file = ROOT / "locales" / language / f"{name}.json"
    return flat(json.loads(file.read_text(encoding="utf-8")), name)


def test_no_other_language_is_there():
    assert {folder.name for folder in (ROOT / "locales").iterdir()} == set(LANGUAGES)


@every_language
def test_all_have_the_same_keys_and_a_text_for_each(language: str):
    found = texts(language)
    assert set(found) == set(texts(LANGUAGES[0]))
    assert not [key for key, text in found.items() if not text.strip() or SPECIAL & set(text)]
    nodes = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "nodes").glob("*.py"))
    assert {key.split(".")[1] for key in found} == set(re.findall(r'node_id="(\w+)"', nodes))


@every_language
def test_the_dialogs_sentences_are_those_of_the_page(language: str):
    found = texts(language, "main")
    english = (ROOT / "nodes" / "web" / "texts.js").read_text(encoding="utf-8").split("ENGLISH = {")[1].split("};")[0]
    assert [key.split(".")[-1] for key in found] == re.findall(r"^  (\w+):", english, re.M)
    assert not [key for key, text in found.items() if not text.strip() or SPECIAL & set(text)]


@every_language
def test_what_is_chosen_or_pressed_keeps_its_name(language: str):
    """Choices, buttons and folders are not translated, so texts must not translate them either."""
    found = texts(language)
    for key, names in {
        "PersonaLiveLoadModel.inputs.weights.tooltip": ("official", "miniature", "models/personalive", "128 x 128"),
        "PersonaLiveCropDriving.inputs.mode.tooltip": ("smoothed", "fixed", "per-frame"),
        "PersonaLiveCropDriving.inputs.detector.tooltip": ("yunet", "Download yunet", "none", ".onnx", "OpenCV"),
        "PersonaLiveLoadEncoders.description": ("Download weights",),
        "PersonaLiveLive.description": ("Live", "Start", "Stop"),
        "PersonaLiveAssembleVideo.inputs.quality.tooltip": ("high", "small"),
        "PersonaLiveAssembleVideo.inputs.small_decoder.tooltip": ("TAESD", "models/vae_approx", "VAE"),
    }.items():
        assert all(name in found[f"nodeDefs.{key}"] for name in names), key
    names = [text for key, text in found.items() if key.endswith(".display_name")]
    assert len(set(names)) == len(names) and all("PersonaLive" in name for name in names)
