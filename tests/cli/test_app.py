"""The command line as a user runs it: what it prints, what it leaves behind, and how it fails."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import probekit as pk
from children import COMMAND, Child
from probekit.capture import store
from probekit.cli.app import app
from probekit.errors import ProbekitError
from probekit.runtime import processes

Start = Callable[..., Child]

BUNDLED = "probekit:resnet20-fashion-mnist"


def test_analyze_from_the_command_line(tmp_path: Path, start: Start) -> None:
    status, printed, errors = start("analyze -o result.nc --limit 300 --batch-size 100").wait()
    assert status == 0, errors
    result = pk.open_result(tmp_path / "result.nc")
    layers = result["layers"].to_dataset()
    assert layers.sizes["layer"] == 19
    for name, units in zip(layers["layer"].values, layers["n_units"].values, strict=True):
        row = next(line for line in printed.splitlines() if line.startswith(f"{name} "))
        assert row.split()[1] == str(units)
    assert "most selective units" in printed
    best = (
        result["units"].to_dataset().isel(unit=int(result["units"]["selectivity"].values.argmax()))
    )
    assert str(best["class_name"].values[int(best["preferred_class"])]) in printed
    assert f"accuracy {float(result['accuracy']):.4f}" in printed
    assert "\x1b[" not in printed


def test_json_output_is_machine_readable(tmp_path: Path, start: Start) -> None:
    _, printed, _ = start("analyze --limit 200 --json").wait()
    found = json.loads(printed)
    assert len(found["layers"]) == 19
    assert len(found["most_selective"]) == 10
    assert found["provenance"]["data"]["limit"] == 200
    assert not list(tmp_path.iterdir())


def test_layers_are_listed_in_advance(start: Start) -> None:
    status, printed, errors = start("layers torchvision:resnet18 --layers layer1.*relu*").wait()
    assert status == 0, errors
    row = next(line for line in printed.splitlines() if line.startswith("layer1.0.relu_1"))
    assert " ".join(row.split()) == "layer1.0.relu_1 ReLU 64 x 56 x 56 1 64 2 256"
    assert "4 layers, 256 units, 1,024 bytes per sample" in printed


def test_layers_are_verified(start: Start) -> None:
    status, printed, errors = start(f"layers {BUNDLED} --verify").wait()
    assert status == 0, errors
    shown = " ".join(printed.split())
    assert "19 of 19 layers have the values and calls of a plain pass" in shown
    assert "unit axis by image size: 19" in shown


def test_all_architectures_require_a_file_and_no_model() -> None:
    for arguments in (["--all"], ["resnet18", "--all", "-o", "timm.csv"], []):
        assert CliRunner().invoke(app, ["layers", *arguments]).exit_code == 2


def test_record_resumes_after_a_kill(tmp_path: Path, start: Start) -> None:
    def record(name: str, code: str = COMMAND) -> Child:
        arguments = f"record {BUNDLED} fashion-mnist --layers layer* --batch-size 50 --limit 400"
        return start(f"{arguments} -o {name}", code=code)

    small_blocks = f"import probekit.capture.store as s; s._BLOCK_BYTES = 2**16\n{COMMAND}"
    assert store._BLOCK_BYTES > 2**16
    assert record("whole.zarr").wait()[0] == 0
    assert record("blocks.zarr", small_blocks).wait()[0] == 0
    broken = tmp_path / "broken.zarr"
    kills = 0
    for _ in range(12):
        child = record("broken.zarr", small_blocks)
        progress = broken / "recording-in-progress.json"
        before = progress.read_text() if progress.exists() else None
        while child.process.is_alive():
            if (
                progress.exists()
                and progress.read_text() not in (before, '{"done": 0}')
                and kills < 3
            ):
                kills += child.kill()
                break
            time.sleep(0.01)
        else:
            status, _, errors = child.wait()
            assert status == 0, errors
            break
    assert kills >= 1
    assert not (broken / "recording-in-progress.json").exists()
    files = {
        folder: {
            str(path.relative_to(tmp_path / folder)): path.read_bytes()
            for path in (tmp_path / folder).rglob("*")
            if path.is_file() and path.name != "zarr.json"
        }
        for folder in ("blocks.zarr", "broken.zarr")
    }
    assert files["blocks.zarr"] == files["broken.zarr"]
    opened = [pk.open_recording(tmp_path / f"{name}.zarr") for name in ("whole", "broken")]
    np.testing.assert_array_equal(opened[0]["activation"].values, opened[1]["activation"].values)


@pytest.fixture
def hostile(tmp_path: Path, folder: Path) -> Path:
    """A folder with every kind of invalid file."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "old.nc").write_bytes(b"precious")
    (tmp_path / "bad.safetensors").write_bytes(b"junk")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    torch.save({"f": print}, tmp_path / "code.pt")
    (folder / "cat" / "99.png").write_bytes(b"not an image")
    (tmp_path / "single" / "only").mkdir(parents=True)
    (folder / "dog" / "00.png").rename(tmp_path / "single" / "only" / "a.png")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("analyze resnet188 photos", "no model is named 'resnet188'; close matches: "),
        ("analyze probekit:nope photos", "no bundled model is named 'nope'"),
        ("analyze BUNDLED", "needs data"),
        ("analyze BUNDLED fashion-mnits", "close matches: fashion-mnist"),
        ("analyze BUNDLED empty", "no images in 'empty'"),
        ("analyze BUNDLED photos", "99.png' cannot be read"),
        ("analyze BUNDLED single", "one class only (only)"),
        ("analyze BUNDLED fashion-mnist --layers layer9.relu", "no layer is named 'layer9.relu'"),
        ("analyze BUNDLED fashion-mnist --layers zz*", "no layer matches 'zz*'"),
        ("analyze BUNDLED fashion-mnist --metrics selectivty", "close matches: selectivity"),
        ("analyze BUNDLED fashion-mnist --limit 0", "limit must be a positive integer"),
        ("analyze BUNDLED fashion-mnist --device warp", "device 'warp' cannot be used"),
        ("analyze BUNDLED fashion-mnist --weights bad.safetensors", "cannot be read"),
        ("analyze BUNDLED fashion-mnist --weights none.pt", "there is no weights file 'none.pt'"),
        ("analyze BUNDLED fashion-mnist --weights other.safetensors", "missing: conv1.weight"),
        ("analyze BUNDLED fashion-mnist --weights code.pt", "would run code"),
        ("analyze -o old.nc", "exists already"),
        ("analyze -o no/such/folder/r.nc", "cannot be written"),
        ("analyze -o r.csv", ".nc or .zarr"),
        ("analyze --limit many", "integer"),
        (f"analyze --seed {2**70}", "seed must be an integer from"),
        ("layers torchvision:resnet1", "close matches: resnet18"),
        ("train resnet20-digits -o run --pgd 8/255", "--pgd takes a radius and a number of steps"),
        ("train resnet20-digits -o run --augmix 11", "severity of AugMix"),
        ("sweep resnet20-digits -o run --jobs many", "--jobs takes a number or auto, not 'many'"),
        ("sweep resnet20-digits -o run --jobs 0", "jobs must be a positive integer, not 0"),
        ("record BUNDLED fashion-mnist -o acts.nc", ".zarr folder"),
        ("record BUNDLED photos -o acts.zarr", "99.png"),
        ("frobnicate", "frobnicate"),
    ],
)
def test_mistakes_end_with_a_one_sentence_error(
    arguments: str, message: str, hostile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hostile)
    before = sorted(str(path) for path in hostile.rglob("*") if "acts" not in str(path))
    done = CliRunner().invoke(app, arguments.replace("BUNDLED", BUNDLED).split())
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert sorted(str(p) for p in hostile.rglob("*") if "acts" not in str(p)) == before
    assert (hostile / "old.nc").read_bytes() == b"precious"


def test_skip_bad_continues_and_reports(hostile: Path, start: Start) -> None:
    status, _, errors = start(f"analyze {BUNDLED} photos --skip-bad -o r.nc").wait()
    assert status == 0, errors
    assert "note: 1 images of photos could not be read and were left out" in errors
    assert pk.open_result(hostile / "r.nc")["samples"].sizes["sample"] == 11


def test_overwrite_replaces(hostile: Path, start: Start) -> None:
    status, _, errors = start("analyze -o old.nc --overwrite --limit 100").wait()
    assert status == 0, errors
    assert pk.open_result(hostile / "old.nc")["samples"].sizes["sample"] == 100


TELLS_OF_EACH_BATCH = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # which children of background jobs ignore
from probekit.cli.app import main
from probekit.statistics.feeding import Feeder

def update(self, *given, original=Feeder.update):
    print("a batch", flush=True)
    original(self, *given)

Feeder.update = update
main()
"""


def test_interrupt_leaves_no_files_behind(tmp_path: Path, start: Start) -> None:
    child = start("analyze -o r.nc --batch-size 1", code=TELLS_OF_EACH_BATCH)
    assert os.read(child.out.fileno(), 100).startswith(b"a batch")
    os.kill(child.process.pid, signal.SIGINT)
    status, _, errors = child.wait()
    assert status == 130
    assert errors.strip().splitlines()[-1] == "probekit: interrupted"
    assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())


def test_version_and_help(start: Start) -> None:
    assert start("--version").wait()[1].strip() == pk.__version__
    for command in ("analyze", "layers", "record", "models"):
        assert "Usage" in start(f"{command} --help").wait()[1]
    assert BUNDLED in start("models").wait()[1]


def test_training_for_robustness_is_passed_to_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def train(*given: object, **options: object) -> None:
        asked.update(options)
        raise ProbekitError("seen")

    monkeypatch.setattr("probekit.training.run.train.train", train)
    plain = ["train", "resnet20-digits", "-o", "run"]
    CliRunner().invoke(app, [*plain, "--augmix", "3", "--pgd", "8/255,7"])
    assert asked["augmix"] == 3
    assert asked["pgd"] == (8 / 255, 7)
    asked.clear()
    CliRunner().invoke(app, plain)
    assert not {"augmix", "pgd"} & set(asked)


@pytest.mark.parametrize(
    "line",
    [
        "analyze {model} -o r.nc",
        "robustness {model} --corruptions contrast --severities 1 --table 32 -o r.nc",
        "record {model} -o r.zarr",
        "cka {model} -o r.nc",
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_process_prints_and_writes_results(
    line: str, rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for function in (pk.analyze, pk.robustness, pk.record, pk.cka):
        assert callable(function)  # imported now
    monkeypatch.chdir(tmp_path)
    # Only for the command: the functions, imported before, run as one process.
    monkeypatch.setattr(processes, "processes", lambda: processes.Processes(rank, 2))
    options = " --limit 20 --layers layer3.1.relu2,layer3.2.relu2"
    done = CliRunner().invoke(
        app, (line.format(model=f"{BUNDLED} fashion-mnist") + options).split()
    )
    assert done.exit_code == 0, done.output
    assert bool(done.stdout) == (rank == 0)
    if "record" not in line:
        assert Path("r.nc").exists() == (rank == 0)


@pytest.mark.parametrize("seeds", [(3, 3), (3, 4)])
def test_random_weights_depend_on_the_seed(folder: Path, seeds: tuple[int, int]) -> None:
    asked = f"analyze test_resnet {folder} --random --json --layers act1 --limit 4 --seed".split()
    weights = []
    for seed in seeds:
        done = CliRunner().invoke(app, [*asked, str(seed)])
        assert done.exit_code == 0, done.output
        weights.append(json.loads(done.stdout)["provenance"]["model"]["hash"])
    assert (weights[0] == weights[1]) == (seeds[0] == seeds[1])
