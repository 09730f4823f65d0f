#!/usr/bin/env python3
"""A tiny model of every family: generate, GPTQ, checkpoint, export, and back into transformers; the same hashes from one
rank and from four."""
import os
import shutil
import sys
import tempfile
import unittest
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from selfcal_case import BINARY, ENVIRONMENT, Job  # noqa: E402

MODELS = Path(__file__).resolve().parents[1] / "data" / "models"
FAMILIES = ["llama3", "mistral", "gemma", "gemma2", "gemma3", "phi", "opt", "opt-350m", "opt-untied", "qwen2", "qwen3", "neox",
            "neox-serial"]
CONFIG = """\
model: {{path: {model}}}
output: run
threads: 1
calibration: {{source: self, sequences: 8, length: 32, micro_batch: 2, end_of_text: pack}}
method: {{name: gptq, bits: 4, group_size: -1, symmetric: true, act_order: static}}
export: [compressed-tensors, dense]
"""

torch.set_num_threads(1)


@torch.no_grad()
def unpacked_weights(folder, tokens):
    """Weights of a compressed-tensors export once transformers has unpacked them, in float32."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", quantization_config=CompressedTensorsConfig(run_compressed=False)).eval()
    if model.config.dtype == torch.float32:  # a head that was renamed keeps the dtype of its file
        model.float()
    model(tokens[:, :2])  # the first forward pass unpacks
    return {name: weight.float() for name, weight in model.state_dict().items()}


@unittest.skipUnless(BINARY.exists(), f"{BINARY} is not built")
class Families(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="selfcal-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def selfcal(self, *words, ranks=None):
        launcher = ["mpirun", "-n", ranks] if ranks else []
        code, out, err = Job([*launcher, BINARY, *words], self.folder, os.environ | ENVIRONMENT).result()
        self.assertEqual(code, 0, f"selfcal {words}\n{out}\n{err}")
        return out

    def hashes(self, run):
        return [line.replace(run, "") for line in self.selfcal("verify", run).splitlines()
                if "content hash" in line or " layer " in line]

    def check(self, name):
        (self.folder / "config.yaml").write_text(CONFIG.format(model=MODELS / name))
        for ranks in (1, 4):
            self.selfcal("compress", "config.yaml", "--set", f"output=run-{ranks}", ranks=ranks)
        hashes = self.hashes("run-1")
        self.assertGreater(len(hashes), 2)
        self.assertEqual(self.hashes("run-4"), hashes)

        exports = self.folder / "run-1" / "jobs" / "default" / "export"
        tokens = load_file(MODELS / name / "reference.safetensors")["input_ids"]
        save_file({"input_ids": tokens}, self.folder / "in.safetensors")
        self.selfcal("logits", exports / "dense", "--tokens", "in.safetensors", "--out", "out.safetensors",
                     "--dtype", "float32")
        ours = load_file(self.folder / "out.safetensors")["logits"]
        model = AutoModelForCausalLM.from_pretrained(exports / "dense", dtype=torch.float32,
                                                     attn_implementation="eager").eval()
        unpacked = unpacked_weights(exports / "compressed-tensors", tokens)
        for weight_name, weight in model.state_dict().items():
            self.assertTrue(torch.equal(unpacked[weight_name], weight), weight_name)
        with torch.no_grad():
            theirs = model(tokens).logits
        difference = ((ours - theirs).abs().max() / theirs.std()).item()
        dense = load_file(MODELS / name / "reference.safetensors")["logits"]
        changed = ((ours - dense).abs().max() / dense.std()).item()
        print(f"{name}: selfcal and transformers differ by {difference:.1e}, compressing changed {changed:.1e}")
        self.assertLess(difference, 1e-4)
        self.assertGreater(changed, 0.01)


for family in FAMILIES:
    setattr(Families, "test_" + family.replace("-", "_"), lambda self, name=family: self.check(name))

if __name__ == "__main__":
    unittest.main(verbosity=2)
