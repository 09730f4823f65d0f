"""Runs of many jobs: a list that goes through most of what jobs can be, and what each of its jobs gives alone."""
import json

from selfcal_case import CONFIG, SelfcalCase

LAYERS = 6

COMMON = CONFIG.replace("layout: {mode: split}", "layout: {mode: shared}")

SEQUENTIAL = COMMON + """\
jobs:
  - {name: hot, calibration: {temperature: {initial: 1.5, final: 1.5}}}
  - {name: three, method: {bits: 3}}
  - {name: pruned, seed: 1, calibration: {sequences: 5}, method: {name: sparsegpt, pattern: 2:4, act_order: none}}
"""
ALONE = {
    "hot": {"calibration__temperature": "{initial: 1.5, final: 1.5}"},
    "three": {"method__bits": 3},
    "pruned": {"seed": 1, "calibration__sequences": 5, "method__name": "sparsegpt", "method__pattern": "2:4",
               "method__act_order": "none"}}


class JobsCase(SelfcalCase):
    """`jobs.yaml` is the list, `alone.yaml` has no job of its own; `expected`: the hashes of the list's jobs."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.write_configs(alone=COMMON, jobs=SEQUENTIAL)
        case = cls()
        for name, values in ALONE.items():
            case.run_config("alone.yaml", f"alone-{name}", name=name, **values)
        cls.expected = {name: value for hashes in case.job_hashes_of(*(f"alone-{name}" for name in ALONE))
                        for name, value in hashes.items()}

    @classmethod
    def write_configs(cls, **texts):
        for name, text in texts.items():
            (cls.folder / f"{name}.yaml").write_text(text)

    def setUp(self):
        super().setUp()
        self.awaited = {}

    def tearDown(self):
        found = self.job_hashes_of(*self.awaited) if self.awaited else []
        for (output, expected), hashes in zip(self.awaited.items(), found):
            with self.subTest(output=output):
                self.assertEqual(hashes, expected)
        super().tearDown()

    def expect_hashes(self, output, expected):
        """Checked when the test is over, all of its runs by one command."""
        self.awaited[output] = expected

    def run_config(self, config, output, ranks=None, **values):
        return self.succeed("compress", config, *self.settings(output, **values), ranks=ranks)

    def queue(self, output):
        entries = json.loads((self.folder / output / "queue.json").read_text())["jobs"]
        return {entry["name"]: entry for entry in entries}

    def states(self, output):
        return {name: entry["state"] for name, entry in self.queue(output).items()}

    def report(self, output, job):
        return json.loads((self.folder / output / "jobs" / job / "report.json").read_text())

    def events(self, output, name, rank=0):
        lines = (self.folder / output / "logs" / f"rank-{rank:04}.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == name]
