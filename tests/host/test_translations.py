"""The translations that the host hands to its page, against the nodes as it describes them."""

from test_nodes import NODES


def described(info: dict) -> dict:
    """The keys that a translation must have for a node."""
    inputs = [key for kind in ("required", "optional") for key in info["input"].get(kind, {})]
    keys = {"display_name": None, "description": None}
    named = {"name", "tooltip"}
    for part, names in (("inputs", inputs), ("outputs", map(str, range(len(info["output"]))))):
        if found := {name: named for name in names}:
            keys[part] = found
    return keys


def keys_of(translation: dict) -> dict:
    parts = {
        part: {name: set(keys) for name, keys in translation.get(part, {}).items()} for part in ("inputs", "outputs")
    }
    return {key: parts.get(key) for key in translation}


def test_no_key_is_missing_or_left_over_in_any_language(host):
    languages = {language: found for language, found in host.get("i18n").items() if "nodeDefs" in found}
    assert set(languages) == {"de", "es", "fr", "ja", "ko", "pt-BR", "ru", "zh", "zh-TW"}
    wanted = {name: described(host.nodes[name]) for name in NODES}
    for language, found in languages.items():
        assert {name: keys_of(node) for name, node in found["nodeDefs"].items()} == wanted, language
