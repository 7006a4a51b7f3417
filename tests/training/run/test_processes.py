"""Two processes that share a batch compute the gradient of one process with the whole batch."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import probekit as pk
from children import start_child

SCRIPT = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
import probekit as pk

torch.set_num_threads(1)
rank, folder = int(sys.argv[1]), sys.argv[2]
given = torch.load(f"{folder}/given.pt", weights_only=False)
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
found = {}
for name, (cut, options) in given["cases"].items():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.ReLU(),
                          nn.Linear(5, 3)).double()
    model.load_state_dict(given["state"])
    rows = slice(0, cut) if rank == 0 else slice(cut, None)
    x, y = given["x"][rows], given["y"][rows]
    penalty = pk.SelectivityRegularizer(model, -2.0, **options)
    wrapped = nn.parallel.DistributedDataParallel(model)
    for _ in range(2):
        model.zero_grad()
        logits = wrapped(x)
        term = penalty(y)
        mean = 2 * functional.cross_entropy(logits, y, reduction="sum") / len(given["y"])
        (mean + term).backward()
    gradients = [value.grad for value in model.parameters()]
    found[name] = (gradients, term.item(), penalty.selectivity, penalty.skipped)
    penalty.close()
torch.save(found, f"{folder}/found{rank}.pt")
dist.destroy_process_group()
"""

pytestmark = pytest.mark.slow

CASES = {
    "even": (6, {}),
    "uneven": (9, {}),
    "a class that one process lacks": (1, {}),
    "number of classes given": (4, {"classes": 3}),
    "each for itself": (6, {"across_processes": False}),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3)
    ).double()


def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(12, 1, 6, 6, generator=generator, dtype=torch.float64)
    return images, torch.tensor([0, 1, 0, 1, 1, 0, 2, 1, 0, 2, 2, 1])


@pytest.fixture(scope="module")
def found(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    x, y = batch()
    given = {"state": network().state_dict(), "x": x, "y": y, "cases": CASES}
    torch.save(given, folder / "given.pt")
    children = [
        start_child(server, folder, [str(rank), str(folder)], code=SCRIPT) for rank in range(2)
    ]
    ends = [child.wait() for child in children]
    assert [status for status, _, _ in ends] == [0, 0], ends
    return [torch.load(folder / f"found{rank}.pt", weights_only=False) for rank in range(2)]


def alone(x, y):
    model = network()
    with pk.SelectivityRegularizer(model, -2.0) as penalty:
        logits = model(x)
        term = penalty(y)
    (functional.cross_entropy(logits, y) + term).backward()
    return [value.grad for value in model.parameters()], term.item(), penalty.selectivity


@pytest.mark.parametrize("name", [name for name in CASES if name != "each for itself"])
def test_the_gradient_equals_that_of_one_process(found, name):
    gradients, term, selectivity = alone(*batch())
    for process in found:
        torch.testing.assert_close(process[name][0], gradients, rtol=1e-10, atol=1e-14)
        assert process[name][1] == pytest.approx(term, rel=1e-12)
        assert process[name][2] == pytest.approx(selectivity, rel=1e-12)


def test_a_process_with_one_class_is_not_skipped_if_the_batch_has_more(found):
    assert [process["a class that one process lacks"][3] for process in found] == [0, 0]


def test_without_gathering_the_gradients_of_the_processes_are_averaged(found):
    x, y = batch()
    parts = [alone(x[rows], y[rows]) for rows in (slice(0, 6), slice(6, 12))]
    expected = [(one + two) / 2 for one, two in zip(parts[0][0], parts[1][0], strict=True)]
    for process, part in zip(found, parts, strict=True):
        gradients, term, selectivity, _ = process["each for itself"]
        assert term == pytest.approx(part[1], rel=1e-12)
        assert selectivity == pytest.approx(part[2], rel=1e-12)
        torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=1e-14)
