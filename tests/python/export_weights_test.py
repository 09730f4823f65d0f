#!/usr/bin/env python3
"""transformers unpacks every form of compressed-tensors export into the very bits that the dense export holds.

The cases (symmetric, asymmetric at 3 bits, whole rows at 8 bits, several schemes in one model, 5 to 7 bits,
pruned and quantised) are made by the C++ test
binary export_test, in all dtypes."""
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

BINARY = os.environ["EXPORT_TEST_BINARY"]


def tensors_of(directory):
    tensors = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as content:
            tensors.update({name: content.get_tensor(name) for name in content.keys()})
    return tensors


class ExportWeights(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.keeper = tempfile.TemporaryDirectory()
        cls.folder = Path(cls.keeper.name)
        subprocess.run([BINARY, "--gtest_brief=1"], check=True, env=os.environ | {"SELFCAL_KEEP_EXPORTS": str(cls.folder)})

    @classmethod
    def tearDownClass(cls):
        cls.keeper.cleanup()

    def check(self, case):
        expected = tensors_of(self.folder / case / "dense")
        dense = AutoModelForCausalLM.from_pretrained(self.folder / case / "dense", dtype="auto")
        packed = AutoModelForCausalLM.from_pretrained(self.folder / case / "packed", dtype="auto")
        tokens = torch.arange(24).reshape(2, 12)
        with torch.no_grad():  # the first forward pass unpacks
            self.assertTrue(torch.equal(packed(input_ids=tokens).logits, dense(input_ids=tokens).logits))
        loaded = packed.state_dict()
        for name, tensor in expected.items():
            self.assertEqual(loaded[name].dtype, tensor.dtype, name)
            self.assertTrue(torch.equal(loaded[name], tensor), name)

    def test_symmetric_with_tied_head(self):
        self.check("symmetric")

    def test_asymmetric_3_bits_float16(self):
        self.check("asymmetric")

    def test_whole_rows_8_bits_float32(self):
        self.check("whole_rows")

    def test_several_schemes(self):
        self.check("mixed")

    def test_5_6_and_7_bits(self):
        self.check("odd_bits")

    def test_pruned_and_quantised(self):
        self.check("joint")


if __name__ == "__main__":
    unittest.main(verbosity=2)
