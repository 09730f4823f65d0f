"""What the tests share that hold selfcal against transformers, on the demo model."""
import json
import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

REPOSITORY = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("SELFCAL_BINARY", REPOSITORY / "build" / "selfcal"))
MODEL = Path(os.environ.get("SELFCAL_DEMO_MODEL", REPOSITORY / "models" / "smollm2-135m"))
TEXT = REPOSITORY / "tests" / "data" / "text" / "time_machine.txt"
WINDOW = 512

torch.set_num_threads(2)


class DemoModelCase(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        for needed in (BINARY, MODEL / "config.json"):
            if not needed.exists():
                raise unittest.SkipTest(f"{needed} is missing; run launch/setup")
        cls.folder = Path(tempfile.mkdtemp(prefix="selfcal-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        cls.tokens = AutoTokenizer.from_pretrained(MODEL)(TEXT.read_text(), return_tensors="pt").input_ids

    def selfcal(self, *arguments):
        environment = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        result = subprocess.run([BINARY, *map(str, arguments)], cwd=self.folder, env=environment, text=True,
                                capture_output=True, timeout=300)
        self.assertEqual(result.returncode, 0, f"selfcal {arguments}\n{result.stdout}\n{result.stderr}")
        return result.stdout

    def save_tokens(self, name, tokens):
        save_file({"input_ids": tokens.contiguous()}, self.folder / name)
        return name

    def logits_by_selfcal(self, model, tokens):
        """float32 [batch, tokens, vocabulary], computed in float32."""
        self.save_tokens("in.safetensors", tokens)
        self.selfcal("logits", model, "--tokens", "in.safetensors", "--out", "out.safetensors", "--dtype", "float32")
        return load_file(self.folder / "out.safetensors")["logits"]

    def perplexity_by_selfcal(self, model, tokens):
        self.save_tokens("text.safetensors", tokens)
        out = self.selfcal("evaluate", model, "--tokens", "text.safetensors", "--window", WINDOW, "--stride", WINDOW,
                           "--dtype", "float32")
        return json.loads(out)["perplexity"]

    def assert_logits_agree(self, ours, theirs, tolerance):
        """The largest difference, as a share of the logits' standard deviation."""
        self.assertEqual(ours.shape, theirs.shape)
        difference = ((ours - theirs).abs().max() / theirs.std()).item()
        self.assertLessEqual(difference, tolerance)
        print(f"largest difference of the logits: {difference:.1e} of their standard deviation")


def load_dense(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def logits_by_transformers(model, tokens):
    return model(tokens).logits


@torch.no_grad()
def perplexity_by_transformers(model, tokens):
    """Over windows that do not overlap; the last, shorter one counts too."""
    loss, count = 0.0, 0
    for window in tokens[0].split(WINDOW):
        if len(window) > 1:
            loss += model(window[None], labels=window[None]).loss.double().item() * (len(window) - 1)
            count += len(window) - 1
    return float(torch.tensor(loss / count, dtype=torch.float64).exp())
