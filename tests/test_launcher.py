"""What `mlx.launch` tells a process, read from its environment."""

import json
from pathlib import Path

import pytest

from macft.errors import RecipeError
from macft.launcher import Launched, read_launch


@pytest.fixture
def host_file(tmp_path: Path) -> Path:
    return tmp_path / "hosts"


def test_a_process_of_its_own_was_not_launched() -> None:
    assert read_launch({}) is None


def test_the_ring_names_rank_0_first(host_file: Path) -> None:
    host_file.write_text(json.dumps([["10.0.0.2:32323", "10.0.1.2:32324"], ["10.0.0.3:32325"], ["10.0.0.4:32326"]]))
    assert read_launch({"MLX_RANK": "2", "MLX_HOSTFILE": str(host_file)}) == Launched(2, 3, "ring", "10.0.0.2")


def test_jaccl_names_its_coordinator(host_file: Path) -> None:
    host_file.write_text(json.dumps([[None, "rdma_en5"], ["rdma_en5", None]]))
    told = {"MLX_RANK": "0", "MLX_IBV_DEVICES": str(host_file), "MLX_JACCL_COORDINATOR": "[fe80::1]:32323"}
    launched = read_launch(told)
    assert launched == Launched(0, 2, "jaccl", "fe80::1")
    assert launched is not None
    assert launched.leads


def test_a_single_rank_trains_alone(host_file: Path) -> None:
    host_file.write_text("\n")  # what `mlx.launch -n 1` writes
    assert read_launch({"MLX_RANK": "0", "MLX_HOSTFILE": str(host_file)}) is None


@pytest.mark.parametrize("told", [{"OMPI_COMM_WORLD_SIZE": "2"}, {"MLX_RANK": "0", "NCCL_HOST_IP": "10.0.0.2"}])
def test_other_backends_are_refused(told: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match="does not train over"):
        read_launch(told)


def test_a_missing_host_file_is_named() -> None:
    with pytest.raises(RecipeError, match="no-such-file"):
        read_launch({"MLX_RANK": "0", "MLX_HOSTFILE": "no-such-file"})
