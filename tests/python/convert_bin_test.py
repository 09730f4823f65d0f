#!/usr/bin/env python3
"""tools/convert_bin gives the tensors that torch reads, and refuses what is not a dictionary of tensors."""
import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import torch
from safetensors.torch import load_file

TOOL = Path(__file__).resolve().parents[2] / "tools" / "convert_bin"


def convert(folder):
    return subprocess.run([sys.executable, TOOL, folder], capture_output=True, text=True)


def tensors():
    matrix = torch.randn(8, 6)
    return {"bf16": torch.randn(4, 5).bfloat16(), "half": torch.nn.Parameter(torch.randn(3).half()),
            "matrix": matrix, "tied": matrix, "transposed": matrix.t(), "part": matrix[2:4, 1:3],
            "long": torch.arange(5), "scalar": torch.tensor(2.5), "empty": torch.empty(0, 3),
            "bool": torch.tensor([True, False])}


class ConvertBin(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def assert_equal(self, found, expected):
        self.assertEqual(found.keys(), expected.keys())
        for name, tensor in expected.items():
            self.assertEqual(found[name].dtype, tensor.dtype, name)
            self.assertTrue(torch.equal(found[name], tensor.data), name)

    def test_one_file(self):
        torch.save(tensors(), self.folder / "pytorch_model.bin")
        self.assertEqual(convert(self.folder).returncode, 0)
        self.assert_equal(load_file(self.folder / "model.safetensors"),
                          torch.load(self.folder / "pytorch_model.bin", weights_only=False))

    def test_shards(self):
        shards = {"pytorch_model-1.bin": {"a": torch.ones(2)}, "pytorch_model-2.bin": {"b": torch.zeros(3)}}
        for name, shard in shards.items():
            torch.save(shard, self.folder / name)
        (self.folder / "pytorch_model.bin.index.json").write_text(json.dumps(
            {"metadata": {"total_size": 20}, "weight_map": {t: n for n, shard in shards.items() for t in shard}}))
        self.assertEqual(convert(self.folder).returncode, 0)
        index = json.loads((self.folder / "model.safetensors.index.json").read_text())["weight_map"]
        for shard in shards.values():
            for name, tensor in shard.items():
                self.assertTrue(torch.equal(load_file(self.folder / index[name])[name], tensor))

    def test_code_in_the_pickle_is_not_run(self):
        class Attack:
            def __reduce__(self):
                return os.mkdir, (str(self.folder),)

        attack = Attack()
        attack.folder = self.folder / "made-by-the-pickle"
        torch.save({"weight": attack}, self.folder / "pytorch_model.bin")
        result = convert(self.folder)
        self.assertEqual(result.returncode, 1)
        self.assertIn("mkdir", result.stderr)
        self.assertFalse(attack.folder.exists())

    def test_no_model(self):
        result = convert(self.folder)
        self.assertEqual(result.returncode, 1)
        self.assertEqual(len(result.stderr.splitlines()), 1)


if __name__ == "__main__":
    unittest.main(verbosity=2)
