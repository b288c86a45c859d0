"""Decoding loops of a user's: callables that generate() takes as `custom_generate`."""

import torch
from transformers import DynamicCache

from tests.support.generating import CACHE, cache_of

from .compare import NEW


def positions_of(mask, last):
    return (mask.cumsum(-1) - 1).clamp(min=0)[:, -last:]


def ones(*shape):
    return torch.ones(*shape, dtype=torch.int64)


def with_a_cache_of_its_own(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
    """Greedy search that uses nothing of generate()'s but the prompt and the processors."""
    cache, mask, step = DynamicCache(config=model.config), kwargs["attention_mask"], input_ids
    while not stopping_criteria(input_ids, None).all():
        positions = positions_of(mask, step.shape[1])
        output = model(step, attention_mask=mask, position_ids=positions, **{CACHE: cache}, use_cache=True)
        step = logits_processor(input_ids, output.logits[:, -1]).argmax(-1, keepdim=True)
        input_ids, mask = torch.cat([input_ids, step], dim=1), torch.cat([mask, ones(len(step), 1)], dim=1)
    return input_ids


def from_the_prefill(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
    """Greedy search from `_prefill` on, by way of the model's own methods; gives its logits too."""
    output, logits = model._prefill(input_ids, generation_config, kwargs), []
    while True:
        kwargs = model._update_model_kwargs_for_generation(output, kwargs)
        logits.append(output.logits[:, -1])
        chosen = logits_processor(input_ids, logits[-1]).argmax(-1, keepdim=True)
        input_ids = torch.cat([input_ids, chosen], dim=1)
        if stopping_criteria(input_ids, None).all():
            return input_ids, logits
        output = model(**model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **kwargs))


def counting_by_itself(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
    """The prefill alone, at positions that generate() would not count."""
    return model._prefill(input_ids, generation_config, {**kwargs, "position_ids": kwargs["position_ids"] + 3}).logits


def adding_an_input(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
    """The prefill alone, with an input that generate() would not give it."""
    return model._prefill(input_ids, generation_config, {**kwargs, "output_router_logits": False}).logits


def around_the_models_own(model, input_ids, twice=False, **kwargs):
    """What is called with an argument of its own, and hands over to sampling."""
    output = type(model)._sample(model, input_ids, **kwargs)
    return (output, output) if twice else output


def choosing_among_continuations(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
    """Looks one token ahead, as contrastive search does: its cache's rows are repeated, then selected from."""
    output, ahead = model._prefill(input_ids, generation_config, kwargs), 3
    cache, mask, rows = cache_of(output), kwargs["attention_mask"], torch.arange(len(input_ids))
    logits = output.logits[:, -1]
    while not stopping_criteria(input_ids, None).all():
        candidates = logits.topk(ahead).indices
        cache.batch_repeat_interleave(ahead)
        mask = torch.cat([mask, ones(len(rows), 1)], dim=1)
        wide = mask.repeat_interleave(ahead, dim=0)
        output = model(
            candidates.view(-1, 1),
            attention_mask=wide,
            position_ids=positions_of(wide, 1),
            **{CACHE: cache},
            use_cache=True,
        )
        following = output.logits[:, -1].view(len(rows), ahead, -1)
        best = following.amax(-1).argmin(-1)
        cache.batch_select_indices(rows * ahead + best)
        logits, input_ids = following[rows, best], torch.cat([input_ids, candidates[rows, best][:, None]], dim=1)
    return input_ids, logits


def taking_drafts_back(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
    """Runs four drafted tokens through the model, and crops some or all of them out of the cache again."""
    cache = cache_of(model._prefill(input_ids, generation_config, kwargs))
    mask, logits = kwargs["attention_mask"], []
    cache.activate_past_recording()
    drafts = torch.arange(5, 9).repeat(len(input_ids), 1)
    for rejected in (4, 2, 3):
        mask = torch.cat([mask, ones(*drafts.shape)], dim=1)
        inputs = {"attention_mask": mask, "position_ids": positions_of(mask, 4), CACHE: cache}
        logits.append(model(drafts, use_cache=True, **inputs).logits)
        cache.crop(-rejected)
        mask = mask[:, :-rejected]
    return logits


def hiding_a_token(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
    """Hides the first token that it makes from those after the next one."""
    output, mask, logits = model._prefill(input_ids, generation_config, kwargs), kwargs["attention_mask"], []
    cache = cache_of(output)
    for made in range(4):
        logits.append(output.logits[:, -1])
        mask = torch.cat([mask, ones(len(input_ids), 1)], dim=1)
        shown = mask.clone()
        if made > 1:
            shown[:, input_ids.shape[1]] = 0
        inputs = {"attention_mask": shown, "position_ids": positions_of(mask, 1), CACHE: cache}
        output = model(logits[-1].argmax(-1)[:, None], use_cache=True, **inputs)
    return logits


def prompt_logits(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
    """The logits that the prefill gives, as many as were asked for."""
    return model._prefill(input_ids, generation_config, kwargs).logits


def recording_gradients(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
    with torch.enable_grad():
        logits = prompt_logits(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)
    return logits.detach(), logits.requires_grad


def calling_generate(model, input_ids, **kwargs):
    return model.generate(input_ids, attention_mask=kwargs["attention_mask"], max_new_tokens=NEW)
