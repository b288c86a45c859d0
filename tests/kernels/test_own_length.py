"""Own columns in a buffer of fixed capacity: rows that end at different columns, with anything behind their end."""

import pytest
import torch

from relay_hf.kernels.plan import Plan
from relay_hf.kernels.segment import Segment
from relay_hf.kernels.torch.plan_views import levels_of, own_view, segment_view

from .cases import SHAPES, WINDOWS, Case


def draw_lengths(case):
    batch, _, columns, _ = case.key.shape
    lengths = torch.randint(case.query.shape[2], columns + 1, (batch,), generator=case.generator)
    lengths[0], lengths[-1] = case.query.shape[2], columns
    return lengths


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("shape", [shape | {"S": shape.get("S", 7) + 4} for shape in SHAPES], ids=str)
class TestEqualsReference:
    def test_rows_of_different_length(self, kernel, shape, window):
        case = Case(**shape)
        case.check(sliding_window=window, own_length=draw_lengths(case))

    def test_rows_of_one_length(self, kernel, shape, window):
        case = Case(**shape, seed=1)
        batch, length = case.query.shape[0], case.query.shape[2]
        case.check(sliding_window=window, own_length=torch.full((batch,), length))
        case.check(sliding_window=window, own_length=torch.full((batch,), length + 3, dtype=torch.int32))

    def test_left_padding_and_holes(self, kernel, shape, window):
        case = Case(**shape, seed=2)
        batch, _, columns, _ = case.key.shape
        lengths = draw_lengths(case)
        starts = torch.randint(0, columns, (batch,), generator=case.generator)
        own_mask = torch.rand(batch, columns, generator=case.generator) < 0.5
        case.check(sliding_window=window, own_length=lengths, own_start=starts)
        case.check(sliding_window=window, own_length=lengths, own_start=lengths - 1)
        case.check(sliding_window=window, own_length=lengths, own_start=starts, own_mask=own_mask)

    def test_softcap(self, shape, window):
        case = Case(**shape, seed=3)
        case.check(sliding_window=window, own_length=draw_lengths(case), softcap=0.7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_row_is_computed_as_if_the_buffer_ended_with_it(dtype):
    case = Case(B=3, H=2, G=2, P=(20,), S=40, T=2, dtype=dtype)
    out = case.poisoned(torch.tensor([9, 9, 9])).run(own_length=torch.tensor([9, 9, 9]), sliding_window=25)
    case.key, case.value = case.key[:, :, :9], case.value[:, :, :9]
    assert torch.equal(out, case.run(sliding_window=25))


def test_rows_of_one_length_need_no_mask_and_no_copy():
    case = Case(B=3, S=12)
    view = own_view(Plan(3, 1, 12, own_length=torch.tensor([5, 5, 5])), None, case.query)
    assert (view.first, view.stop, view.mask, view.unread) == (0, 5, None, None)


def test_a_plan_reads_own_start_and_own_length_once():
    reads = []

    class Counted(torch.Tensor):
        def tolist(self):
            reads.append(self)
            return super().tolist()

    start, length = (torch.tensor(counts).as_subclass(Counted) for counts in ([0, 2, 1], [8, 5, 8]))
    plan = Plan(3, 1, 8, shared_length=20, own_start=start, own_length=length)
    assert reads == []
    case = Case(B=3, S=8)
    for window in (None, 12, 3):
        own_view(plan, window, case.query)
        segment_view(plan, case.segments[0], window, case.query)
    assert len(reads) == 2


def test_segments_of_equal_geometry_share_a_view_by_the_value_of_their_rows():
    case = Case(B=4, P=(20, 20, 20), rows=((0, 2), (0, 2), (2, 0)))
    plan = Plan(4, 1, 7, shared_length=(40, 0, 40, 0))
    alike = [Segment(segment.key, segment.value, 0, segment.rows) for segment in case.segments]
    one, same, other = (segment_view(plan, segment, 30, case.query) for segment in alike)
    assert one is same
    assert one is not other


def test_segments_of_different_rows_are_one_level():
    """A row takes part in one segment of a level at most, and rows that are all, in order, are not picked."""
    case = Case(B=4, P=(20, 8, 8, 8, 8), rows=(None, (0, 1), (2, 3), (3,), (0, 1)))
    plan = Plan(4, 1, 7, shared_length=(36, 36, 28, 36))
    levels = levels_of(plan, case.segments, None, case.query)
    assert [[number for number, *_ in level.parts] for level in levels] == [[0], [1, 2], [3, 4]]
    assert [level.rows if level.rows is None else level.rows.tolist() for level in levels] == [None, None, [3, 0, 1]]
    assert [(first, stop) for _, _, first, stop in levels[2].parts] == [(0, 1), (1, 3)]
    assert levels_of(plan, case.segments, None, case.query) is levels
