"""Short conversations with the support bot, and how a relayed call is held to stock's."""

import torch

from relay_hf import showcase

NEW = 8  # tokens
INTRODUCTION, WRITING = showcase.SYSTEM_PROMPT.split("\n\n## ")[:2]
QUESTIONS = [showcase.QUESTIONS[index] for index in (2, 3, 18, 11)]  # of different length
# In float32 logits of up to 35 differ because sums are taken in another order: by 6.3e-5 at most on an AMD EPYC, in
# greedy search, samples, beams and chunks, with nothing kept and with the prefix kept. Other processors sum otherwise.
TOLERANCE = 5e-4


def chat(question, system=INTRODUCTION):
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def say(model, inputs, **options):
    """What generate() returns: sequences, scores and logits."""
    torch.manual_seed(0)
    wanted = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    return model.generate(**inputs, **{"max_new_tokens": NEW, "do_sample": False, **wanted, **options})


def assert_stocks(stock, ours, inputs, *, rows, levels=1, **options):
    """Relayed twice, first with nothing kept and then with the prefix kept, each with stock's tokens and logits.

    Returns stock's output.
    """
    expected = say(stock, inputs, **options)
    for kept in (False, True):
        got = say(ours, inputs, **options)
        report = ours.relay.last
        assert report.relayed, report.reason
        assert (report.rows, report.levels) == (rows, levels)
        assert bool(report.prefix_tokens_reused) == kept
        assert torch.equal(got.sequences, expected.sequences)
        for one, other in zip(got.logits, expected.logits, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE)
    return expected
