#!/usr/bin/env python3
"""The watchdog under mpirun: silence ends a job in time, with a dump and one line; long work does not."""
import os
import signal
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from selfcal_case import Job  # noqa: E402

PROBE = Path(os.environ.get("WATCHDOG_PROBE", "build/tests/watchdog_probe")).resolve()
INPUT_OUTPUT = 74
TIMEOUT = 1.5
SLACK = 5.0


class Watchdog(unittest.TestCase):
    def start(self, what, ranks, seconds, *options):
        return Job(["mpirun", "-n", ranks, *options, PROBE, what, TIMEOUT, seconds], "/tmp")

    def healthy(self, what, ranks):
        code, out, err = self.start(what, ranks, 3 * TIMEOUT).result(limit=60)
        self.assertEqual(code, 0, err)
        self.assertNotIn("watchdog", err)

    def ended(self, job, since, words, ranks, judge=0):
        """The job ends in time; `words` are in the one line, and the dump has a line for every rank."""
        code, _, err = job.result(limit=60)
        took = time.monotonic() - since
        self.assertEqual(code, INPUT_OUTPUT, err)
        self.assertLess(took, TIMEOUT + SLACK, err)
        lines = [line for line in err.splitlines() if line.startswith("selfcal: error:")]
        self.assertEqual(len(lines), 1, err)
        for word in words + [f"[rank {judge}]", "layout.timeout"]:
            self.assertIn(word, lines[0], err)
        dump = [line for line in err.splitlines() if line.startswith("selfcal: watchdog: rank ")]
        self.assertEqual(len(dump), ranks, err)
        return dump

    def test_long_work_is_healthy(self):
        for ranks in (2, 4):
            for what in ("library call", "tokens"):
                with self.subTest(what, ranks=ranks):
                    self.healthy(what, ranks)

    def test_a_rank_that_stands_still(self):
        dump = self.ended(self.start("stands still", 3, 60), time.monotonic(), ["rank 2", "stood still", "probe"], 3)
        self.assertIn("barrier", dump[0])

    def test_ranks_that_wait_for_each_other(self):
        for ranks in (2, 4):
            with self.subTest(ranks=ranks):
                dump = self.ended(self.start("wait for each other", ranks, 60), time.monotonic(), ["each other"], ranks)
                for rank, line in enumerate(dump):
                    self.assertIn(f"for receive with rank {(rank + 1) % ranks}, tag 7", line)

    def test_a_stopped_rank(self):
        for ranks, stopped, judge in [(2, 1, 0), (4, 3, 0), (3, 0, 1)]:
            with self.subTest(ranks=ranks, stopped=stopped):
                job = self.start("long wait", ranks, 60)
                self.assertEqual(job.process.stdout.readline(), "started\n")
                time.sleep(0.5)  # every rank is heard
                job.signal_rank(signal.SIGSTOP, stopped)
                since = time.monotonic()
                dump = self.ended(job, since, [f"rank {stopped}", "not been heard"], ranks, judge)
                self.assertIn("barrier", dump[judge])

    def test_a_killed_rank_under_a_launcher_that_goes_on(self):
        job = self.start("long wait", 3, 60, "--enable-recovery")
        self.assertEqual(job.process.stdout.readline(), "started\n")
        time.sleep(0.5)
        job.signal_rank(signal.SIGKILL, 1)
        since = time.monotonic()
        _, _, err = job.result(limit=60)  # the exit code is the killed rank's
        self.assertLess(time.monotonic() - since, TIMEOUT + SLACK, err)
        self.assertIn("rank 1 on", err)
        self.assertIn("has not been heard for", err)

    def test_a_suspended_job_goes_on(self):
        """Every rank is stopped, as a scheduler does, for longer than the timeout."""
        job = self.start("long wait", 3, 3)
        self.assertEqual(job.process.stdout.readline(), "started\n")
        time.sleep(0.5)
        for number, pause in ((signal.SIGSTOP, 2 * TIMEOUT), (signal.SIGCONT, 0)):
            for rank in range(3):
                job.signal_rank(number, rank)
            time.sleep(pause)
        code, _, err = job.result(limit=60)
        self.assertEqual(code, 0, err)


if __name__ == "__main__":
    unittest.main(verbosity=2)
