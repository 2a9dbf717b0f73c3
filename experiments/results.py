"""Pages of experiments/results and tables of the documents, generated from the result files of runs.

python -m experiments.results --name=he_mnist --sources=runs/he_mnist
python -m experiments.results --name=default_run --sources="active=runs/a0,runs/a1;passive=runs/p0,runs/p1"
python -m experiments.results --name=he_mnist --sources=runs/more --merge
python -m experiments.results --check
"""

from __future__ import annotations

from gan_leak.runs.hosts.interruption import leave_on_signals

if __name__ == "__main__":
    # Before the other imports, which take seconds.
    leave_on_signals()

import dataclasses
import pathlib
import sys
from typing import Any

from experiments import (
    benchmark,
    gan_attack,
    gradient_inversion,
    measurability,
    reproduce,
    score_attacks,
    split_inference,
    sweep,
    user_leakage,
)
from experiments.common.flags import run_tool
from experiments.common.result_files import origin_of, parse_groups, read_tables
from experiments.common.result_pages import (
    check_name,
    check_page,
    embedded_tables,
    index_markdown,
    merged,
    page_bytes,
    page_markdown,
    read_page,
)
from experiments.common.result_pictures import page_picture
from gan_leak.runs.hosts.workers import tell
from gan_leak.runs.storage.directory import write_atomic
from gan_leak.settings import option

ROOT = pathlib.Path(__file__).parents[1]
PAGES = pathlib.Path("experiments/results")
PICTURES = pathlib.Path("experiments/pictures")
# Documents that may contain a table of a page.
DOCUMENTS = ("README.md", "BUILD_NOTES.md", "experiments/guides/*.md")
# The configuration of each binary that has flags for it.
CONFIG_CLASSES: dict[str, Any] = {
    "benchmark": benchmark.BenchmarkConfig,
    "gan_attack": gan_attack.AttackFlags,
    "gradient_inversion": gradient_inversion.GradientConfig,
    "measurability": measurability.MeasurabilityConfig,
    "reproduce": reproduce.ReproduceConfig,
    "score_attacks": score_attacks.ScoreAttacksConfig,
    "split_inference": split_inference.SplitConfig,
    "sweep": sweep.SweepConfig,
    "user_leakage": user_leakage.UserLeakageConfig,
}
DIFFERENT_STATUS = 1


@dataclasses.dataclass(frozen=True)
class ResultsConfig:
    """The page that gets new numbers, and their source; without a name all pages are rewritten from their JSON."""

    name: str = option("", "The page that gets new numbers: experiments/results/<name>.json and .md.")
    sources: str = option(
        "",
        "Run directories, separated by commas; ';' separates groups of runs of one binary, and a group may begin with "
        "'label='. Runs of the main job in one group, or sweeps, are seeds of one setting. Each binary has tables of "
        "its own.",
    )
    merge: bool = option(False, "Keep the rows of the present page that the sources do not have.")
    title: str = option("", "Title of the page; if left out, the present title.")
    picture: bool = option(
        False,
        "Also draw the first measure of every table of --name, with its intervals: "
        "experiments/pictures/<name>_page.png. New numbers of a page with such a picture redraw it.",
    )
    check: bool = option(False, "Write nothing; exit with status 1 if a page or a table differs from its JSON.")


def run(config: ResultsConfig, root: pathlib.Path = ROOT) -> int:
    """Write or check all pages and return the exit status; raise ValueError in one line for bad input."""
    if not (root / PAGES).is_dir():
        raise ValueError(f"{root / PAGES}: expected the folder of a checkout")
    if (config.sources and not config.name) or (config.name and not (config.sources or config.picture)):
        raise ValueError(f"sources={config.sources}: expected together with --name, and --name with it")
    if config.picture and not config.name:
        raise ValueError("picture=True: expected together with --name")
    if config.title and not config.sources:
        raise ValueError(f"title={config.title}: expected together with --sources")
    if config.merge and not config.sources:
        raise ValueError("merge=True: expected together with --sources")
    if config.check and config.name:
        raise ValueError(f"check=True: expected without --name={config.name}")
    pages = {path.stem: read_page(path) for path in sorted((root / PAGES).glob("*.json"))}
    if config.sources:
        present = pages.get(check_name(config.name))
        page = new_page(config, present)
        pages[config.name] = merged(present, page) if config.merge and present else page
    if config.name not in ("", *pages):
        raise ValueError(f"name={config.name}: expected one of {', '.join(pages)}, or --sources")
    files = files_of(root, dict(sorted(pages.items())))
    picture = root / PICTURES / f"{config.name}_page.png"
    if config.picture or (config.name and picture.is_file()):
        files[picture] = page_picture(pages[config.name])
    changed = [path for path, data in files.items() if not path.is_file() or path.read_bytes() != data]
    for path in changed:
        if config.check:
            print(
                f"{path.relative_to(root)}: differs from its JSON; run python -m experiments.results", file=sys.stderr
            )
        else:
            write_atomic(path, files[path])
            tell(f"written: {path}")
    return DIFFERENT_STATUS if config.check and changed else 0


def new_page(config: ResultsConfig, present: dict[str, Any] | None) -> dict[str, Any]:
    """The page with the numbers of the sources; keeps the words and columns of the present page, if any."""
    groups = parse_groups(config.sources)
    tables = read_tables(groups)
    origin = origin_of(groups, CONFIG_CLASSES)
    versions = dict(origin.versions)
    for table, old in zip(tables, present["tables"] if present else (), strict=False):
        shown = {column[key] for column in old["columns"] for key in ("measure", "baseline") if key in column}
        # A page with a manual layout may show measures that result files lack.
        if all(shown <= row.keys() for row in table["rows"]):
            table |= {name: old[name] for name in ("title", "caption", "columns")}
            table["notes"] = table["notes"] or old["notes"]
    page = {
        "title": config.title or (present["title"] if present else config.name),
        "text": present["text"] if present else [],
        "commands": origin.commands,
        "version": versions.pop("gan_leak"),
        "versions": versions,
        "machine": origin.machine,
        "date": origin.date,
        "seeds": origin.seeds,
        "transcribed": "",
        "tables": tables,
    }
    check_page(page, f"name={config.name}")
    return page


def files_of(root: pathlib.Path, pages: dict[str, dict[str, Any]]) -> dict[pathlib.Path, bytes]:
    """The contents of all pages and of the documents with their tables, by path."""
    folder = root / PAGES
    files = {folder / f"{name}.json": page_bytes(page) for name, page in pages.items()}
    files |= {folder / f"{name}.md": page_markdown(name, page).encode() for name, page in pages.items()}
    files[folder / "index.md"] = index_markdown(pages).encode()
    for path in (path for pattern in DOCUMENTS for path in sorted(root.glob(pattern))):
        text = path.read_text(encoding="utf-8")
        for table in embedded_tables(text, pages):
            text = text.replace(table.found, table.expected)
        files[path] = text.encode()
    return files


if __name__ == "__main__":
    run_tool(run, ResultsConfig)
