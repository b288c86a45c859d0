"""Nobody but the room of what is known of Transformers spells a name of its insides."""

import ast
import re
from pathlib import Path

import relay_hf

PACKAGE = Path(relay_hf.__file__).parent
ROOM = PACKAGE / "model" / "upstream"
ROOT = PACKAGE.parent

# Transformers documents these: its public methods and arguments, and the fields of its configurations.
PUBLIC = {
    *("attention_mask", "input_ids", "inputs_embeds", "logits_to_keep", "output_attentions", "output_hidden_states"),
    *("position_ids", "return_dict", "tokenizer", "use_cache", "custom_generate", "generate", "generation_config"),
    *("crop", "get_mask_sizes", "get_query_offset", "get_seq_length", "lazy_initialization", "layers", "reorder_cache"),
    *("batch_repeat_interleave", "batch_select_indices", "is_initialized", "number_of_states", "reset", "update"),
    *("attention_chunk_size", "max_position_embeddings", "num_kv_shared_layers", "rope_parameters", "rope_type"),
    *("config", "device", "dropout", "dtype", "eager", "forward", "scaling", "sdpa", "sliding_window"),
}
# These are words of relay_hf's own too, or Python's.
OURS = {
    *(
        "__init__",
        "__module__",
        "__name__",
        "transformers",
        "__qualname__",
        "__self__",
        "indices",
        "key",
        "layer_idx",
        "module",
        "query",
    ),
    *("args", "cpu", "dynamic", "kwargs", "query_length", "repeats", "reuse", "softcap", "value"),
}
# As an attribute it is relay_hf's own word for a RelayCache; as text or as an argument it is Transformers'.
AMBIGUOUS = {"cache", "linear"}
# What others than Transformers keep to themselves: PyTorch, accelerate, peft, tokenizers.
OF_OTHERS = {
    *(
        "_C",
        "_call_impl",
        "_wrapped_call_impl",
        "_compiled_call_impl",
        "_cuda_clearCublasWorkspaces",
        "_cuda_endAllocateToPool",
    ),
    *("_foreach_copy_", "_forward_hooks", "_forward_pre_hooks", "_make_wrapper_subclass", "_modules"),
    *("_non_persistent_buffers_set", "_parameters", "_scaled_dot_product_flash_attention_for_cpu", "_version"),
    *("_get_mkldnn_enabled", "_is_mkldnn_bf16_supported", "_linear_pointwise", "_reorder_linear_weight"),
    "_reconstructor",
    *("_fsdp_param_groups", "_torchdynamo_orig_callable", "_hf_hook", "_active_adapter", "_disable_adapters"),
    *("_disabled_torch_function_impl", "_get_current_dispatch_mode_stack", "_get_current_function_mode_stack"),
    *("_impls", "_load_from_state_dict", "_nn", "_ops", "_save_to_state_dict"),
    *("_orig_mod", "_tokenizer", "_torchdynamo_orig_backend"),
    "_replace",  # of a named tuple, and public
    "_told",  # of a handle that an earlier version of relay_hf has pickled
}


def spelled(path):
    """What a module spells: attributes, keywords, and strings that are no docstring, each with its line."""
    tree = ast.parse(path.read_text())
    bodies = (node.body for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)))
    docstrings = {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield "attribute", node.attr, node.lineno
        elif isinstance(node, ast.keyword) and node.arg:
            yield "argument", node.arg, node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield "text", node.value, node.lineno


def imported(path):
    """Every module that a module imports from, with its line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, node.lineno
        elif isinstance(node, ast.Import):
            yield from ((each.name, node.lineno) for each in node.names)


def is_private(name):
    return re.fullmatch(r"_[a-z]\w*[a-z]|_C", name) is not None


def defined():
    """Every name that a module of relay_hf gives to something."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                yield node.name
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                yield node.attr
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id


def names_of_the_room():
    """What the room spells that is Transformers' own affair."""
    found = set()
    for path in ROOM.glob("*.py"):
        for kind, name, _ in spelled(path):
            if (kind == "text" and name.isidentifier()) or (kind == "attribute" and is_private(name)):
                found.add(name)
    return found - PUBLIC - OURS


# But for the tiny model, which is made of fields of a configuration.
TINY = PACKAGE / "testing" / "tiny.py"
OTHERS = sorted(path for path in PACKAGE.rglob("*.py") if ROOM not in path.parents and path != TINY)


def test_nobody_else_spells_a_name_of_the_room():
    room, own = names_of_the_room(), {*defined()}
    assert {"_prefill", "past_key_values", "_is_user_defined", "is_first_iteration"} <= room
    wrong = []
    for path in OTHERS:
        for kind, name, line in spelled(path):
            known = name in room and not (name in AMBIGUOUS and kind == "attribute")
            hidden = is_private(name) and kind != "argument" and name not in own | OF_OTHERS
            if known or hidden or (kind == "text" and name.startswith("transformers.")):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {kind} {name!r}")
    assert not wrong, "belongs into relay_hf/model/upstream:\n" + "\n".join(wrong)


def test_nobody_else_imports_from_within_transformers():
    public = ("transformers", "transformers.utils")
    within = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in OTHERS
        for name, line in imported(path)
        if name.startswith("transformers") and name not in public
    ]
    assert not within, within


def test_the_scan_sees_each_way_to_spell_a_name(tmp_path):
    module = tmp_path / "module.py"
    module.write_text(
        '"""past_key_values"""\ndef f(x):\n    """cache"""\n    return x._prefill(first=1), "rope_deltas"\n'
    )
    found = {(kind, name) for kind, name, _ in spelled(module)}
    assert found == {("attribute", "_prefill"), ("argument", "first"), ("text", "rope_deltas")}
