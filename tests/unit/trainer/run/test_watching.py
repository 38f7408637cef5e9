from __future__ import annotations

import json

import pytest

from trainer.run.fitting import registered_config


def test_the_whole_configuration_is_registered_as_json(make_config):
    config = registered_config(make_config(training__seed=7, model__qk_norm="l2"))
    assert config["training"]["seed"] == 7
    assert config["model"]["qk_norm"] == "l2"
    assert config["optimizer"]["betas"] == [0.9, 0.95]
    assert json.loads(json.dumps(config)) == config


@pytest.mark.parametrize(
    ("path", "registered"),
    [
        ("https://ada:secret@host/corpus/*.parquet", "https://host/corpus/*.parquet"),
        ("https://host/a.parquet?X-Amz-Signature=secret&e=1", "https://host/a.parquet"),
        ("s3://bucket/part-?.parquet", "s3://bucket/part-?.parquet"),
        ("a@b/part-?.parquet", "a@b/part-?.parquet"),
        ("simplecache::https://:secret@host/a", "simplecache::https://host/a"),
    ],
)
def test_passwords_of_addresses_stay_here(make_config, path, registered):
    config = make_config(data__sources={"web": {"weight": 1, "path": path, "heldout": path}})
    told = registered_config(config)["data"]["sources"]["web"]
    assert (told["path"], told["heldout"]) == (registered, registered)
