"""The host's page in Chromium: search, colours, bypassed nodes, the button of the subgraph. CONTRIBUTING.md says how to
run this with a newer page."""

import asyncio
import json
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser, Page

pytestmark = [
    pytest.mark.newest_host,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed to look at the page with"),
]
# What people type, and a node that must be among the first five.
SEARCHES = {
    "personalive": "PersonaLive Sample",
    "face animate": "PersonaLive Sample",
    "live portrait": "Load PersonaLive Model",
    "liveportrait": "Load PersonaLive Model",
    "driving video": "PersonaLive Extract Motion",
    "expression": "PersonaLive Extract Motion",
    "talking head": "PersonaLive Sample",
    "avatar": "PersonaLive Sample",
    "puppet": "PersonaLive Sample",
    "reenact": "PersonaLive Sample",
    "portrait video": "PersonaLive Assemble Video",
    "webcam": "PersonaLive Live",
    "crop face": "PersonaLive Crop Portrait",
    "head pose": "PersonaLive Extract Motion",
}
TYPE = """(text => {
    const input = document.querySelector("input[role=combobox]");
    input.value = text;
    input.dispatchEvent(new Event("input", {bubbles: true}));
})"""
FOUND = "[...document.querySelectorAll('[role=option]')].slice(0, 5).map(option => option.innerText.split('\\n')[0])"
COLOURS = """(() => {
    const types = Object.keys(LiteGraph.registered_slot_out_types).filter(type => /^personalive_/i.test(type));
    return types.map(type => type.toUpperCase()).map(type => [
        app.canvas.default_connection_color_byType[type],
        app.canvas.constructor.link_type_colors[type],
        getComputedStyle(document.documentElement).getPropertyValue(`--color-datatype-${type}`),
    ]);
})()"""

BYPASS, NEVER = 4, 2  # modes of the page
# Extract Motion -> Adjust Motion -> Sample, and a preview.
GRAPH = """(async (modes) => {
    app.graph.clear();
    const names = ["ExtractMotion", "AdjustMotion", "Sample", "PreviewMotion"];
    const [extract, adjust, sample, preview] = names.map(name => {
        const node = LiteGraph.createNode("PersonaLive" + name);
        app.graph.add(node);
        node.mode = modes[name] ?? 0;
        return node;
    });
    extract.connect(0, adjust, "motion");
    adjust.connect(0, sample, "motion");
    adjust.connect(0, preview, "motion");
    const prompt = (await app.graphToPrompt()).output;
    return Object.fromEntries(Object.values(prompt).map(({class_type, inputs}) =>
        [class_type, prompt[inputs.motion?.[0]]?.class_type ?? null]));
})"""

TEMPLATE = Path(__file__).parents[2] / "workflows" / "1 Try it without downloads.json"
# Opens the template, again if the page has opened a workflow of its own since, and then presses the button.
PRESS = f"""(async () => {{
    const node = app.graph.nodes.find(node => node.subgraph);
    const button = node?.widgets.find(widget => widget.name === "Download weights");
    if (button) button.callback();
    else await app.loadGraphData({TEMPLATE.read_text("utf-8")});
    return Boolean(button);
}})()"""


async def open_page(browser: Browser, host) -> Page:
    page = await browser.open(f"http://127.0.0.1:{host.port}/")
    await page.wait("globalThis.app?.canvas && globalThis.LiteGraph?.registered_node_types.PersonaLiveSample.title", 60)
    return page


def test_the_search_finds_the_nodes_by_the_words_that_people_type(host):
    async def search() -> None:
        async with Browser(None) as browser:
            page = await open_page(browser, host)
            await page.evaluate("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
            await page.wait("document.querySelectorAll('input[role=combobox]').length === 1")
            for text, wanted in SEARCHES.items():
                await page.evaluate(f"{TYPE}({json.dumps(text)})")
                await page.wait(f"{FOUND}.includes({json.dumps(wanted)})")

    asyncio.run(search())


def test_our_types_have_colours_of_their_own_under_every_palette(host):
    async def look() -> None:
        async with Browser(None) as browser:
            page = await open_page(browser, host)
            await page.wait(f"{COLOURS}.flat().every(Boolean)")
            first = await page.evaluate(COLOURS)
            assert len({colour for (colour, *_) in first}) == len(first) == 5
            assert all(len(set(colours)) == 1 for colours in first)
            await page.evaluate("app.extensionManager.setting.set('Comfy.ColorPalette', 'light')")
            await asyncio.sleep(1)
            assert await page.evaluate(COLOURS) == first
            await page.evaluate("app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")

    asyncio.run(look())


def test_a_bypassed_node_passes_the_motion_on_and_a_muted_one_is_left_out(host):
    async def look() -> None:
        async with Browser(None) as browser:
            page = await open_page(browser, host)
            plain = await page.evaluate(f"{GRAPH}({{}})")
            assert plain["PersonaLiveSample"] == plain["PersonaLivePreviewMotion"] == "PersonaLiveAdjustMotion"
            found = await page.evaluate(f"{GRAPH}({{AdjustMotion: {BYPASS}, PreviewMotion: {NEVER}}})")
            assert found == {"PersonaLiveExtractMotion": None, "PersonaLiveSample": "PersonaLiveExtractMotion"}

    asyncio.run(look())


def test_the_subgraphs_own_node_downloads_the_weights_in_the_users_language(host):
    async def look() -> None:
        async with Browser(None) as browser:
            page = await open_page(browser, host)
            await page.wait(PRESS)
            await page.wait("document.querySelector('dialog')?.innerText.includes('for research use')")
            prompt = await page.evaluate("app.graphToPrompt().then(found => JSON.stringify(found))")
            assert "Download weights" not in prompt
            await page.evaluate("document.querySelector('dialog').close()")
            await page.evaluate("app.extensionManager.setting.set('Comfy.Locale', 'ja')")
            try:
                await page.wait(PRESS)
                await page.wait("document.querySelector('dialog')?.innerText.includes('研究目的')")
            finally:
                await page.evaluate("app.extensionManager.setting.set('Comfy.Locale', 'en')")

    asyncio.run(look())
