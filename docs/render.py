"""Write docs/*.md from docs/*.md.jinja: every number in them is read from docs/results and benchmarks/results.

`python docs/render.py` writes them; `--check` exits with 1 where one is not what it would write.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

DOCS = Path(__file__).parent
BENCHMARKS = DOCS.parent / "benchmarks/results"
SECTIONS = {"cell", "sweep", "stages", "choosing", "approximations", "inputs", "routes", "growth"}


def results() -> dict[str, Any]:
    """Content of docs/results/*.json by stem."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(DOCS.glob("results/*.json"))}


def measured(folder: Path) -> dict[str, Any]:
    """Sections of the newest result of benchmarks/compare.py that has them all, in full if any is; or none."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("cpu-*.json"))]
    complete = [result for result in found if set(result["sections"]) >= SECTIONS]
    newest = max(complete, key=lambda result: (in_full(result), result["date"]), default={"sections": {}})
    return dict(newest["sections"])


def in_full(result: dict[str, Any]) -> bool:
    """Whether all of its sections are of the full size."""
    return all(section.get("size") == "full" for section in result["sections"].values())


def on_gpu(folder: Path) -> dict[str, Any]:
    """The newest result of `make gpu`: the machine, and each group of benchmarks with its sides by name."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("nvidia-*.json"))]
    newest = max(found, key=lambda result: str(result["datetime"]), default=None)
    if newest is None:
        raise SystemExit(f"{folder}: no nvidia-*.json; run `make gpu` on a machine with a GPU")
    groups: dict[str, dict[str, Any]] = {}
    for bench in newest["benchmarks"]:
        sides = groups.setdefault(bench["group"].removeprefix("cuda "), {})
        sides[bench["extra_info"]["who"]] = bench["stats"] | bench["extra_info"]
    return newest["machine_info"] | {"date": newest["datetime"][:10], "groups": groups}


def pairs(runs: dict[str, Any]) -> list[dict[str, Any]]:
    """Every back-test of every run: one per network, seed and transfer task."""
    return [
        {"run": name, "seed": seed["seed"], "task": task, **test}
        for name, run in runs.items()
        for seed in run.get("seeds", [])
        for task, test in seed["transfer"].items()
    ]


def fine_tunings(runs: dict[str, Any]) -> list[dict[str, Any]]:
    """Every fine-tuning of every run, with what the window's checkpoint gains on the last one, as a fraction."""
    found = [seed["fine_tuning"] for run in runs.values() for seed in run["seeds"] if seed["fine_tuning"]]
    return [{**t, "gain": mean(t["accuracy"]["window"]) - mean(t["accuracy"]["last"])} for t in found]


def column(run: dict[str, Any], key: str, index: int) -> list[float]:
    """One entry of a curve of the last features, BatchNorm by batch, for each seed."""
    return [seed["batch"][key][index] for seed in run["seeds"]]


def spread(values: list[float]) -> float:
    """Standard deviation; 0 for one value."""
    return stdev(values) if len(values) > 1 else 0.0


def ranged(values: list[float], digits: int = 2) -> str:
    """Median, and from the least to the largest."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def rendered(benchmarks: Path = BENCHMARKS) -> dict[Path, str]:
    """Text of each document by its path."""
    environment = Environment(
        loader=FileSystemLoader(DOCS), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    environment.filters["f"] = lambda value, digits=3: f"{value:.{digits}f}"
    environment.filters["signed"] = lambda value, digits=3: f"{value:+.{digits}f}"
    environment.filters["percent"] = lambda value, digits=1: f"{100 * value:+.{digits}f} %"
    environment.filters["e"] = lambda value, digits=1: f"{value:.{digits}e}"
    environment.filters.update(median=median, ranged=ranged)
    environment.globals.update(mean=mean, spread=spread, column=column, pairs=pairs, fine_tunings=fine_tunings)
    found = results()
    runs = {name: content for name, content in found.items() if "claims" in content}
    names = {
        "runs": runs,
        "performance": measured(benchmarks),
        "gpu": on_gpu(BENCHMARKS),
        **{name.replace("-", "_"): content for name, content in found.items()},
    }
    return {path.with_suffix(""): environment.get_template(path.name).render(names) for path in DOCS.glob("*.md.jinja")}


def main() -> None:
    """Write the documents, or compare them with what would be written."""
    for path, text in rendered().items():
        if "--check" not in sys.argv[1:]:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"{path.name} is not what {path.name}.jinja and the results give: run `make docs-tables`")


if __name__ == "__main__":
    main()
