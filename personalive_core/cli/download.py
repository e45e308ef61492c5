"""`download`: missing weights from the hub."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from ..weights import hub
from ..weights.find import find_weights


def add_parser(commands: argparse._SubParsersAction, parents: list[argparse.ArgumentParser]) -> None:
    download = commands.add_parser("download", parents=parents, help="fetch missing weights (12.1 GB)")
    download.add_argument("--list", action="store_true", help="only say what is there and what would be fetched")
    download.set_defaults(run=run)


@contextmanager
def byte_progress() -> Iterator[hub.Progress]:
    with tqdm(unit="B", unit_scale=True) as bar:

        def update(name: str, done: int, total: int) -> None:
            bar.total = total or None  # 0 while another process fetches
            bar.set_description(name, refresh=False)
            bar.update(done - bar.n)

        yield update


def fetch(folder: Path) -> None:
    missing = find_weights(folder).missing
    if missing:
        with byte_progress() as progress:
            hub.download(folder, missing, progress=progress)


def run(options: argparse.Namespace) -> None:
    missing = find_weights(options.weights).missing
    print(f"into {options.weights.absolute()}:")
    for file in hub.FILES:
        print(f"  {file.size / 1e6:9.1f} MB  {'to fetch' if file in missing else 'there   '}  {file.repo}/{file.path}")
    print(f"{sum(file.size for file in missing) / 1e9:.2f} GB to fetch")
    if not options.list:
        fetch(options.weights)
