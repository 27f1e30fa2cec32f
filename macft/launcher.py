"""What `mlx.launch` told this process: which rank it is, of how many, and how they talk.

The rule: read from the environment alone, so that a door can ask before anything heavy loads. Rank 0 leads: it has the
run's folder and speaks for all; the others only compute.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from macft.errors import Problem, RecipeError


class Launched(NamedTuple):
    """This process among those of one `mlx.launch`.

    Attributes:
        backend: ring (TCP) or jaccl (RDMA over Thunderbolt).
        leader_host: Where the others reach rank 0.
    """

    rank: int
    size: int
    backend: str
    leader_host: str

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0


def read_launch(environ: Mapping[str, str] = os.environ) -> Launched | None:
    """Return what `mlx.launch` said, None for a process that runs alone.

    Raises:
        RecipeError: It was launched with a backend that macft does not train over, or its host file is unreadable.
    """
    if int(environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1 or "NCCL_HOST_IP" in environ:
        what = "mlx.launch was asked for a backend that macft does not train over"
        raise RecipeError([Problem("", what)], fix="Use --backend ring, or jaccl between Macs on Thunderbolt.")
    if "MLX_RANK" not in environ:
        return None
    if "MLX_IBV_DEVICES" in environ:
        hosts, backend = _read_hosts(environ["MLX_IBV_DEVICES"]), "jaccl"
        leader = environ.get("MLX_JACCL_COORDINATOR", "")
    else:
        hosts, backend = _read_hosts(environ.get("MLX_HOSTFILE", "")), "ring"
        leader = _first_text(hosts)
    if len(hosts) < 2:
        return None
    return Launched(int(environ["MLX_RANK"]), len(hosts), backend, leader.rpartition(":")[0].strip("[]"))


def _read_hosts(name: str) -> list[object]:
    # For a single rank mlx.launch writes an empty file, which MLX itself cannot read.
    try:
        content = Path(name).read_text(encoding="utf-8").strip() if name else ""
        hosts = json.loads(content or "[]")
    except (OSError, ValueError) as error:
        raise RecipeError([Problem(name, f"the host file of mlx.launch cannot be read ({error})")]) from None
    return hosts if isinstance(hosts, list) else []


def _first_text(value: object) -> str:
    """Return the first address in a host file, which nests them by rank and connection."""
    while isinstance(value, list):
        value = value[0] if value else ""
    return str(value)
