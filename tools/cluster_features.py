"""Groups images by their features: ``cluster_features.py config.DATA.TRAIN=/photos config.EVALUATE.weights=RUN``.

The same as ``run_distributed_engines.py config.ENGINE=cluster``; ``--help engines/cluster`` lists its options.
"""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("vissl_like") is None:  # a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vissl_like.engines.cli import main

if __name__ == "__main__":
    sys.exit(main(["config.ENGINE=cluster", *sys.argv[1:]]))
