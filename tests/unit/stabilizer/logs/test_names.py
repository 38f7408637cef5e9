import pytest

from stabilizer.logs.names import series_of
from stabilizer.logs.rows import parse_number, parse_step
from stabilizer.protocol.series import SeriesKey


def module(kind, layer=None, **labels):
    place = {} if layer is None else {"layer": str(layer)}
    name = kind if layer is None else f"layers.{layer}.{kind}"
    return {"module": name, "tower": "language", "kind": kind, **place, **labels}


@pytest.mark.parametrize(
    ("column", "metric", "labels"),
    [
        ("loss", "loss", {}),
        ("loss/web_documents", "loss", {"source": "web_documents"}),
        ("loss/mtp 1", "loss", {"source": "mtp 1"}),
        ("z_loss", "z_loss", {}),
        ("lr", "lr", {"group": "0"}),
        ("lr/decay", "lr", {"group": "decay"}),
        ("grad_norm", "grad_norm", {}),
        ("grad_norm/fc2/layer3", "grad_norm", module("fc2", 3)),
        ("grad_norm/o/layer0", "grad_norm", module("o_proj", 0)),
        ("grad_norm/embedding", "grad_norm", module("embedding")),
        ("adam_rms/embedding", "adam_rms", module("embedding")),
        ("activation_rms", "activation_rms", {}),
        ("activation_rms/q_proj/layer5", "activation_rms", module("q_proj", 5)),
        ("weight_norm/attn/layer11", "weight_norm", module("attention", 11)),
        (
            "attention_entropy/mean/layer0",
            "attention_entropy",
            module("attention", 0, head="mean"),
        ),
        ("attention_logit_max/layer2", "attention_logit_max", module("attention", 2)),
        (
            "attention_logit/max_p95/layer2",
            "attention_logit",
            module("attention", 2, head="max_p95"),
        ),
        ("train/loss", "loss", {}),
        ("train_loss", "loss", {}),
        ("train/train_loss", "train_train_loss", {}),
        ("Loss/train", "loss", {}),
        ("lm loss", "loss", {}),
        ("lm-loss-training/lm loss", "loss", {}),
        ("loss_metrics/global_avg_loss", "loss", {}),
        ("train/grad_norm", "grad_norm", {}),
        ("grad norm", "grad_norm", {}),
        ("learning_rate", "lr", {"group": "0"}),
        ("lr-AdamW", "lr", {"group": "0"}),
        ("number of skipped iterations", "step_skipped", {}),
        ("loss scale", "loss_scale", {}),
        ("eval/loss", "eval_loss", {}),
        ("eval_loss", "eval_loss", {}),
        ("loss/val", "val_loss", {}),
        ("val_loss", "val_loss", {}),
        ("Reward (mean)", "reward_mean", {}),
        ("42", "m_42", {}),
        ("///", "unnamed", {}),
        ('loss{source="web"}', "loss", {"source": "web"}),
        ("loss{", "loss", {}),
    ],
)
def test_a_column_is_the_series_that_the_agent_would_send(column, metric, labels):
    assert series_of(column) == SeriesKey(metric=metric, labels=labels)


def test_no_module_is_taken_for_the_whole_model():
    for column in (
        "grad_norm/fc2/layer3",
        "grad_norm/embedding",
        "grad_norm/layer4",
        "grad_norm/x",
    ):
        assert "module" in series_of(column).labels


def test_names_that_are_too_long_are_cut():
    assert len(series_of("x" * 5000).metric) == 120
    assert len(series_of("loss/" + "x" * 5000).labels["source"]) == 400


@pytest.mark.parametrize("cell", [10**400, "x", None, [], float("nan"), float("inf"), -1, 2**53])
def test_a_cell_that_cannot_be_a_step_is_none(cell):
    assert parse_step(cell) is None


@pytest.mark.parametrize("cell", [10**400, "x", None, []])
def test_a_cell_that_is_no_number_is_none(cell):
    assert parse_number(cell) is None
