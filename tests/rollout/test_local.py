from __future__ import annotations

import pytest
import torch

from orlaif.data.datamodule import Collator
from orlaif.data.video import UniformSampling
from orlaif.demo.shapes import ShapesDataset
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.rollout import Rollout, SamplingParams, generate
from orlaif.types import PromptBatch
from tests.conftest import make_policy
from tests.families import FAMILIES, original_numbering


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path: object) -> Policy:
    FAMILIES[request.param](str(tmp_path))
    return make_policy(str(tmp_path))


def five(policy: Policy, shapes: ShapesDataset) -> PromptBatch:
    return Collator(ProcessorEncoder(policy.processor), UniformSampling(8))([shapes[i] for i in range(5)]).batch


def test_greedy_equals_transformers_generate(family: Policy, shapes: ShapesDataset) -> None:
    """On the padded batch, each completion and its end."""
    batch = five(family, shapes)
    ours = generate(family, batch, 2, SamplingParams(max_new_tokens=12, temperature=0.0))
    with original_numbering(family):
        theirs = family.network.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=12,
            do_sample=False,
            suppress_tokens=family.placeholder_ids,
            **family.family.inputs(family.network, batch),
        )[:, batch.input_ids.shape[1] :]
    for p in range(5):
        for g in range(2):
            n = int(ours.lengths[p, g])
            assert ours.ids[p, g, :n].tolist() == theirs[p, :n].tolist()
            assert n == 12 or int(ours.ids[p, g, n - 1]) in family.eos_ids
    assert ours.ids.unique().numel() > 5


def test_sampled_log_probs_equal_the_training_forward(family: Policy, shapes: ShapesDataset) -> None:
    batch = five(family, shapes)
    completions = generate(
        family, batch, 4, SamplingParams(max_new_tokens=6, temperature=0.7), torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        again = family.completion_logps(batch, completions, temperature=0.7)
    assert completions.logps is not None
    torch.testing.assert_close(completions.logps, again, atol=2e-5, rtol=0)


def test_vision_tower_and_prefill_run_once(policy: Policy, batch: PromptBatch) -> None:
    calls = {"vision": 0, "tokens": []}
    policy.network.model.visual.register_forward_hook(lambda *_: calls.__setitem__("vision", calls["vision"] + 1))
    policy.network.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: calls["tokens"].append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    generate(policy, batch, 7, SamplingParams(max_new_tokens=3), torch.Generator().manual_seed(0))
    assert calls["vision"] == 1
    assert calls["tokens"][0] == (5, batch.input_ids.shape[1])
    assert set(calls["tokens"][1:]) == {(35, 1)}


def test_the_same_seed_gives_the_same_group_and_another_seed_another(policy: Policy, batch: PromptBatch) -> None:
    sampling = SamplingParams(max_new_tokens=5)
    a, b, c = (generate(policy, batch, 4, sampling, torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert torch.equal(a.ids, b.ids)
    assert a.texts == b.texts
    assert a.ids.shape != c.ids.shape or not torch.equal(a.ids, c.ids)


def test_samples_follow_the_policys_distribution(policy: Policy, shapes: ShapesDataset) -> None:
    """Chi-square of 6000 first tokens against the probabilities of the training forward (p > 1e-4)."""
    batch = Collator(ProcessorEncoder(policy.processor), UniformSampling(8))([shapes[0]]).batch
    samples = generate(
        policy, batch, 6000, SamplingParams(max_new_tokens=1, temperature=2.0), torch.Generator().manual_seed(5)
    )
    with torch.no_grad():
        logits = policy.completion_logits(batch, generate(policy, batch, 2, SamplingParams(max_new_tokens=1)))[0, 0]
    probs = (logits / 2.0).softmax(-1)
    counts = torch.bincount(samples.ids.flatten(), minlength=len(probs)).float()
    assert counts[policy.placeholder_ids].tolist() == [0.0] * len(policy.placeholder_ids)
    big = probs * 6000 >= 5
    chi2 = float(((counts - 6000 * probs).square() / (6000 * probs))[big].sum())
    degrees = int(big.sum()) - 1
    assert degrees > 10
    assert chi2 < degrees + 4.5 * (2 * degrees) ** 0.5


def test_top_k_and_top_p_restrict_the_choice(policy: Policy, batch: PromptBatch) -> None:
    greedy = generate(policy, batch, 2, SamplingParams(max_new_tokens=3, temperature=0.0))
    for settings in ({"top_k": 1}, {"top_p": 1e-6}):
        sampled = generate(
            policy, batch, 2, SamplingParams(max_new_tokens=3, **settings), torch.Generator().manual_seed(0)
        )
        assert torch.equal(sampled.ids, greedy.ids)


def test_nothing_follows_the_end(policy: Policy, batch: PromptBatch) -> None:
    completions = generate(
        policy, batch, 16, SamplingParams(max_new_tokens=8, temperature=3.0), torch.Generator().manual_seed(0)
    )
    eos = torch.isin(completions.ids, torch.tensor(policy.eos_ids)) & completions.mask
    assert int(eos.any(-1).sum()) > 3
    assert bool((eos.sum(-1) <= 1).all())
    ended = eos.any(-1)
    last = completions.ids.gather(-1, (completions.lengths - 1)[..., None])[..., 0]
    assert bool(torch.isin(last[ended], torch.tensor(policy.eos_ids)).all())
    assert bool((completions.lengths[~ended] == 8).all())
    assert completions.logps is not None
    assert bool((completions.logps[~completions.mask] == 0).all())


def test_the_model_is_left_in_the_mode_it_was_in(policy: Policy, batch: PromptBatch) -> None:
    for mode in (True, False):
        policy.network.train(mode)
        generate(policy, batch, 2, SamplingParams(max_new_tokens=1))
        assert policy.network.training is mode


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rollout(group_size=1), "rollout.group_size is 1"),
        (lambda: Rollout(sampling=SamplingParams(temperature=0.0)), "temperature is 0"),
        (lambda: SamplingParams(max_new_tokens=0), "max_new_tokens is 0"),
        (lambda: SamplingParams(top_p=0.0), "top_p is 0.0"),
        (lambda: SamplingParams(top_k=-1), "top_k is -1"),
        (lambda: SamplingParams(temperature=-1.0), "temperature is -1.0"),
    ],
)
def test_mistakes_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
