"""On a GPU: a whole sampled step without a wait, and one copy to the host."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from stabilizer.agent.probes.probe_set import ProbeSet
from stabilizer.agent.probes.record import HostCopy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.fixture
def waits_are_errors():
    torch.zeros(1, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


class _CopiesToHost(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        from_gpu = any(t.device.type == "cuda" for t in tensors)
        if from_gpu and isinstance(output, torch.Tensor) and output.device.type == "cpu":
            self.counts[func.overloadpacket.__name__] += 1
        return output


def test_parts_of_both_sides(waits_are_errors):
    values = torch.arange(3.0, device="cuda")
    copy = HostCopy([values[0], torch.tensor(7.0), values[1:]])
    torch.cuda.set_sync_debug_mode("default")
    assert [part.tolist() for part in copy.wait()] == [[0.0], [7.0], [1.0, 2.0]]


def test_a_step_never_waits_and_copies_once(read):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = nn.ModuleDict({"encoder": encoder, "lm_head": nn.Linear(16, 50)}).cuda()
    x = torch.randn(2, 5, 16, device="cuda")
    scale = torch.full((), 2.0, device="cuda")
    for _ in range(2):  # the first step makes handles and pinned memory
        with ProbeSet(model) as probes, _CopiesToHost() as copies:
            torch.cuda.set_sync_debug_mode("error")
            try:
                probes.begin_step(True)
                loss = model["lm_head"](model["encoder"](x)).square().mean()
                loss.backward()
                probes.log("loss", loss)
                probes.log("step_seconds", 0.5)
                probes.after_backward(scale)
                frames = probes.end_step(1, 0.0)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert sum(copies.counts.values()) == 1
        found = read(frames)
        assert found["loss"] == pytest.approx(loss.item())
        expected = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item() / 2
        assert found["grad_norm"] == pytest.approx(expected, rel=1e-4)
        model.zero_grad()


def test_idefics_in_bfloat16_is_bit_for_bit_the_same(make_idefics, batch):
    batch = {name: tensor.cuda() for name, tensor in batch.items()}
    gradients = []
    for probed in (False, True):
        model = make_idefics().cuda()
        probes = ProbeSet(model)
        torch.manual_seed(3)
        if probed:
            probes.attach()
            probes.begin_step(True)
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        probes.after_backward()
        assert probes.end_step(1, 0.0).blocks()
        probes.detach()
        gradients.append(
            [loss.detach()] + [p.grad for p in model.parameters() if p.grad is not None]
        )
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
