"""The notebooks' pictures of a batch."""

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

import relay_hf
from relay_hf import showcase
from relay_hf.showcase import plots


@pytest.fixture(scope="module")
def explained():
    """An explanation, and the tokens of each row: three documents, four shuffled questions each."""
    shown = showcase.load("random", size="tiny")
    chats = showcase.document_chats(3, 4)
    inputs = shown.inputs(chats[::5] + chats[1::5] + chats[2::5])
    with relay_hf.patched(shown.model, policy="always"):
        explanation = shown.model.relay.explain(inputs.input_ids, inputs.attention_mask)
    return explanation, inputs.attention_mask.sum(1).tolist()


def test_blocks_are_the_lines_of_the_tree():
    lines = [
        "20 tokens, 6 rows (0-5), kept from before",
        "  11 tokens, 2 rows (0, 2)",
        "    3 tokens, row 2",
        "  8 tokens, 3 rows (1, 4-5)",
        "1 token, row 6",
    ]
    assert plots.blocks("\n".join(lines)) == [
        plots.Block(0, 20, (0, 1, 2, 3, 4, 5)),
        plots.Block(20, 11, (0, 2)),
        plots.Block(31, 3, (2,)),
        plots.Block(20, 8, (1, 4, 5)),
        plots.Block(0, 1, (6,)),
    ]


def test_another_text_is_refused_with_what_was_expected():
    with pytest.raises(ValueError, match=r"tree must have a line such as '20 tokens, 6 rows \(0-5\)'.*got 'a tree'"):
        plots.blocks("a tree")


def test_tokens_stored_are_those_that_the_report_says_are_computed(explained):
    explanation, lengths = explained
    assert explanation.levels >= 2
    assert plots.stored_tokens(lengths, plots.blocks(explanation.tree)) == explanation.prompt_tokens_computed
    assert plots.stored_tokens(lengths, []) == sum(lengths)


def test_the_fields_of_a_batch_cover_every_token_of_every_row(explained):
    explanation, lengths = explained
    axis = Figure().subplots()
    plots.draw_batch(axis, lengths, plots.blocks(explanation.tree))
    assert sum(patch.get_width() * patch.get_height() for patch in axis.patches) == sum(lengths)
    assert {patch.get_height() for patch in axis.patches} > {1}


def test_the_style_is_that_of_all_figures_from_then_on():
    with mpl.rc_context():
        plots.use_style()
        assert mpl.rcParams["figure.figsize"] == [8.3, 3.4]
