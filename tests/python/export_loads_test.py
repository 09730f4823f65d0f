#!/usr/bin/env python3
"""transformers loads a compressed-tensors export, and finds in it the model that selfcal measured."""
import unittest

import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from demo_model_case import DemoModelCase, MODEL, logits_by_transformers, perplexity_by_transformers

CONFIG = """\
model: {{path: {model}}}
output: run
layout: {{mode: shared}}
calibration: {{source: tokens, tokens: calibration.safetensors, sequences: 4, length: 256}}
method: {{name: gptq, bits: {bits}, group_size: {group_size}, symmetric: {symmetric}, act_order: {act_order}}}
export: []
"""


def load_export(folder):
    """The weights are rounded to bf16 when they are unpacked, as selfcal rounds them; the arithmetic is float32."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=CompressedTensorsConfig(run_compressed=False)).float().eval()


class ExportLoads(DemoModelCase):
    def check(self, **method):
        name = "-".join(map(str, method.values()))
        run = f"run-{name}"
        self.save_tokens("calibration.safetensors", self.tokens[0, :1024].view(4, 256))
        (self.folder / f"{name}.yaml").write_text(CONFIG.format(model=MODEL, **method))
        self.selfcal("compress", f"{name}.yaml", "--set", f"output={run}")
        self.selfcal("export", run, "--format", "compressed-tensors", "--out", f"export-{name}")

        model = load_export(self.folder / f"export-{name}")
        text = self.tokens[:, 1024:1024 + 1300]
        ours, theirs = self.perplexity_by_selfcal(run, text), perplexity_by_transformers(model, text)
        print(f"{name}: perplexity by selfcal {ours:.4f}, by transformers from the export {theirs:.4f}")
        self.assertLess(abs(ours / theirs - 1), 5e-5)  # four digits, wherever a rounded fourth one would turn
        tokens = text[:, :128]
        self.selfcal("export", run, "--format", "dense", "--out", f"{run}-dense")
        self.assert_logits_agree(self.logits_by_selfcal(f"{run}-dense", tokens), logits_by_transformers(model, tokens), 1e-3)

    def test_symmetric_static_order(self):
        self.check(bits=4, group_size=64, symmetric="true", act_order="static")

    def test_asymmetric_whole_rows_8_bits(self):
        self.check(bits=8, group_size=-1, symmetric="false", act_order="none")


if __name__ == "__main__":
    unittest.main(verbosity=2)
