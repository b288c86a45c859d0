"""Random arguments of generate()."""

from __future__ import annotations

import random
from typing import Any

from relay_hf.testing import VOCABULARY

_NEW_TOKENS = (1, 1, 2, 2, 3, 3, 4, 5, 6, 8, 12)
_NEW_TOKENS_LATER = 3


def is_for_one_row(mode: str) -> bool:
    """Whether stock has the mode for single prompts only."""
    return mode == "prompt lookup"


MODES = {
    "greedy": 32,
    "sampling": 24,
    "return sequences": 12,
    "beams": 15,
    "beam sampling": 7,
    "guidance": 3,
    "prompt lookup": 2,
    "hidden states": 1,
    "no cache": 2,
    "static cache": 2,
}


def draw_mode(rng: random.Random) -> str:
    """How tokens are chosen, or what else sets the call apart."""
    return rng.choices(list(MODES), list(MODES.values()))[0]


def draw_options(rng: random.Random, mode: str) -> dict[str, Any]:
    """The arguments of a call in a mode, beside its inputs."""
    new = rng.choice(_NEW_TOKENS)
    options: dict[str, Any] = {"max_new_tokens": new}
    options.update(_of_mode(rng, mode))
    _ends(rng, new, options)
    _processors(rng, options)
    if options.get("do_sample"):
        _warpers(rng, options)
    if rng.random() < 0.12:
        options["prefill_chunk_size"] = rng.randint(1, 16)
    if rng.random() < 0.8:
        options.update(return_dict_in_generate=True, output_logits=True, output_scores=rng.random() < 0.8)
    return options


def shortened(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a second pass: few tokens, for what a kept prefix does wrong shows at once, and time is dear."""
    short = dict(options)
    for name in ("max_new_tokens", "min_new_tokens"):
        if name in short:
            short[name] = min(short[name], _NEW_TOKENS_LATER)
    return short


def _of_mode(rng: random.Random, mode: str) -> dict[str, Any]:
    if mode == "sampling":
        return {"do_sample": True}
    if mode == "return sequences":
        return {"do_sample": True, "num_return_sequences": rng.randint(2, 3)}
    if mode in ("beams", "beam sampling"):
        beams = rng.randint(2, 3)
        options: dict[str, Any] = {"num_beams": beams, "do_sample": mode == "beam sampling"}
        if rng.random() < 0.4:
            options["num_return_sequences"] = rng.randint(1, beams)
        if rng.random() < 0.3:
            options["length_penalty"] = rng.choice((-1.0, 0.5, 2.0))
        if rng.random() < 0.3:
            options["early_stopping"] = rng.choice((True, False, "never"))
        return options
    if mode == "guidance":
        return {"guidance_scale": rng.choice((0.5, 1.5, 3.0)), "do_sample": rng.random() < 0.3}
    plain: dict[str, dict[str, Any]] = {
        "greedy": {},
        "prompt lookup": {"prompt_lookup_num_tokens": rng.randint(1, 4)},
        "hidden states": {"output_hidden_states": True, "return_dict_in_generate": True},
        "no cache": {"use_cache": False},
        "static cache": {"cache_implementation": "static"},
    }
    return plain[mode]


def _ends(rng: random.Random, new: int, options: dict[str, Any]) -> None:
    how = rng.choices(("never", "default", "often"), (50, 15, 35))[0]
    if how == "never":
        options["min_new_tokens"] = new
    elif how == "often":
        options["eos_token_id"] = rng.sample(range(1, VOCABULARY), rng.randint(3, 25))
        if rng.random() < 0.3:
            options["min_new_tokens"] = rng.randint(1, new)


def _processors(rng: random.Random, options: dict[str, Any]) -> None:
    if rng.random() < 0.15:
        options["repetition_penalty"] = rng.choice((0.8, 1.2, 1.7))
    if rng.random() < 0.1:
        options["no_repeat_ngram_size"] = rng.randint(1, 3)
    if rng.random() < 0.04:
        options["suppress_tokens"] = rng.sample(range(VOCABULARY), 5)
    if rng.random() < 0.04:
        options["bad_words_ids"] = [rng.sample(range(3, VOCABULARY), rng.randint(1, 2)) for _ in range(3)]
    if rng.random() < 0.04:
        options["sequence_bias"] = [[[rng.randrange(3, VOCABULARY)], round(rng.uniform(-2, 2), 2)]]
    if rng.random() < 0.03:
        options["forced_eos_token_id"] = 2
    if rng.random() < 0.03:
        options["exponential_decay_length_penalty"] = (1, 1.1)
    if rng.random() < 0.05:
        options["renormalize_logits"] = True


def _warpers(rng: random.Random, options: dict[str, Any]) -> None:
    choices = {
        "temperature": (0.4, 0.8, 1.5),
        "top_k": (5, 20, 60),
        "top_p": (0.5, 0.9),
        "min_p": (0.02, 0.1),
        "typical_p": (0.5, 0.9),
        "epsilon_cutoff": (0.005,),
        "eta_cutoff": (0.01,),
    }
    for name, values in choices.items():
        if rng.random() < 0.2:
            options[name] = rng.choice(values)
