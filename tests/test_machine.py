import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from macft.__main__ import prepare_environment
from macft.machine import (
    BLAS_VARIABLE,
    GIB,
    estimate_working_set,
    find_openblas,
    free_disk_bytes,
    home,
    openblas_places,
    openblas_preload,
    read_machine,
    reexec_with_openblas,
    run_command,
    runs_folder,
)

ON_LINUX = platform.system() == "Linux"

# Answers as these machines print them: sysctl with names, pmset, sw_vers, lscpu.
M1_8GB = {
    "sysctl": "hw.memsize: 8589934592\nhw.ncpu: 8\nmachdep.cpu.brand_string: Apple M1\n"
    "sysctl.proc_translated: 0\niogpu.wired_limit_mb: 0\n",
    "pmset": "Now drawing from 'Battery Power'\n"
    " -InternalBattery-0 (id=4653155)\t77%; discharging; 4:26 remaining present: true\n",
    "sw_vers": "14.7.1\n",
}
M2_AIR_16GB = {
    "sysctl": "hw.memsize: 17179869184\nhw.ncpu: 8\nmachdep.cpu.brand_string: Apple M2\n"
    "sysctl.proc_translated: 0\niogpu.wired_limit_mb: 12288\n",
    "pmset": "Now drawing from 'AC Power'\n"
    " -InternalBattery-0 (id=21299299)\t100%; charged; 0:00 remaining present: true\n",
    "sw_vers": "15.5\n",
}
M4_MAX_128GB = {
    "sysctl": "hw.memsize: 137438953472\nhw.ncpu: 16\nmachdep.cpu.brand_string: Apple M4 Max\n"
    "sysctl.proc_translated: 0\niogpu.wired_limit_mb: 0\n",
    "pmset": "Now drawing from 'AC Power'\n",
    "sw_vers": "26.1\n",
}
M1_ROSETTA = M1_8GB | {
    "sysctl": "hw.memsize: 8589934592\nhw.ncpu: 8\nmachdep.cpu.brand_string: VirtualApple @ 2.50GHz\n"
    "sysctl.proc_translated: 1\n",
}
INTEL = {
    "sysctl": "hw.memsize: 17179869184\nhw.ncpu: 12\n"
    "machdep.cpu.brand_string: Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz\n",
    "pmset": "Now drawing from 'AC Power'\n",
    "sw_vers": "13.6.9\n",
}
LSCPU = "Architecture:             x86_64\nCPU(s):                   2\nModel name:               AMD EPYC\n"
LSCPU_VIRTUAL_ARM = "Architecture:             aarch64\nVendor ID:                Apple\nModel name:               -\n"


def answering(recorded: dict[str, str]):
    return lambda command: recorded.get(Path(command[0]).name, "")


def a_library(path: Path, symbol: str = "cblas_sgemm") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x7fELF\0cblas_dgemm\0" + symbol.encode() + b"\0")
    return path


def test_an_m1_on_battery():
    facts = read_machine(answering(M1_8GB), system="Darwin")
    assert (facts.system, facts.chip, facts.cores, facts.memory_bytes) == ("Darwin", "Apple M1", 8, 8 * GIB)
    assert (facts.on_battery, facts.battery_percent, facts.macos_version) == (True, 77, "14.7.1")
    assert facts.is_apple_silicon
    assert not facts.rosetta
    assert facts.python == platform.python_version()


def test_a_wired_limit_that_the_user_set_is_the_working_set():
    facts = read_machine(answering(M2_AIR_16GB), system="Darwin")
    assert facts.working_set_bytes == 12 * GIB
    assert (facts.on_battery, facts.battery_percent) == (False, 100)


def test_a_desktop_has_no_battery():
    facts = read_machine(answering(M4_MAX_128GB), system="Darwin")
    assert (facts.on_battery, facts.battery_percent) == (False, None)
    assert (facts.chip, facts.working_set_bytes) == ("Apple M4 Max", 96 * GIB)


def test_rosetta_is_seen_although_the_chip_calls_itself_virtual():
    facts = read_machine(answering(M1_ROSETTA), system="Darwin")
    assert facts.rosetta
    assert facts.is_apple_silicon


def test_an_intel_mac_knows_neither_translation_nor_a_wired_limit():
    facts = read_machine(answering(INTEL), system="Darwin")
    assert not facts.rosetta
    assert not facts.is_apple_silicon
    assert facts.chip.startswith("Intel")


def test_a_mac_that_answers_nothing_still_has_memory_and_cores():
    facts = read_machine(answering({}), system="Darwin")
    assert facts.memory_bytes > 0
    assert facts.cores > 0
    assert (facts.battery_percent, facts.macos_version) == (None, "")


@pytest.mark.parametrize(
    ("memory_gb", "metal_says_mib"),
    # recommendedMaxWorkingSetSize as people's llama.cpp logs show it.
    [(16, 10922.67), (32, 21845.33), (36, 27648.0), (64, 49152.0), (96, 73728.0)],
)
def test_the_working_set_is_what_metal_recommends(memory_gb, metal_says_mib):
    assert estimate_working_set(memory_gb * GIB) / 2**20 == pytest.approx(metal_says_mib, abs=0.01)


@pytest.mark.skipif(not ON_LINUX, reason="the facts come from this system's kernel")
def test_linux_facts_agree_with_the_kernel():
    facts = read_machine(answering({"lscpu": LSCPU}))
    assert (facts.system, facts.chip, facts.macos_version) == ("Linux", "AMD EPYC", "")
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    assert facts.memory_bytes == int(total.split()[1]) * 1024
    assert facts.working_set_bytes == facts.memory_bytes
    assert facts.cores == int(subprocess.run(["nproc"], capture_output=True, text=True, check=True).stdout)


def test_a_chip_without_a_name_goes_by_its_architecture():
    assert read_machine(answering({"lscpu": LSCPU_VIRTUAL_ARM}), system="Linux").chip == platform.machine()


def test_a_command_that_is_missing_or_fails_says_nothing_or_what_it_printed():
    assert run_command(["macft-no-such-command"]) == ""
    assert run_command([sys.executable, "-c", "print('half'); raise SystemExit(1)"]).strip() == "half"


def test_folders_follow_their_variables(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MACFT_HOME", raising=False)
    monkeypatch.delenv("MACFT_RUNS", raising=False)
    assert (home(), runs_folder()) == (tmp_path / "macft", tmp_path / "macft" / "runs")
    monkeypatch.setenv("MACFT_HOME", "~/elsewhere")
    monkeypatch.setenv("MACFT_RUNS", "/Volumes/Big/runs")
    assert (home(), runs_folder()) == (tmp_path / "elsewhere", Path("/Volumes/Big/runs"))


def test_free_disk_of_a_folder_that_is_not_there_yet(tmp_path):
    there = os.statvfs(tmp_path)
    assert free_disk_bytes(tmp_path / "not" / "yet") == pytest.approx(there.f_bavail * there.f_frsize, rel=0.05)


@pytest.mark.skipif(not ON_LINUX, reason="only Linux preloads a BLAS")
class TestOpenBlas:
    def test_only_a_library_with_the_standard_names_counts(self, tmp_path):
        prefixed = a_library(tmp_path / "scipy" / "libopenblas.so.0", "scipy_cblas_sgemm")
        suffixed = a_library(tmp_path / "numpy" / "libopenblas.so.0", "cblas_sgemm64_")
        usable = a_library(tmp_path / "debian" / "libopenblas.so.0")
        empty = tmp_path / "libopenblas.so.0"
        empty.touch()
        assert find_openblas({}, places=[tmp_path / "missing", empty, prefixed, suffixed, usable]) == usable
        assert find_openblas({}, places=[prefixed, suffixed]) is None

    def test_one_that_is_preloaded_already_wins(self, tmp_path):
        mine = a_library(tmp_path / "mine" / "libopenblas.so.0")
        other = a_library(tmp_path / "other" / "libopenblas.so.0")
        assert find_openblas({"LD_PRELOAD": f"libjemalloc.so.2 {mine}"}, places=[other]) == mine

    def test_a_path_that_the_loader_would_split_is_passed_over(self, tmp_path):
        library = a_library(tmp_path / "my projects" / "libopenblas.so.0")
        assert find_openblas({}, places=[library]) is None

    def test_other_preloads_stay(self, tmp_path):
        library = a_library(tmp_path / "libopenblas.so.0")
        assert openblas_preload({"LD_PRELOAD": "libjemalloc.so.2"}, places=[library]) == f"{library}:libjemalloc.so.2"
        assert openblas_preload({"LD_PRELOAD": "libjemalloc.so.2"}, places=[]) == "libjemalloc.so.2"
        assert openblas_preload({}, places=[]) == ""

    def test_an_unpacked_one_brings_its_fortran_runtime(self, tmp_path):
        folder = tmp_path / ".openblas"
        library = a_library(folder / "libopenblas.so.0")
        fortran = a_library(folder / "libgfortran.so.5")
        assert openblas_preload({}, places=[library]) == f"{library}:{fortran}"

    def test_the_makefiles_folder_is_looked_at_first(self):
        assert openblas_places()[0] == Path(sys.prefix).parent / ".openblas" / "libopenblas.so.0"

    def test_reexec_keeps_the_command_and_marks_the_environment(self, tmp_path):
        library = a_library(tmp_path / "libopenblas.so.0")
        calls = []
        environ = {"PATH": "/bin", "OPENBLAS_CORETYPE": "Haswell"}
        command = ["/usr/bin/python3", "-m", "macft", "runs"]
        assert reexec_with_openblas(command, environ, lambda *call: calls.append(call), places=[library]) == ""
        [(program, arguments, inherited)] = calls
        assert (program, arguments) == ("/usr/bin/python3", command)
        expected = {"LD_PRELOAD": str(library), BLAS_VARIABLE: str(library)}
        assert inherited == {"PATH": "/bin", "OPENBLAS_CORETYPE": "Haswell"} | expected

    def test_reexec_says_once_that_there_is_none(self):
        environ: dict[str, str] = {}
        notice = reexec_with_openblas(["python"], environ, pytest.fail, places=[])
        assert "25 times slower" in notice
        assert "libopenblas0-pthread" in notice
        assert reexec_with_openblas(["python"], environ, pytest.fail, places=[]) == ""

    @pytest.mark.parametrize("environ", [{"LD_PRELOAD": "/usr/lib/libopenblas.so.0"}, {BLAS_VARIABLE: "off"}])
    def test_reexec_leaves_a_settled_process_alone(self, environ, tmp_path):
        library = a_library(tmp_path / "libopenblas.so.0")
        assert reexec_with_openblas(["python"], dict(environ), pytest.fail, places=[library]) == ""

    def test_a_real_process_starts_again_once_with_its_arguments(self, tmp_path):
        library = find_openblas()
        assert library is not None, "the Makefile installs OpenBLAS before the tests"
        program = tmp_path / "program.py"
        program.write_text(
            "import os, sys\n"
            "from macft.machine import reexec_with_openblas\n"
            "print('start', flush=True)\n"
            "reexec_with_openblas([sys.executable, *sys.orig_argv[1:]], os.environ)\n"
            "print(sys.argv[1:], 'openblas' in open('/proc/self/maps').read())\n"
        )
        environ = {name: value for name, value in os.environ.items() if name not in {"LD_PRELOAD", BLAS_VARIABLE}}
        done = subprocess.run(
            [sys.executable, program, "--set", "a=b c"], env=environ, capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines() == ["start", "start", "['--set', 'a=b c'] True"]
        assert done.stderr == ""


def test_only_pull_may_go_online():
    for arguments in ([], ["train", "pull"], ["--json", "runs"]):
        environ = {"HF_HUB_OFFLINE": "0", "TOKENIZERS_PARALLELISM": "true"}
        prepare_environment(arguments, environ)
        assert environ["HF_HUB_OFFLINE"] == environ["TRANSFORMERS_OFFLINE"] == "1"
        assert (environ["HF_HUB_DISABLE_TELEMETRY"], environ["TOKENIZERS_PARALLELISM"]) == ("1", "true")
    for arguments in (["pull", "smollm2-135m"], ["--debug", "pull", "smollm2-135m"]):
        environ = {}
        prepare_environment(arguments, environ)
        assert environ == {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
