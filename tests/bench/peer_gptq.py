"""Compress a model with llm-compressor's GPTQ (4 bits, groups of 64, symmetric) on given tokens.

usage: peer_gptq.py MODEL TOKENS.safetensors OUT THREADS     prints one JSON line with the seconds of each phase
"""
import json
import sys
import time

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

model_folder, tokens_file, out, threads = sys.argv[1:5]
torch.set_num_threads(int(threads))

started = time.time()
model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
tokens = load_file(tokens_file)["input_ids"]
rows = Dataset.from_dict({"input_ids": tokens.tolist(), "attention_mask": torch.ones_like(tokens).tolist()})
loaded = time.time()
weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64, "actorder": None}
recipe = GPTQModifier(config_groups={"all": {"targets": ["Linear"], "weights": weights}}, ignore=["lm_head"])
oneshot(model=model, dataset=rows, recipe=recipe, max_seq_length=tokens.shape[1], num_calibration_samples=len(tokens),
        shuffle_calibration_samples=False)
compressed = time.time()
model.save_pretrained(out, save_compressed=True)
AutoTokenizer.from_pretrained(model_folder).save_pretrained(out)
print(json.dumps({"load": loaded - started, "compress": compressed - loaded, "save": time.time() - compressed}))
