"""Compress a model with llm-compressor on given tokens: GPTQ (4 or 3 bits, groups of 64, symmetric), SparseGPT or Wanda 2:4,
or SparseGPT 2:4 and then GPTQ with 4 bits.

usage: peer_compress.py METHOD MODEL TOKENS.safetensors OUT THREADS     METHOD: gptq | gptq3 | sparsegpt | wanda | joint
prints one JSON line with the seconds of each phase
"""
import json
import sys
import time

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def recipe_of(method):
    if method == "joint":
        return [recipe_of("sparsegpt"), recipe_of("gptq")]
    if bits := {"gptq": 4, "gptq3": 3}.get(method):
        weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64, "actorder": None}
        return GPTQModifier(config_groups={"all": {"targets": ["Linear"], "weights": weights}}, ignore=["lm_head"])
    pruner = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}[method]
    return pruner(sparsity=0.5, mask_structure="2:4", targets=["Linear"], ignore=["re:.*lm_head"])


method, model_folder, tokens_file, out, threads = sys.argv[1:6]
torch.set_num_threads(int(threads))

started = time.time()
model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
tokens = load_file(tokens_file)["input_ids"]
rows = Dataset.from_dict({"input_ids": tokens.tolist(), "attention_mask": torch.ones_like(tokens).tolist()})
loaded = time.time()
oneshot(model=model, dataset=rows, recipe=recipe_of(method), max_seq_length=tokens.shape[1], num_calibration_samples=len(tokens),
        shuffle_calibration_samples=False)
compressed = time.time()
model.save_pretrained(out, save_compressed=method != "joint")
AutoTokenizer.from_pretrained(model_folder).save_pretrained(out)
print(json.dumps({"load": loaded - started, "compress": compressed - loaded, "save": time.time() - compressed}))
