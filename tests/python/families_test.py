#!/usr/bin/env python3
"""A tiny model of every family: generate, GPTQ, AWQ and SparseGPT, checkpoint, export, and back into transformers; the same
hashes from one rank and from four."""
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

PRUNED = [word for setting in ["name=sparsegpt", "bits=16", "sparsity=0.5", "act_order=none"]
          for word in ("--set", f"method.{setting}")] + ["--set", "export=[dense]"]

JOINT = [word for setting in ["name=sparsegpt", "bits=4", "pattern=2:4", "act_order=none", "group_size=16"]
         for word in ("--set", f"method.{setting}")]

# AWQ moves scales through norms and layers: a wrong pair would change far more than 8 bits do. For each kind of pair
# a family: Llama's; norms with an offset, and norms behind the parts; biases, and a plain MLP with relu; one norm for
# attention and MLP; norms of q and k; fused q, k and v, two norms of one input.
SCALED_FAMILIES = ["llama3", "gemma", "gemma2", "opt", "opt-untied", "phi", "qwen3", "neox"]
SCALED = [word for setting in ["name=awq", "bits=8", "symmetric=false", "act_order=none"]
          for word in ("--set", f"method.{setting}")] + ["--set", "export=[dense]"]

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

    def compress(self, name, run, *settings):
        """The export folder of a job that came out the same from one rank and from four."""
        (self.folder / "config.yaml").write_text(CONFIG.format(model=MODELS / name))
        for ranks in (1, 4):
            self.selfcal("compress", "config.yaml", "--set", f"output={run}-{ranks}", *settings, ranks=ranks)
        hashes = self.hashes(f"{run}-1")
        self.assertGreater(len(hashes), 2)
        self.assertEqual(self.hashes(f"{run}-4"), hashes)
        return self.folder / f"{run}-1" / "jobs" / "default" / "export"

    def load_and_compare(self, name, folder, least=0.01, most=float("inf")):
        """transformers' model of a dense export, whose logits are ours, and are not the original's."""
        reference = load_file(MODELS / name / "reference.safetensors")
        tokens, dense = reference["input_ids"], reference["logits"]
        save_file({"input_ids": tokens}, self.folder / "in.safetensors")
        self.selfcal("logits", folder, "--tokens", "in.safetensors", "--out", "out.safetensors", "--dtype", "float32")
        ours = load_file(self.folder / "out.safetensors")["logits"]
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        with torch.no_grad():
            theirs = model(tokens).logits
        difference = ((ours - theirs).abs().max() / theirs.std()).item()
        changed = ((ours - dense).abs().max() / dense.std()).item()
        print(f"{name}: selfcal and transformers differ by {difference:.1e}, compressing changed {changed:.1e}")
        self.assertLess(difference, 1e-4)
        self.assertGreater(changed, least)
        self.assertLess(changed, most)
        return model, tokens

    def check_joint(self, name):
        """Pruned and quantised in one solve: transformers unpacks the weights that the dense export has, 2:4 and on a grid."""
        exports = self.compress(name, "joint", *JOINT)
        model, tokens = self.load_and_compare(name, exports / "dense")
        unpacked = unpacked_weights(exports / "compressed-tensors", tokens)
        for weight_name, weight in model.state_dict().items():
            self.assertTrue(torch.equal(unpacked[weight_name], weight), weight_name)
            if "_proj" in weight_name:
                self.assertTrue(((weight.view(-1, 4) != 0).sum(1) <= 2).all(), weight_name)
                groups = weight.view(-1, 16)
                self.assertLessEqual(max(len(group.unique()) for group in groups), 9)  # 8 of a group stay, and 0

    def check(self, name):
        exports = self.compress(name, "quantised")
        model, tokens = self.load_and_compare(name, exports / "dense")
        unpacked = unpacked_weights(exports / "compressed-tensors", tokens)
        for weight_name, weight in model.state_dict().items():
            self.assertTrue(torch.equal(unpacked[weight_name], weight), weight_name)

        if name == "llama3":
            self.check_joint(name)
        if name in SCALED_FAMILIES:
            exports = self.compress(name, "scaled", *SCALED)
            self.load_and_compare(name, exports / "dense", least=1e-4, most=0.5)

        exports = self.compress(name, "pruned", *PRUNED)
        model, _ = self.load_and_compare(name, exports / "dense")
        zeros = max((weight == 0).float().mean().item() for weight in model.state_dict().values() if weight.dim() == 2)
        self.assertAlmostEqual(zeros, 0.5, delta=0.02)


for family in FAMILIES:
    setattr(Families, "test_" + family.replace("-", "_"), lambda self, name=family: self.check(name))

if __name__ == "__main__":
    unittest.main(verbosity=2)
