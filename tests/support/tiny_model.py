"""Writes a small random Llama as a Hugging Face directory, with nothing but Python's standard library."""
import array
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from tensor_file import write_tensors  # noqa: E402

SHAPE = {"hidden": 64, "intermediate": 96, "heads": 4, "kv_heads": 2, "vocabulary": 128, "layers": 6}


def bfloat16_bytes(values):
    """Cut float32 down to its upper half, which is a bf16."""
    return array.array("f", values).tobytes()[2::4], array.array("f", values).tobytes()[3::4]


def tensor(draw, shape, scale=None):
    """A bf16 tensor of normal numbers, or of ones where there is no scale."""
    count = shape[0] * (shape[1] if len(shape) > 1 else 1)
    low, high = bfloat16_bytes([draw.gauss(0.0, scale) if scale else 1.0 for _ in range(count)])
    raw = bytearray(2 * count)
    raw[0::2], raw[1::2] = low, high
    return "bfloat16", shape, bytes(raw)


def tensors(seed, hidden, intermediate, heads, kv_heads, vocabulary, layers):
    draw = random.Random(seed)
    inward = hidden ** -0.5
    kv = hidden // heads * kv_heads
    found = {"model.embed_tokens.weight": tensor(draw, (vocabulary, hidden), 1.0),
             "model.norm.weight": tensor(draw, (hidden,)),
             "lm_head.weight": tensor(draw, (vocabulary, hidden), inward)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        found |= {
            prefix + "input_layernorm.weight": tensor(draw, (hidden,)),
            prefix + "self_attn.q_proj.weight": tensor(draw, (hidden, hidden), inward),
            prefix + "self_attn.k_proj.weight": tensor(draw, (kv, hidden), inward),
            prefix + "self_attn.v_proj.weight": tensor(draw, (kv, hidden), inward),
            prefix + "self_attn.o_proj.weight": tensor(draw, (hidden, hidden), inward),
            prefix + "post_attention_layernorm.weight": tensor(draw, (hidden,)),
            prefix + "mlp.gate_proj.weight": tensor(draw, (intermediate, hidden), inward),
            prefix + "mlp.up_proj.weight": tensor(draw, (intermediate, hidden), inward),
            prefix + "mlp.down_proj.weight": tensor(draw, (hidden, intermediate), intermediate ** -0.5),
        }
    return found


def config(hidden, intermediate, heads, kv_heads, vocabulary, layers):
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
            "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocabulary,
            "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 256,
            "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2}


def write_tiny_model(folder, seed=0, **shape):
    """A model that a rank compresses in about a second; returns the folder. The same seed gives the same bytes."""
    folder = Path(folder)
    shape = SHAPE | shape
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "model.safetensors", tensors(seed, **shape), {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config(**shape), indent=2))
    return folder
