"""Every family of which there is a tiny model: two real clips of unequal length and size, through all of a policy."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from orlaif import OracleRLAIF
from orlaif.oracles import Oracle
from orlaif.policy import Policy
from orlaif.rollout import Rollout, SamplingParams, generate
from orlaif.tiny import families
from orlaif.types import CandidateGroup, Delivery, Ranking
from tests.conftest import REPO
from tests.families import loaded_or_skipped, skip_unless_its_export_is_whole
from tests.training.test_rlaif import rlaif, trainer
from tests.zoo import alone, answers, encoded, folder_of, greedy

TIMM = importlib.util.find_spec("timm") is not None
FAMILIES = [
    pytest.param(name, marks=pytest.mark.skipif(not TIMM, reason="its tower is timm's, which is not installed"))
    if name == "perception_lm"
    else name
    for name in families()
]


#: Their attention turns no part of a head; order is known by recurrent layers and masks.
WITHOUT_POSITIONS = ("glm5_next", "nemotron_h_omni")


@pytest.fixture(scope="module", params=FAMILIES)
def policy(request: pytest.FixtureRequest) -> Policy:
    """Loaded once for all tests of a family; none changes its weights."""
    return loaded_or_skipped(folder_of(request.param))


def gradients(policy: Policy) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in policy.network.named_parameters() if p.grad is not None}
    policy.network.zero_grad(set_to_none=True)
    return found


def compared(policy: Policy, atol: float, gradient: float) -> None:
    """Log-probs and gradients of a ragged batch, and of each of its sequences alone and unpadded."""
    batch = encoded(policy, 0, 1)
    completions = answers(policy, 2)
    weights = torch.linspace(-1, 1, completions.ids.numel(), dtype=torch.float64).view(completions.ids.shape)
    logps = policy.completion_logps(batch, completions)
    (logps * weights).sum().backward()
    ours = gradients(policy)
    for p in range(2):
        single = encoded(policy, p)
        for g in range(2):
            n = int(completions.lengths[p, g])
            expected = alone(policy, single, completions.ids[p, g, :n])
            torch.testing.assert_close(logps[p, g, :n], expected.to(logps), atol=atol, rtol=1e-6)
            (expected * weights[p, g, :n]).sum().backward()
    theirs = gradients(policy)
    assert ours.keys() == theirs.keys()
    largest = max(float(grad.abs().max()) for grad in theirs.values())
    assert largest > 0.01
    for name, grad in theirs.items():
        assert float((ours[name] - grad).abs().max()) <= gradient * largest, name


def test_a_ragged_batch_is_its_sequences(policy: Policy) -> None:
    batch = encoded(policy, 0, 1)
    assert batch.attention_mask.sum(-1).unique().numel() == 2
    compared(policy, 1e-5, 1e-5)


def test_a_wrong_position_shows(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what these tests compare is no accident."""
    batch, completions = encoded(policy, 0, 1), answers(policy, 2)
    ahead = policy.family.completion_positions
    with torch.no_grad():
        logps = policy.completion_logps(batch, completions)
        monkeypatch.setattr(policy.family, "completion_positions", lambda positions, t: ahead(positions, t) + 7)
        moved = policy.completion_logps(batch, completions)
    assert float(logps.min()) < -4
    difference = float((moved - logps).abs().max())
    if policy.config.model_type in WITHOUT_POSITIONS:
        assert difference == 0
    else:
        assert difference > 0.02


def test_greedy_is_generate_row_by_row(policy: Policy) -> None:
    ours = generate(policy, encoded(policy, 0, 1), 2, SamplingParams(max_new_tokens=6, temperature=0.0))
    for p in range(2):
        theirs = greedy(policy, encoded(policy, p), 6)
        for g in range(2):
            n = int(ours.lengths[p, g])
            assert ours.ids[p, g, :n].tolist() == theirs[:n]
            assert n == 6 or int(ours.ids[p, g, n - 1]) in policy.eos_ids


class Length(Oracle):
    """Shorter answers are better: an order that any model's answers have."""

    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        lengths = [[len(answer) for answer in group.answers] for group in groups]
        return Ranking(ranks=torch.tensor([[sorted(set(row)).index(n) for n in row] for row in lengths]))


def trained(policy: Policy, path: Path, **settings: Any) -> OracleRLAIF:
    """A family after one step of Oracle-RLAIF in a real Trainer, on the ragged batch; every loss term is on."""
    folder = policy.source.model
    rollout = Rollout(group_size=3, sampling=SamplingParams(max_new_tokens=4, temperature=2.0))
    module = rlaif(folder, oracle=Length(), rollout=rollout)
    module.policy = Policy(folder, dtype="float32", **settings)
    batches = DataLoader([Delivery(batch=encoded(policy, 0, 1))], batch_size=None)
    trainer(path, max_steps=1).fit(module, batches)
    return module


def test_a_step_of_training_and_an_export(policy: Policy, tmp_path: Path) -> None:
    """Weights move, and what others load from the export answers as the policy does."""
    skip_unless_its_export_is_whole(policy.source.model)
    module = trained(policy, tmp_path)
    before, network = dict(policy.network.named_parameters()), module.policy.network
    moved = {id(p) for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert id(module.policy.family.head(network).weight) in moved
    assert {id(p) for p in module.policy.family.tower_parameters(network)} & moved
    assert {id(p) for name, p in network.get_decoder().named_parameters() if ".0." in name} & moved
    module.policy.export(str(tmp_path / "export"))
    reloads(module.policy, str(tmp_path / "export"))


def test_lora_on_all_linear_layers(policy: Policy, tmp_path: Path) -> None:
    """It begins as the base, moves nothing but the adapter, and is merged into a model that answers alike."""
    skip_unless_its_export_is_whole(policy.source.model)
    torch.manual_seed(0)
    module = trained(policy, tmp_path, lora={"r": 2, "target_modules": "all-linear"})
    adapted = module.policy
    base = dict(policy.network.named_parameters())
    for name, parameter in adapted.network.get_base_model().named_parameters():
        if "lora_" not in name:
            assert torch.equal(parameter, base[name.replace(".base_layer", "")]), name
    ups = [p for name, p in adapted.network.named_parameters() if "lora_B" in name]
    assert sum(bool(p.any()) for p in ups) > len(ups) / 2
    adapted.export(str(tmp_path / "export"), merge=True)
    reloads(adapted, str(tmp_path / "export"))


def reloads(policy: Policy, folder: str) -> None:
    """The folder is a model and a processor, which give the policy's log-probs of a prompt encoded anew."""
    again = Policy(folder, dtype="float32", prefix="duplicate").load()
    assert type(again.processor) is type(policy.processor)
    completions = answers(policy, 1)
    with torch.no_grad():
        expected = policy.completion_logps(encoded(policy, 1), completions)
        found = again.completion_logps(encoded(again, 1), completions)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_a_fused_head_makes_the_logits(policy: Policy) -> None:
    """Hidden states, the LM head's matrix, its bias and the soft cap that the check at load found."""
    batch, completions = encoded(policy, 0, 1), answers(policy, 2)
    with torch.no_grad():
        hidden, head = policy.completion_hidden(batch, completions)
        expected = policy.completion_logits(batch, completions)
    made = hidden @ head["weight"].T
    made = made if head["bias"] is None else made + head["bias"]
    if head["softcap"] is not None:
        made = policy.mask_placeholders(head["softcap"] * torch.tanh(made / head["softcap"]))
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-5)


def test_the_docs_say_so(policy: Policy) -> None:
    """The table of docs/reference/families.md, which `orlaif families --format markdown` makes anew."""
    text = (REPO / "docs" / "reference" / "families.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    (name,) = (name for name in families() if policy.source.model.endswith(f"/{name}"))
    (row,) = (row for row in rows if row[0] == name and row[1] in ("yes", "no"))
    assert policy.choice is not None
    head = policy.choice.head
    assert row[1:4] == ["yes", policy.layout, "shared" if policy.choice.shares_cache else "own"]
    assert row[4].startswith("exact") == (head.reason is None)
    assert ("scale" in row[4], "soft cap" in row[4]) == (abs(head.scale - 1) > 1e-6, head.softcap is not None)


#: Of what people fine-tune for video; experts' grouped products know no float64.
MOST_USED = (
    *("qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen2_5_omni", "internvl", "gemma4", "minicpmv4_6", "glm46v"),
    *("llava_onevision", "molmo2"),
)


@pytest.mark.parametrize("name", MOST_USED)
def test_in_float64_a_ragged_batch_is_its_sequences(name: str) -> None:
    """Gated DeltaNet computes its recurrence in float32 whatever it is given."""
    compared(Policy(folder_of(name), dtype="float64").load(), 1e-6, 5e-6 if name == "qwen3_5" else 1e-6)
