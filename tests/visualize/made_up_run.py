"""Records of a made-up run, for the tests of pictures and pages."""


def run_records(steps=100, labels=True):
    """Records of a made-up run in the form of the event stream."""
    records = [
        {
            "kind": "run_start", "step": 0, "epoch": 0.0, "time": 1000.0, "started_from": 0, "total_steps": steps,
            "steps_per_epoch": 10, "trivial_loss": 4.0943, "versions": {"python": "3.11", "torch": "2.15"},
            "plan": {
                "dataset_size": 640, "total_steps": steps, "epochs": steps / 10, "images_total": 64 * steps,
                "global_batch": 64, "world_size": 1, "peak_lr": 0.1, "precision": "fp32",
            },
        }
    ]  # fmt: skip
    for step in range(10, steps + 1, 10):
        records.append(
            {
                "kind": "step", "step": step, "epoch": step / 10, "time": 1000.0 + step, "loss": 4.1 - step / 100,
                "lr": 0.1 * (1 - step / steps), "images_per_s": 200.0 + step % 20, "data_wait": 0.05,
            }
        )  # fmt: skip
        records.append(
            {
                "kind": "collapse_watch",
                "step": step,
                "time": 1000.0 + step,
                "rankme": 20.0 + step,
                "feature_rankme": 50.0,
            }
        )
        if labels and step % 20 == 0:
            records.append({"kind": "knn", "step": step, "time": 1000.0 + step, "top1": 70.0 + step / 10})
    records.append({"kind": "message", "step": 3, "time": 1003.0, "level": "info", "text": "hello"})
    records.append(
        {"kind": "message", "step": 4, "time": 1004.0, "level": "warning", "text": "look <b>out</b> & beware"}
    )
    records.append({"kind": "run_end", "step": steps, "time": 1000.0 + steps, "stop_reason": None})
    return records


def evaluation_record(name="knn", step=100):
    """A made-up record of an evaluation."""
    return {
        "evaluation": name,
        "step": step,
        "subjects": {
            "trained": {"metrics": {"top1": 82.5, "mean_per_class": 80.0}, "details": {"k": [20], "temperature": 0.07}},
            "raw pixels": {"metrics": {"top1": 74.5, "mean_per_class": 71.0}, "details": {}},
            "majority class": {"metrics": {"top1": 41.0}, "details": {}},
        },
        "differences": {"raw pixels": {"difference": 8.0, "low": 4.5, "high": 11.25, "level": 0.95}},
        "data": {"train_images": 1768, "test_images": 561, "num_classes": 4, "held_out_of_train": False},
        "notices": ["mind the gap"],
    }
