"""The table of all reasons why a call is relayed or left to stock: code, source (call, model, Transformers), words."""

from __future__ import annotations

from enum import Enum, unique
from typing import Any, Literal, TypeVar

Source = Literal["call", "model", "transformers"]
Text = TypeVar("Text", bound="ReasonText")

SOME_GO_ON = ", and some go on alike"  # fills the gap in the words of a reason of all rows


class ReasonText(str):
    """The reason of one call: its words, with the figures filled in."""

    reason: Reason

    @property
    def code(self) -> str:
        """The code of the reason, such as `"short_prefix"`."""
        return self.reason.code

    @property
    def source(self) -> Source | None:
        """What the cause is: the call, the model or Transformers; None if the call is relayed."""
        return self.reason.source


class Refusal(ReasonText):
    """The reason why one call is left to stock, or why nothing of it is kept."""


@unique
class Reason(Enum):
    """A reason: its source and its words. Its code is its name in lower case, and programs may rely on it.

    The source "call" is what the caller asked for, or gave. "model" is what the model is, or was made to be: its type,
    mode, hooks, adapters, quantization, device. "transformers" is what Transformers does in any call. None: the call is
    relayed.
    """

    # Why a call is relayed.
    ROWS_ALIKE = (None, "the rows start alike{more}")
    SOME_ROWS_ALIKE = (None, "some of the rows start alike")
    KEPT_PREFIX = (None, "a kept prefix{more}")
    KEPT_PREFIX_EXTENDED = (None, "a kept prefix, extended by what the rows share{more}")
    ROW_KEPT = (None, "kept for later calls")
    RETURNED_START = (None, "a start that returned")
    RETURNED_CACHE = (None, "a returned cache, continued")
    # What the caller asked for.
    UNFIT_CALL = ("call", "{why}")
    POLICY_OFF = ("call", "policy 'off'")
    NO_COMMON_PREFILL = ("call", "this mode of generate() does not start with its common prefill")
    RAISED_IN_CALL = ("call", "the call raised {error}")
    ASSISTANT = ("call", "this call is an assistant's, which rolls back its cache")
    GRADIENTS = ("call", "gradients are recorded")
    WITHOUT_CACHE = ("call", "use_cache=False")
    ALL_OUTPUTS = ("call", "{name}=True needs every prompt token in every row")
    PROMPT_LOGITS = ("call", "logits of prompt tokens are asked for")
    OTHER_CACHE_ASKED = ("call", "generate() uses {kind} here, in place of a plain DynamicCache")
    CHUNKED_STATES = ("call", "chunked prefill: where chunks of recurrent layers begin changes stock's own output")
    # What the caller gave.
    INPUT_GIVEN = ("call", "the call has an input that is not relayed, {name!r}")
    MEDIA_GIVEN = ("call", "the prompts have images, video or audio ({names}), on which what follows them depends")
    TYPES_GIVEN = ("call", "token types other than 0 tell images, video or audio from text ({name})")
    CACHE_GIVEN = ("call", "{name} was given by the caller")
    NO_PROMPT = ("call", "there is no prompt to share")
    PADDED_END = ("call", "a row ends in padding")
    HOLES_IN_STATES = ("call", "a mask with holes, which recurrent layers see as tokens")
    PADDED_STATES = ("call", "padding, which a projection with a bias shows to the convolutions of recurrent layers")
    PADDED_COLUMNS = ("call", "the model counts columns, and rows are padded")
    HOLES_IN_COLUMNS = ("call", "the model counts columns, and a mask with holes leaves some out")
    MASK_OF_NUMBERS = ("call", "attention_mask has other values than 0 and 1")
    POSITIONS_GIVEN = ("call", "position_ids were given by the caller")
    LONG_ROPE = ("call", "RoPE changes beyond {limit} tokens, and the prompt has {length}")
    # What the rows share, and whether sharing pays.
    SHORT_PREFIX = ("call", "the rows share {tokens} tokens, fewer than min_prefix_length={least}")
    SHORT_ROW = ("call", "one row of {tokens} tokens, fewer than min_prefix_length={least}")
    ROW_IN_OWN_LOOP = ("call", "one row, in a decoding loop of the caller's")
    ROW_WITHOUT_BUDGET = ("call", "one row, of which nothing can be kept: {why}")
    COSTS_MORE = ("call", "policy 'auto': relaying is expected to cost {milliseconds:.0f} ms more than it saves")
    RUNS_COST_MORE = (
        "call",
        "policy 'auto': sharing what some of the rows start with is not expected to pay",
    )
    # Why nothing is kept for later calls.
    NO_BUDGET = ("call", "max_store_bytes is 0")
    OVER_BUDGET = ("call", "a prefix of {size} does not fit into max_store_bytes, {budget}")
    # What happened during the call.
    OUT_OF_MEMORY = ("call", "out of memory: a relayed prefill raised {error}: {message}")
    # A returned cache, on which the call then goes on as a DynamicCache.
    CACHE_ELSEWHERE = (
        "call",
        "the cache was filled on another device, in another dtype, or under another autocast or arithmetic",
    )
    CACHE_UNSHARED = ("call", "a returned cache that shares nothing")
    CACHE_LONGER = ("call", "attention_mask ends before what the returned cache holds")
    RETURNED_JOINED = (
        "call",
        "a returned cache of whole rows: keys or values were changed, it was cropped into its prefix, or an earlier "
        "call on it was not relayed",
    )
    RETURNED_OF_STATES = ("call", "a returned cache of recurrent layers alone; continued on a DynamicCache")
    # What the model's author has it do by default.
    WITHOUT_CACHE_BY_DEFAULT = ("model", "use_cache=False")
    ALL_OUTPUTS_BY_DEFAULT = ("model", "{name}=True needs every prompt token in every row")
    OWN_LOOP = ("model", "the model's own decoding loop does not start with generate()'s common prefill")
    OWN_GENERATE = ("model", "the model's own generate() does not come to Transformers' common prefill")
    INPUT_OF_MODEL = ("model", "the model gives its forward an input that is not relayed, {name!r}")
    POSITIONS_OF_ITS_OWN = ("model", "the model counts positions in a way of its own")
    # What the model is.
    ENCODER_DECODER = ("model", "encoder-decoder models are not relayed")
    NO_DECODER = ("model", "attention is not causal: the model's configuration has is_decoder=False")
    BIDIRECTIONAL = ("model", "attention is not causal: the model's configuration has use_bidirectional_attention")
    NO_CACHE = ("model", "generate() uses no cache here, in place of a plain DynamicCache")
    OTHER_CACHE = ("model", "generate() uses {kind} here, in place of a plain DynamicCache")
    LAYER = ("model", "{layer}, which is not shared")
    RECURRENT = ("model", "recurrent layers of type {kind!r} are not known to go on from a shared state")
    RECURRENT_KERNELS = ("model", "recurrent kernels of {package!r} are not known to go on from a shared state")
    # What was changed on it: adapters, replaced attention, quantization, hooks, training.
    PREPARATION = ("model", "prepare_inputs_for_generation was replaced on this model")
    ATTENTION = ("model", "the attention implementation {name!r} may compute something else than attention")
    ATTENTION_REPLACED = ("model", "the {what}attention implementation {name!r} was replaced by {origin}")
    SDPA_REPLACED = ("model", "torch.nn.functional.scaled_dot_product_attention was replaced")
    EAGER_REPLACED = ("model", "eager_attention_forward of {module} was replaced by {origin}")
    FUNCTION_REPLACED = (
        "model",
        "the function {function} was replaced by {origin}, which may look at several tokens; trust=[''] vouches for it",
    )
    OPERATOR = (
        "model",
        "an operator of PyTorch's, {operator}, was given other code, which may look at several tokens; trust=[''] "
        "vouches for it",
    )
    MODE = ("model", "a mode is around the call, {mode}, which may look at several tokens; trust=[''] vouches for it")
    UNKNOWN_CODE = (
        "model",
        "{what} (module {name!r}) runs {origin}, which may look at several tokens; trust=[{name!r}] vouches for it",
    )
    CACHE_REPLACED = ("model", "a method of {kind} was replaced by {origin}, which a relayed call would not run")
    CODE_RAISED = ("model", "the model's code could not be looked at: {error}: {message}")
    QUANTIZED_BY_BATCH = ("model", "a quantized layer, {module} (module {name!r}), {why}")
    HOOK_ON_ALL = ("model", "a forward hook on all modules would see the prefix apart from the rows")
    HOOK = (
        "model",
        "a forward hook on {module} ({origin}) would see the prefix apart from the rows; trust=[{name!r}] vouches for "
        "it",
    )
    CHECKPOINTING = ("model", "gradient checkpointing is on")
    DROPOUT = ("model", "dropout is active ({probability})")
    RANDOM_IN_TRAINING = ("model", "the model is random in training mode ({name}={value})")
    # Why nothing is kept for later calls. A single row gains only if it can be kept.
    ROW_NOT_KEPT = ("model", "one row, of which nothing can be kept: {why}")
    TRAINING_MODE = ("model", "the model is in training mode")
    QUANTIZED = ("model", "the model is quantized")
    FORWARD_REPLACED = ("model", "the forward of a {module} was replaced")
    CHANGED_MEANWHILE = ("model", "the model changed while the prefix was prefilled")
    INFERENCE_PARAMETERS = ("model", "the parameters were made in inference mode")
    PARAMETER_KIND = ("model", "a parameter is a {kind}")
    SEVERAL_DEVICES = ("model", "the model lies on several devices")
    SHARDED = ("model", "FSDP shards the parameters")
    # What policy "auto" knows about its costs.
    DEVICE_COST = ("model", "policy 'auto': what calls cost on {device} is not known; policy='always' relays")
    DEVICE_UNMEASURED = (
        "model",
        "policy 'auto': the kernels have not been measured on this kind of GPU yet; policy='always' relays",
    )
    MODEL_COST = ("model", "policy 'auto': what the model costs is not known ({error}); policy='always' relays")
    # What is known of its type, or what a relayed prefill has shown.
    UNFIT_MODEL = ("model", "{why}")
    PREFILL_RAISED = ("model", "a relayed prefill raised {error}: {message}")
    STEP_RAISED = ("model", "a relayed decode step raised {error}: {message}")
    # What Transformers does.
    POSITIONS_COUNTED = ("transformers", "generate() counts positions otherwise than from the attention mask")
    OTHER_LOGITS = ("transformers", "generate() asks for other logits than the last token's")
    CHUNKS_ON_CACHE = (
        "transformers",
        "in chunks, this Transformers puts all of a text through on top of what a returned cache holds",
    )
    INPUT_ADDED = ("transformers", "generate() gives the model an input that is not relayed, {name!r}")

    def __init__(self, source: Source | None, words: str) -> None:
        self.source = source
        self.words = words

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """A pickle has its name, which stays; an Enum's own way takes the value, and so the words."""
        return getattr, (Reason, self.name)

    @property
    def code(self) -> str:
        """The name by which programs know the reason."""
        return self.name.lower()

    def of(self, **values: Any) -> Refusal:
        """The reason why one call is left to stock, with values for the gaps in its words."""
        return self._filled(Refusal, values)

    def why(self, **values: Any) -> ReasonText:
        """The reason why one call is relayed, with values for the gaps in its words."""
        return self._filled(ReasonText, values)

    def _filled(self, kind: type[Text], values: dict[str, Any]) -> Text:
        text = kind(self.words.format(**values))
        text.reason = self
        return text
