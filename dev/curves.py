#!/usr/bin/env python3
"""Loss and k-NN accuracy of a run as one picture, as in docs/methods.

    python dev/curves.py runs/elpv_dino docs/methods/dino.png --title "DINO on ELPV, 20 epochs"

The loss stands beside the value it has after a collapse (dashed); k-NN needs ``config=watch/online_knn`` in the run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from vissl_like.visualize.curves import series


def main() -> None:
    """Reads ``events.jsonl`` and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("picture", type=Path, help="PNG to write")
    parser.add_argument("--title", default="")
    arguments = parser.parse_args()
    text = (arguments.run / "events.jsonl").read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.splitlines()]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
    steps, losses = series(records, "step", "loss")
    left.plot(steps, losses, linewidth=1.2)
    _, trivial = series(records, "collapse_watch", "trivial_loss")
    if len(trivial):
        left.axhline(trivial[-1], linestyle="--", color="tab:red", linewidth=1)
        left.text(steps[-1], trivial[-1], "collapse ", color="tab:red", ha="right", va="bottom", fontsize=8)
    left.set(xlabel="step", ylabel="loss", title=arguments.title)
    steps, accuracy = series(records, "knn", "top1")
    right.plot(steps, accuracy, marker="o", markersize=3, linewidth=1.2, color="tab:green")
    right.set(xlabel="step", ylabel="k-NN accuracy, %")
    if not len(steps):
        right.text(0.5, 0.5, "not watched", ha="center", transform=right.transAxes)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(9)
    figure.savefig(arguments.picture, dpi=110)


if __name__ == "__main__":
    main()
