"""Sizes of the tiny models: what every configuration gets, by the name of its field, and what some types need besides.

Of the generic sizes a configuration gets the fields that its class has, so that one table serves every type and every
version of Transformers.
"""

from __future__ import annotations

from typing import Any

from relay_hf.testing import PAD, VOCABULARY

# The types that the tests of exactness go through one by one: one for each way in which attention differs.
FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "phi3",
    "gpt2",
    "gpt_neox",
    "mixtral",
    "olmo2",
    "gpt_oss",
    "deepseek_v3",
    "starcoder2",
)

# The spread of the weights, ten times wider than Transformers' default: attention is far from uniform, so that a wrong
# mask, position or merge moves the logits by 0.1 and more (with the default of 0.02 it moves them by 1e-4).
WIDTH = 0.2

# Sizes by value, since model types have many names for one thing.
_BY_VALUE: list[tuple[Any, str]] = [
    (VOCABULARY, "vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size"),
    (VOCABULARY, "pronunciation_vocab_size shape_vocab_size encoder_hash_byte_group_vocab"),
    (PAD, "pad_token_id"),
    (1, "bos_token_id decoder_start_token_id"),
    (2, "eos_token_id"),
    (None, "forced_eos_token_id"),
    # Widths of the residual stream and of the feed-forward layers.
    (32, "hidden_size d_model n_embd emb_dim embedding_size embedding_dim input_embedding_size output_embedding_size"),
    (32, "word_embed_proj_dim pronunciation_embed_dim shape_embed_dim attention_hidden_size lru_width"),
    (32, "hidden_size_global"),
    (8, "hidden_size_per_layer_input adapter_rank laurel_rank"),
    (48, "intermediate_size intermediate_size_mlp dense_intermediate_size shared_intermediate_size"),
    (48, "prefix_dense_intermediate_size feed_forward_size ffn_hidden_size ffn_dim dim_ff d_inner dff n_inner"),
    (48, "encoder_ffn_dim decoder_ffn_dim"),
    # Depths; a type with several kinds of layers gets as many layers as it takes to have one of each.
    (2, "num_hidden_layers n_layer n_layers num_layers"),
    (2, "encoder_layers decoder_layers num_encoder_layers num_decoder_layers"),
    # Heads.
    (4, "num_attention_heads n_head n_heads num_heads attention_heads swa_num_attention_heads"),
    (4, "encoder_attention_heads decoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads"),
    (2, "num_key_value_heads num_kv_heads kv_n_heads swa_num_key_value_heads"),
    (8, "head_dim swa_head_dim dim_head d_head attention_head_size kv_channels"),
    (4, "rotary_dim"),
    # Multi-head latent attention, and the indexers of sparse attention. They keep 16 tokens of a prompt. Eight heads,
    # since tokens that all heads score 0 tie, and which of them is kept then hangs on the layout of the batch.
    (16, "qk_nope_head_dim kv_lora_rank o_lora_rank"),
    (8, "qk_rope_head_dim"),
    (12, "v_head_dim"),
    (24, "q_lora_rank"),
    (8, "index_n_heads"),
    (16, "index_head_dim index_topk"),
    # Windows and chunks, in tokens: shorter than the tests' prompts, so that they generate past them.
    (12, "sliding_window sliding_window_size window_size attention_window_size local_attention_window_len"),
    (12, "keep_window_size"),
    (24, "local_attention"),  # on both sides of a token, so that it sees 12 before it
    (16, "attention_chunk_size"),
    (8, "chunk_size mamba_chunk_size block_size index_block_size local_attn_chunk_length lsh_attn_chunk_length"),
    # Experts.
    (4, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    (2, "num_experts_per_tok moe_top_k moe_topk moe_k zero_expert_num"),
    (1, "n_group topk_group first_k_dense_replace num_dense_layers"),
    (16, "moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size"),
    (16, "moe_shared_expert_intermediate_size expert_ffn_hidden_size router_hidden_size"),
    # State spaces and linear attention.
    (8, "state_size ssm_state_size mamba_d_state mamba_n_heads mamba_num_heads mamba_d_head mamba_head_dim"),
    (64, "mamba_d_ssm"),
    (4, "mamba_dt_rank time_step_rank"),
    (2, "n_groups"),
    (2, "linear_num_key_heads"),
    (4, "linear_num_value_heads linear_num_heads"),
    (8, "linear_key_head_dim linear_value_head_dim linear_head_dim"),
    (1.0, "w_init_variance_scale"),
    # Positions.
    (512, "max_position_embeddings max_target_positions n_positions n_ctx max_seq_len context_length"),
    # Logits as wide as the hidden states make them.
    (1.0, "logits_mup_width_multiplier"),
    (WIDTH, "initializer_range initializer_factor init_std embed_init_std embedding_initializer_range"),
    (0.0, "dropout attention_dropout activation_dropout hidden_dropout residual_dropout hidden_dropout_prob"),
    (0.0, "attention_probs_dropout_prob local_attention_probs_dropout_prob resid_pdrop embd_pdrop attn_pdrop"),
    (0.0, "summary_first_dropout summary_last_dropout classifier_dropout classifier_dropout_prob router_jitter_noise"),
    (True, "is_decoder"),  # what is an encoder by default
]
GENERIC: dict[str, Any] = {name: size for size, names in _BY_VALUE for name in names.split()}

# Each kind twice: what the last layer does to the tokens of a prompt is never read again.
_SLIDING_THEN_FULL: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
_FULL_THEN_SLIDING: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": ["full_attention", "sliding_attention"] * 2,
}
_CONV_THEN_FULL: dict[str, Any] = {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2}
_LINEAR_THEN_HYBRID = ["linear_attention", "hybrid", "hybrid"]  # the hybrid layers share their attention's weights

# Latent attention has as many heads of keys as of queries.
_LATENT: dict[str, Any] = {"num_key_value_heads": 4}

# Four layers of which the last two read the keys and values of the first two.
_SHARED_KV: dict[str, Any] = {**_SLIDING_THEN_FULL, "num_kv_shared_layers": 2}
_GEMMA4: dict[str, Any] = {**_SHARED_KV, "global_head_dim": 16}
_DOTS3_NOTE: dict[str, Any] = {
    **_LATENT,
    "head_dim": 24,
    "qk_nope_head_dim": 18,
    "qk_rope_head_dim": 6,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 24,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 24,
    "swa_qk_nope_head_dim": 18,
    "swa_v_head_dim": 12,
}
# From 16 tokens on, the layer without rotary embeddings scales its queries by their position.
_LLAMA4: dict[str, Any] = {"interleave_moe_layer_step": 2, "no_rope_layers": [1, 0, 1, 0], "floor_scale": 16}
# Of one codebook, so that a row of token ids is a prompt.
_MUSICGEN: dict[str, Any] = {"num_codebooks": 1, "decoder_start_token_id": 1}
_QWEN4_EXP: dict[str, Any] = {
    "indexer_n_heads": 8,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
    "hc_lowrank": 8,
    "ple_layer_ids": [1],
    "ple_embed_dim": 32,
    "heads_per_ngram": 2,
    "ngram_vocab_size_base": 64,
    "make_ngram_vocab_size_divisible_by": 8,
    "split_ngram_parts": 1,
}
# Rotary embeddings whose four frequencies (of heads of 8) are of three planes of positions.
_PLANES: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_BY_TWO: dict[str, Any] = {**_PLANES, "mrope_section": [1, 1, 2]}  # height and width by turns
_M_ROPE: dict[str, Any] = {"text_config": {"rope_parameters": _PLANES}}
_COHERE_COMPASS: dict[str, Any] = {
    **_SLIDING_THEN_FULL,
    "rope_parameters": {"sliding_attention": _PLANES, "full_attention": None},
}

SIZES: dict[str, dict[str, Any]] = {
    "axk1": _LATENT,
    "axk2": _LATENT,
    "bailing_hybrid": _LATENT,
    "bamba": {"num_hidden_layers": 3, "attn_layer_indices": [1]},
    "blt": {
        "num_hidden_layers": 2,  # of the cache, which asks the outermost configuration
        "encoder_hash_byte_group_size": [3, 4],
        "encoder_config": {"num_key_value_heads": 4},
        "decoder_config": {"num_key_value_heads": 4},
    },
    "cohere": {"logit_scale": 1.0},
    "cohere2": {"logit_scale": 1.0},
    "cohere2_moe": {"logit_scale": 1.0},
    "cohere_compass": {"text_config": _COHERE_COMPASS},
    "cohere_compass_text": _COHERE_COMPASS,
    "cosmos3_edge": _M_ROPE,
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "deepseek_v32": _LATENT,
    "deepseek_v4": {
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "heavily_compressed_attention", "compressed_sparse_attention"],
        "head_dim": 16,
        "o_groups": 2,
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
    },
    "doge": {"sliding_window": None},
    "dots1": {"n_shared_experts": 1, **_FULL_THEN_SLIDING},
    "dots3_note": _DOTS3_NOTE,
    "dots3_note_text": _DOTS3_NOTE,
    "dory": {
        **_SLIDING_THEN_FULL,
        "n_input_layers": 1,
        "n_recurrent_layers": 2,
        "n_output_layers": 1,
        "n_recurrent_loops": 3,
    },
    "ernie4_5_vl_moe": {"text_config": {"moe_intermediate_size": [16, 16], "rope_parameters": _BY_TWO}},
    "flint": {"mlp_only_layers": [0]},
    "fuyu": {"image_size": 16, "patch_size": 4},
    "gemma2": {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 0.5,  # low enough to bend the scores of such small heads
        # Transformers before 5.23 chooses sdpa for it, which leaves the softcap out.
        "attn_implementation": "eager",
    },
    "gemma3_text": {"head_dim": 16},
    "gemma3n_text": {**_SHARED_KV, "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0]},
    "gemma4": {"text_config": _GEMMA4},
    "gemma4_text": _GEMMA4,
    "gemma4_unified": {"text_config": _GEMMA4},
    "gemma4_unified_text": _GEMMA4,
    "glm46v": _M_ROPE,
    "glm4_moe_lite": _LATENT,
    "glm4v": _M_ROPE,
    # Half of a head is rotated.
    "glm4v_moe": {"text_config": {"rope_parameters": {**_PLANES, "mrope_section": [1, 1, 0]}}},
    "glm_moe_dsa": {**_LATENT, "num_hidden_layers": 3, "indexer_types": ["full", "full", "shared"]},
    "glm_ocr": _M_ROPE,
    "glmga": _M_ROPE,
    "got_ocr2": {
        "vision_config": {
            "image_size": 64,
            "output_channels": 8,
            "mlp_dim": 48,
            "window_size": 2,
            "global_attn_indexes": [1],
        }
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gpt_neox": {"rotary_pct": 0.5},
    "gpt_oss": {"head_dim": 16},
    "granitemoehybrid": {"num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention"] * 2},
    "hunyuan_vl": {"text_config": {"rope_parameters": {**_PLANES, "mrope_section": [1, 1, 1, 1]}}},
    "inkling2_loop_text": {
        "num_hidden_layers": 4,
        "n_layers_per_attn_res_block": 1,
        "log_scaling_n_floor": 16,
        "loop_layer_index_start": 1,
        "loop_layer_index_end": 3,
        "loop_num_passes": 3,
        "loop_gate_rank": 8,
    },
    "inkling2_text": {"n_layers_per_attn_res_block": 1, "log_scaling_n_floor": 16},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {**_LATENT, "q_lora_rank": None},
    "kosmos-2.5": {"text_config": {"layers": 2, "embed_dim": 32}},
    "laguna": {**_FULL_THEN_SLIDING, "num_attention_heads_per_layer": [4, 2] * 2},
    "lfm2": {**_CONV_THEN_FULL, "block_multiple_of": 16},
    "lfm2_moe": _CONV_THEN_FULL,
    "llama4": _LLAMA4,
    "llama4_text": _LLAMA4,
    "longcat_flash": _LATENT,
    "mamba2": {"num_heads": 8},
    "mellum": _SLIDING_THEN_FULL,
    "minicpm3": _LATENT,
    "minimax": {"sliding_window": None},
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse"],
        "mlp_layer_types": ["dense", "sparse"],
        "index_n_heads": 2,
        "index_topk_blocks": 2,
    },
    "ministral": {"num_hidden_layers": 3},  # windows alone: it takes three to see a prompt of 30 tokens
    "ministral3": {"sliding_window": None},
    "mixtral": {"sliding_window": None},
    "mllama": {"num_hidden_layers": 3, "cross_attention_layers": [1]},
    "mpt": {"use_cache": True, "attn_config": {"attn_pdrop": 0}},  # an integer to its class
    "musicgen": _MUSICGEN,
    "musicgen_melody": _MUSICGEN,
    "phi3": {"sliding_window": None},
    "phi4_multimodal": {
        "num_hidden_layers": 3,
        "vision_config": {"image_size": 28, "crop_size": 28},
        "audio_config": {
            "num_blocks": 2,
            "ext_pw_out_channel": 32,
            "depthwise_separable_out_channel": 32,
            "nemo_conv_channels": 8,
            "bias_max_distance": 16,
        },
    },
    "phimoe": {"num_hidden_layers": 3},
    "paddleocr_vl": _M_ROPE,
    "qwen2_5_omni_thinker": {**_M_ROPE, "vision_start_token_id": 92},
    "qwen2_5_vl": _M_ROPE,
    "qwen2_vl": {**_M_ROPE, "vision_config": {"depth": 1, "embed_dim": 16}},
    "qwen3": {"head_dim": 16},
    "qwen3_omni_moe_thinker": {
        "text_config": {"rope_parameters": _PLANES, "sliding_window": None},
        "vision_start_token_id": 92,
    },
    "qwen3_vl": _M_ROPE,
    "qwen3_vl_moe": _M_ROPE,
    "qwen4_exp": _QWEN4_EXP,
    "qwen4_exp_text": _QWEN4_EXP,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {
        "num_hidden_layers": 2,
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [16, 32],
        "axial_pos_embds_dim": [8, 24],
        "hash_seed": 0,  # else each forward hashes anew
    },
    "sarvam_mla": _LATENT,
    "smollm3": {"no_rope_layer_interval": 2},
    "xlm": {"mask_token_id": 5},  # its default is this vocabulary's padding
    "xlstm": {  # a hidden size under 64 breaks its cache
        "hidden_size": 64,
        "embedding_dim": 64,
        "qk_dim_factor": 1.0,
        "autocast_kernel_dtype": "float32",
    },
    "xmod": {"default_language": "en_XX"},
    "youtu": _LATENT,
    "zamba": {
        "num_hidden_layers": 3,
        "layers_block_type": _LINEAR_THEN_HYBRID,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
    },
    "vaultgemma": {"attn_implementation": "eager"},  # as for gemma2
    "zamba2": {"num_hidden_layers": 3, "layers_block_type": _LINEAR_THEN_HYBRID},
    "zaya": {"num_experts_per_tok": 1, "layer_types": ["hybrid", "hybrid_sliding"] * 2, "num_hidden_layers": 4},
}

_DRAFTER = "a target model: it drafts from the target's hidden states, keys and values, and cannot generate alone"
UNBUILDABLE: dict[str, str] = {
    "gemma3n": "the packages timm and pillow: its vision tower is timm's",
    "gemma4_assistant": _DRAFTER,
    "gemma4_unified_assistant": _DRAFTER,
}
