"""The operator in the dispatcher: its registration, and graphs that hold it whole."""

import re

import pytest
import torch

from relay_hf.kernels.segment import Segment
from relay_hf.ops import relay_attention

from .cases import Case

OPTIONS = {
    "own_start": torch.tensor([0, 3, 1]),
    "own_length": torch.tensor([7, 5, 6], dtype=torch.int32),
    "own_mask": torch.tensor([[True, True, False, True, True, True, True]] * 3),
    "scale": 0.3,
    "sliding_window": 12,
    "softcap": 2.0,
    "sinks": torch.tensor([0.5, -1.0, 0.0, 2.0]),
    "alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625]),
}
SAMPLES = {
    "no segment": ((), (), {}),
    "one segment": ((9,), (), {"scale": 0.3}),
    "rows": ((9, 4, 5), (None, (2, 0), ()), {}),
    "window": ((9, 4), (), {"sliding_window": 12}),
    "softcap": ((9,), (), {"softcap": 2.0}),
    "sinks": ((9,), (), {"sinks": OPTIONS["sinks"]}),
    "slopes": ((9,), (), {"alibi_slopes": OPTIONS["alibi_slopes"]}),
    "own_start": ((9,), (), {"own_start": OPTIONS["own_start"]}),
    "own_length": ((9,), (), {"own_length": OPTIONS["own_length"]}),
    "own_mask": ((9,), (), {"own_mask": OPTIONS["own_mask"]}),
    "all": ((9, 4), (None, (1,)), OPTIONS),
}


def case_of(sample, dtype=torch.float32):
    lengths, rows, options = SAMPLES[sample]
    return Case(B=3, H=2, G=2, P=lengths, rows=rows, S=7, T=2, Dv=24, dtype=dtype), options


def op_arguments(case, rows, options):
    options = {"scale": 0.25} | options
    names = ("own_start", "own_length", "own_mask", "scale", "sliding_window", "softcap", "sinks", "alibi_slopes")
    segments = case.segments
    return (
        case.query, [s.key for s in segments], [s.value for s in segments], [s.start for s in segments], rows,
        case.key, case.value, *(options.get(name) for name in names), "torch",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("sample", "rows"),
    [(name, [-1] * len(lengths)) for name, (lengths, rows, _) in SAMPLES.items() if not rows]
    + [("rows", [-1, 2, 2, 0, 0]), ("all", [-1, 1, 1])],
)
def test_the_registration_is_sound(sample, rows):
    case, options = case_of(sample)
    arguments = op_arguments(case, rows, options)
    torch.library.opcheck(torch.ops.relay_hf.relay_attention.default, arguments)
    assert torch.equal(torch.ops.relay_hf.relay_attention(*arguments), case.run(**options))


def scaled_twice(query, segments, key, value, **options):
    """Work before and after the operator, so that it stands inside of a graph."""
    return relay_attention(query * 2, segments, key, value, **options) * 2


def from_tensors(query, pairs, key, value, **options):
    """Segments made inside of the graph."""
    segments, start = [], 0
    for i, (segment_key, segment_value) in enumerate(pairs):
        segments.append(Segment(segment_key, segment_value, start, None if i == 0 else (2, 0)))
        start += segment_key.shape[1]
    return relay_attention(query, segments, key, value, **options)


@pytest.fixture(params=["eager", "aot_eager"])
def compiled(request):
    """fullgraph: a graph break raises."""
    torch._dynamo.reset()
    yield lambda function, **options: torch.compile(function, fullgraph=True, backend=request.param, **options)
    torch._dynamo.reset()


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_compiled_caller_equals_eager(compiled, sample):
    case, options = case_of(sample)
    arguments = (case.query, case.segments, case.key, case.value)
    out = compiled(scaled_twice)(*arguments, **options)
    assert out.is_contiguous()
    assert torch.equal(out, scaled_twice(*arguments, **options))


def test_segments_made_inside_of_the_graph(compiled):
    case, options = case_of("window")
    arguments = (case.query, [(s.key, s.value) for s in case.segments], case.key, case.value)
    assert torch.equal(compiled(from_tensors)(*arguments, **options), from_tensors(*arguments, **options))


def test_lengths_that_grow_compile_once():
    graphs = []

    def record(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    function = torch.compile(scaled_twice, fullgraph=True, backend=record, dynamic=True)
    # No two sizes are equal at first: PyTorch would take them for one.
    for columns, shared in ((7, 13), (8, 14), (11, 17), (30, 17)):
        case = Case(B=3, H=2, G=3, D=40, P=(shared, 5), rows=(None, (2, 0)), S=columns, T=4, dtype=torch.float32)
        options = {"sliding_window": 12, "softcap": 2.0, "own_length": torch.tensor([columns, 4, columns - 1])}
        arguments = (case.query, case.segments, case.key, case.value)
        assert torch.equal(function(*arguments, **options), scaled_twice(*arguments, **options))
    assert len(graphs) == 1
    assert torch.ops.relay_hf.relay_attention in [node.target for node in graphs[0].graph.nodes]


def test_an_eager_call_stays_off_the_dispatcher(monkeypatch):
    case, _ = case_of("one segment")
    monkeypatch.setattr("relay_hf.kernels.torch_library.call", None)
    case.run()


def test_shapes_are_checked_while_compiling(compiled):
    case, _ = case_of("one segment")
    with pytest.raises(Exception, match=r"segments\[0\].value must be \[Hkv, P, Dv\] = \[2, 9, 24\]; got \[1, 9, 24\]"):
        compiled(scaled_twice)(
            case.query, [Segment(case.segments[0].key, case.segments[0].value[:1])], case.key, case.value
        )


def test_the_operator_refuses_gradients_by_name():
    case, options = case_of("all")
    options = options | {name: options[name].clone() for name in ("sinks", "alibi_slopes")}
    arguments = op_arguments(case, [-1, 1, 1], options)
    tensors = {name: getattr(case, name) for name in ("query", "key", "value")}
    tensors |= {name: options[name] for name in ("sinks", "alibi_slopes")}
    tensors |= {"segment_keys[0]": case.segments[0].key, "segment_values[1]": case.segments[1].value}
    for name, tensor in tensors.items():
        tensor.requires_grad_()
        with pytest.raises(RuntimeError, match=f"{re.escape(name)} requires grad, but relay attention has no backward"):
            torch.ops.relay_hf.relay_attention(*arguments)
        with torch.no_grad():
            assert not torch.ops.relay_hf.relay_attention(*arguments).requires_grad
        tensor.requires_grad_(False)


def test_a_compiled_caller_refuses_gradients(compiled):
    case, _ = case_of("one segment")
    case.query.requires_grad_()
    function = compiled(scaled_twice)
    with pytest.raises(Exception, match="query requires grad"):
        function(case.query, case.segments, case.key, case.value)
    with torch.no_grad():
        assert not function(case.query, case.segments, case.key, case.value).requires_grad
