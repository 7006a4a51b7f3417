"""Every code block in README.md and docs/ runs and prints the output that the page shows.

A page is one program: its `python` blocks share a namespace, and its `sh` blocks share a folder with them,
in which `photos/` holds a few images in three classes. An `output` block shows what the preceding block
prints: `...` matches any lines, integers must be equal, and other numbers must agree to the digits shown.
Hidden comments on the line before a block change how it runs:

    <!-- not run: REASON -->    it needs something that tests lack; the reason is reported
    <!-- needs: MODULE -->      it runs only if this module is installed
    <!-- exit: 2 -->            the command must exit with this status
    <!-- warns: TEXT -->        a warning with this text must be issued
    <!-- about: 0.1 -->         numbers agree to this tolerance, since they come from a training run
    <!-- run: KIND -->          it runs separately, in the loop that KIND selects below
    <!-- amounts: limit=9 -->   it runs with these amounts in place of those shown, to take less time
    <!-- setup: CODE -->        Python code that runs at this position
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import shlex
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import probekit as pk
from children import Child, launched
from pages import BLOCKS, PAGES, ROOT, RUN, Block
from probekit.cli.app import app
from probekit.metrics import metric as registry
from probekit.models.architectures import CifarResNet

NOT_RUN = [one for page in PAGES for one in BLOCKS[page] if "not run" in one.marks]

_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.]*\d)")
_BARS = re.compile("[▏▎▍▌▋▊▉█]")


def agrees(shown: str, printed: str, about: float = 0.0) -> bool:
    """Whether a page shows the printed text, up to whitespace and the last digit of fractions."""
    return _match(_lines(shown), _lines(printed), about)


def _lines(text: str) -> list[str]:
    plain = (" ".join(_BARS.sub(" ", line).split()) for line in text.splitlines())
    return [line for line in plain if line]


def _match(shown: list[str], printed: list[str], about: float) -> bool:
    if not shown:
        return not printed
    if shown[0] == "...":
        return any(_match(shown[1:], printed[start:], about) for start in range(len(printed) + 1))
    same = bool(printed) and _same(shown[0], printed[0], about)
    return same and _match(shown[1:], printed[1:], about)


def _same(shown: str, printed: str, about: float) -> bool:
    numbers = _NUMBER.findall(shown), _NUMBER.findall(printed)
    if _NUMBER.sub("#", shown) != _NUMBER.sub("#", printed):
        return False
    return all(_near(one, other, about) for one, other in zip(*numbers, strict=True))


def _near(shown: str, printed: str, about: float) -> bool:
    one, other = (float(text.replace(",", "")) for text in (shown, printed))
    if "." not in shown and "e" not in shown:
        return one == other
    digits = len(shown.partition(".")[2].partition("e")[0])
    return math.isclose(one, other, rel_tol=0.02, abs_tol=max(about, 2.0 * 10.0**-digits))


class Program:
    """A page as it runs."""

    def __init__(self, start: Callable[..., Child]) -> None:
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.start = start

    def run(self, block: Block) -> None:
        printed = io.StringIO()
        with warnings.catch_warnings(record=True) as told, contextlib.redirect_stdout(printed):
            warnings.simplefilter("always", pk.ProbekitWarning)
            if block.language == "python":
                self.python(block)
            else:
                self.shell(block)
        self.judge(block, [str(one.message) for one in told if _ours(one)])
        if block.output is not None:
            about = float(block.marks.get("about", 0.0))
            assert agrees(block.output, printed.getvalue(), about), (
                f"{block.place} prints\n{printed.getvalue()}"
            )

    def judge(self, block: Block, told: list[str]) -> None:
        expected = block.marks.get("warns")
        # Pages use few images, and models of other classes, to be fast.
        quick = (
            "classes have fewer than 20 samples",
            "accuracy is left out",
            "accuracy is a guess",
        )
        told = [one for one in told if not any(text in one for text in quick)]
        for sentence in told:
            assert expected is not None, f"{block.place} warns: {sentence}"
            assert expected in sentence, f"{block.place} warns: {sentence}"
        assert expected is None or told, f"{block.place} does not warn"

    def python(self, block: Block) -> None:
        # Line numbers match the page, so that a traceback points to it.
        source = "\n" * block.line + with_amounts(block)
        exec(compile(source, str(block.page), "exec"), self.names)

    def shell(self, block: Block) -> None:
        status = int(block.marks.get("exit", 0))
        for command in with_amounts(block).replace("\\\n", " ").splitlines():
            words = shlex.split(command, comments=True)
            if not words:
                continue
            found, output = {"probekit": _probekit, "torchrun": self.torchrun}[words[0]](words[1:])
            print(output)
            assert found == status, f"{block.place}: {command} ended with {found}: {output}"

    def torchrun(self, words: list[str]) -> tuple[int, str]:
        """Starts the processes that torchrun would, which tests/runtime/ starts with torchrun itself."""
        standalone, option, count, m, package, *arguments = words
        assert (standalone, option) == ("--standalone", "--nproc-per-node")
        assert (m, package) == ("-m", "probekit")
        children = [self.start(arguments, environment=one) for one in launched(int(count))]
        ends = [child.wait() for child in children]
        return max((status for status, _, _ in ends), key=abs), "".join(
            out + err for _, out, err in ends
        )


def with_amounts(block: Block) -> str:
    """The code of a block with the amounts of its mark, as `limit=9` or `--limit 9`."""
    code = block.code
    for amount in block.marks.get("amounts", "").split():
        name, _, number = amount.partition("=")
        code, changed = re.subn(rf"(\b{name}=|--{name} )\d+", rf"\g<1>{number}", code)
        assert changed, f"{block.place} has no {name}"
    return code


def _ours(one: warnings.WarningMessage) -> bool:
    return issubclass(one.category, pk.ProbekitWarning)


def _probekit(words: list[str]) -> tuple[int, str]:
    file = words[-1] if ">" in words[-2:-1] else None
    done = CliRunner().invoke(app, words[:-2] if file else words)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    if file:
        Path(file).write_text(done.stdout)
        return done.exit_code, done.stderr
    return done.exit_code, done.output


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a page: empty except for `photos/`."""
    random = np.random.default_rng(0)
    for label, name in enumerate(("bird", "cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(8):
            pixels = random.integers(0, 256, (80, 64, 3)) * (label + 1) // 3
            picture = Image.fromarray(pixels.astype(np.uint8))
            picture.save(tmp_path / "photos" / name / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_metric_stays() -> Iterator[None]:
    known = {*registry._REGISTERED, *registry._built_in()}
    yield
    for name in {*registry._REGISTERED} - known:
        del registry._REGISTERED[name]


def _runs(page: Path) -> bool:
    return any(one.language in RUN and "not run" not in one.marks for one in BLOCKS[page])


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if _runs(page)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_a_page_runs_as_one_program(
    page: Path, place: Path, no_metric_stays: None, start: Callable[..., Child]
) -> None:
    torch.manual_seed(0)
    program = Program(start)
    for block in BLOCKS[page]:
        if block.language not in RUN or "not run" in block.marks:
            continue
        if "needs" in block.marks and find_spec(block.marks["needs"]) is None:
            continue
        if kind := block.marks.get("run"):
            run_in_a_loop(kind, block)
        else:
            program.run(block)


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda block: block.place)
def test_a_block_that_does_not_run_gives_a_reason(block: Block) -> None:
    assert len(block.marks["not run"].split()) > 2
    pytest.skip(block.marks["not run"])


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a  1\n", "a 1", True),
        ("a 1", "a 2", False),
        ("a 0.12", "a 0.1249", True),
        ("a 0.12", "a 0.17", False),
        ("one\n...\nfour", "one\ntwo\nthree\nfour", True),
        ("one\n...\nfour", "one\ntwo\nthree", False),
        ("one", "one\ntwo", False),
        ("layer1.0.relu_1  16", "layer1.0.relu_1 16", True),
        ("layer1.0.relu_1  16", "layer1.0.relu_2 16", False),
        ("10,000 images", "10,000 images", True),
        ("10,000 images", "10,001 images", False),
        ("x 0.5 ████▌", "x 0.5 ████", True),
        ("x 1.2e-03", "x 1.21e-03", True),
    ],
)
def test_page_output_is_compared_with_printed_output(shown: str, printed: str, same: bool) -> None:
    assert agrees(shown, printed) is same


def run_in_a_loop(kind: str, block: Block) -> None:
    """Runs a loop of docs/regularizer.md, which trains a small network with the regularizer."""
    names = loop_names()
    before = [parameter.detach().clone() for parameter in names["model"].parameters()]
    exec(compile("\n" * block.line + block.code, str(block.page), "exec"), names)
    if kind == "timm":
        rest_of_timm(names)
    if kind == "lightning":
        rest_of_lightning(names)
    penalty = names["penalty"]
    assert len(penalty.layers) == 7
    assert all(0 < value < 1 for value in penalty.selectivity.values())
    assert penalty.skipped == 0
    after = list(names["model"].parameters())
    assert not any(torch.equal(one, two) for one, two in zip(before, after, strict=True))
    penalty.close()


def loop_names() -> dict[str, Any]:
    """The names that the loops of that page assume."""
    images, labels = torch.rand(24, 1, 8, 8), torch.arange(24) % 3
    dataset = torch.utils.data.TensorDataset(images, labels)
    model = CifarResNet(8, classes=3, channels=1)
    return {
        "torch": torch,
        "model": model,
        "loader": torch.utils.data.DataLoader(dataset, batch_size=12),
        "optimizer": torch.optim.SGD(model.parameters(), 0.05),
        "epochs": 2,
    }


def rest_of_timm(names: dict[str, Any]) -> None:
    for images, target in names["loader"]:
        loss = names["train_loss_fn"](names["model"](images), target)
        names["optimizer"].zero_grad()
        loss.backward()
        names["optimizer"].step()


def rest_of_lightning(names: dict[str, Any]) -> None:
    import lightning

    class Task(lightning.LightningModule):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, index: int) -> Any:
            images, labels = batch
            return nn.functional.cross_entropy(self.model(images), labels)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.05)

    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[names["callback"]],
    )  # fmt: skip
    trainer.fit(Task(names["model"]), names["loader"])
    names["penalty"] = names["callback"].penalty
