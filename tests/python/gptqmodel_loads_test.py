#!/usr/bin/env python3
"""GPTQModel, alone and under transformers, reads from gptq, gptq_v2 and awq exports the very weights of the dense export,
and computes with them what plain transformers computes with those."""
import contextlib
import io
import json
import os
import sys
import unittest
from pathlib import Path

# Before torch is imported: no kernel is compiled, nothing is looked up.
os.environ |= {"TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "",
               "GPTQMODEL_DISABLE_GIL_WARNING": "1"}

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS / "support"))
from selfcal_case import SelfcalCase  # noqa: E402

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM, AwqConfig, GPTQConfig  # noqa: E402

with contextlib.redirect_stderr(io.StringIO()):
    from gptqmodel import GPTQModel  # noqa: E402
    from gptqmodel.nn_modules.qlinear import BaseQuantLinear  # noqa: E402
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm  # noqa: E402

torch.set_num_threads(1)
TOKENS = torch.arange(3, 99).reshape(2, 48)


def write_tokenizer(folder, vocabulary):
    """GPTQModel does not load a model without a tokenizer."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, vocabulary)}
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "pad_token": "<unk>"}))


def by_gptqmodel(folder):
    """backend: its reference in PyTorch; left open it is chosen by the CPU, and may be compiled first."""
    return GPTQModel.load(str(folder), device="cpu", backend="torch", dtype=torch.bfloat16).model.eval()


def by_transformers(folder):
    method = json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"]
    chosen = AwqConfig(backend="torch_awq") if method == "awq" else GPTQConfig(bits=4, backend="torch")  # bits: the folder's
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="cpu",
                                                quantization_config=chosen).eval()


def quantised(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, BaseQuantLinear)}


def weight_of(module):
    """[outputs, inputs], as the module's own forward computes it."""
    if "Awq" in type(module).__name__:
        return dequantize_gemm(module.qweight, module.qzeros, module.scales, module.bits, module.group_size).t()
    return module.dequantize_weight().t()


@torch.no_grad()
def logits_of(model):
    return model(input_ids=TOKENS % model.config.vocab_size).logits.float()


def difference(ours, theirs):
    """The largest one, as a share of the logits' standard deviation."""
    return ((ours - theirs).abs().max() / theirs.std()).item()


def widen_all_but(model, kept):
    """float32, but for the quantised layers: a weight is rounded to bf16, as selfcal rounds it, then widened."""
    for module in model.modules():
        if module not in kept:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()


class GptqLoads(SelfcalCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        write_tokenizer(cls.folder / "model", 128)

    def export(self, run, form):
        folder = self.folder / f"{run}-{form}"
        if not folder.exists():
            self.succeed("export", run, "--format", form, "--out", folder)
        return folder

    def run_of(self, run, model="model", overrides="[]", **method):
        if not (self.folder / run).exists():
            self.compress(run, model__path=model, overrides=overrides,
                          **{f"method__{key}": value for key, value in method.items()})
        return run

    def check(self, form, load=by_gptqmodel, layers=42, **settings):
        name = "-".join({"overrides": "mixed", "model": "other"}.get(key, str(value)) for key, value in settings.items())
        run = self.run_of(name, **settings)
        dense_folder, folder = self.export(run, "dense"), self.export(run, form)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            model = load(folder)

        found = quantised(model)
        if layers:
            self.assertEqual(len(found), layers)
        dense = load_file(dense_folder / "model.safetensors")
        for layer, module in found.items():
            module.scales = module.scales.to(torch.bfloat16)  # as the model is; transformers leaves them float16
            self.assertTrue(torch.equal(weight_of(module), dense[f"{layer}.weight"]), layer)
        for tensor, parameter in model.named_parameters():
            if not tensor.endswith(".act.scales"):  # of NeoX: ones
                self.assertTrue(torch.equal(parameter, dense[tensor]), tensor)

        peer = AutoModelForCausalLM.from_pretrained(dense_folder, dtype=torch.bfloat16).eval()
        if form != "awq":  # its layers compute in 16 bits only
            widen_all_but(model, set(found.values()))
            peer.float()
        error = difference(logits_of(model), logits_of(peer))
        print(f"{form} {run} {load.__name__}: largest difference of the logits {error:.1e} of their standard deviation",
              flush=True)
        self.assertLess(error, 5e-2 if form == "awq" else 1e-5)

    def check_by_both(self, form, **settings):
        """Transformers at 4 bits only: it uses the same unpacking."""
        for load in (by_gptqmodel, by_transformers):
            if load is by_gptqmodel or settings["bits"] == 4:
                with self.subTest(load=load.__name__):
                    self.check(form, load, **settings)

    def test_gptq_symmetric(self):
        for bits, group_size, order in ((2, 32, "static"), (3, 16, "dynamic"), (4, 32, "dynamic"), (4, -1, "static"), (8, 32, "static")):
            with self.subTest(bits=bits, group_size=group_size, order=order):
                self.check_by_both("gptq", name="gptq", bits=bits, group_size=group_size, symmetric="true", act_order=order)

    def test_gptq_asymmetric(self):
        """GPTQModel itself refuses these of any maker but itself."""
        self.check("gptq", by_transformers, name="gptq", bits=4, group_size=32, symmetric="false", act_order="dynamic")
        with self.assertRaisesRegex(ValueError, "sym=False"), contextlib.redirect_stdout(io.StringIO()):
            by_gptqmodel(self.folder / "gptq-4-32-false-dynamic-gptq")

    def test_gptq_v2(self):
        for bits, symmetric, order in ((2, "true", "static"), (3, "false", "dynamic"), (4, "false", "dynamic"), (8, "false", "static")):
            with self.subTest(bits=bits, symmetric=symmetric, order=order):
                self.check_by_both("gptq_v2", name="gptq", bits=bits, group_size=32, symmetric=symmetric, act_order=order)

    def test_several_schemes(self):
        """Bits by layer and layers left out: `dynamic`, which transformers and optimum do not read."""
        overrides = "[{match: v_proj, bits: 8}, {match: down_proj, bits: 3}, {match: layers.5.*q_proj, skip: true}]"
        for form in ("gptq", "gptq_v2"):
            with self.subTest(form=form):
                self.check(form, layers=41, name="gptq", bits=4, group_size=32, symmetric="true", act_order="static",
                           overrides=overrides)

    def test_awq(self):
        for method, symmetric in (("awq", "false"), ("awq", "true"), ("gptq", "false")):
            with self.subTest(method=method, symmetric=symmetric):
                self.check_by_both("awq", name=method, bits=4, group_size=32, symmetric=symmetric,
                                   act_order="none" if method == "awq" else "static")

    def test_awq_whole_rows(self):
        self.check_by_both("awq", name="awq", bits=4, group_size=-1, symmetric="false", act_order="none")

    def test_awq_with_layers_left_out(self):
        for load in (by_gptqmodel, by_transformers):
            with self.subTest(load=load.__name__):
                self.check("awq", load, name="awq", bits=4, group_size=32, symmetric="false", act_order="none",
                           overrides="[{match: layers.5.*q_proj, skip: true}]", layers=41)

    def test_awq_of_neox(self):
        """Its readers put a scale into the activation. (Only this layer's outputs fill words in the small model.)"""
        self.check("awq", by_transformers, layers=None, model=TESTS / "data" / "models" / "neox-serial", name="awq", bits=4,
                   group_size=-1, symmetric="false", act_order="none",
                   overrides="[{match: attention, skip: true}, {match: dense_4h_to_h, skip: true}]")


if __name__ == "__main__":
    unittest.main(verbosity=2)
