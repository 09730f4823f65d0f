#!/usr/bin/env python3
"""A job that was killed at any moment goes on where it was, on any number of ranks, and ends with the same hashes."""
import signal
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from selfcal_case import SelfcalCase  # noqa: E402

DATA, STOPPED = 65, 75


class Resume(SelfcalCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        case = cls()
        case.compress("whole")
        cls.expected = case.hashes("whole")

    def begin(self, output, ranks, *options):
        return self.start("compress", "config.yaml", *self.settings(output), *options, ranks=ranks)

    def layers_done(self, output):
        return len(self.layer_files(output))

    def finish(self, output, ranks=None):
        """Goes on; the layers that were there must not have been written again."""
        before = {path: path.stat().st_mtime_ns for path in self.layer_files(output)}
        self.compress(output, ranks)
        for path, time in before.items():
            self.assertEqual(path.stat().st_mtime_ns, time, f"{path} was written again")
        self.assertEqual(self.hashes(output), self.expected)

    def test_all_ranks_killed_at_several_layers(self):
        for layer, ranks, ranks_after in [(1, 4, 4), (2, 2, 3), (3, 3, None), (5, 4, 2)]:
            with self.subTest(layer=layer, ranks=ranks, ranks_after=ranks_after):
                output = f"killed-{layer}"
                job = self.begin(output, ranks)
                self.wait_for(lambda: self.layers_done(output) >= layer, job, f"layer {layer}")
                job.signal(signal.SIGKILL)
                job.result()
                self.finish(output, ranks_after)

    def test_killed_while_sampling(self):
        job = self.begin("sampling", 2)
        self.wait_for(lambda: (self.folder / "sampling").is_dir(), job, "the run directory")
        job.signal(signal.SIGKILL)
        job.result()
        self.finish("sampling", 2)

    def test_killed_twice(self):
        for layer in (1, 3):
            job = self.begin("twice", 3)
            self.wait_for(lambda: self.layers_done("twice") >= layer, job, f"layer {layer}")
            job.signal(signal.SIGKILL)
            job.result()
        self.finish("twice", 3)

    def test_one_rank_killed_ends_the_job(self):
        job = self.begin("one-rank", 4)
        self.wait_for(lambda: self.layers_done("one-rank") >= 1, job, "the first layer")
        import os
        os.kill(max(job.processes()), signal.SIGKILL)
        code, _, _ = job.result(limit=60)
        self.assertNotEqual(code, 0)
        self.finish("one-rank", 2)

    def test_forwarded_signal_stops_with_a_checkpoint(self):
        job = self.begin("terminated", 3)
        self.wait_for(lambda: self.layers_done("terminated") >= 1, job, "the first layer")
        job.signal(signal.SIGUSR1, to_all=False)  # mpirun forwards it; on SIGTERM its exit code is its own
        code, _, err = job.result(limit=30)
        self.assertEqual(code, STOPPED, err)
        self.finish("terminated", 3)

    def test_a_signal_stops_a_generator_of_several_ranks(self):
        """Whichever rank hears of it: only the last one of a replica can end its micro-batches."""
        long = {"calibration__length": 200, "calibration__sequences": 20}
        self.compress("deep-whole", **long)
        deep = {"layout__mode": "shared", "layout__generators__depth": 3, **long}
        for rank in range(3):
            with self.subTest(rank=rank):
                output = f"deep-{rank}"
                job = self.start("compress", "config.yaml", *self.settings(output, **deep), ranks=3)
                parts = self.folder / output / "calibration"
                self.wait_for(lambda: list(parts.glob("*.parts/*.h5")), job, "a micro-batch")
                job.signal_rank(signal.SIGUSR1, rank)
                code, _, err = job.result(limit=30)
                self.assertEqual(code, STOPPED, err)
                self.assertFalse(list(parts.glob("*.h5")), "it was to stop while it sampled")
                self.compress(output, 2, **long)
                self.assertEqual(self.hashes(output), self.hashes("deep-whole"))

    def test_time_limit_stops_with_a_checkpoint(self):
        code, _, err = self.begin("limited", 2, "--max-hours", "0.000005").result(limit=60)
        self.assertEqual(code, STOPPED, err)
        self.finish("limited", 2)

    def test_a_damaged_layer_is_not_taken_for_a_good_one(self):
        self.compress("damaged")
        path = self.layer_files("damaged")[2]
        whole = path.read_bytes()
        path.write_bytes(whole[:len(whole) // 2])
        code, _, err = self.selfcal("verify", "damaged")
        self.assertEqual(code, 65, err)
        self.assertIn(path.name, err)
        self.compress("damaged")
        self.assertEqual(self.hashes("damaged"), self.expected)


    def test_verify_looks_at_every_run_that_it_is_given(self):
        self.compress("broken")
        self.layer_files("broken")[2].write_bytes(b"no layer")
        code, out, err = self.selfcal("verify", "broken", "nowhere", "whole")
        self.assertEqual(code, DATA, err)
        for word in ("broken/jobs/default/layers", "nowhere: not a run directory"):
            self.assertIn(word, err)
        self.assertEqual([line for line in out.splitlines() if line.endswith(":")], ["broken:", "nowhere:", "whole:"])
        self.assertIn(self.expected[-1], out)


if __name__ == "__main__":
    unittest.main(verbosity=2)
