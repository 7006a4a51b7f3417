import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from probekit.capture.pooling import pool

LAYOUTS = {
    "contiguous": lambda maps: maps,
    "channels-last": lambda maps: maps.to(memory_format=torch.channels_last),
    "sliced": lambda maps: maps[:, :, 1:, ::2],
    "tokens": lambda maps: maps.flatten(2).movedim(1, 2).contiguous().movedim(2, 1),
    "vectors": lambda maps: maps[:, :, 0, 0],
}


def arranged(layout, units=5, size=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, units, size, size, generator=generator, dtype=torch.float64)
    return LAYOUTS[layout](maps.to(dtype)).detach()


def plain(maps):
    return maps.flatten(2).mean(2) if maps.ndim > 2 else maps


@pytest.mark.parametrize("layout", LAYOUTS)
def test_value_and_gradients_equal_those_of_a_mean(layout):
    maps = arranged(layout).requires_grad_()
    torch.testing.assert_close(pool(maps), plain(maps))
    assert torch.autograd.gradcheck(pool, maps)
    assert torch.autograd.gradgradcheck(pool, maps)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("units", [3, 16, 70])
@pytest.mark.parametrize("size", [1, 5, 8])
@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 2e-4), (torch.float16, 1e-6)])
def test_half_precision_is_averaged_in_higher_precision(layout, units, size, dtype, error):
    if layout == "sliced" and size == 1:
        pytest.skip("nothing is left of a map of one position")
    maps = (arranged(layout, units, size, dtype) + 4).requires_grad_()
    exact = plain(maps.detach().double())
    pooled = pool(maps)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled.double(), exact, rtol=error, atol=0)
    weights = torch.rand(pooled.shape)
    (gradient,) = torch.autograd.grad((pooled * weights).sum(), maps)
    count = maps[0, 0].numel()
    expected = (weights / count).to(dtype).reshape(*weights.shape, *[1] * (maps.ndim - 2))
    assert gradient.dtype == dtype
    assert torch.equal(gradient, expected.expand(maps.shape))


def test_a_mean_of_many_bfloat16_numbers_keeps_sixteen_bits():
    maps = torch.rand(4, 8, 28, 28).bfloat16().to(memory_format=torch.channels_last)
    rounded = maps.double().mean((2, 3))
    torch.testing.assert_close(pool(maps).double(), rounded, rtol=2**-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("units", [4, 80])
def test_in_place_consumers_do_not_affect_pooling(dtype, units):
    torch.manual_seed(0)
    maps = torch.randn(2, units, 4, 4, dtype=dtype).to(memory_format=torch.channels_last)
    gradients = []
    for inplace in (True, False):
        leaf = maps.clone().requires_grad_()
        out = functional.gelu(leaf)
        pooled = pool(out) if inplace else out.float().mean((2, 3))
        if inplace:
            out += leaf
            out.mul_(3)
        else:
            out = (out + leaf) * 3
        (out.float().square().sum() + (pooled**2).sum()).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


def test_the_gradient_of_a_shared_map_does_not_overwrite_others():
    leaf = torch.randn(2, 3, 4, 4, requires_grad=True)
    one, two = leaf * 1, leaf * 2
    total = one + two
    one.retain_grad()
    two.retain_grad()
    (total.sum() + pool(one).sum() * 7).backward()
    assert torch.equal(two.grad, torch.ones_like(two))
    torch.testing.assert_close(one.grad, torch.full_like(one, 1 + 7 / 16))


def test_backward_can_run_twice_through_a_graph():
    leaf = torch.randn(2, 3, 4, 4, requires_grad=True)
    pooled = pool(leaf * 2)
    loss = (pooled**2).sum()
    (first,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    (second,) = torch.autograd.grad(loss, leaf)
    assert torch.equal(first, second)


def test_pooling_supports_vmap_and_forward_mode():
    maps = arranged("channels-last").requires_grad_()
    seeds = torch.eye(15, dtype=torch.float64).view(15, 3, 5)
    (batched,) = torch.autograd.grad(pool(maps), maps, seeds, is_grads_batched=True)
    one_by_one = torch.stack([torch.autograd.grad(pool(maps), maps, seed)[0] for seed in seeds])
    torch.testing.assert_close(batched, one_by_one)
    tangent = torch.randn_like(maps)
    value, forwards = torch.func.jvp(pool, (maps.detach(),), (tangent,))
    torch.testing.assert_close((value, forwards), (pool(maps).detach(), plain(tangent)))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(maps, tangent)
        found = torch.autograd.forward_ad.unpack_dual(pool(dual)).tangent
    torch.testing.assert_close(found, plain(tangent))
    per_sample = torch.func.vmap(torch.func.grad(lambda one: pool(one[None]).square().sum()))
    expected = torch.autograd.grad(pool(maps).square().sum(), maps)[0]
    torch.testing.assert_close(per_sample(maps.detach()), expected)


def test_the_float32_gradient_does_not_allocate_a_map():
    convolution = nn.Conv2d(1, 8, 3)
    maps = convolution(torch.rand(2, 1, 6, 6))
    received = []
    pooled = pool(maps)
    pooled.grad_fn.register_hook(lambda inputs, outputs: received.extend(inputs))
    pooled.sum().backward()
    assert received[0].stride()[2:] == (0, 0)


SHAPES = st.tuples(*(st.integers(1, 5) for _ in range(4)))


@settings(max_examples=50, deadline=None)
@given(
    shape=SHAPES,
    ndim=st.integers(2, 4),
    order=st.permutations(range(4)),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
)
def test_pool_is_the_mean_over_positions_in_every_layout(
    shape: tuple[int, ...], ndim: int, order: list[int], dtype: torch.dtype
) -> None:
    shape = shape[:ndim]
    order = [axis for axis in order if axis < ndim]
    stored = torch.rand(tuple(shape[axis] for axis in order), dtype=torch.float64).to(dtype)
    maps = stored.permute([order.index(axis) for axis in range(ndim)])
    assert maps.shape == shape
    found = pool(maps)
    expected = maps.double().numpy().reshape(*shape[:2], -1).mean(2)
    assert found.shape == shape[:2]
    assert found.dtype == (dtype if dtype in (torch.float32, torch.float64) else torch.float32)
    assert found.untyped_storage().data_ptr() != maps.untyped_storage().data_ptr()
    bound = {torch.bfloat16: 2e-5}.get(dtype, 1e-6)
    torch.testing.assert_close(found.double(), torch.from_numpy(expected), rtol=bound, atol=bound)
