"""Perplexity by transformers in float32, over windows of a text that do not overlap.

usage: perplexity.py MODEL TEXT WINDOWS LENGTH THREADS       prints one JSON line
"""
import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig

folder, text = sys.argv[1:3]
windows, length, threads = map(int, sys.argv[3:6])
torch.set_num_threads(threads)

config = json.load(open(f"{folder}/config.json"))
how = {"quantization_config": CompressedTensorsConfig(run_compressed=False)} if "quantization_config" in config else {}
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", **how).float().eval()
tokens = AutoTokenizer.from_pretrained(folder)(open(text, encoding="utf-8").read(), return_tensors="pt").input_ids[0]
loss = 0.0
with torch.no_grad():
    for window in tokens[:windows * length].view(windows, 1, length):
        loss += model(window, labels=window).loss.double().item()
print(json.dumps({"perplexity": float(torch.tensor(loss / windows, dtype=torch.float64).exp())}))
