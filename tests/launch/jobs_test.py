#!/usr/bin/env python3
"""Many jobs in one run give what each gives alone: in a wavefront through shards, with a shared dense forward, after
kills, and beside jobs that fail."""
import array
import json
import signal
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from selfcal_case import CONFIG, SelfcalCase  # noqa: E402
from tiny_model import write_tiny_model  # noqa: E402
from bad_input_test import nan_weight, rewrite_tensor  # noqa: E402
from tensor_file import write_tensors  # noqa: E402

STOPPED, DATA, BAD_CONFIG = 75, 65, 78
LAYERS = 6

COMMON = CONFIG.replace("layout: {mode: split}", "layout: {mode: shared}")

SEQUENTIAL = COMMON + """\
jobs:
  - {name: hot, calibration: {temperature: {initial: 1.5, final: 1.5}}}
  - {name: three, method: {bits: 3}}
  - {name: pruned, seed: 1, calibration: {sequences: 5}, method: {name: sparsegpt, pattern: 2:4, act_order: none}}
"""
ALONE = {
    "hot": {"calibration__temperature": "{initial: 1.5, final: 1.5}"},
    "three": {"method__bits": 3},
    "pruned": {"seed": 1, "calibration__sequences": 5, "method__name": "sparsegpt", "method__pattern": "2:4",
               "method__act_order": "none"}}

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


class Jobs(SelfcalCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        for name, text in {"alone": COMMON, "jobs": SEQUENTIAL, "dense": DENSE, "propagations": PROPAGATIONS}.items():
            (cls.folder / f"{name}.yaml").write_text(text)
        case = cls()
        cls.expected = {}
        for name, values in ALONE.items():
            case.run_config("alone.yaml", f"alone-{name}", name=name, **values)
            cls.expected |= case.job_hashes(f"alone-{name}")

    def run_config(self, config, output, ranks=None, **values):
        return self.succeed("compress", config, *self.settings(output, **values), ranks=ranks)

    def queue(self, output):
        entries = json.loads((self.folder / output / "queue.json").read_text())["jobs"]
        return {entry["name"]: entry for entry in entries}

    def states(self, output):
        return {name: entry["state"] for name, entry in self.queue(output).items()}

    def report(self, output, job):
        return json.loads((self.folder / output / "jobs" / job / "report.json").read_text())

    def events(self, output, name, rank=0):
        lines = (self.folder / output / "logs" / f"rank-{rank:04}.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def test_a_list_gives_what_each_job_gives_alone(self):
        for ranks, shards in [(None, 1), (2, 1), (2, 2), (3, 2), (3, 3), (4, 2)]:
            with self.subTest(ranks=ranks, shards=shards):
                output = f"list-{ranks}-{shards}"
                self.run_config("jobs.yaml", output, ranks, layout__compressors__shards=shards)
                self.assertEqual(self.job_hashes(output), self.expected)
                self.assertEqual(set(self.states(output).values()), {"done"})
                self.assertEqual(len(list((self.folder / output / "calibration").glob("*.h5"))), 3)

    def split(self, output, ranks, replicas, shards=1, config="jobs.yaml", **values):
        how = {"layout__mode": "split", "layout__generators__replicas": replicas,
               "layout__compressors__shards": shards} | values
        return self.settings(output, **how), ranks, config

    def spans(self, output, rank, what):
        """(start, end) of each piece of work whose name begins like this, of a rank, by its log."""
        starts = [event for event in self.events(output, "start", rank) if event["what"].startswith(what)]
        ends = [event for event in self.events(output, "finish", rank) if event["what"].startswith(what)]
        self.assertEqual(len(starts), len(ends))
        return [(start["time"], end["time"]) for start, end in zip(starts, ends)]

    def test_generators_write_while_compressors_compress(self):
        for ranks, replicas, shards, depth in [(2, 1, 1, 1), (3, 1, 1, 1), (3, 2, 1, 1), (3, 1, 2, 1), (4, 1, 2, 1),
                                               (4, 2, 2, 1), (4, 3, 1, 1), (4, 1, 2, 2)]:
            with self.subTest(ranks=ranks, replicas=replicas, shards=shards, depth=depth):
                output = f"split-{ranks}-{replicas}-{shards}-{depth}"
                settings, _, _ = self.split(output, ranks, replicas, shards, layout__generators__depth=depth)
                self.succeed("compress", "jobs.yaml", *settings, ranks=ranks)
                self.assertEqual(self.job_hashes(output), self.expected)
                self.assertEqual(set(self.states(output).values()), {"done"})
                # The first generator writes the second text while the first job is compressed by others.
                writer = ranks - replicas * depth
                texts, first = self.spans(output, writer, "sample"), self.spans(output, 0, "job 1 of 3 (hot)")
                self.assertEqual((len(texts), len(first)), (3, 1))
                self.assertLess(texts[1][0], first[0][1], "the second text was begun before the first job was done")
                self.assertLess(first[0][0], texts[1][1], "the first job was begun before the second text was done")
                self.assertEqual(self.spans(output, 0, "sample"), [])
                self.assertEqual(self.spans(output, writer, "job 1 of 3"), [])
                # All ranks work on the last job.
                roles = {job: [rank["role"] for rank in self.report(output, job)["ranks"]] for job in ("hot", "pruned")}
                self.assertEqual(len(roles["hot"]), writer)
                self.assertEqual(len(roles["pruned"]), ranks)
                self.assertNotIn("samples", " ".join(roles["hot"]))
                sampled = [self.report(output, job)["tokens_sampled"] for job in ("hot", "three", "pruned")]
                self.assertEqual(sampled, [8 * 48, 8 * 48, 6 * 48])

    def test_dense_jobs_are_compressed_while_generators_write(self):
        dense = SEQUENTIAL.replace("act_order: static", "act_order: auto, propagation: dense").replace(
            ", act_order: none", "")
        (self.folder / "dense-jobs.yaml").write_text(dense)
        self.run_config("dense-jobs.yaml", "dense-jobs-1")
        expected = self.job_hashes("dense-jobs-1")
        for ranks, replicas, shards in [(3, 1, 1), (3, 1, 2), (4, 2, 2), (4, 1, 3)]:
            with self.subTest(ranks=ranks, replicas=replicas, shards=shards):
                output = f"dense-jobs-{ranks}-{replicas}-{shards}"
                settings, _, _ = self.split(output, ranks, replicas, shards)
                self.succeed("compress", "dense-jobs.yaml", *settings, ranks=ranks)
                self.assertEqual(self.job_hashes(output), expected)
                self.assertEqual(len(self.report(output, "hot")["ranks"]), ranks - replicas)

    def test_jobs_of_one_text_and_jobs_weighed_by_outliers_between_texts(self):
        """Two jobs of a text on both sides of the moment when the generators join."""
        owl = "{name: wanda, sparsity: 0.5, layer_sparsity: owl, owl: {m: 3, lambda: 0.2}, act_order: auto, bits: auto}"
        (self.folder / "mixed.yaml").write_text(COMMON + f"""\
jobs:
  - {{name: a, seed: 3}}
  - {{name: b, seed: 4, method: {owl}}}
  - {{name: c, seed: 4}}
  - {{name: d, seed: 5}}
  - {{name: e, seed: 4, method: {owl.replace("0.5", "0.55")}}}
""")
        self.run_config("mixed.yaml", "mixed-1")
        expected = self.job_hashes("mixed-1")
        for ranks, replicas, shards in [(2, 1, 1), (4, 2, 2)]:
            settings, _, _ = self.split(f"mixed-{ranks}", ranks, replicas, shards)
            self.succeed("compress", "mixed.yaml", *settings, ranks=ranks)
            self.assertEqual(self.job_hashes(f"mixed-{ranks}"), expected)
            self.assertEqual(len(list((self.folder / f"mixed-{ranks}/calibration").glob("*.h5"))), 3)

    def test_only_what_is_missing_is_written_ahead(self):
        """Texts that an earlier run has written are compressed while the others are written."""
        self.succeed("generate", "jobs.yaml", *self.settings("some"), ranks=2)
        files = {path: path.stat().st_mtime_ns for path in sorted((self.folder / "some/calibration").glob("*.h5"))}
        for path in files:
            with self.subTest(missing=path.name):
                output = f"some-{path.stem}"
                settings, _, _ = self.split(output, 2, 1)
                self.succeed("generate", "jobs.yaml", *settings, ranks=2)
                (self.folder / output / "calibration" / path.name).unlink()
                self.succeed("compress", "jobs.yaml", *settings, ranks=2)
                self.assertEqual(self.job_hashes(output), self.expected)

    def test_failures_while_generators_write(self):
        """A token file that cannot be read and a NaN in a layer of the second shard leave the other jobs."""
        write_tiny_model(self.folder / "nan-model")
        rewrite_tensor(self.folder / "nan-model", "model.layers.4.mlp.down_proj.weight", nan_weight)
        (self.folder / "failing.yaml").write_text(SEQUENTIAL.replace("jobs:\n", """\
jobs:
  - {name: none, calibration: {source: tokens, tokens: model/config.json}}
  - {name: bad, model: {path: nan-model}, calibration: {source: vocabulary}}
"""))
        for ranks, replicas, shards in [(2, 1, 1), (3, 2, 1), (4, 1, 2)]:
            with self.subTest(ranks=ranks):
                output = f"failing-{ranks}"
                settings, _, _ = self.split(output, ranks, replicas, shards)
                code, _, err = self.selfcal("compress", "failing.yaml", *settings, ranks=ranks)
                states = self.states(output)
                self.assertEqual([states.pop(job) for job in ("none", "bad")], ["failed"] * 2, err)
                self.assertEqual(set(states.values()), {"done"}, err)
                self.assertEqual(code, self.queue(output)["none"]["code"])
                self.assertIn("2 of 5 jobs failed; the first, none: ", err)
                hashes = self.job_hashes(output)
                self.assertEqual({job: hashes[job] for job in self.expected}, self.expected)

    def test_a_text_that_cannot_be_written_fails_its_job_alone(self):
        settings, _, _ = self.split("unwritten", 3, 1, 2)
        self.succeed("generate", "jobs.yaml", *settings, ranks=3)
        texts = sorted(path.name for path in (self.folder / "unwritten/calibration").glob("*.h5"))
        # Of one text, a damaged part of an earlier run.
        name = texts[0].removesuffix(".h5")
        for text in texts:
            (self.folder / "unwritten/calibration" / text).unlink()
        parts = self.folder / "unwritten/calibration" / f"{name}.parts"
        parts.mkdir()
        (parts / "0000.h5").write_text("damaged")
        code, _, err = self.selfcal("compress", "jobs.yaml", *settings, ranks=3)
        states = self.states("unwritten")
        self.assertEqual(sorted(states.values()), ["done", "done", "failed"], err)
        failed = next(job for job, state in states.items() if state == "failed")
        self.assertEqual(code, self.queue("unwritten")[failed]["code"])
        self.assertIn(f"1 of 3 jobs failed; the first, {failed}: ", err)
        (parts / "0000.h5").unlink()
        self.succeed("compress", "jobs.yaml", *settings, ranks=3)
        self.assertEqual(self.job_hashes("unwritten"), self.expected)

    def test_stopped_while_generators_write(self):
        for asked, ready, (ranks, replicas, shards), after in [
                (0, 1, (3, 1, 2), {"ranks": 2}), (2, 1, (3, 1, 2), {"ranks": None}), (2, 4, (3, 2, 1), {"ranks": 3}),
                (1, 7, (4, 2, 2), {"ranks": 2}), (3, 0, (4, 1, 2), {"ranks": 3})]:
            with self.subTest(asked=asked, ready=ready):
                output = f"stopped-ahead-{asked}-{ready}"
                settings, _, _ = self.split(output, ranks, replicas, shards)
                job = self.start("compress", "jobs.yaml", *settings, ranks=ranks)
                self.wait_for(lambda: len(self.layer_files(output)) >= ready
                              and (self.folder / output / "calibration").exists(), job, f"{ready} layers")
                job.signal_rank(signal.SIGUSR1, asked)
                code, _, err = job.result(limit=60)
                self.assertEqual(code, STOPPED, err)
                self.assertEqual(err.count("stopped; run the same command again to go on"), 1, err)
                self.assertIn("waiting", set(self.states(output).values()))
                self.run_config("jobs.yaml", output, after["ranks"])
                self.assertEqual(self.job_hashes(output), self.expected)

    def test_jobs_of_one_calibration_sample_it_once(self):
        self.run_config("alone.yaml", "twice", sweep="{method.bits: [3, 4]}")
        self.assertEqual(len(list((self.folder / "twice/calibration").glob("*.h5"))), 1)
        self.assertEqual([self.report("twice", name)["tokens_sampled"] for name in ("b3", "b4")], [8 * 48, 0])
        self.assertEqual(self.job_hashes("twice")["b3"], self.expected["three"])

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
                self.assertEqual(self.job_hashes(output), expected)
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
            self.assertEqual(self.job_hashes(output), expected)
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
            self.assertEqual(self.job_hashes(output), expected)
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
                self.assertEqual(self.job_hashes(output), self.expected)

    def test_a_dense_sweep_goes_on_where_it_was(self):
        self.run_config("dense.yaml", "dense-whole")
        expected = self.job_hashes("dense-whole")
        job = self.start("compress", "dense.yaml", *self.settings("dense-killed", layout__compressors__shards=2), ranks=2)
        self.wait_for(lambda: len(self.layer_files("dense-killed")) >= 7, job, "7 layers")
        job.signal(signal.SIGKILL)
        job.result()
        self.run_config("dense.yaml", "dense-killed", 3)
        self.assertEqual(self.job_hashes("dense-killed"), expected)

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
                self.assertEqual(self.job_hashes(output), self.expected)

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
