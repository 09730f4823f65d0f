#!/usr/bin/env python3
"""The plan: what it prints, and that a run keeps to the memory that it was given."""
import json
import re
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from selfcal_case import SelfcalCase  # noqa: E402
from tiny_model import write_tiny_model  # noqa: E402

# Enough sequences that the inputs of a stage, kept, take some MiB.
MANY = {"calibration__source": "vocabulary", "calibration__sequences": 64, "calibration__length": 256}


class PlanTest(SelfcalCase):
    def plan(self, *more, **values):
        return self.selfcal("plan", "config.yaml", *self.settings("run", **values), *more)

    def test_every_rank_is_there(self):
        code, out, err = self.plan("--ranks", 4)
        self.assertEqual(code, 0, err)
        self.assertIn("2 generators + 2 compressors", out)
        ranks = json.loads(self.plan("--ranks", 4, "--json")[1])["ranks"]
        self.assertEqual([rank["layers"] for rank in ranks], [6] * 4)
        for phase in ("sample", "forward", "statistics", "factorise", "solve", "write"):
            self.assertRegex(out, rf"(?m)^  {phase} +\d+\.\d$")
        self.assertFalse((self.folder / "run").exists(), "a plan makes nothing")

    def test_ranks_measure_the_network_between_them(self):
        code, out, err = self.selfcal("plan", "config.yaml", "--json", ranks=2)
        self.assertEqual(code, 0, err)
        plan = json.loads(out)  # one rank speaks
        self.assertEqual(len(plan["ranks"]), 2)
        taken = json.loads(self.plan("--ranks", 2, "--json")[1])["rates"]
        for rate in ("network", "latency"):
            self.assertGreater(plan["rates"][rate], 0)
            self.assertNotEqual(plan["rates"][rate], taken[rate], "taken, not measured")

    def test_too_few_ranks(self):
        code, _, err = self.plan("--ranks", 1, layout__compressors__shards=2)
        self.assertEqual(code, 78)
        self.assertIn("2 shards need 2 ranks, found 1", err)

    def test_a_limit_changes_the_way_but_not_the_bytes(self):
        code, _, err = self.plan(**MANY, layout__memory="1MiB")
        self.assertEqual(code, 78)
        least = int(re.search(r"rank 0 needs (\d+) MiB, found 1.0 MiB", err).group(1))
        limit = {"layout__memory": f"{least + 1}MiB"}
        code, out, err = self.plan(**MANY, **limit)
        self.assertEqual(code, 0, err)
        self.assertIn("computed again", out)
        self.assertNotIn("computed again", self.plan(**MANY)[1])

        self.compress("kept", **MANY)
        self.compress("recomputed", **MANY, **limit)
        self.assertEqual(self.hashes("recomputed"), self.hashes("kept"))

    def test_the_peak_is_as_planned(self):
        """With tensors that are several times the program itself; each rank's report has both. Many small leaves, whose
        gaps would take half as much again if they were not given back."""
        write_tiny_model(self.folder / "model-wide", hidden=256, intermediate=1024, layers=2)
        wide = {"model__path": "model-wide", "calibration__source": "vocabulary", "calibration__sequences": 320,
                "calibration__length": 256, "method__act_order": "none"}
        for ranks in (None, 2):
            with self.subTest(ranks=ranks):
                output = f"peak-{ranks}"
                self.compress(output, ranks, layout__mode="shared", **wide)
                report = json.loads((self.folder / output / "jobs/default/report.json").read_text())
                for rank in report["ranks"]:
                    measured, planned = rank["peak_memory"], rank["planned_memory"]
                    self.assertGreater(planned, 200 << 20)
                    self.assertTrue(0.85 < planned / measured < 1.25, f"rank {rank['rank']}: {planned}, found {measured}")

    def test_a_run_that_cannot_fit_does_not_start(self):
        for ranks in (None, 2):
            code, _, err = self.selfcal("compress", "config.yaml", *self.settings("small", layout__memory="50MiB"),
                                        ranks=ranks)
            self.assertEqual(code, 78)
            self.assertRegex(err, r"layout\.memory: rank \d needs \d+ MiB, found 50 MiB")
            self.assertFalse((self.folder / "small").exists())


if __name__ == "__main__":
    unittest.main(verbosity=2)
