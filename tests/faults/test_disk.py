"""A full disk gives a one-sentence error, leaves no partial file, and keeps existing files.

File sizes are limited (`RLIMIT_FSIZE`), so that writing fails midway as on a full disk. The limits are
drawn from a seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import probekit as pk
from damaged_files import SMALL

pytestmark = pytest.mark.slow

Start = Callable[..., Any]

DATA = f"{SMALL} fashion-mnist --limit 60"
QUICK = 'epochs=2, architecture="resnet8", limit=64, batch_size=16, device="cpu", progress=False'
IN_ONE_SENTENCE = """
import sys
import probekit as pk
try:
    CALL
except pk.ProbekitError as error:
    print(f"probekit: {error}", file=sys.stderr)
    sys.exit(2)
"""


def calling(call: str) -> dict[str, str]:
    return {"code": IN_ONE_SENTENCE.replace("CALL", call)}


JOBS: dict[str, tuple[dict[str, str], str, int]] = {
    # The command, its output, and the approximate size of its largest file.
    "analyze to netCDF": ({"arguments": f"analyze {DATA} --overwrite -o out.nc"}, "out.nc", 20_000),
    "analyze to zarr": ({"arguments": f"analyze {DATA} --overwrite -o out.zarr"}, "out.zarr", 1000),
    "record": ({"arguments": f"record {DATA} -o out.zarr"}, "out.zarr", 10_000),
    "robustness": (
        {
            "arguments": f"robustness {DATA} --corruptions contrast --severities 1 --overwrite "
            "--store kept -o out.nc"
        },
        "out.nc",
        20_000,
    ),
    "train": (
        calling(f"pk.train('resnet20-digits', -1.0, 0, 'out', {QUICK})"), "out/model.json", 200_000
    ),
    "sweep": (
        calling(f"pk.sweep('resnet20-digits', [0.0], [0], 'out', {QUICK})"), "out/sweep.nc", 200_000
    ),
    "report": ({"arguments": "report given.nc --overwrite -o out.html"}, "out.html", 100_000),
}  # fmt: skip


@pytest.mark.parametrize("name", JOBS)
def test_a_full_disk(name: str, start: Start, tmp_path: Path) -> None:
    job, out, size = JOBS[name]
    if name == "report":
        result = pk.analyze(SMALL, "fashion-mnist", limit=50, progress=False)
        pk.save_result(result, tmp_path / "given.nc")
    before = None
    if out in ("out.nc", "out.html"):
        before = b"the result of last week"
        (tmp_path / out).write_bytes(before)
    shares = random.Random(name)
    for share in (0.0, shares.random() / 4, shares.random() / 2):
        status, printed, told = start(**job, limit=64 + int(share * size)).wait()
        said = [line for line in told.splitlines() if not line.startswith("note: ")]
        assert status == 2, (status, printed, told)
        assert len(said) == 1, told
        assert said[0].startswith("probekit: ")
        assert "cannot be written" in said[0] or "cannot be used" in said[0]
        if before is not None:
            assert (tmp_path / out).read_bytes() == before
        assert not [path for path in tmp_path.rglob(".*") if path.name not in (".lock",)]
    status, printed, told = start(**job).wait()
    assert status == 0, printed + told
    assert (tmp_path / out).exists()


@pytest.mark.parametrize("arguments", ["models", f"analyze {DATA} --json"])
def test_output_that_cannot_be_written_is_reported(arguments: str, start: Start) -> None:
    code = (
        "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)\n"
        "from probekit.cli.app import main; main()"
    )
    status, _, told = start(arguments, code=code).wait()
    assert status == 2
    assert told.splitlines()[-1].startswith("probekit: ")
    assert "Traceback" not in told
    assert "Exception ignored" not in told
