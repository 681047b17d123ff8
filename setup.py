"""The optional C part; everything else about the package is in setup.cfg. Without a compiler it is left out."""

from setuptools import Extension, setup

FOLDER = "vissl_like/data/transforms"
HEADERS = ("_views.h", "_views_plain.h", "_views_avx2.h", "_views_chain.h")

setup(
    ext_modules=[
        Extension(
            "vissl_like.data.transforms._views",
            [f"{FOLDER}/_views.c"],
            depends=[f"{FOLDER}/{name}" for name in HEADERS],
            # Results must not depend on the machine: no fused multiply-add, no code for the builder's processor.
            extra_compile_args=["-O3", "-g0", "-ffp-contract=off"],
            optional=True,
        )
    ]
)
