"""An engine that leaves what a training and an evaluation leave, without either."""

import json
from pathlib import Path

from vissl_like.registry import ENGINES
from vissl_like.utils.errors import UserError


@ENGINES.register("pretend")
class PretendEngine:
    """Writes numbers that follow from the settings; fails, or is stopped by a signal, at certain seeds."""

    required_settings = ()

    def __init__(self, loaded):
        self.loaded = loaded

    def run(self):
        settings = self.loaded.resolved
        if settings.SEED == 13:
            raise UserError("thirteen | is\nunlucky")
        folder = Path(settings.OUTPUT_DIR)
        step = folder / "checkpoints" / "step_00000012"
        step.mkdir(parents=True, exist_ok=True)
        metrics = {"epoch.loss": 10.0 + settings.SEED, "epoch.lr": 0.1, "online_knn.top1": 50.0}
        events = [{"kind": "step", "step": at, "loss": 100.0 / at + settings.SEED} for at in range(1, 21)]
        (folder / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
        (step / "manifest.json").write_text(json.dumps({"step": 12, "metrics": metrics}))
        found = {
            "trained": {"metrics": {"top1": settings.SEED + 0.25, "top5": 99.0}},
            "random": {"metrics": {"top1": 1}},
        }
        record = {"evaluation": "knn", "main": "top1", "subjects": found}
        (folder / "evaluation_knn.json").write_text(json.dumps(record))
        with open(folder.parent / "calls", "a") as stream:
            stream.write(f"{settings.SEED} {settings.LOSS.get('temperature', 0.1)}\n")
        return {143: 143, 3: 3}.get(settings.SEED, 0)
