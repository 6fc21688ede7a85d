"""Decoding with a prompt's cache shared, against one cache per row."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from orlaif.data.datamodule import Collator
from orlaif.data.video import UniformSampling
from orlaif.demo.shapes import ShapesDataset
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.policy.prefix import decode
from orlaif.policy.prefix.choice import PrefixChoice
from orlaif.policy.prefix.group_cache import GroupCache, padding_bias, prefilled
from orlaif.rollout import SamplingParams, generate
from orlaif.rollout import compiled as compiled_decoding
from orlaif.rollout.compiled import CompiledDecoder
from orlaif.rollout.decoding import ExpandedDecoder, SharedDecoder
from orlaif.rollout.local import start
from orlaif.types import Completions, PromptBatch
from tests.conftest import make_policy
from tests.families import FAMILIES
from tests.rollout.test_local import five

LONG = SamplingParams(max_new_tokens=24, temperature=2.0)


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> Policy:
    """With a dozen tokens that end a completion, so that ends are frequent."""
    FAMILIES[request.param](str(tmp_path))
    monkeypatch.setattr(Policy, "eos_ids", property(lambda self: tuple(range(8, 20))))
    return make_policy(str(tmp_path))


def sample(policy: Policy, batch: PromptBatch) -> Completions:
    return generate(policy, batch, 6, LONG, torch.Generator().manual_seed(0))


def test_a_shared_cache_gives_what_expanded_caches_give(family: Policy, shapes: ShapesDataset) -> None:
    """The same tokens from the same seed, through many ends; in float32 their log-probs to rounding."""
    batch = five(family, shapes)
    shared = sample(family, batch)
    family.choice = PrefixChoice(layout="duplicate")
    expanded = sample(family, batch)
    assert torch.equal(shared.mask, expanded.mask)
    assert torch.equal(shared.ids * shared.mask, expanded.ids * expanded.mask)
    assert shared.lengths.unique().numel() > 4
    assert shared.logps is not None
    torch.testing.assert_close(shared.logps, expanded.logps, atol=2e-5, rtol=0)


@pytest.mark.parametrize("decoder", [SharedDecoder, ExpandedDecoder])
def test_finished_rows_stop_costing(
    decoder: type, family: Policy, shapes: ShapesDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch never holds more than 4/3 of the unfinished rows (a prompt's rows are filled up to the widest's)."""
    if decoder is ExpandedDecoder:
        family.choice = PrefixChoice(layout="duplicate")
    batch = five(family, shapes)
    sizes: list[int] = []
    advance = decoder.advance

    def counted(self: object, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        sizes.append(len(tokens))
        return advance(self, tokens, positions)

    monkeypatch.setattr(decoder, "advance", counted)
    completions = sample(family, batch)
    for step, size in enumerate(sizes):
        alive = completions.lengths > step + 1
        filled_up = int(alive.any(-1).sum()) * int(alive.sum(-1).max())
        needed = filled_up if decoder is SharedDecoder else int(alive.sum())
        assert needed <= size <= needed / 0.75
    assert sizes[-1] < sizes[0]


def test_dropped_rows_change_nothing(family: Policy, shapes: ShapesDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = five(family, shapes)
    dropped = sample(family, batch)
    monkeypatch.setattr(SharedDecoder, "drop", lambda self, alive: False)
    kept = sample(family, batch)
    assert torch.equal(dropped.ids, kept.ids)
    assert dropped.logps is not None
    torch.testing.assert_close(dropped.logps, kept.logps, atol=2e-5, rtol=0)


def a_cache(p: int = 2, heads: int = 2, s: int = 5, d: int = 8) -> tuple[DynamicCache, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    cache = DynamicCache()
    for layer in range(2):
        keys, values = torch.randn(2, p, heads, s, d, generator=generator, dtype=torch.float64)
        cache.update(keys, values, layer)
    return cache, torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize("fixed", [False, True])
def test_attention_over_prompt_and_own_tokens_by_the_formula(fixed: bool) -> None:
    """Three completions of two prompts, the first padded; buffers that grow are poisoned with NaN."""
    cache, mask = a_cache()
    group = GroupCache(prefilled(cache), padding_bias(mask), 3, 4, fixed=fixed)
    if not fixed:
        for keys, values in group.completions:
            keys.fill_(torch.nan)
            values.fill_(torch.nan)
    generator = torch.Generator().manual_seed(1)
    own: list[tuple[torch.Tensor, torch.Tensor]] = []
    for step in range(3):
        query = torch.randn(6, 4, 1, 8, generator=generator, dtype=torch.float64)
        own.append(tuple(torch.randn(2, 6, 2, 1, 8, generator=generator, dtype=torch.float64)))  # type: ignore[arg-type]
        keys, values = group.update(*own[-1], layer_idx=1)
        assert keys.shape == (6, 2, 4 if fixed else step + 1, 8)
        out = group.attend(1, query, keys, values, 0.3)
        group.advance()
        for row in range(6):
            prompt = row // 3
            seen = mask[prompt].bool()
            for head in range(4):
                k = torch.cat([group.prompts[1][0][prompt, head // 2][seen], *(o[0][row, head // 2] for o in own)])
                v = torch.cat([group.prompts[1][1][prompt, head // 2][seen], *(o[1][row, head // 2] for o in own)])
                expected = (query[row, head] @ k.T * 0.3).softmax(-1) @ v
                torch.testing.assert_close(out[row, head], expected, atol=1e-12, rtol=0)
    assert (int(group.position) if fixed else group.get_seq_length() - 5) == 3


def test_which_rows_are_kept_by_hand(policy: Policy, batch: PromptBatch) -> None:
    """Five prompts of four: two are done, one has two rows left, two have one, which is filled up."""
    with torch.no_grad():
        _, decoder = start(policy, batch, 4, 2)
    assert isinstance(decoder, SharedDecoder)
    alive = torch.zeros(20, dtype=torch.bool)
    alive[[1, 6, 7, 18]] = True
    assert decoder.drop(alive)
    assert decoder.rows.tolist() == [1, 1, 6, 7, 18, 18]
    assert decoder.real.tolist() == [0, 2, 3, 4]
    assert decoder.shape == (3, 2)
    assert decoder.cache.completions[0][0].shape[0] == 6
    assert decoder.cache.prompts[0][0].shape[0] == 3
    alive[7] = False
    assert decoder.drop(alive)
    assert decoder.rows.tolist() == [1, 6, 18]
    assert decoder.real.tolist() == [0, 1, 2]
    assert not decoder.drop(alive)


def compiled(policy: Policy, batch: PromptBatch, group_size: int = 6) -> Completions:
    return generate(policy, batch, group_size, LONG, torch.Generator().manual_seed(0), compile_decode=True)


@pytest.mark.parametrize("family", ["qwen3_vl", "smolvlm"], indirect=True)
def test_a_fixed_cache_gives_the_same(family: Policy, shapes: ShapesDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the compiler: caches of fixed size, bucketed and shrunk to powers of two; and again from used ones."""
    monkeypatch.setattr(compiled_decoding, "_compiled_decode", lambda: decode.shared_step)
    monkeypatch.setattr(compiled_decoding, "BUCKET", 32)
    batch = five(family, shapes)
    expected = sample(family, batch)
    for _ in range(2):
        found = compiled(family, batch)
        assert torch.equal(found.mask, expected.mask)
        assert torch.equal(found.ids * found.mask, expected.ids * expected.mask)
        assert found.logps is not None
        torch.testing.assert_close(found.logps, expected.logps, atol=2e-5, rtol=0)
    sizes = set(family.decode_caches)
    assert len(sizes) > 1
    assert all(key[2] % 32 == 0 and key[3] == 24 for key in sizes)
    assert all(key[:2] == (5, 6) or all(n & (n - 1) == 0 or n in (5, 6) for n in key[:2]) for key in sizes)
    compiled(family, batch)
    assert set(family.decode_caches) == sizes  # used again


def test_a_compiled_step_gives_the_same_and_compiles_once_per_size(
    policy: Policy, shapes: ShapesDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By inductor on the CPU, where a GPU would record a CUDA graph; prompts of another length fit the bucket."""
    monkeypatch.setattr(CompiledDecoder, "drop", lambda self, alive: False)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    fewer = Collator(ProcessorEncoder(policy.processor), UniformSampling(4))
    first, second = five(policy, shapes), fewer([shapes[i] for i in range(5)]).batch
    assert first.input_ids.shape != second.input_ids.shape
    before = counters["stats"]["unique_graphs"]
    graphs = []
    for batch in (first, second, first):
        expected = sample(policy, batch)
        found = compiled(policy, batch)
        assert torch.equal(found.ids * found.mask, expected.ids * expected.mask)
        assert found.logps is not None
        torch.testing.assert_close(found.logps, expected.logps, atol=2e-5, rtol=0)
        graphs.append(counters["stats"]["unique_graphs"] - before)
    assert graphs[0] > 0
    assert graphs[0] == graphs[2]


def test_compiling_needs_a_shared_prefix(tiny_model: str, shapes: ShapesDataset) -> None:
    policy = make_policy(tiny_model, prefix="duplicate")
    with pytest.raises(ValueError, match=r"rollout.compile_decode is true; it needs prefix 'shared'"):
        compiled(policy, five(policy, shapes))
