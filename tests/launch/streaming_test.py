#!/usr/bin/env python3
"""Memory while compressing is bounded by a block and its activations: a checkpoint larger than the address space that the
process may have goes through; the model as a whole, which sampling needs, does not fit there."""
import json
import random
import resource
import struct
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from selfcal_case import BINARY, SelfcalCase, Job  # noqa: E402
from tiny_model import config  # noqa: E402

SHAPE = {"hidden": 1024, "intermediate": 4096, "heads": 8, "kv_heads": 2, "vocabulary": 512, "layers": 34}
LIMIT = 900 << 20  # bytes of address space; about 600 MiB are the program's libraries

# Few layers are solved: what is shown is the way of the weights, and those that are skipped go the same way.
CONFIG = """\
model: {path: large}
output: run
threads: 1
calibration: {source: vocabulary, sequences: 2, length: 32, micro_batch: 1}
method: {name: gptq, bits: 4, group_size: 128}
skip: [lm_head, mlp, q_proj, o_proj]
export: []
"""


def shapes(hidden, intermediate, heads, kv_heads, vocabulary, layers):
    kv = hidden // heads * kv_heads
    yield from [("lm_head.weight", [vocabulary, hidden]), ("model.embed_tokens.weight", [vocabulary, hidden])]
    for layer in range(layers):
        for name, shape in [("input_layernorm", [hidden]), ("mlp.down_proj", [hidden, intermediate]),
                            ("mlp.gate_proj", [intermediate, hidden]), ("mlp.up_proj", [intermediate, hidden]),
                            ("post_attention_layernorm", [hidden]), ("self_attn.k_proj", [kv, hidden]),
                            ("self_attn.o_proj", [hidden, hidden]), ("self_attn.q_proj", [hidden, hidden]),
                            ("self_attn.v_proj", [kv, hidden])]:
            yield f"model.layers.{layer}.{name}.weight", shape
    yield "model.norm.weight", [hidden]


def count(shape):
    return shape[0] * (shape[1] if len(shape) > 1 else 1)


def write_large_model(folder):
    """Every matrix is a piece of the same random bf16 numbers of about 0.02; returns the bytes of the file."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config(**SHAPE)))
    header, offset = {}, 0
    for name, shape in shapes(**SHAPE):
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + 2 * count(shape)]}
        offset += 2 * count(shape)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pool = bytearray(random.Random(0).randbytes(2 * (1 << 22)))
    pool[1::2] = bytes(0x3C | (byte & 0x80) for byte in pool[1::2])  # +-[2^-7, 2^-5)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes(**SHAPE):
            ones = len(shape) == 1
            file.write(b"\x80\x3f" * count(shape) if ones else memoryview(pool)[:2 * count(shape)])
        return file.tell()


class Streaming(SelfcalCase):
    def limited(self, *words):
        return Job(["sh", "-c", f"ulimit -v {LIMIT >> 10}; exec \"$@\"", "sh", BINARY, *words], self.folder).result()

    def test_model_larger_than_memory(self):
        size = write_large_model(self.folder / "large")
        self.assertGreater(size, LIMIT + (64 << 20))
        (self.folder / "large.yaml").write_text(CONFIG)
        code, out, err = self.limited("compress", "large.yaml")
        self.assertEqual(code, 0, f"{out}\n{err}")
        layers = [line for line in self.succeed("verify", "run").splitlines() if " layer " in line]
        self.assertEqual(len(layers), SHAPE["layers"])
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
        print(f"a model of {size >> 20} MiB in {LIMIT >> 20} MiB of address space; largest resident size {peak} MiB")

        code, _, err = self.limited("compress", "large.yaml", *self.settings("sampled", calibration__source="self"))
        self.assertNotEqual(code, 0, "the whole model fits: the limit limits nothing")
        self.assertRegex(err, "selfcal: error: ")


if __name__ == "__main__":
    unittest.main(verbosity=2)
