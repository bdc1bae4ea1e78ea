"""Everything on a GPU: conformance, random shapes, streams, graphs, devices. Skipped without one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import zoo
from conformance import Case, check_attack, check_update, check_window_mean, of_kind
from nets import Looking, convnet, predicted
from steps import NUMBERS, passes, step
from tiles import SIZES, by_hand
from tiles import case as paste_case
from torch import Tensor
from updates import DTYPES, given, settings, ulp

from sdsgsm_fast import SDSGSM, SmoothingOnly, occlusion_map, occlusion_scores, ops
from sdsgsm_fast.engine.graphs import GraphedFunction
from sdsgsm_fast.kernels import native, operators, triton
from sdsgsm_fast.model.precision import without_tf32

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

KERNELS = ("native", "triton")
SHAPES = [
    (1, 1, 1, 1), (3, 3, 5, 7), (5, 3, 32, 32), (64, 3, 32, 32), (2, 1, 33, 31), (2, 3, 52, 52),
    (3, 3, 101, 97), (2, 3, 224, 224), (1, 3, 299, 299), (2, 513, 1, 1), (1, 3, 512, 512),
]  # fmt: skip


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    missing = native.why_missing("cuda") if name == "native" else triton.why_missing()
    assert not missing, missing  # on a machine with a GPU both must be there
    return name


def on_gpu(t: dict[str, Any], device: str = "cuda") -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in t.items()}


def run(t: dict[str, Any], backend: str, **extra: Any) -> Any:
    arguments = {**t, **extra}
    positional = [arguments.pop(name) for name in ("adv", "images", "grad", "domain")]
    return ops.update(*positional, **arguments, backend=backend)


def close(found: Tensor, expected: Tensor, near: float) -> bool:
    return torch.allclose(found.double(), expected.double(), atol=near, rtol=0)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("case", of_kind("update"), ids=repr)
def test_conformance_update(case: Case, kernels: str, in_place: bool) -> None:
    check_update(case.to("cuda"), kernels, in_place)


@pytest.mark.parametrize("case", of_kind("update"), ids=repr)
def test_conformance_of_the_reference(case: Case) -> None:
    check_update(case.to("cuda"), "reference", False)


@pytest.mark.parametrize("case", of_kind("window_mean"), ids=repr)
def test_conformance_window_mean(case: Case, kernels: str) -> None:
    check_window_mean(case.to("cuda"), kernels)


@pytest.mark.parametrize("case", of_kind("attack") + of_kind("family"), ids=repr)
def test_conformance_attack(case: Case, kernels: str) -> None:
    check_attack(case.to("cuda"), kernels)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
def test_update_agrees(shape: tuple[int, ...], dtype: torch.dtype, grad_dtype: torch.dtype, kernels: str) -> None:
    if kernels == "triton" and dtype == torch.float64:
        with pytest.raises(ValueError, match="'triton' does not take"):
            run(on_gpu(given(shape, dtype, grad_dtype)), kernels)
        return
    t = on_gpu(given(shape, dtype, grad_dtype))
    i = SHAPES.index(shape) + DTYPES.index(dtype) + DTYPES.index(grad_dtype)
    adv, v = run(t, kernels, **settings(i))
    expected, expected_v = run(t, "reference", **settings(i))
    near = 2e-6 if dtype in (torch.float32, torch.float64) else ulp(dtype)
    assert close(adv, expected, near)
    assert torch.allclose(v, expected_v, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("shape", [(3, 3, 9, 7), (5, 3, 32, 32), (2, 3, 224, 224)], ids=str)
@pytest.mark.parametrize("first", [32, 33])
def test_channels_last_in_place_with_canaries(shape: tuple[int, ...], first: int, kernels: str) -> None:
    t = on_gpu(given(shape, torch.float32, torch.bfloat16))
    expected, expected_v = run(t, "reference", decay=0.9)
    canary, count = 12345.0, math.prod(shape)
    batch, channels, height, width = shape
    backing = {}
    for k in ("adv", "momentum"):
        whole = backing[k] = torch.full((count + 64,), canary, device="cuda")
        view = whole[first : first + count].view(batch, height, width, channels)
        t[k] = view.permute(0, 3, 1, 2).copy_(t[k])
    arguments = dict(t)
    positional = [arguments.pop(k) for k in ("adv", "images", "grad", "domain")]
    ops.update_(*positional, **arguments, decay=0.9, backend=kernels)
    assert close(t["adv"], expected, 2e-6)
    assert torch.allclose(t["momentum"], expected_v, atol=2e-5, rtol=2e-5)
    for whole in backing.values():
        assert torch.all(whole[:first] == canary)
        assert torch.all(whole[first + count :] == canary)


@pytest.mark.parametrize("shape", [(16, 3, 32, 32), (4, 3, 224, 224)], ids=str)
def test_update_is_deterministic_and_knows_no_neighbours(shape: tuple[int, ...], kernels: str) -> None:
    t = on_gpu(given(shape, torch.float32, torch.float32))
    together, _ = run(t, kernels)
    assert all(torch.equal(run(t, kernels)[0], together) for _ in range(20))
    for b in range(shape[0]):
        alone, _ = run({k: v[b : b + 1] for k, v in t.items()}, kernels)
        assert torch.equal(alone[0], together[b])


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_occlude_agrees(dtype: torch.dtype, last: bool, kernels: str) -> None:
    images = torch.rand(3, 3, 37, 41, device="cuda")
    options = {"patch": (8, 5), "stride": (3, 2), "fill": (0.1, 0.7, 0.3), "mean": 0.4,
               "std": (0.2, 0.3, 0.4), "dtype": dtype, "channels_last": last}  # fmt: skip
    found, expected = (ops.occlude(images, 5, 60, **options, backend=b) for b in (kernels, "reference"))
    assert found.stride() == expected.stride()
    assert close(found, expected, 4 * ulp(dtype) if dtype.itemsize == 2 else 2e-6)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("crops", ["each", "one", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_paste_has_the_same_bits(size: Any, crops: str, dtype: torch.dtype, kernels: str) -> None:
    c = paste_case(size, dtype, crops=crops)
    found = ops.paste(**on_gpu(c), pad=-0.5, backend=kernels)
    assert torch.equal(found.cpu(), by_hand(c, -0.5))


@pytest.mark.parametrize("name", [*zoo.TILED, *zoo.MIXED])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_incremental_occlusion(name: str, precision: str, kernels: str) -> None:
    net = (zoo.TILED | zoo.MIXED)[name]().eval().cuda()
    images = torch.rand(3, 3, 20, 24, device="cuda")
    tolerance = 1e-5 if precision == "float32" else 0.05
    with without_tf32(images.device):
        found = occlusion_scores(
            net, images, patch=(5, 4), stride=(4, 3), score="logit", method="incremental",
            precision=precision, backend=kernels,
        )  # fmt: skip
        expected = occlusion_scores(
            Looking(net), images, patch=(5, 4), stride=(4, 3), score="logit", precision="float32"
        )
    assert close(found, expected, tolerance * max(1.0, float(net(images).abs().max())))


def on_side_stream(work: Callable[[], Tensor]) -> Tensor:
    """Run behind a long wait, on a stream of its own."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        result = work()
    torch.cuda.current_stream().wait_stream(stream)
    return result


def test_kernels_run_on_the_current_stream(kernels: str) -> None:
    """The gradient arrives late on each of two streams: a kernel elsewhere would read zeros."""
    t = on_gpu(given((64, 3, 32, 32), torch.float32, torch.float32))
    late = [torch.zeros_like(t["grad"]) for _ in range(2)]
    expected, _ = run(t, kernels)

    def work(grad: Tensor) -> Tensor:
        grad.copy_(t["grad"])
        return run({**t, "grad": grad}, kernels)[0]

    results = [on_side_stream(lambda grad=grad: work(grad)) for grad in late]
    assert all(torch.equal(result, expected) for result in results)


def test_graphs_capture_and_replay(kernels: str) -> None:
    static = on_gpu(given((32, 3, 32, 32), torch.float32, torch.float32))
    big = on_gpu(given((2, 3, 512, 512), torch.float32, torch.float32))
    scores = torch.rand(32, 64, device="cuda")

    def work() -> list[Tensor]:
        copies = ops.occlude(static["images"], 0, 4, patch=4, mean=0.4, std=0.2, backend=kernels)
        means = ops.window_mean(scores, 32, 32, patch=4, backend=kernels)
        return [run(static, kernels)[0], run(big, kernels)[0], copies, means]

    on_side_stream(lambda: work()[0])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    for seed in (1, 2):
        torch.manual_seed(seed)
        fresh = on_gpu(given((32, 3, 32, 32), torch.float32, torch.float32))
        for k, v in fresh.items():
            static[k].copy_(v)
        big["grad"].normal_()
        graph.replay()
        for one, other in zip(captured, work(), strict=True):
            assert torch.equal(one, other)


def test_opcheck_and_compile(kernels: str) -> None:
    t = on_gpu(given((2, 3, 9, 7), torch.float32, torch.float32))
    head = [t[k] for k in ("adv", "images", "grad", "domain", "momentum", "active")]
    tail = [t[k] for k in ("eps", "alpha", "background")]
    arguments = (*head, *tail, NUMBERS, "mean_abs", kernels)
    assert passes(torch.library.opcheck(operators.update, arguments))
    assert passes(torch.library.opcheck(operators.update_, arguments))
    torch._dynamo.reset()
    images, domain = torch.rand(4, 3, 8, 8, device="cuda"), torch.rand(4, 8, 8, device="cuda")
    rest = (images, domain, torch.randn_like(images), torch.rand(4, device="cuda") / 5)
    expected = step(images.clone(), *rest)
    found = torch.compile(step, fullgraph=True)(images.clone(), *rest)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_a_second_device_is_used_and_the_current_one_kept(kernels: str) -> None:
    t = on_gpu(given((8, 3, 32, 32), torch.float32, torch.float32), "cuda:1")
    adv, _ = run(t, kernels)
    assert adv.device == torch.device("cuda:1")
    assert close(adv, run(t, "reference")[0], 2e-6)
    assert torch.cuda.current_device() == 0


def test_mixed_devices_are_refused(kernels: str) -> None:
    t = on_gpu(given((2, 3, 9, 7), torch.float32, torch.float32))
    with pytest.raises(ValueError, match="grad: expected device cuda:0 as images, found cpu"):
        run({**t, "grad": t["grad"].cpu()}, kernels)


def test_an_attack_finds_what_the_reference_finds(kernels: str) -> None:
    model = convnet(spread=3.0).cuda()
    images = torch.rand(32, 3, 16, 16, device="cuda")
    labels = model(images).argmax(1)
    found, expected = (
        SDSGSM(model, eps=8 / 255, steps=5, precision="float32", backend=b).run(images, labels)
        for b in (kernels, "reference")
    )
    assert (found.success == expected.success).float().mean() >= 0.95
    assert (found.adv - expected.adv).abs().mean() < 1e-3
    maps = [occlusion_map(model, images, labels, patch=4, stride=2, backend=b) for b in (kernels, "reference")]
    assert torch.allclose(*maps, atol=1e-5)


@pytest.mark.parametrize("precision", ["auto", "bfloat16", "float32"])
def test_searches_and_streams(precision: str) -> None:
    """The traced model stands in on a GPU too, and the model has the last word."""
    net = zoo.wide().eval().cuda()
    images = torch.rand(40, 3, 24, 20, device="cuda")
    labels = predicted(net, images)
    attack = SmoothingOnly(net, eps=0.1, steps=8, batch_size=16, precision=precision)
    result = attack.run(images, labels)
    assert (attack.classifier.surrogate is None) == (precision == "float32")
    assert torch.equal(result.success, predicted(net, result.adv) != labels)
    strict = SmoothingOnly(net, eps=0.1, steps=8, precision="float32").run(images, labels)
    assert abs(int(result.success.sum()) - int(strict.success.sum())) <= 2
    batches = zip(images.cpu().split(7), labels.cpu().split(7), strict=True)
    streamed = sorted(attack.stream(batches, device="cuda"), key=lambda r: int(r.index[0]))
    found = torch.cat([r.success for r in streamed])
    assert (found != result.success).double().mean() <= 0.1


@pytest.mark.parametrize("precision", ["auto", "bfloat16"])
def test_recorded_passes(precision: str, recwarn: pytest.WarningsRecorder) -> None:
    """CUDA graphs, one a size of batch, do what the passes do; every size is recorded."""
    net = zoo.wide().eval().cuda()
    images = torch.rand(70, 3, 24, 20, device="cuda")
    mean = torch.full((3,), 0.5, device="cuda")  # nothing of it may be copied while recording
    settings = {"eps": 0.1, "steps": 8, "batch_size": 32, "precision": precision, "mean": mean}
    labels = predicted(lambda x: net(x - 0.5), images)
    eager = SmoothingOnly(net, cuda_graphs=False, **settings).run(images, labels)
    attack = SmoothingOnly(net, cuda_graphs=True, **settings)
    for _ in range(2):
        found = attack.run(images, labels)
        assert (found.success == eager.success).double().mean() >= 0.9
        assert (found.adv - eager.adv).abs().mean() < 5e-3
    assert not [w for w in recwarn if "cuda_graphs" in str(w.message)]
    captured = attack.search.graphs_for(images, attack.loss)
    assert captured is not None
    assert captured.replays
    assert not captured.failed


def test_a_recording_that_breaks_off_leaves_nothing_behind() -> None:
    """A look at the host in the middle: the passes run as they are, and so does all else."""
    before = torch.cuda.current_stream()

    def looks(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (x * float(x.sum() > 0),)

    x = torch.rand(9, 4, device="cuda")
    captured = GraphedFunction(looks)
    with pytest.warns(UserWarning, match="cuda_graphs: not used"):
        found = captured(x)
    torch.testing.assert_close(found, looks(x))
    torch.testing.assert_close(captured(x), looks(x))
    assert torch.cuda.current_stream() == before
    assert torch.rand(5, device="cuda").isfinite().all()
    torch.cuda.empty_cache()
    x = torch.rand(9, 4, device="cuda")
    again = GraphedFunction(lambda x: (2 * x,))
    torch.testing.assert_close(again(x), (2 * x,))
    assert again.replays
