"""A Llama of Transformers as a model folder of OpenVINO GenAI, which builds the graph from a GGUF file.

Its reader knows no float32. So it reads the weights in float16, and they are put back in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import openvino
import openvino_genai
from numpy.typing import NDArray
from openvino_tokenizers import convert_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from . import gguf_file

_GRAPH = "openvino_model.xml"


def write(weights: Mapping[str, NDArray], shape: Mapping[str, int], kind: str, folder: Path) -> None:
    """Write the folder.

    Args:
        weights: float32, by Transformers' names.
        shape: the fields of a `ModelShape`.
        kind: float32 or Q8_0, of the matrices. Of bfloat16 it is float32, which the pipeline rounds.
        folder: is made.
    """
    folder.mkdir()
    _write_tokenizer(shape["vocab"], folder)
    with TemporaryDirectory(dir=folder.parent) as between:
        path = Path(between) / "model.gguf"
        gguf_file.write(weights, shape, path, kind if kind == "Q8_0" else "float16")
        tokenizer = openvino_genai.Tokenizer(str(folder))
        openvino_genai.LLMPipeline(str(path), tokenizer, "CPU", enable_save_ov_model=True)
        graph = openvino.Core().read_model(path.with_name(_GRAPH))
        if kind != "Q8_0":
            _put_back(graph, weights)
        openvino.save_model(graph, folder / _GRAPH, compress_to_fp16=False)


def _put_back(graph: openvino.Model, weights: Mapping[str, NDArray]) -> None:
    """Give the graph's constants, which have Transformers' names, the weights in float32."""
    for node in graph.get_ordered_ops():
        name = node.get_friendly_name()
        if node.get_type_name() == "Constant" and name in weights:
            exact = openvino.opset13.constant(weights[name])
            for reader in node.output(0).get_target_inputs():
                reader.replace_source_output(exact.output(0))
    graph.validate_nodes_and_infer_types()


def _write_tokenizer(vocab: int, folder: Path) -> None:
    """A tokenizer of words, which a pipeline must have: jobs are token ids."""
    words = Tokenizer(models.WordLevel({f"<{token}>": token for token in range(vocab)}, unk_token="<0>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict.fromkeys(("unk_token", "pad_token", "bos_token", "eos_token"), "<0>")
    both = convert_tokenizer(PreTrainedTokenizerFast(tokenizer_object=words, **special), with_detokenizer=True)
    for name, model in zip(("tokenizer", "detokenizer"), both, strict=True):
        openvino.save_model(model, folder / f"openvino_{name}.xml")
