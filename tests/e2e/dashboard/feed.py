"""A job that reports like a training run, without training."""

import math
import random
from dataclasses import dataclass, field

import httpx

LAYERS = (("vision", 4), ("language", 8), ("cross_attention", 4))
KINDS = ("o_proj", "fc2")


@dataclass
class Feed:
    """One run of one collector, over the REST API's JSON form."""

    url: str
    name: str
    mode: str = "propose"
    policy: str | None = None
    headers: dict = field(default_factory=dict)
    key: str = ""
    global_batch: int | None = 64
    run_id: str = ""
    attempt: int = 1
    sequence: int = 0
    step: int = 0

    def __post_init__(self):
        self.http = httpx.Client(
            base_url=f"{self.url}/api/v1", headers=self.headers, timeout=30, trust_env=False
        )
        body = {
            "protocol_version": 1,
            "name": self.name,
            "key": self.key,
            "mode": self.mode,
            "heartbeat_seconds": 3600,
            "global_batch": self.global_batch,
        }
        if self.policy is not None:
            body["policy"] = self.policy
        answer = self.http.post("/runs", json=body)
        assert answer.status_code == 201, answer.text
        self.run_id, self.attempt = answer.json()["run_id"], answer.json()["attempt"]

    def frames(self, num_steps, *, loss=None, layers=True, every=1, **more):
        """Report steps; `loss` maps a step to a value."""
        frames = []
        for _ in range(num_steps):
            self.step += 1
            values = measured(self.step, loss) if self.step % every == 0 else {}
            if layers and self.step % (10 * every) == 0:
                values |= layer_values(self.step)
            if values:
                frames.append({"step": self.step, "values": values})
        return self.send(frames=frames, **more)

    def send(self, **content):
        """Post one batch; returns the collector's answer."""
        body = {"attempt": self.attempt, "sequence": self.sequence, **content}
        answer = self.http.post(f"/runs/{self.run_id}/frames", json=body)
        assert answer.status_code == 200, answer.text
        self.sequence += 1
        return answer.json()

    def snapshot(self, *steps, finite=True):
        """Report which snapshots the job holds."""
        held = [
            {
                "id": f"a{self.attempt}-{step}",
                "attempt": self.attempt,
                "step": step,
                "finite": finite,
                "samples": step * (self.global_batch or 0),
                "num_bytes": 25_000_000,
            }
            for step in steps
        ]
        return self.send(snapshots=held)

    def rolled_back(self, command, *, skipped_samples=0, lr_scale=1.0):
        """Apply a rollback: start a new attempt at its target and report the result."""
        target = command["parameters"]["target"]
        result = {
            "command_id": command["id"],
            "state": "applied",
            "applied_step": self.step,
            "read_back": {
                "attempt": self.attempt + 1,
                "step": target["step"],
                "lr": {"decayed": 1e-3 * lr_scale},
                "lr_scale": lr_scale,
                "samples": target["step"] * (self.global_batch or 0) + skipped_samples,
                "skipped_samples": skipped_samples,
            },
        }
        parent, self.attempt = self.attempt, self.attempt + 1
        self.step, self.sequence = target["step"], 0
        start = {
            "from_step": self.step,
            "parent": parent,
            "reason": "rollback",
            "command_id": command["id"],
            "skipped_samples": skipped_samples,
        }
        self.send(
            attempt_start=start, markers=[{"kind": "rollback", "step": self.step, "text": "back"}]
        )
        answer = self.http.post(f"/runs/{self.run_id}/commands/{command['id']}/result", json=result)
        assert answer.status_code == 200, answer.text

    def applied(self, command, **read_back):
        """Report that a command was carried out without rewinding."""
        result = {
            "command_id": command["id"],
            "state": "applied",
            "applied_step": self.step,
            "read_back": {"attempt": self.attempt, "step": self.step, **read_back},
        }
        answer = self.http.post(f"/runs/{self.run_id}/commands/{command['id']}/result", json=result)
        assert answer.status_code == 200, answer.text

    def end(self, state="finished"):
        """Say that the job has ended."""
        body = {"attempt": self.attempt, "step": self.step, "state": state}
        assert self.http.post(f"/runs/{self.run_id}/heartbeat", json=body).status_code == 200


def healthy_loss(step):
    """A loss that falls as losses do."""
    return 1.5 + 2.5 * math.exp(-step / 150) + 0.02 * random.Random(step).gauss(0, 1)


def measured(step, loss=None):
    """What is measured at every step."""
    chance = random.Random(step * 7 + 1)
    value = (loss or healthy_loss)(step)
    shown = value if math.isfinite(value) else str(value)
    rate = 1e-3 * min(1.0, step / 60)
    return {
        "loss": shown,
        'loss{source="web_documents"}': shown if isinstance(shown, str) else value * 1.06,
        'loss{source="image_text_pairs"}': shown if isinstance(shown, str) else value * 0.8,
        "z_loss": 17 + chance.gauss(0, 0.3),
        "grad_norm": 0.6 * math.exp(chance.gauss(0, 0.15)),
        'lr{group="decayed"}': rate,
        "lr_scale": 1.0,
        "step_seconds": 0.11 + 0.01 * chance.random(),
    }


def layer_values(step):
    """What is measured in every layer at every tenth step."""
    chance = random.Random(step)
    values = {}
    for tower, depth in LAYERS:
        for layer in range(depth):
            for kind in KINDS:
                module = f"{tower}.{layer}.{kind}"
                labels = f'kind="{kind}",layer="{layer}",module="{module}",tower="{tower}"'
                level = (1 + 0.3 * layer) * (2 if kind == "fc2" else 1)
                grown = 1 + (step / 200 if tower == "language" and layer < 3 else 0)
                values[f"activation_rms{{{labels}}}"] = (
                    level * grown * math.exp(chance.gauss(0, 0.05))
                )
            module = f"{tower}.{layer}.attention"
            for head in ("min", "mean"):
                labels = (
                    f'head="{head}",kind="attention",layer="{layer}",'
                    f'module="{module}",tower="{tower}"'
                )
                base = 0.75 if head == "mean" else 0.5
                values[f"attention_entropy{{{labels}}}"] = base + 0.02 * chance.gauss(0, 1)
    return values
