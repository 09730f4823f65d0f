#!/usr/bin/env python3
"""Generators write the next jobs' texts while compressors compress: the jobs give what each gives alone."""
import signal
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from jobs_case import COMMON, SEQUENTIAL, JobsCase  # noqa: E402
from tiny_model import write_tiny_model  # noqa: E402
from bad_input_test import nan_weight, rewrite_tensor  # noqa: E402

STOPPED = 75


class JobsAhead(JobsCase):
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
        length = 256  # a text then takes far longer than a message to those who wait for it
        self.run_config("jobs.yaml", "long-1", calibration__length=length)
        expected = self.job_hashes("long-1")
        for ranks, replicas, shards, depth in [(2, 1, 1, 1), (3, 1, 1, 1), (3, 2, 1, 1), (3, 1, 2, 1), (4, 1, 2, 1),
                                               (4, 2, 2, 1), (4, 3, 1, 1), (4, 1, 2, 2)]:
            with self.subTest(ranks=ranks, replicas=replicas, shards=shards, depth=depth):
                output = f"split-{ranks}-{replicas}-{shards}-{depth}"
                settings, _, _ = self.split(output, ranks, replicas, shards, layout__generators__depth=depth,
                                            calibration__length=length)
                self.succeed("compress", "jobs.yaml", *settings, ranks=ranks)
                self.expect_hashes(output, expected)
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
                self.assertEqual(sampled, [8 * length, 8 * length, 6 * length])

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
                self.expect_hashes(output, expected)
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
            self.expect_hashes(f"mixed-{ranks}", expected)
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
                self.expect_hashes(output, self.expected)

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
        self.expect_hashes("unwritten", self.expected)

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
                self.expect_hashes(output, self.expected)


if __name__ == "__main__":
    unittest.main(verbosity=2)
