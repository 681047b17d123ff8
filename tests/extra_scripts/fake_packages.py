"""Tiny stand-ins for the packages that benchmark sets are made from, as they lie when fetched and unpacked."""

import hashlib
import io
import json
import tarfile

import numpy as np
from picture_sources import PHOTOS
from PIL import Image

VENDORS = ("apple", "google", "twitter", "facebook")


def noise(key, size, channels=3):
    """Pixels ``[h, w, channels]`` that depend on the key only."""
    seed = int(hashlib.md5(key.encode()).hexdigest()[:8], 16)
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)


def cutout(key, size=(20, 16)):
    """A picture of many colours with a transparent border of two pixels."""
    pixels = noise(key, size, 4)
    pixels[..., 3] = 0
    pixels[2:-2, 2:-2, 3] = 255
    return Image.fromarray(pixels)


def photos(packages):
    """All photographs, 48 x 40; wallpapers in two sizes."""
    for folder, names in PHOTOS.items():
        package = "scikit-image" if folder.startswith("skimage") else "opencv-doc"
        for name in names.split():
            place = packages / "unpacked" / package / folder
            if "wallpapers" in folder:
                place = place / name / "contents" / "images"
                place.mkdir(parents=True)
                Image.fromarray(noise(name, (48, 40))).save(place / "1280x800.png")
                Image.fromarray(noise(f"not {name}", (48, 40))).save(place / "1024x768.png")
            else:
                place.mkdir(parents=True, exist_ok=True)
                file = place / (name if "." in name else f"{name}_x.png")
                Image.fromarray(noise(name, (48, 40))).save(file, "PNG")
    for package in ("mate-backgrounds", "lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04"):
        (packages / "unpacked" / package).mkdir()
    (packages / "unpacked" / "plasma-workspace-wallpapers").mkdir()


def stamps(packages, names, size=(20, 16)):
    """Stamps of these paths (``animals/mammals/cat``); from about 70 x 70 pixels on they pass for photographs."""
    for name in names:
        file = packages / "unpacked/tuxpaint-stamps-default/usr/share/tuxpaint/stamps" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        cutout(name, size).save(file)


def row(code, kind="animal-mammal", name=None, category="Animals & Nature", skins=(), without=()):
    """A row of ``emoji.json``; ``skins`` are codes of skin tones, ``without`` are vendors that have no image."""
    has = {f"has_img_{vendor}": vendor not in without for vendor in VENDORS}
    return {
        "unified": code,
        "short_name": name or code.lower(),
        "image": f"{code.lower()}.png",
        "category": category,
        "subcategory": kind,
        **has,
        "skin_variations": {
            tone: {"unified": f"{code}-{tone}", "image": f"{code.lower()}-{tone.lower()}.png", **has} for tone in skins
        },
    }


def emoji(packages, rows, copies=(), images=True):
    """The four npm packages; ``copies`` maps (vendor, code) to the (vendor, code) whose image it shows.

    Without ``images`` there is one only, ``1f401.png``, and rows need not be right.
    """
    packages.mkdir(exist_ok=True)
    shown = dict(copies)
    for vendor in VENDORS:
        files = {
            "package.json": json.dumps({"name": f"emoji-datasource-{vendor}", "version": "16.0.0"}).encode(),
            "emoji.json": json.dumps(rows).encode(),
        }
        if not images:
            files[f"img/{vendor}/64/1f401.png"] = b"x"
        for entry in [part for one in rows for part in (one, *one["skin_variations"].values()) if images]:
            stream = io.BytesIO()
            key = shown.get((vendor, entry["unified"]), (vendor, entry["unified"]))
            cutout(" ".join(key), (64, 64)).save(stream, "PNG")
            files[f"img/{vendor}/64/{entry['image']}"] = stream.getvalue()
        with tarfile.open(packages / f"emoji-datasource-{vendor}-16.0.0.tgz", "w:gz", compresslevel=1) as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(f"package/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def tree(folder):
    """Contents by path, of all files but SOURCE.txt."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "SOURCE.txt"
    }
