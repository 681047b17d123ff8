"""Settings about processes: how many, how they meet, and how Slurm is asked for them."""

from __future__ import annotations

from dataclasses import dataclass

from vissl_like.config.fields import setting


@dataclass
class DistributedSettings:
    """Processes of the run. One process is a group of one."""

    processes: int = setting(1, "Count", "training processes on this machine; under Slurm, of the whole job")
    backend: str = setting("auto", "Literal['auto', 'gloo', 'nccl']", "auto: nccl on GPUs, gloo on CPUs")
    device: str = setting("auto", "Literal['auto', 'cpu', 'cuda']", "auto: cuda if there is a GPU")
    port: int | None = setting(
        None,
        "Annotated[int, Range(low=1024, high=65535)] | None",
        "port where processes meet; null: a free one, under Slurm one that follows from the job's number",
    )
    handshake_minutes: float = setting(
        5.0,
        "Positive",
        "longest wait for each other at the start; then the missing are named",
        unit="minutes",
    )
    sharding: str = setting(
        "none",
        "Literal['none', 'full']",
        "full: weights, gradients and optimizer state are divided over the processes; none: each has all of them",
    )
    timeout_minutes: float = setting(
        30.0, "Positive", "longest wait of one process for another before the run stops", unit="minutes"
    )
    stall_minutes: float | None = setting(
        None,
        "NonNegative | None",
        "training without a sign of life for so long ends with every process's stack; null: timeout_minutes, 0: never",
        unit="minutes",
    )


@dataclass
class SlurmSettings:
    """The run as a job of a cluster: what is asked for, and what happens at its end."""

    USE_SLURM: bool = setting(False, "bool", "submit the run as a job instead of running it here")
    cluster: str = setting(
        "slurm", "Literal['slurm', 'local']", "local: the same without Slurm, as processes of this machine, to try it"
    )
    folder: str | None = setting(None, "str | None", "logs and job files, seen by all nodes; null: OUTPUT_DIR/slurm")
    name: str = setting("vissl_like", "str", "name of the job")
    partition: str | None = setting(None, "str | None", "partition, or several with commas; null: the default one")
    account: str | None = setting(None, "str | None", "account that pays")
    qos: str | None = setting(None, "str | None", "quality of service")
    constraint: str | None = setting(None, "str | None", "features that nodes must have, such as a100 or 'a100|h100'")
    exclude: str | None = setting(None, "str | None", "nodes that are not taken, such as node[3,7-9]")
    comment: str | None = setting(None, "str | None", "a remark that the cluster keeps with the job")
    nodes: int = setting(1, "Count", "machines")
    tasks_per_node: int | None = setting(
        None,
        "Count | None",
        "processes on each machine; null: one for each of gpus_per_node, without GPUs DISTRIBUTED.processes / nodes",
    )
    gpus_per_node: int = setting(0, "Index", "GPUs on each machine")
    cpus_per_task: int = setting(1, "Count", "cores of each process, its data-loading workers included")
    mem_gb: float | None = setting(None, "Positive | None", "memory of each machine; null: the cluster's", unit="GB")
    time_hours: float = setting(24.0, "Positive", "time limit; a run that needs longer comes back", unit="hours")
    signal_seconds: int = setting(
        120, "Count", "how long before the time limit the run is told to save and come back", unit="s"
    )
    max_requeues: int = setting(100, "Index", "how many times the run puts itself back into the queue")
    parallel_jobs: int = setting(16, "Count", "jobs of a sweep that run at the same time")
    snapshot: bool = setting(True, "bool", "run a copy of the code and plugins, made now: later edits do not reach it")
    wait: bool = setting(False, "bool", "wait for the job, and end with its exit status")
