#!/usr/bin/env python3
"""The contract: a job gives the same content hashes in every layout, on any number of ranks and threads.

GPTQ with sequential propagation goes through all layouts on its own, with dense propagation through twelve. Every method
with both propagations goes through twelve, as jobs of one run, which must give what each gives alone on one rank. Settings
that change how rows, leaves and layers are dealt, and calibrations that leave ranks without work, meet some of them.
"""
import json
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from selfcal_case import CONFIG, SelfcalCase  # noqa: E402
from tiny_model import write_tiny_model  # noqa: E402


def layout(ranks, mode, replicas=None, depth=None, shards=None, team=None, threads=None):
    """(ranks, settings); what is None is the plan's choice."""
    values = {"layout__mode": mode, "layout__generators__replicas": replicas, "layout__generators__depth": depth,
              "layout__compressors__shards": shards, "layout__compressors__team": team, "threads": threads}
    return ranks, {key: value for key, value in values.items() if value is not None}


LAYOUTS = {
    "1 rank, 3 threads": layout(1, "shared", threads=3),
    "1 + 1": layout(2, "split"),
    "2 shared, 2 threads": layout(2, "shared", threads=2),
    "2 shared, depth 2": layout(2, "shared", depth=2),
    "1 + team 2": layout(3, "split", replicas=1, team=2),
    "2 + 1": layout(3, "split", replicas=2, team=1),
    "3 shared, 2 of them sample": layout(3, "shared", replicas=2),
    "1 of depth 2 + 1": layout(3, "split", depth=2),
    "3 shared, depth 3": layout(3, "shared", depth=3),
    "1 + 2 shards": layout(3, "split", shards=2, team=1),
    "3 shards": layout(3, "shared", shards=3, team=1),
    "3 + 1": layout(4, "split", replicas=3, team=1),
    "1 + team 3": layout(4, "split", replicas=1, team=3),
    "4 shared": layout(4, "shared"),
    "4 as planned": layout(4, "auto"),
    "2 replicas of depth 2": layout(4, "shared", replicas=2, depth=2),
    "1 + 3 shards": layout(4, "split", shards=3, team=1),
    "2 shards x team 2": layout(4, "shared", shards=2, team=2),
    "1 of depth 2 + 2 shards": layout(4, "split", depth=2, shards=2, team=1),
}
DENSE = ["1 + 1", "2 shared, 2 threads", "1 + team 2", "2 + 1", "3 shared, depth 3", "1 + 2 shards", "3 shards", "3 + 1",
         "1 + 3 shards", "2 shards x team 2", "1 of depth 2 + 2 shards", "4 as planned"]
PRUNER = {"method__act_order": "auto", "method__bits": "auto"}
OWL = {"method__sparsity": 0.5, "method__layer_sparsity": "owl", "method__owl__m": 3, "method__owl__lambda": 0.2}
# name: settings of the job; each with both propagations
METHODS = {"gptq": {},
           "sparsegpt-2of4": {**PRUNER, "method__name": "sparsegpt", "method__pattern": "2:4"},
           "sparsegpt-threshold": {**PRUNER, "method__name": "sparsegpt", "method__sparsity": 0.5, "method__block_size": 16},
           "awq": {"method__name": "awq", "method__symmetric": "false", "method__act_order": "auto"},
           "wanda": {**PRUNER, "method__name": "wanda", "method__sparsity": 0.5},
           "magnitude": {**PRUNER, "method__name": "magnitude", "method__sparsity": 0.5}}
METHODS = {f"{name}-{propagation}": {**settings, "method__propagation": propagation}
           for name, settings in METHODS.items() for propagation in ("sequential", "dense")}
METHOD_LAYOUTS = ["1 rank, 3 threads", "1 + 1", "1 + team 2", "2 + 1", "1 of depth 2 + 1",
                  "3 shared, 2 of them sample", "3 shards", "3 + 1", "4 shared",
                  "2 replicas of depth 2", "1 + 3 shards", "2 shards x team 2"]
# name: (settings of the job, layouts)
OTHER_JOBS = {
    "sparsegpt, pruned and quantised": (
        {**PRUNER, "method__name": "sparsegpt", "method__sparsity": 0.3, "method__bits": 3},
        ["1 rank, 3 threads", "2 shared, depth 2", "2 shards x team 2"]),
    "awq by module": ({"method__name": "awq", "method__scale_loss": "module", "method__bits": 3,
                       "overrides": "[{match: layers.2.mlp, method: gptq}]"}, ["1 + team 3", "2 shards x team 2"]),
    "sparsegpt, ordered and quantised": (
        {**PRUNER, "method__name": "sparsegpt", "method__pattern": "2:4", "method__bits": 4, "method__act_order": "static"},
        ["2 shared, 2 threads", "2 + 1"]),
    "sparsegpt, weighed by outliers": (
        {**PRUNER, **OWL, "method__name": "sparsegpt"}, ["1 rank, 3 threads", "1 + 3 shards", "4 as planned"]),
    "wanda, weighed by outliers, dense": (
        {**PRUNER, **OWL, "method__name": "wanda", "method__propagation": "dense"},
        ["3 shared, depth 3", "1 of depth 2 + 2 shards", "2 shards x team 2"]),
    "awq, per block, beside gptq": (
        {"method__name": "awq", "method__sequential": "per_block", "method__act_order": "auto",
         "overrides": "[{match: o_proj, method: gptq}]"}, ["2 shared, 2 threads", "4 shared"]),
    "gptq and sparsegpt, per block": (
        {"method__sequential": "per_block", "overrides": "[{match: k_proj, method: sparsegpt, sparsity: 0.5}]"},
        ["2 shared, 2 threads", "1 + team 3"]),
    "five sequences": ({"calibration__sequences": 5}, ["3 shared, 2 of them sample", "1 + team 2", "3 shards"]),
    "five sequences by threshold": (
        {**PRUNER, "method__name": "sparsegpt", "method__sparsity": 0.5, "calibration__sequences": 5},
        ["3 + 1", "1 + team 3"]),
    "five sequences of awq, dense": (
        {"method__name": "awq", "method__act_order": "auto", "method__propagation": "dense", "calibration__sequences": 5},
        ["1 + 2 shards"]),
    # More than two blocks of columns: the errors of a bfloat16 model go from block to block in whole numbers.
    "gptq, wide": ({"model__path": "wide", "method__group_size": 32}, ["2 shared, 2 threads", "1 + team 2", "2 shards x team 2"]),
    # So wide that a team finds the factor together.
    "gptq, a dealt factor": ({"model__path": "wider", "method__group_size": 32},
                             ["1 rank, 3 threads", "2 shared, 2 threads", "1 + team 3", "2 shards x team 2", "4 shared"]),
    "sparsegpt by threshold, wide": (
        {**PRUNER, "model__path": "wide", "method__name": "sparsegpt", "method__sparsity": 0.5}, ["2 + 1", "4 shared"]),
}


def as_job(name, settings):
    """An entry of `jobs`, YAML on one line: `a__b` sets b of a."""
    job = {"name": name}
    for key, value in settings.items():
        group, key = key.split("__")
        job.setdefault(group, {})[key] = value
    return json.dumps(job).replace('"', "")


class EqualHashes(SelfcalCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        write_tiny_model(cls.folder / "wide", hidden=160, intermediate=288, layers=3)
        write_tiny_model(cls.folder / "wider", intermediate=1056, layers=2)

    def check(self, job, settings, layouts):
        """A job in these layouts, against one rank."""
        folder = job.replace(" ", "-").replace(",", "").replace(":", "-")
        self.compress(f"{folder}-one", **settings)
        outputs = [f"{folder}-{number}" for number in range(len(layouts))]
        for output, name in zip(outputs, layouts):
            ranks, how = LAYOUTS[name]
            self.compress(output, ranks, **settings, **how)
        expected, *found = self.hashes_of(f"{folder}-one", *outputs)
        for name, hashes in zip(layouts, found):
            with self.subTest(job=job, layout=name):
                self.assertEqual(hashes, expected)

    def test_gptq_in_every_layout(self):
        self.check("gptq", {}, LAYOUTS)

    def test_dense_propagation(self):
        self.check("dense", {"method__propagation": "dense"}, DENSE)

    def test_every_method(self):
        for name, settings in METHODS.items():
            self.compress(f"alone-{name}", name=name, **settings)
        expected = {name: value for hashes in self.job_hashes_of(*(f"alone-{name}" for name in METHODS))
                    for name, value in hashes.items()}
        # Magnitudes need no calibration, and so no propagation.
        self.assertEqual(len(set(expected.values())), len(METHODS) - 1, "settings that make no difference")
        (self.folder / "jobs.yaml").write_text(CONFIG + "jobs:\n" + "".join(
            f"  - {as_job(name, settings)}\n" for name, settings in METHODS.items()))
        outputs = [f"methods-{number}" for number in range(len(METHOD_LAYOUTS))]
        for output, name in zip(outputs, METHOD_LAYOUTS):
            ranks, how = LAYOUTS[name]
            self.succeed("compress", "jobs.yaml", *self.settings(output, **how), ranks=ranks)
        for name, hashes in zip(METHOD_LAYOUTS, self.job_hashes_of(*outputs)):
            with self.subTest(layout=name):
                self.assertEqual(hashes, expected)

    def test_other_jobs(self):
        for job, (settings, layouts) in OTHER_JOBS.items():
            self.check(job, settings, layouts)

    def test_every_layout_is_met_twice(self):
        for name in LAYOUTS:
            met = 1 + (name in DENSE) + (name in METHOD_LAYOUTS) + sum(name in layouts for _, layouts in OTHER_JOBS.values())
            self.assertGreaterEqual(met, 2, name)

    def test_other_seed_gives_other_hashes(self):
        self.compress("seed-0", seed=0)
        self.compress("seed-1", seed=1)
        self.assertNotEqual(self.hashes("seed-0"), self.hashes("seed-1"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
