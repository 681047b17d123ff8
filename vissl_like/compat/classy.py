"""classy-vision 0.7.0: the contracts of its task, trainer and hook.

Everything else of the package (its mixed precision, checkpoints, samplers, ...) is replaced by ours. Importing this
module imports torch and torchvision.
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings

_VIDEO_TRANSFORMS = "torchvision.transforms._transforms_video"


def _keep_video_import_alive() -> None:
    """classy-vision imports a torchvision module that is to be removed; an empty one will do, since we use no video."""
    try:
        importlib.import_module(_VIDEO_TRANSFORMS)
    except ModuleNotFoundError:
        sys.modules[_VIDEO_TRANSFORMS] = types.ModuleType(_VIDEO_TRANSFORMS)


# Start-up warnings of other packages that a user can do nothing about. catch_warnings is not thread-safe, so it is used
# once, here.
with warnings.catch_warnings():
    warnings.filterwarnings(
        "ignore", r"The 'torchvision\.transforms\._(functional|transforms)_video' module is deprecated", UserWarning
    )
    warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)
    _keep_video_import_alive()
    from classy_vision.hooks import ClassyHook
    from classy_vision.tasks import ClassyTask
    from classy_vision.trainer import ClassyTrainer

__all__ = ["ClassyHook", "ClassyTask", "ClassyTrainer"]
