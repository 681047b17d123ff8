"""Every method as a few settings over ``quick/synthetic``: seconds per run."""

MLP = "{name: mlp, hidden_dim: 32, output_dim: 16}"
EMA = "config.MODEL.TEACHER={name: ema, momentum: 0.9}"
SWAV_HEAD = "{name: swav, hidden_dim: 32, output_dim: 16, num_prototypes: [8, 6], freeze_prototypes: 1 epochs}"
PREDICTOR = "{name: predictor, hidden_dim: 32, output_dim: 16, predictor_hidden_dim: 32}"
DINO_HEAD = "{name: dino, hidden_dim: 32, bottleneck_dim: 16, num_prototypes: 12, norm_last_layer: false}"

METHODS = {
    "swav": [],
    "swav_momentum": [EMA, f"config.MODEL.HEAD={SWAV_HEAD}"],
    "dino": [
        EMA,
        f"config.MODEL.HEAD={DINO_HEAD}",
        "config.MODEL.TRUNK={name: vit, size: tiny, patch_size: 8, image_size: 24, depth: 3, drop_path: 0.2}",
        "config.LOSS={name: dino, teacher_temperature: 0.07, teacher_temperature_warmup: 2 epochs}",
        "config.SCHEDULES.weight_decay={name: cosine, final: 0.4}",
        "config.TRAIN.clip_norm=0.3",
        "config.TRAIN.clip=tensor",
    ],
    "dino_previous_epoch": [
        "config.MODEL.TEACHER=previous_epoch",
        f"config.MODEL.HEAD={DINO_HEAD}",
        "config.LOSS={name: dino, targets: sinkhorn}",
        "config.OPTIMIZER={name: lars, base_lr: 0.1}",
    ],
    "dino_previous_iteration": [
        "config.MODEL.TEACHER=previous_iteration",
        f"config.MODEL.HEAD={DINO_HEAD}",
        "config.LOSS={name: dino, targets: batch_softmax}",
    ],
    "byol": [
        EMA,
        f"config.MODEL.HEAD={PREDICTOR}",
        "config.LOSS={name: byol, center_momentum: 0.9}",
    ],
    "moco": [EMA, f"config.MODEL.HEAD={MLP}", "config.LOSS={name: moco, queue_length: 64}"],
    "deepcluster_v2": [
        f"config.MODEL.HEAD={MLP}",
        "config.LOSS={name: deepcluster_v2, heads: 3, num_prototypes: 6, iterations: 3}",
    ],
    "rotation": [
        "config.DATA.TRANSFORM={name: rotations, size: 16}",
        "config.MODEL.HEAD={name: classifier, classes: 4}",
        "config.LOSS={name: rotation}",
    ],
    "sela_v2": [f"config.MODEL.HEAD={SWAV_HEAD}", "config.LOSS={name: sela_v2}"],
}
