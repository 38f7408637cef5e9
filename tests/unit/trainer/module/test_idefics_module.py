import pytest
import torch

from trainer.module import IdeficsModule, build_model


class Log:
    def __init__(self):
        self.values = {}

    def log(self, name, value, **labels):
        assert isinstance(value, torch.Tensor)
        assert not value.requires_grad
        self.values[name, labels.get("source")] = float(value)


@pytest.fixture
def make_module(make_config):
    def make(**fields):
        config = make_config(**fields)
        torch.manual_seed(0)
        model = build_model(config.model)
        return IdeficsModule(model, config.optimizer, steps=config.training.steps)

    return make


def test_the_total_is_the_loss_and_weighted_z_loss(make_module, make_batch):
    module = make_module(**{"optimizer.z_loss_weight": 0.25})
    total = module.training_step(make_batch(), 0)
    loss, z_loss = module.last_losses["loss"], module.last_losses["z_loss"]
    assert torch.allclose(total, loss + 0.25 * z_loss)
    assert z_loss > 0


def test_without_z_loss_the_total_is_the_loss(make_module, make_batch):
    module = make_module(**{"optimizer.z_loss_weight": 0.0})
    total = module.training_step(make_batch(), 0)
    assert torch.equal(total, module.last_losses["loss"])


def test_the_job_hears_losses_whole_and_by_source(make_module, make_batch):
    module, log = make_module(), Log()
    module.stabilizer_job = log
    batch = make_batch(size=8)
    total = module.training_step(batch, 0)
    assert set(log.values) == {
        ("loss", None),
        ("z_loss", None),
        ("loss_total", None),
        ("loss", "web_documents"),
        ("loss", "image_text_pairs"),
    }
    assert log.values["loss_total", None] == pytest.approx(float(total.detach()))


def test_a_source_that_the_batch_lacks_is_not_reported(make_module, make_batch):
    module, log = make_module(), Log()
    module.stabilizer_job = log
    module.training_step(make_batch(**{"data.sources": {"web_documents": 1}}), 0)
    assert ("loss", "image_text_pairs") not in log.values


def test_reporting_changes_nothing(make_module, make_batch):
    batch = make_batch()
    silent, heard = make_module(), make_module()
    heard.stabilizer_job = Log()
    assert torch.equal(silent.training_step(batch, 0), heard.training_step(batch, 0))


def test_every_part_gets_a_gradient_once_the_gates_are_open(make_module, make_batch):
    module = make_module(**{"model.gate_initializer": "ones"})
    module.training_step(make_batch(), 0).backward()
    silent = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    # A CLIP-like encoder's last norm is for the pooled vector, which the resampler does not use.
    assert [name for name in silent if "post_layernorm" not in name] == []
