#!/usr/bin/env python3
"""What jobs of one run share: a text, a dense forward and its statistics, factors, the dense model's losses."""
import array
import json
import signal
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from jobs_case import COMMON, LAYERS, JobsCase  # noqa: E402
from tensor_file import write_tensors  # noqa: E402

DENSE = COMMON.replace("act_order: static", "act_order: auto, propagation: dense") + """\
sweep:
  method:
    - {name: gptq}
    - {name: nearest}
    - {name: sparsegpt, pattern: 2:4}
    - {name: awq, symmetric: false}
    - {name: wanda, pattern: 2:4}
    - {name: awq, scale_loss: module}
"""
DENSE_METHODS = {"gptq": {"method__name": "gptq"}, "nearest": {"method__name": "nearest"},
                 "sparsegpt-2of4": {"method__name": "sparsegpt", "method__pattern": "2:4"},
                 "awq-asymmetric": {"method__name": "awq", "method__symmetric": "false"},
                 "wanda-2of4": {"method__name": "wanda", "method__pattern": "2:4"},
                 "awq-scale_loss-module": {"method__name": "awq", "method__scale_loss": "module"}}

PROPAGATIONS = COMMON + """\
sweep:
  method.propagation: [dense, sequential]
"""


class JobsSharing(JobsCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.write_configs(dense=DENSE, propagations=PROPAGATIONS)

    def test_jobs_of_one_calibration_sample_it_once(self):
        self.run_config("alone.yaml", "twice", sweep="{method.bits: [3, 4]}")
        self.assertEqual(len(list((self.folder / "twice/calibration").glob("*.h5"))), 1)
        self.assertEqual([self.report("twice", name)["tokens_sampled"] for name in ("b3", "b4")], [8 * 48, 0])
        self.assertEqual(self.job_hashes("twice")["b3"], self.expected["three"])

    def test_dense_methods_share_the_forward(self):
        expected = {}
        for name, values in DENSE_METHODS.items():
            self.run_config("alone.yaml", f"dense-{name}", name=name, method__act_order="auto",
                            method__propagation="dense", **values)
            expected |= self.job_hashes(f"dense-{name}")
        for ranks, shards in [(None, 1), (3, 1), (2, 2), (3, 2)]:
            with self.subTest(ranks=ranks, shards=shards):
                output = f"dense-{ranks}-{shards}"
                self.run_config("dense.yaml", output, ranks, layout__compressors__shards=shards)
                self.expect_hashes(output, expected)
                # One pass for the five that are solved with the dense block's statistics; AWQ's search by the outputs
                # of modules has its own.
                passes = [event["jobs"] for event in self.events(output, "statistics")]
                self.assertEqual(sorted(passes), [1] * (LAYERS // shards) + [5] * (LAYERS // shards))
                self.assertIn("shared by 6 jobs", self.report(output, "gptq")["shared"])
        alone = [event["jobs"] for event in self.events("dense-gptq", "statistics")]
        self.assertEqual(alone, [1] * LAYERS)
        self.assertEqual(self.report("dense-gptq", "gptq")["shared"], "")

    def test_a_block_of_awq_and_others_shares_the_statistics(self):
        """Where some layers of a block are not AWQ's, or have no scale, errors and factors are still those of alone."""
        settings = {"method__propagation": "dense", "method__act_order": "auto"}
        mixed = {"method__name": "awq", "overrides": "[{match: o_proj, method: gptq}, {match: v_proj, method: wanda, "
                                                     "sparsity: 0.5}]"}
        self.run_config("alone.yaml", "mixed-alone", name="mixed", **settings, **mixed)
        self.run_config("alone.yaml", "plain-alone", name="plain", **settings)
        expected = self.job_hashes("mixed-alone") | self.job_hashes("plain-alone")
        jobs = f"[{{name: plain}}, {{name: mixed, method: {{name: awq}}, overrides: {mixed['overrides']}}}]"
        for ranks in (None, 3):
            output = f"mixed-{ranks}"
            self.run_config("alone.yaml", output, ranks, jobs=jobs, layout__compressors__shards=1, **settings)
            self.expect_hashes(output, expected)
            self.assertEqual([event["jobs"] for event in self.events(output, "statistics")], [2] * LAYERS)
            for name in ("mixed", "plain"):
                self.assertEqual([layer["linears"] for layer in self.report(output, name)["layers"]],
                                 [layer["linears"] for layer in self.report(f"{name}-alone", name)["layers"]])

    def test_jobs_that_differ_in_propagation_are_reported_beside_each_other(self):
        """The losses do not depend on the ranks, are those of perplexity on the same text, and outlive a rerun."""
        losses = []
        for ranks, shards in [(None, 1), (2, 1), (3, 2)]:
            output = f"beside-{ranks}-{shards}"
            self.run_config("propagations.yaml", output, ranks, layout__compressors__shards=shards)
            mine = {name: self.report(output, name) for name in ("dense", "sequential")}
            losses.append({name: report["calibration_loss"] for name, report in mine.items()})
            for name, other in [("dense", "sequential"), ("sequential", "dense")]:
                beside = mine[name]["beside"]
                self.assertEqual((beside["job"], beside["propagation"]), (other, other))
                self.assertEqual(beside["calibration_loss"], mine[other]["calibration_loss"])
                self.assertEqual(beside["relative_error"], mine[other]["mean"]["relative_error"])
                self.assertEqual(len(beside["layers"]), LAYERS)
                page = (self.folder / output / f"jobs/{name}/report.html").read_text()
                self.assertIn(f"Beside {other} ({other} propagation)", page)
        self.assertEqual(losses[1:], losses[:1] * 2)
        self.assertEqual(losses[0]["dense"]["dense"], losses[0]["sequential"]["dense"])
        self.assertNotEqual(losses[0]["dense"]["compressed"], losses[0]["sequential"]["compressed"])
        self.assertEqual(losses[0]["dense"]["tokens"], 8 * 48)

        before = {path: path.stat().st_mtime_ns for path in (self.folder / "beside-2-1").rglob("report.*")}
        self.assertEqual(len(before), 4)
        self.run_config("propagations.yaml", "beside-2-1")
        self.assertEqual({path: path.stat().st_mtime_ns for path in before}, before)
        # A section that a stop between two reports has left out is put there.
        report = self.folder / "beside-2-1/jobs/dense/report.json"
        whole = report.read_text()
        report.write_text(json.dumps({key: value for key, value in json.loads(whole).items() if key != "beside"}))
        self.run_config("propagations.yaml", "beside-2-1")
        self.assertEqual(json.loads(report.read_text()), json.loads(whole))

    def test_the_loss_on_the_calibration_text_is_that_of_the_models(self):
        rows = [[(7 * row + token * token) % 128 for token in range(48)] for row in range(8)]
        for name, shape in {"rows": (8, 48), "text": (1, 8 * 48)}.items():
            write_tensors(self.folder / f"{name}.safetensors",
                          {"input_ids": ("int64", shape, array.array("q", sum(rows, [])).tobytes())})
        self.run_config("alone.yaml", "loss", 2, evaluate__calibration_loss="true", method__bits=3,
                        calibration__source="tokens", calibration__tokens="rows.safetensors")
        found = self.report("loss", "default")["calibration_loss"]
        for place, which in [("model", "dense"), ("loss", "compressed")]:
            out = self.succeed("evaluate", place, "--tokens", "text.safetensors", "--window", 48, "--stride", 48)
            self.assertAlmostEqual(json.loads(out)["loss"], found[which], places=4)
        self.assertGreater(abs(found["compressed"] - found["dense"]), 1e-3)
        self.assertNotIn("calibration_loss", self.report("alone-three", "three"))

    def test_a_factor_is_found_once_for_jobs_of_equal_settings(self):
        settings = {"method__propagation": "dense", "method__act_order": "none"}
        methods = {"three": {"method__bits": 3}, "four": {"method__bits": 4},
                   "pruned": {"method__name": "sparsegpt", "method__pattern": "2:4", "method__bits": "auto"},
                   "damped": {"method__bits": 4, "method__damping": 0.05}}
        jobs = ", ".join(
            f"{{name: {name}, method: {{" + ", ".join(f"{key.removeprefix('method__')}: '{value}'" for key, value in values.items())
            + "}}" for name, values in methods.items())
        expected = {}
        for name, values in methods.items():
            self.run_config("alone.yaml", f"factor-{name}", name=name, **settings, **values)
            expected |= self.job_hashes(f"factor-{name}")
        for ranks in (None, 3):
            output = f"factors-{ranks}"
            self.run_config("alone.yaml", output, ranks, jobs=f"[{jobs.replace(chr(39), '')}]", **settings)
            self.expect_hashes(output, expected)
            for name in methods:
                for layer in self.report(output, name)["layers"]:
                    found = layer["seconds"].get("factorise", 0) > 0
                    self.assertEqual(found, name in ("three", "damped"), (name, layer["layer"]))

    def test_shared_time_is_divided(self):
        self.run_config("dense.yaml", "time")
        reports = [self.report("time", name) for name in ("gptq", "nearest", "sparsegpt-2of4")]
        for layer in range(LAYERS):
            shares = [report["layers"][layer]["seconds"]["statistics"] for report in reports]
            self.assertAlmostEqual(shares[0], shares[1], places=9)
            self.assertAlmostEqual(shares[1], shares[2], places=9)

    def test_a_dense_sweep_goes_on_where_it_was(self):
        self.run_config("dense.yaml", "dense-whole")
        expected = self.job_hashes("dense-whole")
        job = self.start("compress", "dense.yaml", *self.settings("dense-killed", layout__compressors__shards=2), ranks=2)
        self.wait_for(lambda: len(self.layer_files("dense-killed")) >= 7, job, "7 layers")
        job.signal(signal.SIGKILL)
        job.result()
        self.run_config("dense.yaml", "dense-killed", 3)
        self.expect_hashes("dense-killed", expected)


if __name__ == "__main__":
    unittest.main(verbosity=2)
