#!/usr/bin/env python3
"""Plans of published models from their config.json alone."""
import os
import re
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from selfcal_case import BINARY, REPOSITORY, SelfcalCase  # noqa: E402

# YAML, folder of the config.json, published number of parameters in billions.
MODELS = [("gemma-2b", "gemma-2b", 2.506), ("phi-2", "phi-2", 2.780), ("opt-6.7b", "opt-6.7b", 6.658),
          ("mistral-7b", "mistral-7b-v0.1", 7.242), ("llama-3.1-8b", "llama-3.1-8b", 8.030),
          ("llama-3.1-70b", "llama-3.1-70b", 70.554), ("llama-3.1-405b", "llama-3.1-405b", 405.853)]


class PublishedModels(SelfcalCase):
    def plan(self, name, folder, *more):
        return self.selfcal("plan", f"configs/{name}.yaml", "--set", f"model.path=configs/models/{folder}",
                            "--device", "h100", *more, folder=REPOSITORY)

    def test_parameters_are_those_published(self):
        for name, folder, billions in MODELS:
            with self.subTest(name):
                code, out, err = self.plan(name, folder, "--ranks", 8, "--set", "calibration.source=vocabulary",
                                           "--set", "calibration.tokens=null", "--set", "layout.memory=256GiB")
                self.assertEqual(code, 0, err)
                self.assertAlmostEqual(float(re.search(r"([\d.]+) G in all", out).group(1)), billions, delta=0.006)
                self.assertRegex(out, r"published peak rates of h100 \(not measured")

    def test_ready_configurations_fit_where_they_can(self):
        for name, folder, _ in MODELS[:5]:
            times = []
            for ranks in (1, 8, 64):
                code, out, err = self.plan(name, folder, "--ranks", ranks)
                self.assertEqual(code, 0, err)
                covered = [int(last or first) for first, last in re.findall(r"(?m)^(\d+)(?:-(\d+))? +0-\d+ .*es$", out)]
                self.assertEqual(covered[-1], ranks - 1, out)
                times.append(float(re.search(r"(?m)^  all +([\d.]+)  \(", out).group(1)))
            self.assertGreater(times[0], times[1])
            self.assertGreaterEqual(times[1], times[2])

    def test_what_does_not_fit_is_refused_with_what_would(self):
        one = ["--set", "layout.generators.depth=1"]
        code, _, err = self.plan("llama-3.1-70b", "llama-3.1-70b", "--ranks", 8, *one)
        self.assertEqual(code, 78)
        self.assertRegex(err, r"h100: rank 0 needs 14\d\.\d GiB, found 74\.5 GiB, while it samples; "
                              r"generators of depth 3 and a team of 1 would fit")
        code, out, err = self.plan("llama-3.1-70b", "llama-3.1-70b", "--ranks", 8)
        self.assertEqual(code, 0, err)
        self.assertIn("6 of 8 ranks generate (2 replicas of depth 3)", out)
        less = ["--set", "layout.memory=6GiB", "--set", "calibration.source=vocabulary"]
        code, _, err = self.plan("llama-3.1-8b", "llama-3.1-8b", "--ranks", 1, *less)
        self.assertEqual(code, 78, err)
        self.assertRegex(err, r"rank 0 needs .* while it (?:measures|factorises|solves); a team of \d+ would fit")
        team = int(re.search(r"a team of (\d+)", err).group(1))
        self.assertEqual(self.plan("llama-3.1-8b", "llama-3.1-8b", "--ranks", team, *less)[0], 0)
        self.assertEqual(self.plan("llama-3.1-8b", "llama-3.1-8b", "--ranks", team - 1, *less)[0], 78)

    def test_the_scaling_page_is_in_step(self):
        page = subprocess.run([REPOSITORY / "tools" / "scaling_page"], env=os.environ | {"SELFCAL_BINARY": str(BINARY)},
                              capture_output=True, text=True, timeout=100, check=True).stdout
        self.assertEqual(page, (REPOSITORY / "docs" / "scaling.md").read_text())

    def test_device_that_is_not_known(self):
        code, _, err = self.selfcal("plan", "config.yaml", "--device", "abacus")
        self.assertEqual(code, 64)
        self.assertIn("--device: found abacus, expected one of a100, h100, h200", err)


if __name__ == "__main__":
    unittest.main(verbosity=2)
