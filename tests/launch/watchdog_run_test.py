#!/usr/bin/env python3
"""The watchdog in whole jobs: a stopped rank ends one in time, in sampling and in compressing, and it can go on afterwards;
phases longer than the timeout do not end it."""
import json
import os
import signal
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import slurm_cluster  # noqa: E402
from selfcal_case import BINARY, Job, SelfcalCase, all_processes, with_variables  # noqa: E402
from tiny_model import write_tiny_model  # noqa: E402

INPUT_OUTPUT = 74
KILLED = 128 + signal.SIGKILL
TIMEOUT = 2
SLACK = 5
LONG = {"calibration__length": 200, "calibration__sequences": 128}


class WatchdogRun(SelfcalCase):
    def stop_one(self, output, stopped, ranks, condition, later=0.0, **settings):
        """Stops a rank `later` seconds after `condition`; the job's standard error."""
        words = self.settings(output, layout__timeout=TIMEOUT, **(LONG | settings))
        job = self.start("compress", "config.yaml", *words, ranks=ranks)
        self.wait_for(condition, job, "the moment to stop a rank")
        time.sleep(later)
        job.signal_rank(signal.SIGSTOP, stopped)
        since = time.monotonic()
        code, _, err = job.result(limit=60)
        self.assertLess(time.monotonic() - since, TIMEOUT + SLACK, err)
        self.assertEqual(code, INPUT_OUTPUT, err)
        self.check_line(err, stopped)
        return err

    def check_line(self, err, stopped):
        lines = [line for line in err.splitlines() if line.startswith("selfcal: error:")]
        self.assertEqual(len(lines), 1, err)
        self.assertIn(f"rank {stopped} on ", lines[0])

    def test_a_stopped_generator(self):
        parts = self.folder / "sampling" / "calibration"
        # In the middle of a large batch: none is on its way.
        err = self.stop_one("sampling", 1, 2, lambda: list(parts.glob("*.parts/*.h5")), later=0.3,
                            calibration__micro_batch=256, calibration__sequences=1024)
        self.assertIn("works in phase sample", err)
        self.assertIn("for sampled batches from any rank", err)

    def test_a_stopped_compressor(self):
        err = self.stop_one("compressing", 2, 3, lambda: self.layer_files("compressing"), later=0.5,
                            calibration__source="vocabulary", calibration__length=256, calibration__sequences=512)
        self.assertIn("with all its group", err)
        self.assertEqual(len(list((self.folder / "compressing").glob("jobs/*/model.h5"))), 0)

    def test_a_stopped_rank_under_slurm(self):
        """As launch/slurm/compress.sbatch starts ranks: srun kills one that cannot leave, and says so by its exit code."""
        if reason := slurm_cluster.reason_against():
            self.skipTest(reason)
        parts = self.folder / "slurm" / "calibration"
        words = ["srun", "--mpi=pmix", "--wait=3", "-N", 2, "-n", 2, BINARY, "compress", "config.yaml",
                 *self.settings("slurm", layout__timeout=TIMEOUT, **LONG)]
        with slurm_cluster.SlurmCluster(2) as slurm:
            job = Job(words, self.folder, slurm.environment)
            self.wait_for(lambda: list(parts.glob("*.parts/*.h5")), job, "the moment to stop a rank")
            stopped, = with_variables(all_processes(), SLURM_CONF=slurm.environment["SLURM_CONF"], SLURM_PROCID=1)
            os.kill(stopped, signal.SIGSTOP)
            since = time.monotonic()
            code, _, err = job.result(limit=60)
        self.assertLess(time.monotonic() - since, TIMEOUT + 3 + SLACK, err)
        self.assertIn("task 0: Exited with exit code 74", err)
        self.assertEqual(code, KILLED, err)
        self.check_line(err, 1)

    def test_long_phases_are_healthy(self):
        """One generator samples for longer than the timeout, three ranks wait; then a team works for longer."""
        self.compress("healthy", 4, layout__timeout=1, layout__generators__replicas=1, **(LONG | {"calibration__sequences": 320}))
        report = json.loads((self.folder / "healthy/jobs/default/report.json").read_text())
        self.assertGreater(report["sampling_seconds"], 1.5, "this machine is too fast for this test: make it longer")

    def test_a_factorisation_longer_than_the_timeout_is_healthy(self):
        """Too few tokens and no damping: after the team's attempt one rank finds the factor of a wide input, the other waits."""
        write_tiny_model(self.folder / "model-wide", intermediate=8192, layers=1)
        self.compress("factor", 2, layout__mode="shared", layout__timeout=1, model__path="model-wide",
                      calibration__source="vocabulary", method__damping=0)
        seconds = [rank["seconds"] for rank in json.loads((self.folder / "factor/jobs/default/report.json").read_text())["ranks"]]
        factorising = max(phases.get("factorise", 0) for phases in seconds)
        self.assertGreater(factorising, 1.5, "this machine is too fast for this test: make the input wider")
        self.assertGreater(max(phases["idle"] for phases in seconds), factorising / 2, "nobody waited")


if __name__ == "__main__":
    unittest.main(verbosity=2)
