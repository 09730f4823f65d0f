#!/usr/bin/env python3
"""Every method end to end on the tiny model: errors below the data-free control, exports, and jobs that go on."""
import json
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from selfcal_case import SelfcalCase  # noqa: E402

MIXED = ('[{match: mlp, method: sparsegpt, pattern: "2:4", bits: 4}, {match: v_proj, method: gptq, bits: 8}, '
         '{match: o_proj, method: wanda, sparsity: 0.25, bits: 16}, {match: layers.5.*q_proj, skip: true}]')


class Methods(SelfcalCase):
    def report(self, output):
        return json.loads((self.folder / output / "jobs/default/report.json").read_text())

    def means(self, output):
        """(error, error of the control), means over all layers."""
        mean = self.report(output)["mean"]
        return mean["relative_error"], mean["nearest_error"]

    def test_each_is_better_than_its_control(self):
        for name, settings in {"gptq": {}, "awq": {"bits": 3, "symmetric": "false"},
                               "sparsegpt": {"pattern": "2:4", "bits": "auto"}, "wanda": {"sparsity": 0.5, "bits": "auto"}
                               }.items():
            with self.subTest(method=name):
                self.compress(name, method__name=name, method__act_order="auto",
                              **{f"method__{key}": value for key, value in settings.items()})
                error, control = self.means(name)
                self.assertLess(error, control)

    def test_mixed_methods_in_one_model(self):
        self.compress("mixed", method__act_order="auto", overrides=MIXED, export="[compressed-tensors, gptq, dense]")
        bits = {linear["name"]: linear["bits"] for layer in self.report("mixed")["layers"] for linear in layer["linears"]}
        self.assertEqual(bits["model.layers.0.mlp.up_proj"], 4)
        self.assertEqual(bits["model.layers.0.self_attn.v_proj"], 8)
        self.assertEqual(bits["model.layers.0.self_attn.o_proj"], 0)
        self.assertNotIn("model.layers.5.self_attn.q_proj", bits)
        config = json.loads((self.folder / "mixed/jobs/default/export/gptq/config.json").read_text())
        self.assertEqual(config["quantization_config"]["dynamic"]["+:^model\\.layers\\.0\\.self_attn\\.v_proj$"]["bits"], 8)
        self.succeed("verify", "mixed")

    def test_awq_goes_on_where_it_was(self):
        for propagation in ("sequential", "dense"):
            with self.subTest(propagation=propagation):
                output = f"awq-{propagation}"
                settings = {"method__name": "awq", "method__act_order": "auto", "method__propagation": propagation,
                            "export": "[awq]"}
                self.compress(output, **settings)
                expected = self.hashes(output)
                for layer in self.layer_files(output)[3:]:
                    layer.unlink()
                self.compress(output, **settings)
                self.assertEqual(self.hashes(output), expected)

    def test_what_does_not_go_together_is_refused_at_once(self):
        for settings, text in [({"method__name": "wanda", "method__sparsity": 0.5, "method__act_order": "auto",
                                 "method__bits": "auto", "export": "[awq]"}, "no layer is quantised"),
                               ({"method__name": "sparsegpt", "method__pattern": "5:7", "method__act_order": "auto",
                                 "method__block_size": 7}, "does not divide"),
                               ({"export": "[awq]", "method__bits": 3}, "cannot hold the 3 bits")]:
            code, _, err = self.selfcal("compress", "config.yaml", *self.settings("refused", **settings))
            self.assertEqual(code, 78, err)
            self.assertIn(text, err)
            self.assertEqual(len(err.strip().splitlines()), 1, err)


if __name__ == "__main__":
    unittest.main(verbosity=2)
