"""The loader deals every group once, and the cut into micro-batches and processes never shows in loss or gradient."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from conftest import TinyNetwork
from torch import Tensor

from sga.batching.batch import Batch, collate
from sga.batching.encoding import Encoded
from sga.batching.loader import GroupLoader
from sga.errors import UserError
from sga.likelihood.forward import sequence_nll
from sga.losses.ascent import SmoothedGradientAscent


def numbered(count: int) -> list[list[Encoded]]:
    """Groups of two whose first token is their number plus one."""
    return [[Encoded((number + 1, 5), 1), Encoded((7, 8, 9), 1)] for number in range(count)]


def members(batch: Batch) -> list[int]:
    """Numbers of a batch's groups."""
    return [int(token) - 1 for token in batch.input_ids[:: batch.group_size, 0]]


def steps(loader: GroupLoader) -> Iterator[list[Batch]]:
    """One process's micro-batches by optimiser step, cut as Lightning cuts them: by count, and at the epoch's end."""
    batches = list(loader)
    assert len(batches) == len(loader)
    for start in range(0, len(batches), loader.accumulation):
        yield batches[start : start + loader.accumulation]


def shapes() -> Iterator[tuple[int, int, int | None, int]]:
    """(groups, batch_size, micro_batch_size, world_size), even and uneven."""
    return itertools.product((1, 2, 5, 7, 8, 12), (1, 2, 3, 4, 6, 16), (None, 1, 2, 3, 5), (1, 2, 3, 4))


def test_every_cut_gives_the_mean_over_the_step_s_groups_and_deals_every_group_once() -> None:
    """With a number for each group instead of a model, for some 700 shapes.

    Lightning divides each micro-batch's loss by the accumulation, and gradients are averaged over processes.
    """
    count_of_shapes = 0
    for groups, batch_size, micro, world in shapes():
        value = torch.rand(groups, dtype=torch.float64, generator=torch.Generator().manual_seed(groups)) + 1
        loaders = [GroupLoader(numbered(groups), batch_size, micro, 0, rank, world) for rank in range(world)]
        assert len({len(loader) for loader in loaders}) == 1, "every process exchanges gradients as often"
        by_rank = [list(steps(loader)) for loader in loaders]
        assert {len(found) for found in by_rank} == {loaders[0].steps_per_epoch}
        dealt: list[int] = []
        for step in zip(*by_rank, strict=True):
            batches = [batch for part in step for batch in part]
            mine = [number for batch in batches if batch.scale for number in members(batch)]
            total = sum(batch.scale * value[members(batch)].mean() for batch in batches)
            found = total / loaders[0].accumulation / world
            assert found.item() == pytest.approx(value[mine].mean().item(), abs=1e-12), (
                groups,
                batch_size,
                micro,
                world,
            )
            assert all(len(members(batch)) <= loaders[0].micro_batch_size for batch in batches)
            dealt += mine
        assert sorted(dealt) == list(range(groups)), (groups, batch_size, micro, world)
        count_of_shapes += 1
    assert count_of_shapes == 720


def test_negative_control_a_mean_of_micro_batch_means_is_not_the_mean_of_the_step() -> None:
    loader = GroupLoader(numbered(5), 5, 2, 0)
    [step] = steps(loader)
    value = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], dtype=torch.float64)
    naive = sum(value[members(batch)].mean() for batch in step) / loader.accumulation
    assert abs(naive - value.mean()) > 0.1


def test_a_full_step_holds_batch_size_groups_over_all_processes() -> None:
    for world, micro in ((1, None), (1, 3), (2, 1), (2, None), (3, 2)):
        loaders = [GroupLoader(numbered(10), 4, micro, 0, rank, world) for rank in range(world)]
        sizes = [
            sum(len(members(batch)) for part in step for batch in part if batch.scale)
            for step in zip(*(list(steps(loader)) for loader in loaders), strict=True)
        ]
        assert sizes == [4, 4, 2]


def order(seed: int = 0, epoch: int = 0, world: int = 1, micro: int | None = None) -> list[frozenset[int]]:
    """The groups of each step of an epoch."""
    by_rank = []
    for rank in range(world):
        loader = GroupLoader(numbered(23), 4, micro, seed, rank, world)
        for _ in range(epoch):
            list(loader)
        by_rank.append(list(steps(loader)))
    return [
        frozenset(number for part in step for batch in part if batch.scale for number in members(batch))
        for step in zip(*by_rank, strict=True)
    ]


def test_the_order_is_drawn_from_seed_and_epoch_and_nothing_else() -> None:
    assert order() == order()
    assert order(seed=1) != order()
    assert order(epoch=1) != order()
    assert order(seed=1, epoch=1) not in (order(seed=1), order(epoch=1))
    for world, micro in itertools.product((1, 2, 3), (None, 1, 3)):
        assert order(epoch=2, world=world, micro=micro) == order(epoch=2)


@pytest.mark.parametrize("consumed", range(0, 13))
def test_a_loader_resumes_where_another_stopped(consumed: int) -> None:
    """Six micro-batches an epoch: stops within the first epoch, at its end, within the second and at its end."""
    whole = GroupLoader(numbered(11), 4, 2, 3)
    assert len(whole) == 6
    expected = [members(batch) for _ in range(3) for batch in whole]
    first = GroupLoader(numbered(11), 4, 2, 3)
    seen: list[list[int]] = []
    while len(seen) < consumed:
        for batch in first:
            seen.append(members(batch))
            if len(seen) == consumed:
                break
    second = GroupLoader(numbered(11), 4, 2, 3)
    second.load_state_dict(first.state_dict())
    while len(seen) < len(expected):
        seen += [members(batch) for batch in second]
    assert seen == expected


def test_negative_control_without_its_state_a_loader_begins_again() -> None:
    first = GroupLoader(numbered(11), 4, 2, 3)
    next(iter(first))
    assert members(next(iter(GroupLoader(numbered(11), 4, 2, 3)))) != members(next(iter(first)))


def test_a_state_of_other_data_or_another_seed_is_refused() -> None:
    state = GroupLoader(numbered(11), 4, 2, 3).state_dict()
    for loader, difference in (
        (GroupLoader(numbered(12), 4, 2, 3), "runs: groups 11 there and 12 here;"),
        (GroupLoader(numbered(11), 4, 2, 4), "runs: seed 3 there and 4 here;"),
    ):
        with pytest.raises(UserError, match=difference.replace("runs", "run's")):
            loader.load_state_dict(state)


@pytest.mark.parametrize(("micro", "world"), [(1, 1), (4, 1), (2, 2)])
def test_a_state_of_another_division_is_refused_or_resumes_at_the_same_group(micro: int, world: int) -> None:
    """A position counts micro-batches; taken for one of another cut it would skip groups or give them twice."""
    before = GroupLoader(numbered(12), 4, 2, 3)
    batches = iter(before)
    done = {number for _ in range(4) for number in members(next(batches))}  # two of three steps
    after = [GroupLoader(numbered(12), 4, micro, 3, rank, world) for rank in range(world)]
    try:
        for loader in after:
            loader.load_state_dict(before.state_dict())
    except UserError:
        return
    rest = [number for loader in after for batch in loader if batch.scale for number in members(batch)]
    assert sorted(rest) == sorted(set(range(12)) - done)


def test_sizes_below_one_and_no_groups_are_refused() -> None:
    with pytest.raises(UserError, match="nothing to train on"):
        GroupLoader([], 4, None, 0)
    with pytest.raises(UserError, match="batch_size must be at least 1, got 0"):
        GroupLoader(numbered(3), 0, None, 0)
    with pytest.raises(UserError, match="micro_batch_size must be at least 1, got -1"):
        GroupLoader(numbered(3), 4, -1, 0)


# ---- padding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad_id", [0, 2])
def test_masks_come_from_lengths_also_where_pad_and_end_of_sequence_are_one_id(pad_id: int) -> None:
    """Rows 5 6 | 7 2 and 5 | 2 2 8 2 4 2, 2 being the end-of-sequence token, also within the second answer."""
    rows = [Encoded((5, 6, 7, 2), 2), Encoded((5, 2, 2, 8, 2, 4, 2), 1)]
    batch = collate([rows], pad_id=pad_id)
    p = pad_id
    assert batch.input_ids.tolist() == [[5, 6, 7, 2, p, p, p], [5, 2, 2, 8, 2, 4, 2]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 0, 0, 0], [1] * 7]
    assert batch.answer_mask.int().tolist() == [[0, 0, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 1, 1]]
    assert (batch.group_size, batch.scale, batch.tokens) == (2, 1.0, 11)
    from_pad = (batch.input_ids != 2).long()
    assert not torch.equal(from_pad, batch.attention_mask), "what a mask from `ids != pad` would do"


def test_forget_only_is_the_batch_of_the_forget_samples_alone() -> None:
    long, short = Encoded(tuple(range(3, 12)), 4), Encoded((3, 4, 2), 2)
    groups = [[short, long, long], [Encoded((5, 6, 7, 2), 1), long, short]]
    batch = collate(groups, scale=0.5)
    expected = collate([[group[0]] for group in groups], scale=0.5)
    found = batch.forget_only()
    for name in ("input_ids", "attention_mask", "answer_mask"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert (found.group_size, found.scale, found.tokens) == (1, 0.5, expected.tokens)
    assert expected.forget_only() is expected


# ---- gradients ------------------------------------------------------------------------------------------------------


def step_gradient(
    tiny_network: TinyNetwork, micro: int | None, world: int, scaled: Callable[[Batch], float]
) -> list[Tensor]:
    """Gradients after each step of an epoch of 7 groups in batches of 4, accumulated and averaged as Lightning does."""
    model = tiny_network.model()
    groups = tiny_network.groups(7, 3)
    loss = SmoothedGradientAscent(-0.8)
    by_rank = [list(steps(GroupLoader(groups, 4, micro, 0, rank, world))) for rank in range(world)]
    accumulation = GroupLoader(groups, 4, micro, 0, 0, world).accumulation
    gradients = []
    for step in zip(*by_rank, strict=True):
        model.zero_grad()
        for batch in (batch for part in step for batch in part):
            (loss(sequence_nll(model, batch)) * scaled(batch) / accumulation / world).backward()
        gradients.append(torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None]))
    return gradients


@pytest.mark.parametrize(("micro", "world"), [(4, 1), (1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (1, 3), (None, 3)])
def test_the_gradient_is_the_same_under_every_cut(tiny_network: TinyNetwork, micro: int | None, world: int) -> None:
    whole = step_gradient(tiny_network, None, 1, lambda batch: batch.scale)
    assert len(whole) == 2
    assert all(gradient.norm() > 1e-2 for gradient in whole)
    found = step_gradient(tiny_network, micro, world, lambda batch: batch.scale)
    for ours, expected in zip(found, whole, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


def test_negative_control_without_the_scale_an_uneven_cut_shows(tiny_network: TinyNetwork) -> None:
    whole = step_gradient(tiny_network, None, 1, lambda batch: batch.scale)
    unscaled = step_gradient(tiny_network, 3, 1, lambda batch: 1.0)
    assert max((a - b).abs().max() for a, b in zip(unscaled, whole, strict=True)) > 1e-4


def test_of_a_larger_pool_only_normal_samples_are_drawn() -> None:
    """Roles with other answers and retain samples after a pool of five normals; K = 3 takes two of these."""
    roles = ["forget", *["normal"] * 5, "alternative", "retain"]
    group = [Encoded((1, 10 + place, 2), 1) for place in range(8)]
    loader = GroupLoader([group], 1, None, seed=0, roles=[roles], group_size=3)
    seen = set()
    for _ in range(30):
        (batch,) = loader
        assert batch.roles == ("forget", "normal", "normal", "alternative", "retain")
        tokens = batch.input_ids[:, 1].tolist()
        assert tokens[0] == 10 and tokens[3:] == [16, 17]
        assert 11 <= tokens[1] < tokens[2] <= 15
        seen |= set(tokens[1:3])
    assert seen == {11, 12, 13, 14, 15}, "every normal has its turn"
