"""The report engine: what a run left behind, as one HTML page."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vissl_like.config.yaml_text import dump_yaml
from vissl_like.distributed import comm
from vissl_like.engines.gallery import (
    Gallery,
    class_name,
    crop_rows,
    map_rows,
    neighbour_rows,
    open_gallery,
    readable_photo,
)
from vissl_like.engines.trained import Weights, find_weights
from vissl_like.registry import ENGINES
from vissl_like.utils.environment import describe_environment
from vissl_like.utils.errors import UserError
from vissl_like.utils.event_file import read_events
from vissl_like.utils.files import write_atomic
from vissl_like.visualize.crops import crop_sheet
from vissl_like.visualize.curves import Records, knn_curve, loss_curve, rank_curve, rate_curve, speed_curve
from vissl_like.visualize.embedding import FEWEST, embedding_map, project
from vissl_like.visualize.neighbours import neighbour_sheet
from vissl_like.visualize.page import Page, ResultTable, Section, render_page
from vissl_like.visualize.picture import Picture
from vissl_like.visualize.story import facts_of, floors_of, messages_of, newest, readable, status_of, table_of

EVENTS = "events.jsonl"
MOST_POINTS, MOST_TSNE_POINTS, THUMBNAILS = 4000, 1500, 48


@ENGINES.register("report")
class ReportEngine:
    """Writes one self-contained HTML page about the run in OUTPUT_DIR: results, curves, crops, neighbours, a map.

    What is missing (no labels, no evaluation, images that have moved) is said in the page. The trained features are
    those of the newest checkpoint, or of EVALUATE.weights.
    """

    required_settings = ()
    used_sections = ("DATA", "MODEL", "DISTRIBUTED", "EVALUATE", "REPORT", "TRAIN")

    def __init__(self, loaded: Any):
        self.loaded = loaded

    def run(self) -> int:
        """Writes the page; one process is enough.

        Returns:
            0.

        Raises:
            UserError: OUTPUT_DIR holds nothing to report on, or cannot be written.
        """
        if not comm.is_main():
            return 0
        settings = self.loaded.resolved
        output_dir = Path(settings.OUTPUT_DIR).expanduser()
        records, evaluations = read_run(output_dir)
        weights, why_not = _attempt(lambda: find_weights(settings, output_dir, alone=True))
        if not records and not evaluations and weights is None:
            raise UserError(
                f"OUTPUT_DIR {output_dir} holds no run to report on: no {EVENTS}, no evaluation, no checkpoint. Train "
                "first, or name the folder of a run."
            )
        page = make_page(self.loaded, output_dir, records, evaluations, weights, why_not)
        file = output_dir / settings.REPORT.file
        try:
            write_atomic(file, render_page(page))
        except OSError as error:
            raise UserError(f"{file} cannot be written: {error.strerror or error}") from error
        print(f"report: {file}", flush=True)
        return 0


def read_run(output_dir: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Event records and evaluation records of a folder; those that are damaged are left out."""
    events = output_dir / EVENTS
    records = read_events(events) if events.is_file() else []
    evaluations = []
    for file in sorted(output_dir.glob("evaluation_*.json")):
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict) and found.get("subjects"):
            evaluations.append(found)
    return records, evaluations


def make_page(
    loaded: Any,
    output_dir: Path,
    records: Records,
    evaluations: list[dict[str, Any]],
    weights: Weights | None,
    why_not: str,
) -> Page:
    """Everything that the page shows."""
    settings = loaded.resolved
    status, level = status_of(records)
    step = None if weights is None else weights.record.get("step")
    facts = facts_of(records)
    if weights is not None:
        facts.append(("Backbone", str(weights.path)))
    versions = newest(records, "run_start").get("versions") or describe_environment()
    return Page(
        title=f"{output_dir.name}: what was learnt without labels",
        subtitle=_subtitle(settings, weights),
        status=status,
        status_level=level,
        facts=facts,
        tables=[table for table in (_table(evaluation, step) for evaluation in evaluations) if table],
        tables_missing=_no_tables(settings),
        sections=[
            _curves(records, evaluations),
            _crops(settings),
            *_gallery_sections(loaded, output_dir, weights, why_not),
        ],
        messages=messages_of(records),
        settings=_settings_texts(loaded, output_dir),
        versions=readable(versions),
        footer=f"Written {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())} from {output_dir}.",
    )


def _table(evaluation: dict[str, Any], newest_step: int | None) -> ResultTable | None:
    try:
        return table_of(evaluation, newest_step)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):  # written by something else, or by hand
        return None


def _curves(records: Records, evaluations: list[dict[str, Any]]) -> Section:
    floors = next((floors_of(found) for found in evaluations if found.get("evaluation") == "knn"), {})
    drawn = [
        loss_curve(records, newest(records, "run_start").get("trivial_loss")),
        knn_curve(records, floors),
        rate_curve(records),
        rank_curve(records),
        speed_curve(records),
    ]
    pictures = [picture for picture in drawn if picture is not None]
    missing = f"There are no curves: no step is recorded in {EVENTS} (HOOKS.events writes it)."
    return Section("Curves", pictures, missing, wide=False)


def _crops(settings: Any) -> Section:
    title = "What the network was given"
    if settings.DATA.TRAIN is None or settings.DATA.TRANSFORM is None or not settings.REPORT.sample_crops:
        return Section(
            title, [], "No crops are shown: REPORT.sample_crops is 0, or the settings name no training images."
        )
    rows, problem = _attempt(lambda: crop_rows(settings, settings.REPORT.sample_crops))
    picture = crop_sheet(rows) if rows else None
    return _section(title, picture, problem or "None of the training images chosen can be read.")


def _gallery_sections(loaded: Any, output_dir: Path, weights: Weights | None, why_not: str) -> list[Section]:
    """Nearest neighbours and the map."""
    settings, titles = loaded.resolved, ("Nearest neighbours", "Map of the features")
    if settings.DATA.PROBE_TRAIN is None and settings.DATA.TRAIN is None:
        why_not = why_not or "The settings name no images."
        weights = None
    if weights is None:
        return [Section(title, [], why_not) for title in titles]
    gallery, problem = _attempt(lambda: open_gallery(loaded, weights, output_dir))
    if gallery is None:
        return [Section(title, [], problem) for title in titles]
    report = settings.REPORT
    rows = neighbour_rows(gallery, report.nearest_neighbours) if report.nearest_neighbours else []
    neighbours = neighbour_sheet(rows)
    if neighbours is not None:
        neighbours = Picture(neighbours.png, neighbours.alt, f"{neighbours.caption} Searched: {gallery.what}.")
    embedded = draw_map(gallery, report.embedding_map, settings.SEED)
    return [
        _section(
            titles[0], neighbours, "No neighbours are shown: REPORT.nearest_neighbours is 0, or nothing is readable."
        ),
        _section(titles[1], embedded, f"A map needs at least {FEWEST} photos."),
    ]


def draw_map(gallery: Gallery, method: str, seed: int) -> Picture | None:
    """The map of the photos asked about, None if there are too few."""
    if len(gallery.query_features) < FEWEST:
        return None
    dataset = gallery.query_source.dataset
    chosen = map_rows(gallery.query_features, MOST_TSNE_POINTS if method == "tsne" else MOST_POINTS, seed)
    points, note = project(chosen.features.numpy(), "tsne" if method == "tsne" else "pca", seed)
    if chosen.labels is None:
        photos = [readable_photo(dataset, index) for index in chosen.indices[:THUMBNAILS].tolist()]
        kept = [photo for photo in photos if photo is not None]
        return embedding_map(points, note, thumbnails=kept if len(kept) == len(photos) else [])
    labels = chosen.labels.numpy()
    first = {int(number): int(index) for number, index in zip(labels[::-1], chosen.indices.flip(0), strict=True)}
    names = [class_name(dataset, first[n]) if n in first else str(n) for n in range(int(np.max(labels)) + 1)]
    return embedding_map(points, note, labels.tolist(), names)


def _section(title: str, picture: Picture | None, missing: str) -> Section:
    return Section(title, [] if picture is None else [picture], missing)


def _no_tables(settings: Any) -> str:
    if settings.DATA.PROBE_TRAIN is None:
        return (
            "Nothing was scored: the settings name no labelled images. Point DATA.PROBE_TRAIN at a folder with one "
            "sub-folder per class to have the features scored beside their floors."
        )
    return "No evaluation is in this folder yet. Run config.ENGINE=evaluate with EVALUATION.name knn or linear."


def _subtitle(settings: Any, weights: Weights | None) -> str:
    record = {} if weights is None else weights.record
    method = record.get("method") or (settings.LOSS.name if settings.LOSS is not None else "")
    arch = record.get("arch") or (settings.MODEL.TRUNK.name if settings.MODEL.TRUNK is not None else "")
    options = ", ".join(f"{key} {value}" for key, value in (record.get("arch_options") or {}).items())
    network = f"{arch} ({options})" if options else str(arch)
    if str(record.get("source", "")).startswith("teacher"):
        network = f"the teacher's {network}"
    return ", ".join(part for part in (str(method), network) if part) or "unknown method and network"


def _settings_texts(loaded: Any, output_dir: Path) -> list[tuple[str, str]]:
    """The settings of the training run where it left them, else those of this command."""
    texts = []
    for name, title in (("settings_given.yaml", "As given"), ("settings_resolved.yaml", "Resolved, every value")):
        file = output_dir / name
        if file.is_file():
            texts.append((f"{title} ({name})", file.read_text(encoding="utf-8")))
    return texts or [("Of this command", dump_yaml(loaded.record()))]


def _attempt(action: Callable[[], Any]) -> tuple[Any, str]:
    """The result and an empty text, or None and why there is none."""
    try:
        return action(), ""
    except UserError as error:
        return None, str(error)
