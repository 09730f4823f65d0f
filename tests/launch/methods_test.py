#!/usr/bin/env python3
"""Every method end to end on the tiny model: errors below the data-free control, exports, and jobs that go on."""
import json
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from selfcal_case import SelfcalCase  # noqa: E402

USAGE = 64
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

    def test_exports_of_any_number_of_ranks(self):
        """By the job's end, and by `export` alone or on several ranks."""
        def files(folder):
            return {path.name: path.read_bytes() for path in (self.folder / folder).iterdir()}

        formats = ("compressed-tensors", "gptq", "dense")
        for ranks in (None, 2, 3):
            output = f"exported-{ranks}"
            self.compress(output, ranks, method__act_order="auto", export=f"[{', '.join(formats)}]")
            for name in formats:
                exported = files(f"{output}/jobs/default/export/{name}")
                self.assertIn("model.safetensors", exported)
                self.assertEqual(exported, files(f"exported-None/jobs/default/export/{name}"), f"{name}, {ranks} ranks")
        for ranks in (None, 2, 4):
            self.succeed("export", "exported-2", "--format", "gptq", "--out", f"again-{ranks}", ranks=ranks)
            self.assertEqual(files(f"again-{ranks}"), files("exported-None/jobs/default/export/gptq"))
            code, _, err = self.selfcal("export", "exported-2", "--out", f"again-{ranks}", ranks=ranks)
            self.assertEqual((code, err.count("selfcal: error"), err.count("exists already")), (USAGE, 1, 1), err)
        left = [path.name for path in self.folder.iterdir() if path.name.startswith(".")]
        self.assertEqual(left, [])

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

    def test_awq_by_the_modules_outputs(self):
        settings = {"method__name": "awq", "method__act_order": "auto", "method__bits": 3, "calibration__sequences": 96}
        for loss in ("linear", "module"):
            self.compress(loss, method__scale_loss=loss, **settings)
            error, control = self.means(loss)
            self.assertLess(error, control)
        self.assertNotEqual(self.hashes("linear"), self.hashes("module"))
        expected = self.hashes("module")
        for layer in self.layer_files("module")[2:]:
            layer.unlink()
        self.compress("module", 3, method__scale_loss="module", **settings)
        self.assertEqual(self.hashes("module"), expected)

    def shares(self, output):
        """Share of zeros by layer, and which of them are of weighed linear layers."""
        return {layer["layer"]: [linear["sparsity"] for linear in layer["linears"] if "v_proj" not in linear["name"]]
                for layer in self.report(output)["layers"]}

    def test_blocks_with_outliers_keep_more(self):
        settings = {"method__name": "wanda", "method__act_order": "auto", "method__bits": "auto", "method__sparsity": 0.5,
                    "method__layer_sparsity": "owl", "method__owl__m": 3, "method__owl__lambda": 0.2, "export": "[dense]",
                    "overrides": "[{match: v_proj, sparsity: 0.25}]"}
        self.compress("owl", **settings)
        counts = json.loads((self.folder / "owl/jobs/default/outliers.json").read_text())["layers"]
        ratios = [layer["outliers"] / layer["entries"] for layer in counts]
        wanted = [layer["sparsity"] for layer in counts]
        self.assertGreater(max(ratios), min(ratios))
        self.assertAlmostEqual(max(wanted) - min(wanted), 0.4)
        self.assertAlmostEqual(sum(wanted) / len(wanted), 0.5)
        self.assertEqual(sorted(range(len(wanted)), key=lambda i: -wanted[i]), sorted(range(len(ratios)), key=ratios.__getitem__))
        for layer, shares in self.shares("owl").items():
            for share in shares:  # whole columns of a row
                self.assertAlmostEqual(share, wanted[layer], delta=1 / 32)
        for layer in self.report("owl")["layers"]:
            for linear in layer["linears"]:
                if "v_proj" in linear["name"]:
                    self.assertEqual(linear["sparsity"], 0.25)

        # Going on does not count again, but neither would it matter.
        expected, file = self.hashes("owl"), self.folder / "owl/jobs/default/outliers.json"
        kept = file.read_text()
        for damage in (lambda: None, file.unlink, lambda: file.write_text(kept[:100])):
            damage()
            for layer in self.layer_files("owl")[2:]:
                layer.unlink()
            self.compress("owl", 2, **settings)
            self.assertEqual(self.hashes("owl"), expected)
            self.assertEqual(file.read_text(), kept)

    def test_outliers_are_counted_once_for_all_jobs(self):
        self.compress("many", method__act_order="auto", method__bits="auto", method__sparsity=0.5, export="[]",
                      sweep="{method.name: [wanda, sparsegpt], method.layer_sparsity: [uniform, owl]}")
        log = (self.folder / "many/logs/rank-0000.jsonl").read_text()
        self.assertEqual(sum('"outliers"' in line and '"start"' in line for line in log.splitlines()), 1, log[:2000])
        counts = [(self.folder / f"many/jobs/{name}-owl/outliers.json").read_text() for name in ("wanda", "sparsegpt")]
        self.assertEqual(json.loads(counts[0])["layers"], json.loads(counts[1])["layers"])
        self.assertFalse((self.folder / "many/jobs/wanda-uniform/outliers.json").exists())

    def test_a_dynamic_order_is_exported_where_it_can_be(self):
        self.compress("dynamic", method__act_order="dynamic", export="[gptq]")
        for export_format in ("compressed-tensors", "awq"):
            code, _, err = self.selfcal("export", "dynamic", "--format", export_format, "--out", "refused-export")
            self.assertEqual(code, 78, err)
            self.assertIn("export gptq, gptq_v2 or dense", err)
            self.assertEqual(len(err.strip().splitlines()), 1, err)
            self.assertFalse((self.folder / "refused-export").exists())
        self.succeed("export", "dynamic", "--format", "gptq_v2", "--out", "dynamic-v2")

    def dataset(self, file, path):
        """The bytes of a dataset."""
        out = self.folder / "dataset.bin"
        subprocess.run(["h5dump", "-d", path, "-b", "FILE", "-o", out, file], check=True, capture_output=True)
        return out.read_bytes()

    def test_masks_of_the_checkpoint_say_what_went(self):
        """In model.h5: bit j of a row, low bits first, is 0 where weight j is 0, or its code that of 0; two of four."""
        for bits in (16, 4):
            output = f"pruned-{bits}"
            self.compress(output, 2, method__name="sparsegpt", method__pattern="2:4", method__bits=bits,
                          method__act_order="auto", method__static_groups="auto")
            checkpoint = self.folder / output / "jobs/default/model.h5"
            for layer, name in ((0, "self_attn.v_proj"), (3, "mlp.up_proj"), (5, "mlp.down_proj")):
                tensor = f"/model.layers.{layer}.{name}.weight"
                with self.subTest(bits=bits, tensor=tensor):
                    mask = self.dataset(checkpoint, f"{tensor}/mask")
                    kept = [byte >> bit & 1 for byte in mask for bit in range(8)]
                    if bits == 16:
                        weight = self.dataset(checkpoint, f"{tensor}/weight")  # bfloat16
                        zero = [not (low or high & 0x7f) for low, high in zip(weight[0::2], weight[1::2])]
                    else:  # symmetric
                        codes = self.dataset(checkpoint, f"{tensor}/codes")
                        zero = [code == 8 for byte in codes for code in (byte & 15, byte >> 4)]
                    self.assertEqual(len(kept), len(zero))  # columns are a multiple of 8
                    self.assertFalse([at for at, (stays, gone) in enumerate(zip(kept, zero)) if not stays and not gone])
                    self.assertEqual({sum(kept[at:at + 4]) for at in range(0, len(kept), 4)}, {2})
                    self.assertGreater(sum(zero), 0.5 * len(zero) - 1)
                    if bits == 16:  # nothing that stays is rounded to 0
                        self.assertEqual([not stays for stays in kept], zero)

    def test_gptq_version_2(self):
        self.compress("v2", method__symmetric="false", method__bits=4, export="[gptq_v2]")
        config = json.loads((self.folder / "v2/jobs/default/export/gptq_v2/config.json").read_text())
        self.assertEqual(config["quantization_config"]["checkpoint_format"], "gptq_v2")

    def test_what_does_not_go_together_is_refused_at_once(self):
        for settings, text in [({"method__name": "wanda", "method__sparsity": 0.5, "method__act_order": "auto",
                                 "method__bits": "auto", "export": "[awq]"}, "no layer is quantised"),
                               ({"method__name": "sparsegpt", "method__pattern": "5:7", "method__act_order": "auto",
                                 "method__block_size": 7, "method__bits": 16}, "does not divide"),
                               ({"method__name": "sparsegpt", "method__pattern": "3:6", "method__act_order": "auto",
                                 "method__static_groups": "false", "method__block_size": 96},
                                "group_size is 16, expected a multiple of 6 (pattern is 3:6)"),
                               ({"export": "[awq]", "method__bits": 3}, "cannot hold the 3 bits"),
                               ({"export": "[compressed-tensors]", "method__act_order": "dynamic"},
                                "compressed-tensors, which cannot hold method.act_order dynamic; gptq, gptq_v2 and dense")]:
            code, _, err = self.selfcal("compress", "config.yaml", *self.settings("refused", **settings))
            self.assertEqual(code, 78, err)
            self.assertIn(text, err)
            self.assertEqual(len(err.strip().splitlines()), 1, err)


if __name__ == "__main__":
    unittest.main(verbosity=2)
