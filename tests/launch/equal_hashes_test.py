#!/usr/bin/env python3
"""The same job gives the same content hashes on any number of ranks and threads, in any layout."""
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from selfcal_case import SelfcalCase  # noqa: E402


class EqualHashes(SelfcalCase):
    def check(self, propagation, layouts):
        """Every layout, (ranks, settings), against one rank."""
        self.compress(f"{propagation}-1", method__propagation=propagation)
        expected = self.hashes(f"{propagation}-1")
        for number, (ranks, settings) in enumerate(layouts, 2):
            with self.subTest(propagation=propagation, ranks=ranks, **settings):
                output = f"{propagation}-{number}"
                self.compress(output, ranks, method__propagation=propagation, **settings)
                self.assertEqual(self.hashes(output), expected)

    def test_sequential(self):
        self.check("sequential", [
            (1, {"layout__mode": "shared"}),
            (1, {"threads": 3}),
            (2, {}),
            (2, {"layout__mode": "shared", "threads": 2}),
            (3, {}),
            (4, {}),
            (4, {"layout__mode": "shared"}),
            (4, {"layout__mode": "auto"}),
            (3, {"layout__compressors__shards": 2, "layout__compressors__team": 1}),
            (4, {"layout__mode": "shared", "layout__compressors__shards": 2, "layout__compressors__team": 2}),
        ])

    def test_dense(self):
        self.check("dense", [
            (2, {}),
            (3, {"layout__compressors__shards": 2, "layout__compressors__team": 1}),
            (4, {"layout__mode": "shared"}),
            (4, {"layout__mode": "shared", "layout__compressors__shards": 2, "layout__compressors__team": 2}),
        ])

    def test_generators_of_several_ranks(self):
        depth_2 = {"layout__generators__depth": 2}
        self.check("sequential", [
            (2, {"layout__mode": "shared", **depth_2}),
            (3, {"layout__mode": "split", **depth_2}),
            (3, {"layout__mode": "shared", "layout__generators__depth": 3}),
            (4, {"layout__mode": "shared", **depth_2}),
        ])
        self.check("dense", [
            (4, {"layout__mode": "split", "layout__compressors__shards": 2, "layout__compressors__team": 1, **depth_2}),
        ])

    def check_method(self, output, **settings):
        """A method at one to four ranks."""
        settings = {f"method__{key}": value for key, value in settings.items()}
        self.compress(f"{output}-1", **settings)
        expected = self.hashes(f"{output}-1")
        for ranks in (2, 3, 4):
            with self.subTest(method=output, ranks=ranks):
                self.compress(f"{output}-{ranks}", ranks, layout__mode="shared", **settings)
                self.assertEqual(self.hashes(f"{output}-{ranks}"), expected)

    def test_sparsegpt_pattern(self):
        self.check_method("pattern", name="sparsegpt", pattern="2:4", act_order="auto", bits="auto")

    def test_sparsegpt_threshold_over_all_rows(self):
        self.check_method("threshold", name="sparsegpt", sparsity=0.5, act_order="auto", bits="auto", block_size=16)

    def test_sparsity_and_quantisation_in_one_solve(self):
        self.check_method("joint", name="sparsegpt", pattern="2:4", act_order="auto", bits=4)
        self.check_method("joint-share", name="sparsegpt", sparsity=0.3, act_order="auto", bits=3)

    def test_wanda(self):
        self.check_method("wanda", name="wanda", sparsity=0.5, act_order="auto", bits="auto")

    def test_awq(self):
        self.check_method("awq", name="awq", symmetric="false", act_order="auto")
        self.check_method("awq-dense", name="awq", propagation="dense", act_order="auto", bits=3)

    def test_other_seed_gives_other_hashes(self):
        self.compress("seed-0", seed=0)
        self.compress("seed-1", seed=1)
        self.assertNotEqual(self.hashes("seed-0"), self.hashes("seed-1"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
