"""Checkpoints: one folder a step, complete or absent, with a plain backbone file inside.

``OUTPUT_DIR/checkpoints/step_00001200/`` holds ``state.pt`` (weights, optimizer, scaler, hooks), ``rank_00000.pt`` per
process (random state, queues and other buffers that differ per process), in a sharded run ``shard_00000.safetensors``
per process (see ``sharded_state``), ``backbone.safetensors`` + ``backbone.json``
(the trunk alone, with what is needed to use it elsewhere) and ``manifest.json`` (sizes and digests of the others, the
settings, the metrics). A folder is written under a temporary name and renamed when everything is on disk.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vissl_like.distributed import comm
from vissl_like.utils.errors import UserError
from vissl_like.utils.files import flush_folder, sha256, write_flushed

FORMAT = 1
_FOLDER = re.compile(r"^step_(\d{8,})$")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    step: int
    manifest: dict[str, Any]

    @property
    def backbone(self) -> Path:
        """The trunk's weights; ``backbone.json`` lies beside them."""
        return self.folder / "backbone.safetensors"


class CheckpointStore:
    """Writes, finds, checks and thins out the checkpoints of one output folder.

    Args:
        folder: ``OUTPUT_DIR/checkpoints``.
        keep: newest checkpoints kept.
        keep_every: steps; checkpoints at its multiples are kept for good. None = none.
        best_metric: name in ``metrics`` whose highest checkpoint is kept too.
        say: takes ``(text, level)`` for what the user should know.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        keep_every: int | None,
        best_metric: str | None,
        say: Callable[[str, str], None],
    ):
        self.folder, self.keep, self.keep_every = folder, keep, keep_every
        self.best_metric, self.say = best_metric, say

    def save(
        self,
        step: int,
        common: dict[str, Any],
        per_rank: dict[str, Any],
        backbone: dict[str, Tensor],
        record: dict[str, Any],
        manifest: dict[str, Any],
        shards: dict[str, Tensor] | None = None,
    ) -> Path | None:
        """Writes one checkpoint; called by all processes.

        Returns:
            its folder, or None if it could not be written (said, with the reason; the previous one is intact).
        """
        final = self.folder / f"step_{step:08d}"
        if comm.broadcast_object(final.is_dir() if comm.is_main() else None):
            return final
        temporary = self.folder / f".step_{step:08d}.tmp"
        error = self._attempt(lambda: self._write(temporary, common, per_rank, backbone, record, shards))
        errors = [text for text in comm.all_gather_object(error) if text]
        if not errors and comm.is_main():
            facts = manifest if shards is None else {"shards": comm.world_size(), **manifest}
            error = self._attempt(lambda: self._publish(temporary, final, step, facts))
            errors = [error] if error else []
        errors = comm.broadcast_object(errors)
        if errors:
            if comm.is_main():
                shutil.rmtree(temporary, ignore_errors=True)
                self.say(f"checkpoint at step {step} could not be written: {errors[0]}. {self._kept_text()}", "error")
            return None
        if comm.is_main():
            self._prune()
        return final

    def repair(self) -> Checkpoint | None:
        """Sets damaged checkpoints aside (said; the files stay) and removes what killed runs left half-written.

        Digests are computed from the newest on, until one is sound: reading all that were ever kept would take long.
        Those before it are checked for missing and short files.

        Call it on the main process while no other run can write here.

        Returns:
            the newest sound checkpoint.
        """
        newest = None
        for step, folder in sorted(self._folders(), reverse=True):
            problem, manifest = inspect_checkpoint(folder, digests=newest is None)
            if problem is not None:
                aside = folder.with_name(f".step_{step:08d}.damaged")
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
                self.say(f"checkpoint {folder.name} is damaged ({problem}); it is now {aside}", "warning")
            elif newest is None:
                newest = Checkpoint(folder, step, manifest)
        leftovers = self.folder.glob(".step_*") if self.folder.is_dir() else ()
        for stray in leftovers:
            if stray.suffix in (".tmp", ".removed"):
                shutil.rmtree(stray, ignore_errors=True)
        return newest

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint whose files are all there and undamaged; damaged ones are said and passed over."""
        for step, folder in sorted(self._folders(), reverse=True):
            problem, manifest = inspect_checkpoint(folder)
            if problem is None:
                return Checkpoint(folder, step, manifest)
            self.say(f"checkpoint {folder.name} is damaged ({problem}); trying the one before it", "warning")
        return None

    def _write(
        self,
        temporary: Path,
        common: dict[str, Any],
        per_rank: dict[str, Any],
        backbone: dict[str, Tensor],
        record: dict[str, Any],
        shards: dict[str, Tensor] | None,
    ) -> None:
        from safetensors.torch import save

        temporary.mkdir(parents=True, exist_ok=True)
        write_flushed(temporary / f"rank_{comm.rank():05d}.pt", _serialised(per_rank))
        if shards is not None:
            rows = {name: value.detach().cpu().contiguous() for name, value in shards.items()}
            write_flushed(temporary / shard_name(comm.rank()), save(rows))
        if comm.is_main():
            write_flushed(temporary / "state.pt", _serialised(common))
            plain = {key: value.detach().cpu().contiguous() for key, value in backbone.items()}
            text: dict[str, str] = {key: str(record[key]) for key in ("arch", "method", "step") if key in record}
            write_flushed(temporary / "backbone.safetensors", save(plain, metadata=text))
            write_flushed(temporary / "backbone.json", (json.dumps(record, indent=2) + "\n").encode())

    def _publish(self, temporary: Path, final: Path, step: int, manifest: dict[str, Any]) -> None:
        names = {"state.pt", "backbone.safetensors", "backbone.json"}
        names |= {f"rank_{rank:05d}.pt" for rank in range(comm.world_size())}
        names |= {shard_name(rank) for rank in range(manifest.get("shards", 0))}
        for stray in temporary.iterdir():  # left by a run with more processes that was killed while writing
            if stray.name not in names:
                stray.unlink()
        files = {
            name: {"bytes": (temporary / name).stat().st_size, "sha256": sha256(temporary / name)}
            for name in sorted(names)
        }
        content = {"format": FORMAT, "step": step, "world_size": comm.world_size(), "files": files, **manifest}
        write_flushed(temporary / "manifest.json", (json.dumps(content, indent=2, default=str) + "\n").encode())
        flush_folder(temporary)
        temporary.rename(final)
        flush_folder(self.folder)
        flush_folder(self.folder.parent)  # the first checkpoint has made the folder of all

    def _attempt(self, action: Callable[[], None]) -> str | None:
        try:
            action()
        except OSError as error:
            return f"{error.strerror or error} ({error.filename or self.folder})"
        except RuntimeError as error:
            # Serialisers report a failed write as RuntimeError.
            return str(error).split("\n", 1)[0]
        return None

    def _kept_text(self) -> str:
        steps = [step for step, _ in self._folders()]
        if not steps:
            return "There is no earlier checkpoint; free space or change OUTPUT_DIR"
        return f"The checkpoint of step {max(steps)} is intact; free space"

    def _folders(self) -> list[tuple[int, Path]]:
        if not self.folder.is_dir():
            return []
        matches = [(_FOLDER.match(entry.name), entry) for entry in self.folder.iterdir()]
        return [(int(match[1]), entry) for match, entry in matches if match]

    def _prune(self) -> None:
        """Removes what the rule does not keep. A folder is renamed first, so that a half-removed one is never found."""
        folders = sorted(self._folders(), reverse=True)
        kept = {step for step, _ in folders[: self.keep]}
        if self.keep_every:
            kept |= {step for step, _ in folders if step % self.keep_every == 0}
        if self.best_metric:
            scored = [(self._metric(folder), step) for step, folder in folders]
            kept |= (
                {max((value, step) for value, step in scored if value is not None)[1]}
                if any(value is not None for value, _ in scored)
                else set()
            )
        for step, folder in folders:
            if step not in kept:
                with contextlib.suppress(OSError):
                    doomed = folder.with_name(f".{folder.name}.removed")
                    folder.rename(doomed)
                    shutil.rmtree(doomed, ignore_errors=True)

    def _metric(self, folder: Path) -> float | None:
        with contextlib.suppress(OSError, ValueError):
            return (
                json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
                .get("metrics", {})
                .get(self.best_metric)
            )
        return None


def inspect_checkpoint(folder: Path, digests: bool = True) -> tuple[str | None, dict[str, Any]]:
    """What is wrong with a checkpoint folder (None if nothing), and its manifest; ``digests``: every byte is read."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        world_size = manifest["world_size"]
        if not isinstance(world_size, int) or not 1 <= world_size <= len(manifest["files"]):
            return f"manifest.json counts {world_size!r} processes", manifest
        shards = manifest.get("shards", 0)
        if shards not in (0, world_size):
            return f"manifest.json counts {shards!r} shards of {world_size} processes", manifest
        needed = {"state.pt", *(f"rank_{rank:05d}.pt" for rank in range(world_size))}
        absent = sorted((needed | {shard_name(rank) for rank in range(shards)}) - manifest["files"].keys())
        if absent:
            return f"manifest.json does not name {', '.join(absent[:3])}", manifest
        for name, facts in manifest["files"].items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing", manifest
            if file.stat().st_size != facts["bytes"]:
                return f"{name} has {file.stat().st_size} bytes instead of {facts['bytes']}", manifest
            if digests and sha256(file) != facts["sha256"]:
                return f"{name} does not match its digest", manifest
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"manifest.json cannot be read: {type(error).__name__}: {error}", {}
    if manifest.get("format") != FORMAT:
        return f"format {manifest.get('format')!r}, this program reads {FORMAT}", manifest
    return None, manifest


def load_states(
    checkpoint: Checkpoint, reshard: Callable[[Checkpoint], dict[str, Any]] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """``(common, per_rank)`` states of this process.

    Args:
        checkpoint: to be read; its digests are checked by now.
        reshard: gives the second where the checkpoint was made by another number of processes (``resharding``).

    Raises:
        UserError: it was, and there is no ``reshard``; or what that raises.
    """
    saved = int(checkpoint.manifest["world_size"])
    if saved != comm.world_size() and reshard is None:
        raise UserError(
            f"{checkpoint.folder} was written by {saved} processes, this run has {comm.world_size()}: queues and "
            f"random states belong to processes. Start with DISTRIBUTED.processes={saved}, or a new OUTPUT_DIR with "
            f"MODEL.WEIGHTS.path={checkpoint.backbone}."
        )
    read = lambda name: torch.load(checkpoint.folder / name, map_location="cpu", weights_only=True)  # noqa: E731
    if saved != comm.world_size() and reshard is not None:
        return read("state.pt"), reshard(checkpoint)
    return read("state.pt"), read(f"rank_{comm.rank():05d}.pt")


def shard_name(rank: int) -> str:
    """The file with a process's rows of divided tensors."""
    return f"shard_{rank:05d}.safetensors"


def wall_clock() -> str:
    """Now, as ISO 8601 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _serialised(state: dict[str, Any]) -> memoryview:
    """Bytes of ``torch.save``, complete in memory before any of them touches the disk."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getbuffer()
