"""A machine's speed is measured once, and kept."""

import json
import time
from pathlib import Path

from macft.training.calibrate import FILE, calibrate, read_calibration


def test_speed_is_measured_in_seconds_and_kept(tmp_path: Path) -> None:
    assert read_calibration(tmp_path, "chip") is None
    started = time.process_time()
    measured = calibrate(tmp_path / "home", "chip")
    assert 1e8 < measured.step_flops < 1e16
    assert 1e8 < measured.matmul_flops < 1e16
    assert time.process_time() - started < 30  # both cores, and a BLAS that may be the slow one
    kept = (tmp_path / "home" / FILE).read_bytes()
    assert calibrate(tmp_path / "home", "chip") == measured == read_calibration(tmp_path / "home", "chip")
    assert (tmp_path / "home" / FILE).read_bytes() == kept
    assert read_calibration(tmp_path / "home", "another chip") is None


def test_a_damaged_file_is_measured_again(tmp_path: Path) -> None:
    for text in ("{", "[]", json.dumps({"chip": 1})):
        (tmp_path / FILE).write_text(text)
        assert read_calibration(tmp_path, "chip") is None
