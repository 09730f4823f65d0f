#!/usr/bin/env python3
"""Ranks on three hosts (network namespaces joined by a bridge): the same hashes as on one, over the network; a link that is
cut ends the job with a clear error. Exit code 77, with the reason, where namespaces are not allowed."""
import json
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from selfcal_case import BINARY, Job, SelfcalCase  # noqa: E402
from virtual_hosts import VirtualHosts, reason_against  # noqa: E402

SKIPPED = 77
INPUT_OUTPUT = 74
TIMEOUT = 3
SLACK = 5


class SeveralHosts(SelfcalCase):
    def on_hosts(self, hosts, output, **values):
        words = ["compress", "config.yaml", *self.settings(output, layout__timeout=TIMEOUT, **values)]
        return Job(hosts.mpirun(3, BINARY, *words), self.folder)

    def test_same_hashes(self):
        for propagation, layout in [("sequential", {}), ("dense", {"layout__compressors__shards": 2})]:
            with self.subTest(propagation=propagation), VirtualHosts(3) as hosts:
                settings = {"method__propagation": propagation} | layout
                self.compress(f"{propagation}-one", 3, **settings)
                code, out, err = self.on_hosts(hosts, f"{propagation}-three", **settings).result(limit=60)
                self.assertEqual(code, 0, f"{out}\n{err}")
                self.assertEqual(self.hashes(f"{propagation}-three"), self.hashes(f"{propagation}-one"))
                for name in hosts.names:
                    self.assertGreater(hosts.bytes_received(name), 50_000, f"{name}: hardly any traffic on its link")

    def test_a_plan_counts_the_ranks_of_each_host(self):
        with VirtualHosts(3) as hosts:
            code, out, err = Job(hosts.mpirun(3, BINARY, "plan", "config.yaml", "--json", "--set", "threads=auto"), self.folder).result(limit=60)
            self.assertEqual(code, 0, err)
            planned = json.loads(out)["rates"]["threads"]
            code, _, err = self.on_hosts(hosts, "planned", threads="auto").result(limit=60)
            self.assertEqual(code, 0, err)
        report = json.loads((self.folder / "planned/jobs/default/report.json").read_text())
        for rank in report["ranks"]:
            self.assertEqual(planned, rank["threads"])

    def test_cut_link(self):
        for cut in ("h3", "h2"):
            with self.subTest(cut=cut), VirtualHosts(3) as hosts:
                output = f"cut-{cut}"
                # Long enough not to end before the cut.
                job = self.on_hosts(hosts, output, calibration__sequences=256, calibration__length=200)
                self.wait_for(lambda: (self.folder / output / "logs").is_dir(), job, "the run directory")
                time.sleep(1.5)
                hosts.cut(cut)
                since = time.monotonic()
                code, _, err = job.result(limit=60)
                self.assertLess(time.monotonic() - since, TIMEOUT + SLACK, err)
                self.assertEqual(code, INPUT_OUTPUT, err)
                errors = [line for line in err.splitlines() if line.startswith("selfcal: error:")]
                self.assertTrue(errors, err)
                self.assertIn(f"on {cut} has not been heard", errors[0])
                self.assertEqual(sum(line.startswith("selfcal: watchdog: rank ") for line in err.splitlines()), 3, err)


if __name__ == "__main__":
    reason = reason_against()
    if reason:
        print(f"skipped: no virtual hosts here: {reason}")
        sys.exit(SKIPPED)
    unittest.main(verbosity=2)
