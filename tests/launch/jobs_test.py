#!/usr/bin/env python3
"""Many jobs in one run give what each gives alone: in a wavefront through shards, after kills, and beside jobs that fail."""
import signal
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from jobs_case import ALONE, COMMON, SEQUENTIAL, JobsCase  # noqa: E402
from tiny_model import write_tiny_model  # noqa: E402
from bad_input_test import nan_weight, rewrite_tensor  # noqa: E402

STOPPED, DATA, BAD_CONFIG = 75, 65, 78


class Jobs(JobsCase):
    def test_a_list_gives_what_each_job_gives_alone(self):
        for ranks, shards in [(None, 1), (2, 1), (2, 2), (3, 2), (3, 3), (4, 2)]:
            with self.subTest(ranks=ranks, shards=shards):
                output = f"list-{ranks}-{shards}"
                self.run_config("jobs.yaml", output, ranks, layout__compressors__shards=shards)
                self.expect_hashes(output, self.expected)
                self.assertEqual(set(self.states(output).values()), {"done"})
                self.assertEqual(len(list((self.folder / output / "calibration").glob("*.h5"))), 3)

    def test_a_rerun_changes_nothing(self):
        self.run_config("jobs.yaml", "again", 2)
        files = [path for path in (self.folder / "again").rglob("*.h5")] + [self.folder / "again/jobs/hot/report.json"]
        before = {path: path.stat().st_mtime_ns for path in files}
        self.run_config("jobs.yaml", "again")
        self.assertEqual({path: path.stat().st_mtime_ns for path in files}, before)
        self.assertEqual(set(self.states("again").values()), {"done"})
        code, _, err = self.selfcal("compress", "jobs.yaml", *self.settings("again", method__group_size=32))
        self.assertEqual(code, BAD_CONFIG, err)
        self.assertIn("is of another config", err)

    def test_killed_and_continued_on_another_number_of_ranks(self):
        for done, (ranks, shards), (ranks_after, shards_after) in [(2, (2, 2), (3, 1)), (8, (3, 2), (None, 1)),
                                                                   (11, (1, 1), (3, 3)), (14, (4, 2), (2, 2))]:
            with self.subTest(done=done, ranks=ranks, after=ranks_after):
                output = f"killed-{done}"
                job = self.start("compress", "jobs.yaml",
                                 *self.settings(output, layout__compressors__shards=shards), ranks=ranks)
                self.wait_for(lambda: len(self.layer_files(output)) >= done, job, f"{done} layers")
                job.signal(signal.SIGKILL)
                job.result()
                before = {path: path.stat().st_mtime_ns for path in self.layer_files(output)}
                self.run_config("jobs.yaml", output, ranks_after, layout__compressors__shards=shards_after)
                for path, time in before.items():
                    self.assertEqual(path.stat().st_mtime_ns, time, f"{path} was written again")
                self.expect_hashes(output, self.expected)

    def test_a_signal_stops_the_list_with_a_checkpoint(self):
        for ranks, shards in [(1, 1), (2, 1), (2, 2)]:
            with self.subTest(ranks=ranks, shards=shards):
                output = f"stopped-{ranks}-{shards}"
                job = self.start("compress", "jobs.yaml",
                                 *self.settings(output, layout__compressors__shards=shards), ranks=ranks)
                self.wait_for(lambda: len(self.layer_files(output)) >= 7, job, "7 layers")
                job.signal(signal.SIGUSR1, to_all=False)
                code, _, err = job.result(limit=60)
                self.assertEqual(code, STOPPED, err)
                self.assertIn("waiting", set(self.states(output).values()))
                self.run_config("jobs.yaml", output)
                self.expect_hashes(output, self.expected)

    def test_a_job_that_fails_does_not_stop_the_rest(self):
        """A NaN in a layer of the second shard, found when the layer is solved."""
        write_tiny_model(self.folder / "bad-model")
        weight, good = "model.layers.4.mlp.down_proj.weight", []
        rewrite_tensor(self.folder / "bad-model", weight, lambda entry, raw: good.append(raw) or nan_weight(entry, raw))
        tokens = sorted((self.folder / "alone-three/calibration").glob("*.h5"))[0]
        (self.folder / "bad.yaml").write_text(COMMON.replace("source: self", f"source: tokens, tokens: {tokens}") + """\
jobs:
  - {name: first}
  - {name: bad, model: {path: bad-model}}
  - {name: last, method: {bits: 3}}
""")
        expected = None
        for ranks, shards in [(None, 1), (2, 1), (2, 2), (3, 3)]:
            with self.subTest(ranks=ranks, shards=shards):
                output = f"bad-{ranks}-{shards}"
                code, out, err = self.selfcal("compress", "bad.yaml",
                                              *self.settings(output, layout__compressors__shards=shards), ranks=ranks)
                self.assertEqual(code, DATA, err)
                self.assertIn("1 of 3 jobs failed; the first, bad: ", err)
                self.assertIn(weight, err)
                self.assertEqual(self.states(output), {"first": "done", "bad": "failed", "last": "done"})
                entry = self.queue(output)["bad"]
                self.assertEqual(entry["code"], DATA)
                self.assertIn(weight, entry["error"])
                self.assertFalse((self.folder / output / "jobs/bad/model.h5").exists())
                self.assertIn("2 done, 1 failed", self.succeed("verify", output))
                hashes = self.job_hashes(output)
                hashes.pop("bad", None)
                expected = expected or hashes
                self.assertEqual(hashes, expected)
        self.assertEqual(set(expected), {"first", "last"})
        # Once the model is repaired the job that failed is all that is left to do.
        rewrite_tensor(self.folder / "bad-model", weight, lambda entry, raw: good[0])
        before = {path: path.stat().st_mtime_ns for path in self.layer_files("bad-2-2")}
        self.run_config("bad.yaml", "bad-2-2", 2)
        self.assertEqual(set(self.states("bad-2-2").values()), {"done"})
        self.assertEqual({path: path.stat().st_mtime_ns for path in before}, before)

    def test_a_job_that_fails_before_its_leaves_are_taken_leaves_the_others(self):
        """A NaN in what a later shard reads first: the leaves of the job are still on their way to it."""
        tokens = sorted((self.folder / "alone-three/calibration").glob("*.h5"))[0]
        for shards, layer in [(2, 3), (3, 4)]:
            for propagation in ("sequential", "dense"):
                with self.subTest(shards=shards, propagation=propagation):
                    output = f"early-{shards}-{propagation}"
                    write_tiny_model(self.folder / f"{output}-model")
                    rewrite_tensor(self.folder / f"{output}-model", f"model.layers.{layer}.input_layernorm.weight",
                                   lambda entry, raw: b"\xc0\x7f" + raw[2:])
                    (self.folder / f"{output}.yaml").write_text(
                        COMMON.replace("source: self", f"source: tokens, tokens: {tokens}")
                        .replace("micro_batch: 2", "micro_batch: 1") + f"""\
jobs:
  - {{name: bad, model: {{path: {output}-model}}, method: {{propagation: {propagation}}}}}
  - {{name: good, method: {{propagation: {propagation}}}}}
""")
                    for ranks in (shards, 4):
                        code, out, err = self.selfcal("compress", f"{output}.yaml", ranks=ranks, *self.settings(
                            f"{output}-{ranks}", layout__compressors__shards=shards))
                        self.assertEqual(code, DATA, err)
                        self.assertIn(f"model.layers.{layer}.input_layernorm.weight", err)
                        self.assertEqual(self.states(f"{output}-{ranks}"), {"bad": "failed", "good": "done"})

    def test_a_calibration_that_fails_leaves_the_others(self):
        (self.folder / "calibrations.yaml").write_text(COMMON + """\
jobs:
  - {name: none, calibration: {source: tokens, tokens: model/config.json}}
  - {name: three, method: {bits: 3}}
""")
        for ranks in (None, 2):
            output = f"calibrations-{ranks}"
            code, _, err = self.selfcal("compress", "calibrations.yaml", *self.settings(output), ranks=ranks)
            self.assertNotEqual(code, 0)
            self.assertEqual(self.states(output), {"none": "failed", "three": "done"}, err)
            self.assertEqual(self.queue(output)["none"]["code"], code)
            self.assertEqual(self.job_hashes(output)["three"], self.expected["three"])

    def test_what_is_wrong_with_the_list_is_said_before_it_starts(self):
        for change, words in [(lambda t: t.replace("bits: 3}", "bitz: 3}"), ["bad.yaml:10", "jobs[1].method.bitz"]),
                              (lambda t: t.replace("name: three", "name: hot"), ["bad.yaml:10", "named hot"]),
                              (lambda t: t + "sweep: {seed: []}\n", ["bad.yaml:12", "sweep.seed", "empty"]),
                              (lambda t: t.replace("bits: 3}", "group_size: 64}"), ["job three", "group_size", "64"]),
                              (lambda t: t.replace("seed: 1,", "threads: 2,"), ["bad.yaml:11", "jobs[2].threads"])]:
            (self.folder / "bad.yaml").write_text(change(SEQUENTIAL))
            for ranks in (None, 2):
                code, _, err = self.selfcal("compress", "bad.yaml", *self.settings("refused"), ranks=ranks)
                lines = [line for line in err.splitlines() if line.startswith("selfcal:")]
                self.assertEqual((code, len(lines)), (BAD_CONFIG, 1), err)
                for word in words:
                    self.assertIn(word, lines[0])
            self.assertFalse((self.folder / "refused").exists())

    def test_verify_believes_no_queue(self):
        self.run_config("jobs.yaml", "queue")
        (self.folder / "queue/jobs/three/model.h5").unlink()
        code, _, err = self.selfcal("verify", "queue")
        self.assertEqual(code, DATA, err)
        self.assertIn("says that three is done", err)
        self.run_config("jobs.yaml", "queue")
        self.assertEqual(self.job_hashes("queue"), self.expected)
        (self.folder / "queue/queue.json").write_text("{}")
        self.assertEqual(self.selfcal("verify", "queue")[0], DATA)

    def test_plan_has_a_line_for_each_job(self):
        out = self.succeed("plan", "jobs.yaml", "--ranks", 2)
        for name in (*ALONE, "all 3 jobs"):
            self.assertRegex(out, rf"(?m)^{name} +\d+ MiB +\d+\.\d")

    def test_jobs_are_named_to_other_commands(self):
        self.run_config("jobs.yaml", "named")
        self.succeed("export", "named", "--job", "three", "--out", "exported")
        code, _, err = self.selfcal("export", "named", "--out", "other")
        self.assertEqual(code, BAD_CONFIG, err)
        self.assertIn("hot or three or pruned", err)


if __name__ == "__main__":
    unittest.main(verbosity=2)
