#!/usr/bin/env python3
"""A stop is orderly on every layout: whichever rank is asked to, all of them leave by themselves with the same exit code and
one line, only whole layer files stay, and the job goes on from them on any other layout."""
import signal
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from selfcal_case import BINARY, Job, SelfcalCase  # noqa: E402
from tiny_model import write_tiny_model  # noqa: E402
from jobs_test import SEQUENTIAL  # noqa: E402

STOPPED = 75
# Runs a rank and keeps its exit code; the launcher sees none, so that it ends no rank because of another one's.
RANK = """trap '' USR1; mkdir -p codes; "$@" ; echo $? >"codes/$OMPI_COMM_WORLD_RANK" """

# Ranks, keys of the layout, who is asked after how many layers. Six layers, so that shards of two ranks have three.
LAYOUTS = {
    "two shards, the first works": (2, {"shards": 2}, 0, 1),
    "two shards, the first is done": (2, {"shards": 2}, 0, 4),
    "two shards, the waiting one is asked": (2, {"shards": 2}, 1, 1),
    "three shards": (3, {"shards": 3}, 2, 3),
    "an uneven grid": (3, {"shards": 2}, 1, 2),
    "two shards of two": (4, {"shards": 2, "team": 2}, 3, 2),
    "generators of their own": (3, {"mode": "split", "shards": 2}, 2, 1),
    "a deep generator": (4, {"mode": "split", "shards": 2, "depth": 2}, 3, 1)}


class Stop(SelfcalCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # Layers that take long enough to be stopped in.
        write_tiny_model(cls.folder / "model", hidden=128, intermediate=256)
        (cls.folder / "jobs.yaml").write_text(SEQUENTIAL)
        case = cls()
        cls.expected = {}
        for propagation in ("sequential", "dense"):
            case.compress(f"whole-{propagation}", method__propagation=propagation)
            cls.expected[propagation] = case.hashes(f"whole-{propagation}")
        case.succeed("compress", "jobs.yaml", *case.settings("whole-jobs"))
        cls.expected["jobs"] = case.hashes("whole-jobs")

    def begin(self, output, config, ranks, values, *options):
        """In a folder of its own, where the exit codes of the ranks are kept."""
        return Job(["mpirun", "-n", ranks, "sh", "-c", RANK.replace("codes", f"{output}.codes"), "rank", BINARY, "compress",
                    config, *self.settings(output, **values), *options], self.folder)

    @staticmethod
    def keys(mode="shared", depth=1, shards=1, team="auto"):
        return {"layout__mode": mode, "layout__generators__depth": depth, "layout__compressors__shards": shards,
                "layout__compressors__team": team}

    def stop(self, name, config, ranks, values, rank, ready, what):
        """The folder of a run whose rank `rank` was asked to stop once ready(folder). A run that was done before the
        signal came tells nothing: then another one is begun."""
        for attempt in range(5):
            output = f"{name}-{attempt}"
            job = self.begin(output, config, ranks, values)
            self.wait_for(lambda: ready(output), job, what)
            job.signal_rank(signal.SIGUSR1, rank)
            if self.check_stopped(job, output, ranks, may_be_done=True):
                return output
        self.fail("no run of five lasted until it was asked to stop")

    def check_stopped(self, job, output, ranks, may_be_done=False):
        _, out, err = job.result(limit=60)
        codes = [int((self.folder / f"{output}.codes" / str(rank)).read_text()) for rank in range(ranks)]
        if may_be_done and codes == [0] * ranks:
            return False
        self.assertEqual(codes, [STOPPED] * ranks, err)
        self.assertEqual(err.count("stopped; run the same command again to go on"), 1, err)
        self.assertNotIn("MPI_ABORT", out + err)
        self.assertNotIn("error", err.replace("relative error", ""))  # the latter of a job that was done
        left = [path.name for path in (self.folder / output).rglob("*") if path.is_file() and "tmp" in path.name]
        self.assertEqual(left, [], "unfinished files")
        self.assertFalse((self.folder / output / "lock").exists(), "the lock was to go")
        return True

    def finish(self, output, config, expected, **how):
        """On another layout; what was there must not be written again."""
        before = {path: path.stat().st_mtime_ns for path in self.layer_files(output)}
        self.assertLess(len(before), 6 * len(list((self.folder / output / "jobs").iterdir())), "there was nothing left to stop")
        self.succeed("compress", config, *self.settings(output, **how))
        self.assertEqual({path: path.stat().st_mtime_ns for path in before}, before)
        self.assertEqual(self.hashes(output), expected)

    def test_one_rank_is_asked(self):
        for propagation in ("sequential", "dense"):
            for number, (name, (ranks, keys, rank, layers)) in enumerate(LAYOUTS.items()):
                if propagation == "dense":
                    if number % 2 == 0:
                        continue
                    layers = 1  # the shards work at once
                with self.subTest(name, propagation=propagation):
                    method = {"method__propagation": propagation}
                    output = self.stop(f"{propagation}-{number}", "config.yaml", ranks, method | self.keys(**keys), rank,
                                       lambda run: len(self.layer_files(run)) >= layers, f"{layers} layers")
                    self.finish(output, "config.yaml", self.expected[propagation], **method)

    def test_one_rank_is_asked_while_others_sample(self):
        for propagation in ("sequential", "dense"):
            with self.subTest(propagation=propagation):
                method = {"method__propagation": propagation}
                output = self.stop(f"sampling-{propagation}", "config.yaml", 3, method | self.keys("split", shards=2), 1,
                                   lambda run: list((self.folder / run / "calibration").glob("*.parts/*.h5")),
                                   "a micro-batch")
                self.finish(output, "config.yaml", self.expected[propagation], **method)

    def test_many_jobs_in_a_wavefront(self):
        for number, (ranks, keys, rank, layers) in enumerate([(2, {"shards": 2}, 1, 5), (3, {"shards": 3}, 0, 8),
                                                              (4, {"shards": 2, "team": 2}, 2, 7),
                                                              (3, {"mode": "split", "shards": 2}, 2, 9)]):
            with self.subTest(ranks=ranks, **keys):
                output = self.stop(f"jobs-{number}", "jobs.yaml", ranks, self.keys(**keys), rank,
                                   lambda run: len(self.layer_files(run)) >= layers, f"{layers} layers")
                self.finish(output, "jobs.yaml", self.expected["jobs"])

    def test_time_limit(self):
        for propagation in ("sequential", "dense"):
            output, method = f"limited-{propagation}", {"method__propagation": propagation}
            job = self.begin(output, "config.yaml", 4, method | self.keys(shards=2, team=2), "--max-hours", "0.000005")
            self.check_stopped(job, output, 4)
            self.finish(output, "config.yaml", self.expected[propagation], **method)

    def test_the_launcher_passes_the_code_on(self):
        """As a batch script sees it."""
        for ranks, shards in [(2, 2), (4, 2)]:
            output = f"launcher-{ranks}"
            job = self.start("compress", "config.yaml", *self.settings(output, **self.keys(shards=shards)), ranks=ranks)
            self.wait_for(lambda: self.layer_files(output), job, "a layer")
            job.signal(signal.SIGUSR1, to_all=False)
            code, out, err = job.result(limit=60)
            self.assertEqual(code, STOPPED, err)
            self.assertNotIn("MPI_ABORT", out + err)
            self.finish(output, "config.yaml", self.expected["sequential"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
